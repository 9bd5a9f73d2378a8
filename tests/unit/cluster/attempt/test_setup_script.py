"""setup.sh may do anything: the job's own script and `end` are as if it had not been there."""

import json
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llada_sft.cluster import journal
from llada_sft.cluster.attempt.setup_script import run_setup
from llada_sft.cluster.batch.directives import sbatch_text
from llada_sft.cluster.launch import prepare
from llada_sft.cluster.watch import status
from llada_sft.config import Config, load_config
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

FakeTool = Callable[[str, str], None]
JOB = {
    "SLURM_JOB_ID": "42",
    "SLURM_JOB_NODELIST": "node1",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURMD_NODENAME": "node1",
}
# What srun was started with, and what a rank would be given by it.
SRUN = """
import json, os, resource, signal, sys
with open({file!r}, "w") as file:
    json.dump({{"arguments": sys.argv[1:], "variables": dict(os.environ), "cwd": os.getcwd(),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "umask": os.umask(0),
        "ends_by_term": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL}}, file)
sys.exit(5)
"""


class Job:
    """The batch script of a run, on this machine, with a stand-in for srun."""

    def __init__(self, folder: Path, config: Config, run: RunDir) -> None:
        self.folder, self.config, self.run = folder, config, run
        self.seen = folder / "seen.json"

    def start(self, setup: str | None, **variables: str) -> subprocess.CompletedProcess[str]:
        if setup is None:
            self.run.setup.unlink()
        else:
            self.run.setup.write_text(setup)
        script = self.folder / "job.sh"
        script.write_text(sbatch_text(self.config, self.run))
        return subprocess.run(
            ["bash", str(script)],
            cwd=self.folder,
            env={**os.environ, **JOB, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def srun(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.seen.read_text())
        return found


@pytest.fixture
def job(project: Path, tmp_path: Path, fake_tool: FakeTool) -> Job:
    run, _ = prepare.create(load_config("a.yaml"), project, ["launch.py"])
    job = Job(tmp_path, load_config(run.config), run)
    (tmp_path / "srun.py").write_text(SRUN.format(file=str(job.seen)))
    fake_tool("srun", f'exec {sys.executable} {shlex.quote(str(tmp_path))}/srun.py "$@"')
    fake_tool("scontrol", "echo JobState=RUNNING Restarts=0")
    fake_tool("sinfo", "true")
    return job


def ended(run: RunDir) -> list[tuple[str | None, int | None]]:
    return [
        (e.get("cause"), e.get("exit_code"))
        for e in journal.read(run.journal)
        if e["event"] == "ended"
    ]


BEFORE = "export BEFORE=yes\n"
# A line of its own where it may end the file.
ANYTHING = [
    "set -euo pipefail; set -fxCa; export SHELLOPTS",
    "set -e; set -o posix",
    "set -E -T; trap 'exit 3' EXIT TERM; trap 'echo no' ERR DEBUG RETURN",
    "trap '' TERM USR2 INT; umask 077; sleep 1000 > /dev/null & disown; export HELD=$!",
    "shopt -s nullglob failglob nocasematch expand_aliases lastpipe; cd /",
    "return",
    "return 3",
    "false",
    "python() { false; }; srun() { false; }; exec() { false; }; set() { false; }; eval() { :; }\n"
    "source() { false; }; exit() { false; }; trap() { :; }; type() { :; }; export -f python srun\n"
    "export() { false; }; shopt -s expand_aliases; alias srun=false exec=false eval=false",
    "IFS=x; export IFS PATH=/nowhere; set -- a b c; shift",
    "exec > /dev/null 2>&1",
    "exec >&- 2>&- <&-",
    "unset PYTHONPATH MASTER_ADDR MASTER_PORT PYTHONSAFEPATH ${!SLURM_@}",
    "export PYTHONPATH=/mine MASTER_ADDR=x MASTER_PORT=y PYTHONSAFEPATH= POSIXLY_CORRECT=1\n"
    "export SLURM_JOB_ID=1 SLURM_JOB_NUM_NODES=9 SLURM_RESTART_COUNT=9 SLURM_EXPORT_ENV=NONE",
    "export status=7 run_dir=/x python=/x environment=/x ranks_per_node=9 cpus_per_rank=9\n"
    "readonly status run_dir python environment; export BASH_ENV=/nowhere ENV=/nowhere PS4=x",
]


@pytest.mark.parametrize("line", ANYTHING)
def test_whatever_it_does_the_ranks_start_and_the_end_is_judged(job: Job, line: str) -> None:
    done = job.start(f"{BEFORE}{line}\n", PYTHONPATH="/outside")
    srun = job.srun()
    variables = srun["variables"]
    assert variables["BEFORE"] == "yes"
    assert variables["PYTHONPATH"].split(":")[0] == str(job.run.code)
    assert variables["MASTER_ADDR"] == "node1"
    assert variables["MASTER_PORT"].isdecimal()
    assert variables["PYTHONSAFEPATH"] == "1"
    assert srun["cwd"] == str(job.folder)
    assert srun["ends_by_term"]
    assert srun["arguments"][:3] == ["--jobid=42", "--nodes=1", "--ntasks=2"]
    rank = [sys.executable, "-u", "-m", "llada_sft.cluster", "rank", str(job.run.path)]
    assert srun["arguments"][-6:] == rank
    # `end` was called with srun's exit code, and saw the job.
    assert ended(job.run) == [("lost", 1)]
    assert "srun's exit code is 5" in journal.read(job.run.journal)[-1]["detail"]
    assert done.returncode == 1
    if held := variables.get("HELD"):
        os.kill(int(held), 9)


def test_one_that_ends_the_shell_is_the_cause_with_its_output(job: Job) -> None:
    done = job.start("echo no such module\nexit 3\nexport AFTER=1\n")
    assert done.returncode == 2
    assert not job.seen.exists()
    events = [entry["event"] for entry in journal.read(job.run.journal)]
    assert events == ["started", "failed", "ended"]
    assert ended(job.run) == [("mistake", 2)]
    error = (
        f"{job.run.setup}: ended the shell that sourced it, with exit code 3: no such module;"
        " fix the file of slurm.setup and launch the same config again"
    )
    assert journal.read(job.run.journal)[-2]["error"] == error
    assert status.failure_lines(job.run) == [error]
    # In the job's log as well.
    assert f"the attempt ended: mistake: {error}" in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("echo one; echo two >&2; exit 3", "with exit code 3: one | two;"),
        ("exit 0", "with exit code 0: without output;"),
        ("set -e; echo before; false; export AFTER=1", "with exit code 1: before;"),
        ("set -e\nls /nowhere", "with exit code 2: ls: cannot access '/nowhere'"),
        ("set -u; echo $NOT_SET", "NOT_SET: unbound variable"),
        ("trap 'exit 4' ERR; false", "with exit code 4: without output;"),
        ("exec true", "with exit code 0: without output;"),
        ("kill -9 $$", "with signal 9: without output;"),
        ("set -n", "with exit code 0: without output;"),
        ('echo "$MY_TOKEN"; exit 3', "with exit code 3: ***;"),
        ("export A=1\nif\n", "syntax error"),
    ],
)
def test_whatever_ends_the_shell(
    job: Job, line: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "verysecret")
    job.run.setup.write_text(f"{line}\n")
    with pytest.raises(LaunchError) as caught:
        run_setup(job.run, job.run.setup_log("42", 0))
    (error,) = str(caught.value).splitlines()
    assert error.startswith(f"{job.run.setup}: ")
    assert said in error


def test_a_last_command_that_fails_is_only_mentioned(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    job.run.setup.write_text("false\n")
    assert run_setup(job.run, job.run.setup_log("42", 0))
    said = f"{job.run.setup}: its last command gave exit code 1\n"
    assert capsys.readouterr().err == said


def test_one_that_is_missing(job: Job) -> None:
    assert job.start(None).returncode == 2
    assert ended(job.run) == [("mistake", 2)]
    assert status.failure_lines(job.run) == [
        f"{job.run.setup}: no such file, but slurm.setup is set; launch the same config again,"
        " which copies the file, or set slurm.setup=null"
    ]


def test_none_is_sourced_where_the_config_has_none(job: Job) -> None:
    config = job.config.model_copy(
        update={"slurm": job.config.slurm.model_copy(update={"setup": None})}
    )
    prepare.replace_config(job.run, config)
    job.start("export FROM_SETUP=1; exit 3")
    assert "FROM_SETUP" not in job.srun()["variables"]


def test_what_it_exports_reaches_the_ranks(job: Job) -> None:
    job.start(
        "export LINES=$'a\\nb' QUOTES=\"it's \\\"$HOME\\\" \\$x\" EMPTY= UTF=ä\n"
        "unset GONE; LOCAL=1; export PATH=/mine:$PATH PYTHONPATH=/libs:$PYTHONPATH\n"
        "export LD_LIBRARY_PATH=/lib/mine NCCL_DEBUG=INFO BYTES=$'\\xff'\n"
        "module() { export LOADED=\"$2\"; }; module load cuda; export -f module\n"
        "umask 027; ulimit -Sn 200\n",
        GONE="1",
        PYTHONPATH="/outside",
        HOME="/home/me",
    )  # fmt: skip
    srun = job.srun()
    found = srun["variables"]
    assert found["LINES"] == "a\nb"
    assert found["QUOTES"] == 'it\'s "/home/me" $x'
    assert (found["EMPTY"], found["UTF"], found["LOADED"]) == ("", "ä", "cuda")
    assert found["BYTES"] == "\udcff"
    assert not {"GONE", "LOCAL"} & found.keys()
    assert found["PATH"].startswith("/mine:")
    assert found["PYTHONPATH"] == f"{job.run.code}:/libs:/outside"
    assert (srun["umask"], srun["open_files"]) == (0o027, 200)


def test_what_is_said_is_in_the_log_and_in_no_other_place(job: Job) -> None:
    done = job.start("echo loading; echo 'export X=1; exit 9'")
    assert "loading\nexport X=1; exit 9\n" in done.stderr
    assert "X" not in job.srun()["variables"]
    assert job.run.setup_log("42", 0).read_text() == "loading\nexport X=1; exit 9\n"


def test_it_leaves_no_log_when_it_says_nothing(job: Job) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    log = job.run.setup_log("42", 0)
    job.run.setup.write_text("export A=1\n")
    lines = run_setup(job.run, log).splitlines()
    assert [line for line in lines if "PYTHONPATH" not in line] == ["export A=1"]
    assert not log.exists()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits


def test_a_log_that_cannot_be_written_is_one_line(job: Job) -> None:
    log = job.run.setup_log("42", 0)
    log.mkdir()
    with pytest.raises(LaunchError) as caught:
        run_setup(job.run, log)
    assert str(caught.value) == f"{log}: cannot be written: Is a directory"


def test_a_signal_while_it_runs_does_not_keep_the_job_from_its_end(job: Job) -> None:
    """TERM goes to all processes of the batch step, also to the shell that reads what is said."""
    script = "kill -TERM $(ps -o ppid= -p $PPID) $PPID $$\nexport AFTER=1\n"
    done = job.start(script, SHELLOPTS="braceexpand:errexit:nounset")
    assert job.srun()["variables"]["AFTER"] == "1"
    assert (done.returncode, ended(job.run)) == (1, [("lost", 1)])
