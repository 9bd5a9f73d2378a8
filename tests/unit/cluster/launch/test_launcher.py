"""`launch.py` and `llada-sft` as a user calls them: what they print, write and refuse."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from llada_sft.cluster import journal
from llada_sft.cluster.launch import local
from llada_sft.config import load_config
from llada_sft.training.checkpoint.checksums import FileRecord
from llada_sft.training.checkpoint.manifest import sealed

FakeTool = Callable[[str, str], None]
ROOT = Path(__file__).parents[4]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def local_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Collect (nodes, world size) of local runs instead of starting them."""
    seen: list[tuple[int, int]] = []

    def run_local(run_dir: Path, config: object) -> int:
        config = load_config(run_dir / "config.yaml")
        seen.append((config.slurm.nodes, config.world_size))
        return 0

    monkeypatch.setattr(local, "run_local", run_local)
    return seen


def slurm(fake_tool: FakeTool, state: str = "COMPLETED") -> None:
    fake_tool("srun", "exit 1")
    fake_tool("sbatch", "echo Submitted batch job 42")
    fake_tool("scontrol", f"echo JobId=42 JobState={state}")


def files(project: Path) -> list[Path]:
    return sorted(path for path in project.rglob("*") if path.is_file())


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in files(folder)}


def test_a_mistake_is_a_message_and_exit_code_2(call: Call) -> None:
    assert call("--config", "a.yaml", "optim.lrr=1") == (
        2,
        "",
        "override 'optim.lrr=1': optim.lrr: unknown key; did you mean 'lr'?\n",
    )


@pytest.mark.usefixtures("no_slurm")
def test_a_machine_without_slurm_writes_nothing(call: Call, project: Path) -> None:
    before = files(project)
    assert call("--config", "a.yaml") == (
        2,
        "",
        "sbatch not found: this machine has no SLURM; use --local, or run on a login node\n",
    )
    assert files(project) == before


def test_the_config_is_printed_with_its_arithmetic(call: Call, project: Path) -> None:
    before = files(project)
    code, out, err = call("--config", "a.yaml", "--print-config", "train.epochs=20")
    assert (code, err, files(project)) == (0, "", before)
    (project / "printed.yaml").write_text(out)
    printed = load_config("printed.yaml")
    assert (printed.train.epochs, printed.model.path) == (20, f"{project}/model")
    assert out.splitlines()[-8:] == [
        "# records          raw, no known format (7 of the first 7 rows)",
        "# world size       2 = 1 nodes × 2 ranks",
        "# global batch     2 examples = 1 micro × 1 accumulated × 2 ranks",
        "# tokens per step  at most 8,192 = 2 × 4,096",
        "# a micro-batch    at most 4,096 tokens = 1 × 4,096",
        "# rows per epoch   7",
        "# steps per epoch  4, if each of the busiest rank's 4 rows makes one example",
        "# steps in all     80 = 20 epochs × 4",
    ]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("data.fields={prompt: a, response: b}", "raw, no known format (7 of the first 7 rows)"),
        ("data.format=alpaca", "alpaca (data.format)"),
        ("data.train=elsewhere", None),
        ("data.train=memory://none", None),
    ],
)
def test_what_the_records_are_is_printed_where_it_can_be_known(
    call: Call, override: str, line: str | None
) -> None:
    code, out, _ = call("--config", "a.yaml", "--print-config", override)
    lines = [one for one in out.splitlines() if one.startswith("# records ")]
    assert (code, lines) == (0, [] if line is None else [f"# records          {line}"])


@pytest.mark.usefixtures("no_slurm")
def test_a_dry_run_prints_the_batch_script_and_the_problems(call: Call, project: Path) -> None:
    (project / "hook.py").unlink()
    before = files(project)
    code, out, err = call("--config", "a.yaml", "--nodes", "3", "--dry-run", "slurm.time_min=7")
    assert (code, files(project)) == (2, before)
    assert {"#!/bin/bash", "#SBATCH --nodes=3", "#SBATCH --time=7"} <= set(out.splitlines())
    assert err.replace(f"{project}/", "").splitlines() == [
        "2 shards for 6 ranks in shards: use at most 2 ranks,"
        " or run  llada-sft shard shards shards_6 --num-shards 6",
        "hook.py: cannot be read: No such file or directory; set data.hook",
    ]


@pytest.mark.usefixtures("no_slurm")
def test_prepare_prints_the_run_directory_only(call: Call, project: Path) -> None:
    for _ in range(2):
        assert call("--config", "a.yaml", "--prepare") == (0, f"{project}/runs/a\n", "")
    assert (project / "runs/a/config.yaml").exists()


def test_preflight_stops_a_launch_before_it_writes(
    call: Call, project: Path, fake_tool: FakeTool
) -> None:
    slurm(fake_tool)
    before = files(project)
    code, _, err = call("--config", "a.yaml", "data.train=x", "model.path=y")
    assert (code, len(err.splitlines()), files(project)) == (2, 3, before)


def test_a_launch_says_how_to_go_on(call: Call, project: Path, fake_tool: FakeTool) -> None:
    slurm(fake_tool)
    code, out, err = call("--config", "a.yaml")
    run = project / "runs/a"
    assert (code, err) == (0, "")
    assert out.splitlines()[-5:] == [
        f"run directory {run}",
        "job           42",
        f"follow        llada-sft logs {run} --follow",
        f"stop          llada-sft cancel {run}",
        f"resume        llada-sft resume {run}",
    ]
    journal.append(run / "journal.jsonl", {"event": "started", "attempt": 1})
    code, out, _ = call("--config", "a.yaml")
    assert code == 0
    assert f"continuing    {run} from its last checkpoint, with its own copy of the code" in out


def test_after_a_submission_that_failed_the_next_launch_takes_the_present_files(
    call: Call, project: Path, fake_tool: FakeTool
) -> None:
    slurm(fake_tool)
    fake_tool("sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    code, _, err = call("--config", "a.yaml", "slurm.partition=x")
    assert code == 2
    assert "invalid partition" in err
    # What was wrong is fixed, and the hook, too.
    slurm(fake_tool)
    hook = "# fixed\ndef process_data(record, tokenizer, max_length): ...\n"
    (project / "hook.py").write_text(hook)
    code, out, err = call("--config", "a.yaml", "optim.lr=1", "run.seed=1")
    run = project / "runs/a"
    assert code == 0
    assert err == f"{run}: it had never started: built again from the present files\n"
    assert "continuing" not in out
    assert (run / "code/process_data.py").read_text() == hook
    config = load_config(run / "config.yaml")
    assert (config.run.seed, config.slurm.partition) == (1, None)
    # Now its job is in the queue: it is what was submitted.
    fake_tool("scontrol", "echo JobId=42 JobState=PENDING")
    code, _, err = call("--config", "a.yaml", "optim.lr=2", "run.seed=1", "--prepare")
    assert (code, "is trained by job 42, PENDING" in err) == (2, True)


def test_a_run_whose_job_is_in_the_queue_is_not_launched_again(
    call: Call, project: Path, fake_tool: FakeTool
) -> None:
    slurm(fake_tool, state="RUNNING")
    assert call("--config", "a.yaml")[0] == 0
    run = project / "runs/a"
    before = contents(run)
    for command in (
        ["--config", "a.yaml"],
        ["--config", "a.yaml", "--local"],
        ["resume", "runs/a"],
    ):
        code, out, err = call(*command)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"run {run} is trained by job 42, RUNNING since 20")
        assert err.endswith(": wait for it, or stop it with  scancel 42\n")
    assert call("--config", "a.yaml", "--prepare")[0] == 2
    assert contents(run) == before


def test_follow_shows_the_log_until_the_job_ends(
    call: Call, project: Path, fake_tool: FakeTool
) -> None:
    slurm(fake_tool, state="FAILED")
    log = f"{project}/runs/a/slurm/42_0_log.out"
    fake_tool("sbatch", f"echo hello > {log}; echo Submitted batch job 42")
    code, out, _ = call("--config", "a.yaml", "--follow")
    assert (code, out.splitlines()[-6:]) == (
        1,
        [
            "hello",
            "ended        SLURM calls job 42 FAILED (exit code 1)",
            "progress     no step yet",
            "checkpoint   none",
            f"details      llada-sft status {project}/runs/a, llada-sft logs {project}/runs/a",
            f"next         llada-sft resume {project}/runs/a",
        ],
    )
    assert call("logs", "runs/a") == (0, "hello\n", "")


@pytest.mark.parametrize(
    ("arguments", "world"), [([], (1, 2)), (["slurm.nodes=3"], (1, 2)), (["--nodes", "2"], (2, 2))]
)
def test_local_takes_one_node_unless_told(
    call: Call, local_runs: list[tuple[int, int]], arguments: Sequence[str], world: tuple[int, int]
) -> None:
    ranks = 2 // world[0]
    code, _, _ = call("--config", "a.yaml", "--local", f"slurm.ranks_per_node={ranks}", *arguments)
    assert (code, local_runs) == (0, [world])


def test_local_is_not_elastic(call: Call, project: Path, local_runs: list[tuple[int, int]]) -> None:
    call("--config", "a.yaml", "--local", "slurm.elastic=[3, 4]", "slurm.nodes=3")
    assert local_runs == [(1, 2)]


def test_what_an_elastic_job_got_is_not_its_batch(call: Call, project: Path) -> None:
    elastic = ["slurm.elastic=[1, 2]", "slurm.nodes=2", "slurm.ranks_per_node=1"]
    for nodes in ("1", "2"):
        assert call("--config", "a.yaml", "--prepare", "--nodes", nodes, *elastic)[0] == 0
        assert load_config(project / "runs/a/config.yaml").slurm.nodes == 2


def test_resume_takes_changes(call: Call, project: Path, local_runs: list[tuple[int, int]]) -> None:
    call("--config", "a.yaml", "--prepare")
    assert call("resume", "runs/a", "--local", "train.max_steps=9")[0] == 0
    assert load_config("runs/a/config.yaml").train.max_steps == 9
    copy = json.dumps(f"{project}/runs/a/code/process_data.py")
    other = json.dumps(f"{project}/x")
    assert call("resume", "runs/a", "--local", "run.name=b", "data.hook=x") == (
        2,
        "",
        'run.name: "a" -> "b": cannot change within a run: it is the name of the run directory;'
        " rename the directory\n"
        f"data.hook: {copy} -> {other}: cannot change within a run: the run has its own copy of the"
        " hook; llada-sft resume RUN --update-code data.hook=FILE\n",
    )


def test_resume_prints_the_arithmetic_as_launch_does(
    call: Call, project: Path, local_runs: list[tuple[int, int]]
) -> None:
    call("--config", "a.yaml", "--prepare")
    out = call("resume", "runs/a", "--local", "train.accumulate_grad_batches=3")[1]
    assert "train.accumulate_grad_batches: 1 -> 3" in out
    line = "global batch     6 examples = 1 micro × 3 accumulated × 2 ranks"
    assert line in out.splitlines()
    printed = call("--config", "a.yaml", "--print-config", "train.accumulate_grad_batches=3")[1]
    assert f"# {line}" in printed.splitlines()


@pytest.mark.parametrize("max_steps", [20, 9, 1])
def test_as_many_steps_as_are_made_are_nothing_to_do(
    call: Call, project: Path, local_runs: list[tuple[int, int]], max_steps: int
) -> None:
    call("--config", "a.yaml", "--prepare")
    run = project / "runs/a"
    for name in ("step_9", "step_20", "step_30.partial", "step_40.damaged"):
        (run / "checkpoints" / name).mkdir(parents=True)
    written = run / "checkpoints/step_20/latest"
    written.write_text("checkpoint")
    manifest = written.with_name("checkpoint.json")
    record = FileRecord.of(b"checkpoint")
    manifest.write_text(sealed({"step": 20, "world_size": 1}, {"latest": record}))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert call("resume", "runs/a", "--local", f"train.max_steps={max_steps}") == (
        0,
        f"train.max_steps: 20 steps are made, got {max_steps}: there is nothing to do;"
        " raise it to train further\n",
        "",
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert local_runs == []
    assert call("resume", "runs/a", "--local", "train.max_steps=21")[0] == 0
    assert len(local_runs) == 1
    # Steps that nobody can use are not made.
    written.write_text("checkpoinz")
    code, said, _ = call("resume", "runs/a", "--local", f"train.max_steps={max_steps}")
    assert (code, len(local_runs)) == (0, 2)
    line = f"{written}: is not what was written: the run resumes from the checkpoint before"
    assert line in said.splitlines()


@pytest.mark.parametrize("arguments", [["resume", "a", "--locl"], ["status", "a", "b=1"]])
def test_what_no_command_knows_is_refused(call: Call, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        call(*arguments)
    assert caught.value.code == 2


def test_status_and_cancel(call: Call, fake_tool: FakeTool) -> None:
    slurm(fake_tool)
    fake_tool("scancel", "exit 0")
    call("--config", "a.yaml")
    code, out, _ = call("status", "runs/a")
    assert (code, "job          42 COMPLETED" in out) == (0, True)
    assert call("cancel", "runs/a") == (
        0,
        f"cancelled job 42; to resume later:  llada-sft resume {Path.cwd()}/runs/a\n",
        "",
    )


@pytest.mark.usefixtures("no_slurm")
def test_a_dry_run_without_problems(call: Call) -> None:
    code, _, err = call("--config", "a.yaml", "--dry-run")
    assert (code, err) == (0, "")


@pytest.mark.parametrize("mode", ["--dry-run", "--prepare", "--local"])
def test_a_place_that_cannot_be_is_one_line(call: Call, project: Path, mode: str) -> None:
    before = files(project)
    code, _, err = call("--config", "a.yaml", mode, "run.root=hook.py/runs")
    assert (code, err, files(project)) == (
        2,
        f"run.root: {project}/hook.py: not a folder; set run.root to a folder that can be written"
        " to\n",
        before,
    )


def test_printed_commands_can_be_pasted_into_a_shell(
    call: Call, project: Path, fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tool("srun", "exit 1")
    fake_tool("sbatch", "echo Submitted batch job 42")
    fake_tool("scontrol", "echo JobId=42 JobState=FAILED ExitCode=1:0")
    fake_tool("scancel", "exit 0")
    fake_tool("llada-sft", 'echo "$2"')
    root = "a $HOME; b & (c)"
    code, out, err = call("--config", "a.yaml", "--follow", f"run.root='{root}'")
    assert (code, err) == (1, "")
    out += call("cancel", f"{root}/a")[1]
    commands = [line.partition("llada-sft")[2] for line in out.splitlines() if "llada-sft" in line]
    assert len(commands) == 6
    for command in commands:
        # Of "details" the first of two.
        shell = subprocess.run(
            ["sh", "-c", "llada-sft" + command.partition(", llada-sft")[0]],
            capture_output=True,
            text=True,
            check=True,
        )
        assert shell.stdout == f"{project}/{root}/a\n"


@pytest.mark.parametrize("options", [[], ["--follow"], ["--sweep", "optim.lr=1e-5,1e-4"]])
def test_a_reader_that_has_gone_does_not_stop_a_submission(
    project: Path, fake_tool: FakeTool, options: list[str]
) -> None:
    """`launch.py ... | head -1` submits, too."""
    slurm(fake_tool, "RUNNING")
    command = [sys.executable, str(ROOT / "launch.py"), "--config", "a.yaml", *options]
    with subprocess.Popen(
        command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as launcher:
        assert launcher.stdout is not None and launcher.stderr is not None
        launcher.stdout.close()
        assert (launcher.stderr.read(), launcher.wait(60)) == (b"", 0)
    journals = sorted((project / "runs").rglob("journal.jsonl"))
    assert len(journals) == (2 if "--sweep" in options else 1)
    for path in journals:
        assert journal.read(path)[-1]["job_id"] == "42"
