"""Ranks on this machine, with a stand-in for the program of a rank."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llada_sft.cluster import failures, journal
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.failures import Failure
from llada_sft.cluster.launch.local import run_local
from llada_sft.config import Config, load_config
from llada_sft.run_dir import RunDir

PREAMBLE = "import os, sys, time, pathlib; rank = int(os.environ['RANK']); "


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def command(script: str) -> list[str]:
    return [sys.executable, "-u", "-c", PREAMBLE + script]


@pytest.fixture
def config(project: Path) -> Config:
    return load_config("a.yaml", ["slurm.nodes=2"])


def test_each_rank_knows_its_place(
    tmp_path: Path,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SLURM_PROCID", "5")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    names = "RANK WORLD_SIZE NODE_RANK LOCAL_RANK MASTER_ADDR SLURM_PROCID PYTHONSAFEPATH"
    script = f"print(*map(os.environ.get, {names.split()}), os.environ['PYTHONPATH'], sys.argv[1])"
    assert run_local(tmp_path, config, command(script)) == 0
    run = RunDir(tmp_path)
    code = f"{run.code}:/elsewhere"
    for rank in range(4):
        assert run.rank_log(rank).read_text() == (
            f"{rank} 4 {rank // 2} {rank % 2} 127.0.0.1 None 1 {code} {tmp_path}\n"
        )
    assert capfd.readouterr().out == run.rank_log(0).read_text()


def test_ranks_meet_at_one_port(tmp_path: Path, config: Config) -> None:
    assert run_local(tmp_path, config, command("print(int(os.environ['MASTER_PORT']))")) == 0
    assert len({RunDir(tmp_path).rank_log(rank).read_text() for rank in range(4)}) == 1


def test_a_rank_that_dies_takes_the_others_with_it(
    tmp_path: Path, config: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    begin = time.monotonic()
    script = "print('line of', rank); time.sleep(0 if rank == 2 else 60); sys.exit(3)"
    assert run_local(tmp_path, config, command(script)) == 1
    assert time.monotonic() - begin < 20
    log = RunDir(tmp_path).rank_log(2)
    assert capfd.readouterr().err == f"rank 2 failed; its log {log} ends:\nline of 2\n"


FAILING = """
from llada_sft.cluster.rank.abort import Leaving; from llada_sft.run_dir import RunDir
Leaving(RunDir(pathlib.Path(sys.argv[1])), int(rank)).abort(ValueError('a'))
"""


@pytest.mark.parametrize(
    ("script", "cause", "rank", "code"),
    [
        ("os.kill(os.getpid(), 9)", "killed", 1, 1),
        ("sys.exit(3)", "lost", 1, 1),
        (f"exec({FAILING!r})", "exception", 1, 1),
        ("", "finished", None, 0),
    ],
)
def test_the_journal_says_how_it_ended(
    tmp_path: Path, config: Config, script: str, cause: str, rank: int | None, code: int
) -> None:
    failing = f"if rank == 1: {script or 'pass'}\nelif {bool(script)}: time.sleep(60)"
    for attempt in (1, 2):
        assert run_local(tmp_path, config, command(f"exec({failing!r})")) == code
        entries = journal.read(RunDir(tmp_path).journal)[-2 if rank is None else -3 :]
        assert {entry["attempt"] for entry in entries} == {attempt}
        events = ["started", *(["failed"] if rank is not None else []), "ended"]
        assert [entry["event"] for entry in entries] == events
        assert (entries[-1]["cause"], entries[-2].get("rank")) == (cause, rank)


def wait_for_end(pid: int) -> None:
    """Wait for a process that was sent KILL: on a busy machine it may be on its way out."""
    deadline = time.monotonic() + 60
    while is_alive(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"process {pid} was left behind")
        time.sleep(0.05)


def test_a_rank_that_ignores_term_is_killed_with_its_children(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llada_sft.cluster.launch.local.GRACE_S", 0.5)
    ready = tmp_path / "pid"
    script = f"""
import signal, subprocess
if rank == 1:
    while not pathlib.Path({str(ready)!r}).exists(): time.sleep(0.01)
    sys.exit(1)
if rank == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "600"])
    pathlib.Path({str(tmp_path / "beside")!r}).write_text(str(child.pid))
    os.rename({str(tmp_path / "beside")!r}, {str(ready)!r})
time.sleep(600)
"""
    script = f"exec({script!r})"
    assert run_local(tmp_path, config, command(script)) == 1
    wait_for_end(int(ready.read_text()))


def test_what_ranks_leave_behind_when_they_end_on_term_is_killed(
    tmp_path: Path, config: Config
) -> None:
    """A data worker that ignores TERM outlives its rank; its process group has no leader then."""
    ready = tmp_path / "pid"
    script = f"""
import signal, subprocess
if rank == 1:
    while not pathlib.Path({str(ready)!r}).exists(): time.sleep(0.01)
    sys.exit(1)
if rank == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    pathlib.Path({str(tmp_path / "beside")!r}).write_text(str(child.pid))
    os.rename({str(tmp_path / "beside")!r}, {str(ready)!r})
time.sleep(600)
"""
    assert run_local(tmp_path, config, command(f"exec({script!r})")) == 1
    wait_for_end(int(ready.read_text()))


def test_what_a_rank_leaves_behind_does_not_keep_the_launcher(
    tmp_path: Path, config: Config
) -> None:
    """It holds the output, which is read to its end."""
    pid = tmp_path / "pid"
    script = f"""
import subprocess
child = subprocess.Popen(["sleep", "1000"])
rank or pathlib.Path({str(pid)!r}).write_text(str(child.pid))
"""
    assert run_local(tmp_path, config, command(f"exec({script!r})")) == 0
    deadline = time.monotonic() + 120
    while is_alive(int(pid.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_mistake_of_the_users_is_printed_once(
    tmp_path: Path, config: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path)
    run.failures.mkdir()
    failures.write(run, Failure(9, "", Cause.MISTAKE, "of an earlier attempt"))
    script = (
        "from llada_sft.cluster import failures; from llada_sft.run_dir import RunDir;"
        "failures.write(RunDir(pathlib.Path(sys.argv[1])),"
        " failures.Failure(int(rank), '', 'mistake', 'mend this')); sys.exit(2)"
    )
    assert run_local(tmp_path, config, command(script)) == 2
    assert capfd.readouterr().err == "mend this\n"


LAUNCHER = """
import sys
from pathlib import Path
from llada_sft.cluster.launch.local import run_local
from llada_sft.config import load_config
sys.exit(run_local(Path(sys.argv[1]), load_config("a.yaml"), sys.argv[2:]))
"""
WAITING = """
import os
import signal
def note(number, frame):
    print("got", signal.Signals(number).name); sys.exit(0)
for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT): signal.signal(number, note)
pathlib.Path(sys.argv[1], f"ready_{rank}").touch()
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("sent", "arrives"), [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGTERM"), ("SIGUSR2", "SIGUSR2")]
)
def test_signals_are_passed_on(tmp_path: Path, config: Config, sent: str, arrives: str) -> None:
    rank = command(f"exec({WAITING!r})")
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path), *rank])
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("ready_*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    number = signal.Signals[sent]
    launcher.send_signal(number)
    assert launcher.wait(200) == 128 + number
    for one in range(2):
        assert RunDir(tmp_path).rank_log(one).read_text() == f"got {arrives}\n"


# What ranks may be doing when Ctrl-C comes before they listen to it.
UNREADY = {
    "none listens yet": "ready(); time.sleep(600)",
    "some listen": """
import signal
seen = []
# The second one comes when the others are gone.
def note(*_): sys.exit(0) if seen else seen.append(1)
if rank == 0: signal.signal(signal.SIGTERM, note)
ready(); time.sleep(600)
""",
    "one says that its peers are gone": """
import signal
from llada_sft.cluster.rank.abort import Leaving; from llada_sft.run_dir import RunDir
def fail(*_): Leaving(RunDir(pathlib.Path(sys.argv[1])), rank).abort(ConnectionError("gone"))
if rank == 0: signal.signal(signal.SIGTERM, fail)
ready(); time.sleep(600)
""",
}


@pytest.mark.parametrize("script", UNREADY.values(), ids=UNREADY)
def test_ctrl_c_before_the_ranks_listen_is_cancelled(
    tmp_path: Path, config: Config, script: str
) -> None:
    ready = "def ready(): pathlib.Path(sys.argv[1], f'ready_{rank}').write_text(str(os.getpid()))\n"
    rank = command(f"exec({ready + script!r}, globals())")
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path), *rank], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("ready_*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    launcher.send_signal(signal.SIGINT)
    _, err = launcher.communicate(timeout=200)
    run = RunDir(tmp_path)
    assert (launcher.returncode, err) == (
        130,
        f"stopped; to resume:  {run.shell_command('resume', '--local')}\n",
    )
    events = [(entry["event"], entry.get("cause")) for entry in journal.read(run.journal)]
    assert events == [("launched", None), ("started", None), ("ended", "cancelled")]
    for file in tmp_path.glob("ready_*"):
        wait_for_end(int(file.read_text()))


@pytest.mark.parametrize("moment", ["journal.append", "supervisor.begin", "free_port"])
def test_ctrl_c_before_the_ranks_are_there_is_cancelled(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    name = f"llada_sft.cluster.launch.local.{moment}"
    target, _, attribute = name.rpartition(".")
    original = getattr(sys.modules.get(target) or local_part(target), attribute)

    def interrupted(*arguments: object) -> object:
        done = original(*arguments)
        if interrupted not in seen:
            seen.append(interrupted)
            os.kill(os.getpid(), signal.SIGINT)
        return done

    seen: list[object] = []
    monkeypatch.setattr(name, interrupted)
    assert run_local(tmp_path, config, command("time.sleep(600)")) == 130
    entries = journal.read(RunDir(tmp_path).journal)
    assert [(entry["event"], entry.get("cause")) for entry in entries] == [
        ("launched", None),
        ("started", None),
        ("ended", "cancelled"),
    ]


def test_ctrl_c_after_the_last_step_changes_nothing(
    tmp_path: Path, config: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    script = """
import signal
from llada_sft.cluster import journal; from llada_sft.run_dir import RunDir
def end(*_):
    if rank == 0:
        run = RunDir(pathlib.Path(sys.argv[1]))
        journal.append(run.journal, {"event": "ended", "attempt": 1, "cause": "finished"})
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1], f"ready_{rank}").touch()
if rank == 0:
    while len(list(pathlib.Path(sys.argv[1]).glob("ready_*"))) < 4: time.sleep(0.01)
    os.kill(os.getppid(), signal.SIGINT)
time.sleep(600)
"""
    assert run_local(tmp_path, config, command(f"exec({script!r}, globals())")) == 0
    assert "stopped" not in capfd.readouterr().err


def local_part(name: str) -> object:
    return getattr(sys.modules["llada_sft.cluster.launch.local"], name.rpartition(".")[2])


def test_a_rank_that_is_killed_while_it_saves_after_ctrl_c_is_not_cancelled(
    tmp_path: Path, config: Config
) -> None:
    script = """
import signal
def killed(*_): os.kill(os.getpid(), signal.SIGKILL)
seen = []
def note(*_): sys.exit(0) if seen else seen.append(1)
signal.signal(signal.SIGTERM, killed if rank == 1 else note)
pathlib.Path(sys.argv[1], f"ready_{rank}").touch(); time.sleep(600)
"""
    rank = command(f"exec({script!r}, globals())")
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path), *rank], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("ready_*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=200)
    assert launcher.returncode == 1
    assert journal.read(RunDir(tmp_path).journal)[-1]["cause"] == "killed"
