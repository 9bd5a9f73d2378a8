"""The sbatch text: what it must say, that it is what is submitted, and that nothing escapes it."""

import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.cluster import slurm
from llada_sft.cluster.batch.batch_script import BODY
from llada_sft.cluster.batch.directives import sbatch_text
from llada_sft.cluster.batch.refused import check_extra
from llada_sft.cluster.batch.submit import require_sbatch, submit
from llada_sft.cluster.launch import prepare
from llada_sft.config import Config, load_config
from llada_sft.errors import ConfigError, LaunchError
from llada_sft.run_dir import RunDir

FakeTool = Callable[[str, str], None]
ROOT = Path(__file__).parents[4]
GOLDEN = ROOT / "tests/golden/zero3.sbatch"
TRAIN_SBATCH = ROOT / "slurm/train.sbatch"
PYTHON = "/shared/env/bin/python"
JOB = {"SLURM_JOB_ID": "42", "SLURM_JOB_NUM_NODES": "4"}


def text_of(*overrides: str) -> str:
    config = load_config(ROOT / "config/zero3.yaml", overrides)
    return sbatch_text(config, RunDir(Path("/shared/runs/llada-8b-sft")), PYTHON)


def test_the_text_of_zero3_is_the_golden_one() -> None:
    assert text_of() == GOLDEN.read_text()


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("slurm.mem_gb_per_node=512", "#SBATCH --mem=512G"),
        ("slurm.partition=gpu,low", "#SBATCH --partition=gpu,low"),
        ("slurm.account=me", "#SBATCH --account=me"),
        ("slurm.qos=long", "#SBATCH --qos=long"),
        ("slurm.constraint='h100&ib'", "#SBATCH --constraint='h100&ib'"),
        ("slurm.exclude=node[1-3]", "#SBATCH --exclude='node[1-3]'"),
        ("slurm.signal_lead_s=77", "#SBATCH --signal=USR2@77"),
        ("slurm.gpus_per_node=4", "#SBATCH --gpus-per-node=4"),
        ("slurm.extra={reservation: week42}", "#SBATCH --reservation=week42"),
        ("slurm.extra={nice: 5}", "#SBATCH --nice=5"),
        ("slurm.nodes=3", "#SBATCH --nodes=3"),
        ("run.name=b", "#SBATCH --job-name=b"),
    ],
)
def test_a_key_becomes_an_option(override: str, line: str) -> None:
    assert line in text_of(override).splitlines()


def test_an_elastic_job_asks_for_a_range_of_nodes() -> None:
    elastic = ["slurm.elastic=[1, 4]", "train.accumulate_grad_batches=12"]
    changed = set(text_of(*elastic).splitlines()) ^ set(text_of().splitlines())
    # --ntasks-per-node would hold a requeued job to the nodes that it had first.
    assert changed == {
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --nodes=1-4",
        "#SBATCH --mincpus=64",
    }


@pytest.mark.parametrize("override", ["slurm.gpus_per_node=0", "train.accelerator=cpu"])
def test_without_gpus_none_are_asked_for(override: str) -> None:
    assert "gpus" not in text_of(override)


def test_options_of_the_launcher_are_not_for_extra() -> None:
    config = load_config(ROOT / "config/zero3.yaml", ["slurm.extra={nodes: 2, signal: x, nice: 1}"])
    with pytest.raises(ConfigError) as caught:
        check_extra(config)
    assert str(caught.value).splitlines() == [
        f"slurm.extra.{option}: is set by the launcher; use the key of its own in slurm,"
        " or remove it"
        for option in ("nodes", "signal")
    ]


def test_an_expedited_requeue_is_refused(project: Path) -> None:
    """SLURM 25.11 turns the exit code of a failed attempt into REQUEUE_HOLD then."""
    config = load_config("a.yaml", ["slurm.extra={requeue: expedite}"])
    with pytest.raises(ConfigError) as caught:
        check_extra(config)
    assert str(caught.value) == (
        "slurm.extra.requeue: is set by the launcher, and never to 'expedite', which holds a job"
        " after an attempt that failed; remove it"
    )
    text = sbatch_text(load_config("a.yaml"), RunDir(project / "runs/a"))
    assert "#SBATCH --requeue\n" in text


def test_an_array_of_jobs_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        check_extra(load_config(ROOT / "config/zero3.yaml", ["slurm.extra={array: 0-1}"]))
    assert str(caught.value) == (
        "slurm.extra.array: starts several jobs that would write into one run directory:"
        " remove it, and launch one run for each, with another run.name"
    )


def test_no_path_reaches_the_shell_unquoted(tmp_path: Path, fake_tool: FakeTool) -> None:
    run = RunDir(tmp_path / "a b; touch pwned $(touch pwned) `touch pwned`")
    run.code.mkdir(parents=True)
    run.slurm.mkdir()
    python = tmp_path / "such; python"
    # What `begin` prints is evaluated: for the ranks.
    python.write_text("""#!/bin/sh\n[ "$3" != begin ] || echo "export FROM_SETUP=yes"\n""")
    python.chmod(0o755)
    script = sbatch_text(load_config(ROOT / "config/zero3.yaml"), run, str(python))
    fake_tool("srun", 'printf "%s\\n" "$@" "$FROM_SETUP" "$PYTHONPATH"')
    output = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, **JOB, "SLURM_RESTART_COUNT": "3"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert output[-3:-1] == [str(run.path), "yes"]
    assert output[-1].split(":")[0] == str(run.code)
    assert str(python) in output
    assert f"--output={run.slurm}/%j_%t_log.out" in output
    assert output[:4] == ["--jobid=42", "--nodes=4", "--ntasks=32", "--ntasks-per-node=8"]
    assert list(run.slurm.iterdir()) == [run.srun_log("42", 3)]
    assert not list(tmp_path.rglob("pwned"))


def test_the_batch_script_meets_at_a_free_port_of_its_own_host(
    tmp_path: Path, fake_tool: FakeTool
) -> None:
    run = RunDir(tmp_path)
    config = load_config(ROOT / "config/zero3.yaml", ["slurm.setup=null"])
    run.slurm.mkdir()
    # Stands in for `begin` and `end`; what finds the port is ours.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$3" != port ] || exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    script = sbatch_text(config, run, str(python))
    fake_tool("srun", 'echo "$MASTER_ADDR" "$MASTER_PORT" "$PYTHONSAFEPATH"')
    address, port, safe = subprocess.run(
        ["bash", "-c", script],
        env={**JOB, "SLURMD_NODENAME": "node7", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert (address, safe) == ("node7", "1")
    assert 1024 < int(port) < 65536


@pytest.mark.parametrize(
    ("begins", "ends", "code", "said"),
    [
        (0, 0, 0, "begin\nsrun\nend 9\n"),
        (0, 71, 71, "begin\nsrun\nend 9\n"),
        (70, 0, 70, "begin\n"),
    ],
)
def test_the_ranks_are_between_begin_and_end(
    tmp_path: Path, fake_tool: FakeTool, begins: int, ends: int, code: int, said: str
) -> None:
    run = RunDir(tmp_path)
    run.slurm.mkdir()
    python, said_in = tmp_path / "python", tmp_path / "said"
    python.write_text(f"""#!/bin/sh
case $3 in
  begin) echo begin >> {said_in}; exit {begins};;
  end) kill -TERM $PPID; echo end $5 >> {said_in}; exit {ends};;
esac
""")
    python.chmod(0o755)
    # TERM before and after srun's end does not keep the script from its own.
    fake_tool("srun", f"kill -TERM $PPID; echo srun >> {said_in}; exit 9")
    config = load_config(ROOT / "config/demo.yaml", ["slurm.setup=null"])
    script = tmp_path / "job.sh"
    script.write_text(sbatch_text(config, run, str(python)))
    done = subprocess.run(["bash", str(script)], env={**os.environ, **JOB}, check=False)
    assert (done.returncode, said_in.read_text()) == (code, said)


def prepared(project: Path) -> tuple[Config, RunDir]:
    run, _ = prepare.create(load_config(project / "a.yaml"), project, ["python", "launch.py"])
    return load_config(run.config), run


def test_what_is_submitted_is_what_the_dry_run_says(project: Path, fake_tool: FakeTool) -> None:
    config, run = prepared(project)
    fake_tool("srun", "exit 1")
    fake_tool("sbatch", f'cp "$1" {shlex.quote(str(project))}/seen; echo Submitted batch job 42')
    assert submit(config, run) == "42"
    assert (project / "seen").read_text() == sbatch_text(config, run) == run.sbatch.read_text()


def test_nothing_is_pickled(project: Path, fake_tool: FakeTool) -> None:
    """What a rank runs is a command: no file that somebody else could have written is loaded."""
    config, run = prepared(project)
    fake_tool("srun", "exit 1")
    fake_tool("sbatch", "echo Submitted batch job 42")
    submit(config, run)
    assert not list(run.path.rglob("*.pkl"))
    assert "submitit." not in run.sbatch.read_text()
    rank = '"${rank_python[@]}" -u -m llada_sft.cluster rank "$run_dir"'
    assert rank in run.sbatch.read_text()


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("{parsable: 1, wait: 1}", "slurm.extra.parsable: is set by the launcher"),
        ("{arr: 0-1}", "slurm.extra.arr: short for array, which starts several jobs that would"),
        ("{requ: expedite}", "slurm.extra.requ: short for requeue, which is set by the launcher"),
        ("{clusters: b}", "slurm.extra.clusters: is ignored by the commands that look for"),
        ("{export: NONE}", "slurm.extra.export: must start with ALL, got 'NONE': the ranks run"),
        ("{export: 'PATH,HOME'}", "slurm.extra.export: must start with ALL, got 'PATH,HOME'"),
    ],
)
def test_extra_options_that_would_break_the_job(extra: str, said: str) -> None:
    config = load_config(ROOT / "config/zero3.yaml", [f"slurm.extra={extra}"])
    with pytest.raises(ConfigError) as caught:
        check_extra(config)
    assert str(caught.value).startswith(said)


def test_extra_may_add_variables_to_those_of_the_shell() -> None:
    config = load_config(ROOT / "config/zero3.yaml", ["slurm.extra={export: 'ALL,A=1', gpus: 2}"])
    check_extra(config)
    assert "#SBATCH --export=ALL,A=1" in sbatch_text(config, RunDir(Path("/runs/a")), PYTHON)


def test_an_sbatch_that_says_no_number(project: Path, fake_tool: FakeTool) -> None:
    config, run = prepared(project)
    fake_tool("srun", "exit 1")
    fake_tool("sbatch", "echo welcome")
    line = r"^sbatch did not say the job's number: .*welcome.*: look for the job with  squeue --me$"
    with pytest.raises(LaunchError, match=line):
        submit(config, run)


def test_a_refusal_of_sbatch_is_one_line(project: Path, fake_tool: FakeTool) -> None:
    config, run = prepared(project)
    fake_tool("srun", "exit 1")
    fake_tool("sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    with pytest.raises(LaunchError) as caught:
        submit(config, run)
    assert str(caught.value) == "sbatch refused the job: sbatch: error: invalid partition"


def test_an_sbatch_that_does_not_answer(project: Path, fake_tool: FakeTool, tmp_path: Path) -> None:
    config, run = prepared(project)
    fake_tool("srun", "exit 1")
    fake_tool("sbatch", "exec sleep 300")
    with slurm.patience(1.5), pytest.raises(LaunchError) as caught:
        submit(config, run)
    assert str(caught.value) == (
        "sbatch: no answer in 2 s: it may have submitted the job or not; look with"
        "  squeue --me --name=a  and try again"
    )


def test_a_shell_whose_encoding_cannot_hold_the_script(project: Path, fake_tool: FakeTool) -> None:
    fake_tool("srun", "exit 1")
    fake_tool("sbatch", "echo Submitted batch job 42")
    command = [sys.executable, str(ROOT / "launch.py"), "--config", "a.yaml"]
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [*command, r'slurm.extra.comment="\u00e4"'],
        env={**os.environ, **ascii_only},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "the batch script cannot be written as ascii: set LC_ALL=C.UTF-8\n"


@pytest.mark.usefixtures("no_slurm")
def test_a_machine_without_slurm() -> None:
    with pytest.raises(LaunchError) as caught:
        require_sbatch()
    assert str(caught.value) == (
        "sbatch not found: this machine has no SLURM; use --local, or run on a login node"
    )


def test_submitits_private_functions_are_where_we_think() -> None:
    from submitit.core.core import PicklingExecutor
    from submitit.slurm.slurm import SlurmExecutor

    assert SlurmExecutor._submit_command is PicklingExecutor._submit_command
    assert list(inspect.signature(SlurmExecutor._submit_command).parameters) == ["self", "command"]
    source = inspect.getsource(PicklingExecutor._submit_command)
    assert "f.write(self._make_submission_file_text(command, tmp_uuid))" in source
    assert "self._make_submission_command(submission_file_path)" in source


def test_both_batch_scripts_agree_on_every_line_that_they_share() -> None:
    by_hand, rendered = TRAIN_SBATCH.read_text(), text_of()
    assert by_hand.endswith(BODY)
    assert rendered.endswith(BODY)
    # What the body takes from the lines before it is said by both.
    names = set(re.findall(r"\$\{?([a-z_]+)\b", BODY)) - {"status", "environment"}
    for script in (by_hand, rendered):
        head = script[: script.index(BODY.strip("\n"))]
        assert {name for name in names if re.search(rf"^{name}=", head, re.MULTILINE)} == names


def test_batch_scripts_know_nothing_of_the_package_but_the_door() -> None:
    # What launch.py writes into the script, train.sbatch asks the run's code for.
    for script, more in ((TRAIN_SBATCH.read_text(), {"step"}), (text_of(), set())):
        called = re.findall(r"-m (\S+) (\S+)", "\n".join(without_comments(script)))
        actions = {action.rstrip(")") for _, action in called}
        assert actions == {"begin", "end", "port", "rank", *more}
        assert {module for module, _ in called} == {"llada_sft.cluster"}


def without_comments(script: str) -> list[str]:
    return [line for line in script.splitlines() if not line.lstrip().startswith("#")]
