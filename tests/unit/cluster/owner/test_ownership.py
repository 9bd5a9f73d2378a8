"""Who gets a run directory, who is refused, and what an owner that has lost it still writes."""

import dataclasses
import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llada_sft.cluster import failures, journal
from llada_sft.cluster.attempt import supervisor
from llada_sft.cluster.attempt.evidence import BatchJob
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.failures import Failure
from llada_sft.cluster.launch import prepare
from llada_sft.cluster.owner import claim, fence, owner_files, owner_sight, ownership
from llada_sft.cluster.owner.claim import Holder
from llada_sft.cluster.owner.identity import Owner, this_process
from llada_sft.config import load_config
from llada_sft.errors import LaunchError, SupersededError
from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint import folder as checkpoint_folder
from llada_sft.training.checkpoint.data_state import DataState
from llada_sft.training.checkpoint.folder import create_partial, finish_partial

FakeTool = Callable[[str, str], None]
JOB = BatchJob("42", 0, "node[1-2]", 4)
UNKNOWN = 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'


@pytest.fixture
def run(project: Path) -> RunDir:
    found, _ = prepare.create(load_config("a.yaml", ["slurm.nodes=2"]), project, ["launch.py"])
    return found


@pytest.fixture(autouse=True)
def nothing_is_kept(tmp_path: Path) -> Iterator[None]:
    """Forget this process's claims: each test plays several processes."""
    yield
    for held in list(ownership._held.values()):
        ownership.forget(held)


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """What is in a folder, and when each file was changed; the folders' own times do not count."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def elsewhere(**changes: Any) -> Owner:
    """A process of another host."""
    me = this_process("training", 60)
    other = {"host": "other", "machine": "n", "boot_id": "c"}
    return dataclasses.replace(me, **{**other, "pid": 7, "token": "other", **changes})


def put(run: RunDir, owner: Owner, silent_s: float = 0.0) -> int:
    """Make somebody the owner, who has given no sign for some time."""
    number = owner_files.highest(run.path) + 1
    assert owner_files.create(run.path, number, owner)
    at = owner_files.server_time(run.path) - silent_s
    os.utime(run.path / f"owner.{number}", (at, at))
    return number


def test_a_run_has_its_owner_from_its_first_moment(project: Path) -> None:
    with Holder(this_process("launching")) as holder:
        run, found = prepare.create(load_config("a.yaml"), project, [], holder.claim)
        assert not found
        owner = owner_files.read(run.path, 1)
        assert owner
        assert (owner.pid, owner.path) == (os.getpid(), str(run.path))
        assert owner_files.highest(run.path) == 1
        assert ownership.held(run.path)
    assert owner_sight.line(run) == "nobody"
    assert ownership.held(run.path) is None


def test_who_is_second_to_build_a_run_takes_up_the_first_or_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another launcher's run directory is there when this one's would be renamed."""
    real = prepare._move_into_place
    first: list[Holder] = []

    def overtaken(partial: Path, run: RunDir) -> bool:
        monkeypatch.setattr(prepare, "_move_into_place", real)
        other = Holder(this_process("launching"))
        prepare.create(load_config("a.yaml"), project, [], other.claim)
        first.append(other)
        return real(partial, run)

    monkeypatch.setattr(prepare, "_move_into_place", overtaken)
    with (
        pytest.raises(LaunchError, match=r"^run \S+/runs/a is being launched by process"),
        Holder(this_process("launching")) as holder,
    ):
        prepare.create(load_config("a.yaml"), project, [], holder.claim)
    (folder,) = (project / "runs").iterdir()
    assert owner_files.highest(folder) == 1


@pytest.mark.parametrize(
    ("scontrol", "refused"),
    [
        ("echo JobId=7 JobState=RUNNING NodeList=node[1-2] StartTime=0", True),
        ("echo JobId=7 JobState=PENDING Restarts=2", True),
        ("echo JobId=7 JobState=COMPLETING", True),
        ("echo JobId=7 JobState=SUSPENDED", True),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", True),
        ("sleep 60", True),
        (None, True),
        ("echo JobId=7 JobState=COMPLETED", False),
        ("echo JobId=7 JobState=CANCELLED", False),
        ("echo JobId=7 JobState=NODE_FAIL", False),
        (UNKNOWN, False),
    ],
)
def test_a_job_is_dead_only_if_slurm_says_so(
    run: RunDir,
    fake_tool: FakeTool,
    monkeypatch: pytest.MonkeyPatch,
    scontrol: str | None,
    refused: bool,
) -> None:
    if scontrol is None:
        monkeypatch.setenv("PATH", "/nowhere")
    else:
        fake_tool("scontrol", scontrol)
    monkeypatch.setattr(owner_sight, "ASK_SLURM_S", 0.5)
    put(run, Owner("it", "job", job_id="7", since="S"), silent_s=1e6)
    before = contents(run.path)
    for act in (
        lambda: supervisor.begin(run, JOB, 4),
        lambda: claim.claim(run, this_process("training")),
    ):
        if not refused:
            act()
            break
        with pytest.raises(LaunchError) as caught:
            act()
        line = str(caught.value)
        assert line.startswith(f"run {run.path} is trained by job 7,")
        assert line.endswith("since S: wait for it, or stop it with  scancel 7") or (
            " RUNNING on node[1-2] since 1970-01-01 00:00:00 UTC: " in line
        )
        assert contents(run.path) == before


def test_another_cluster_that_does_not_know_the_job_is_not_believed(
    run: RunDir, fake_tool: FakeTool
) -> None:
    config = "echo 'Configuration data'; echo 'ClusterName             = here'; exit 0"
    fake_tool("scontrol", f'[ "$2" != config ] || {{ {config}; }}\n{UNKNOWN}')
    put(run, Owner("it", "job", job_id="7", cluster="there", since="S"))
    with pytest.raises(LaunchError, match="is trained by job 7"):
        claim.claim(run, this_process("training"))
    put(run, Owner("it2", "job", job_id="7", cluster="here", since="S"))
    claim.claim(run, this_process("training"))


@pytest.mark.parametrize(
    ("user", "hidden", "refused"),
    [("them", "accounts,jobs", True), ("them", "none", False), ("me", "accounts,jobs", False)],
)
def test_a_job_that_slurm_may_hide_is_not_taken_for_over(
    run: RunDir, fake_tool: FakeTool, user: str, hidden: str, refused: bool
) -> None:
    config = f"echo 'Configuration data'; echo 'PrivateData             = {hidden}'; exit 0"
    fake_tool("scontrol", f'[ "$2" != config ] || {{ {config}; }}\n{UNKNOWN}')
    me = dataclasses.replace(this_process("training"), user="me")
    put(run, Owner("it", "job", job_id="7", since="S", user=user))
    if refused:
        with pytest.raises(LaunchError, match="is trained by job 7"):
            claim.claim(run, me)
    else:
        assert claim.claim(run, me).owner == dataclasses.replace(
            me, path=str(run.path), inode=run.path.stat().st_ino
        )


def test_a_rank_on_another_node_sees_the_owner_that_begin_has_made(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NFS client lists from its memory, until a change of its own brings the present state."""
    put(run, ownership.job_owner("42", 0))
    put(run, ownership.job_owner("42", 1))
    fresh: list[Path] = []
    real = owner_files.highest
    monkeypatch.setattr(owner_files, "refresh", fresh.append)
    monkeypatch.setattr(owner_files, "highest", lambda one: real(one) - (one not in fresh))
    found = ownership.of_job(run, "42", 1)
    assert found is not None
    assert found.number == 2


def test_a_job_takes_over_from_its_earlier_start_and_never_back(
    run: RunDir, fake_tool: FakeTool
) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=RUNNING Restarts=1")
    assert supervisor.begin(run, JOB, 4) == 0
    again = dataclasses.replace(JOB, restarts=1)
    assert supervisor.begin(run, again, 4) == 0
    owner = owner_files.read(run.path, 2)
    assert owner
    assert (owner.job_id, owner.restarts) == ("42", 1)
    # What is left of the first start, on a node that was lost and is back.
    before = contents(run.path)
    with pytest.raises(LaunchError, match="is trained by job 42"):
        supervisor.begin(run, JOB, 4)
    with pytest.raises(SupersededError, match="is not job 42's: it belongs to job 42, since"):
        supervisor.end(run, JOB, 1)
    with pytest.raises(SupersededError):
        ownership.of_rank(run, 0, {"SLURM_JOB_ID": "42"})
    assert contents(run.path) == before
    assert ownership.of_rank(run, 1, {"SLURM_JOB_ID": "42", "SLURM_RESTART_COUNT": "1"})


def test_a_rank_whose_launcher_has_lost_the_run(run: RunDir) -> None:
    put(run, ownership.job_owner("42", 0))
    with pytest.raises(SupersededError) as caught:
        ownership.of_rank(run, 0, {ownership.VARIABLE: "1:another"})
    assert str(caught.value) == f"run {run.path} is not this launcher's any more: leaving"


def test_a_rank_leaves_once_its_launcher_has_lost_the_run(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = claim.claim(run, this_process("training"))
    # srun ends such a rank: the kernel need not.
    environment = {ownership.VARIABLE: launcher.word, "SLURM_PROCID": "1"}
    rank = ownership.of_rank(run, 1, environment)
    assert rank is not None
    rank.leave_if_lost()
    put(run, ownership.job_owner("42", 0))

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as caught:
        rank.leave_if_lost()
    assert caught.value.code == 2
    assert re.search(
        r"was taken over by job 42.*: leaving, nothing more is written$", capsys.readouterr().err
    )


def test_begin_of_the_same_start_is_the_same_claim(run: RunDir, fake_tool: FakeTool) -> None:
    """`--prepare` in a batch script has claimed for the job already."""
    fake_tool("scontrol", "exit 1")
    job = ownership.job_owner("42", 0)
    with Holder(job) as holder:
        holder.claim(run)
    assert supervisor.begin(run, JOB, 4) == 0
    assert owner_files.highest(run.path) == 1


def test_end_touches_only_attempts_of_its_own_start(run: RunDir, fake_tool: FakeTool) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=RUNNING")
    assert supervisor.begin(run, JOB, 4) == 0
    before = contents(run.path)
    with pytest.raises(SupersededError, match="is not job 41's"):
        supervisor.end(run, dataclasses.replace(JOB, job_id="41"), 0)
    assert contents(run.path) == before
    # Runs that an earlier version began have no owner files.
    for path in run.path.glob("owner.*"):
        path.unlink()
    assert supervisor.end(run, dataclasses.replace(JOB, job_id="41"), 3) == 3
    assert [entry["event"] for entry in journal.read(run.journal)] == ["started"]


@pytest.mark.parametrize(
    ("cause", "free"),
    [
        (Cause.FINISHED, True),
        (Cause.CANCELLED, True),
        (Cause.MISTAKE, True),
        (Cause.PREEMPTED, False),
        (Cause.TIME_LIMIT, False),
    ],
)
def test_a_run_that_ended_is_free(
    run: RunDir, fake_tool: FakeTool, cause: Cause, free: bool
) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=RUNNING")
    supervisor.begin(run, JOB, 4)
    journal.append(run.journal, {"event": "ended", "attempt": 1, "cause": cause})
    assert supervisor.end(run, JOB, 0) == 0
    assert (owner_sight.line(run) == "nobody") is free


def test_a_job_that_setup_sh_has_ended_leaves_its_run(run: RunDir, fake_tool: FakeTool) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=RUNNING")
    run.setup.write_text("exit 3\n")
    assert supervisor.begin(run, JOB, 4) == 0
    assert supervisor.set_up(run, run.path / "setup.log") == (2, "")
    assert claim.claim(run, this_process("training")).number == 3


def test_a_job_waits_for_its_launcher_to_hand_over(
    run: RunDir, fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job starts before sbatch has answered."""
    fake_tool("scontrol", "exit 1")
    launcher = claim.claim(run, this_process("launching"))
    ownership.forget(launcher)
    seen: list[int] = []

    def hand_over_the_second_time(seconds: float) -> None:
        if len(seen) < 2:
            seen.append(owner_files.highest(run.path))
        if len(seen) == 2:
            seen.append(0)
            assert journal.read(run.journal) == []
            launcher.hand_over("42")

    monkeypatch.setattr(claim.time, "sleep", hand_over_the_second_time)
    assert supervisor.begin(run, JOB, 4) == 0
    assert seen == [1, 1, 0]
    assert [entry["event"] for entry in journal.read(run.journal)] == ["started"]
    assert owner_files.highest(run.path) == 2


@pytest.mark.parametrize("doing", ["launching", "preparing"])
def test_a_job_waits_for_a_launcher_no_longer_than_it_may(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, doing: Any
) -> None:
    monkeypatch.setattr(claim, "PATIENCE_S", -59.0)
    put(run, dataclasses.replace(this_process(doing, 60), token="it"))
    with pytest.raises(LaunchError, match="by process"):
        supervisor.begin(run, JOB, 4)


def test_a_job_does_not_wait_for_a_local_run(run: RunDir) -> None:
    put(run, dataclasses.replace(this_process("training"), token="it"))
    with pytest.raises(LaunchError, match="is trained by process"):
        supervisor.begin(run, JOB, 4)


def test_a_launcher_killed_before_the_hand_over_does_not_keep_its_job_out(run: RunDir) -> None:
    put(run, dataclasses.replace(this_process("launching"), token="it", start_time="1"))
    assert supervisor.begin(run, JOB, 4) == 0


def test_a_hand_over_that_comes_too_late(run: RunDir, fake_tool: FakeTool) -> None:
    fake_tool("scontrol", "exit 1")
    launcher = claim.claim(run, this_process("launching"))
    put(run, ownership.job_owner("42", 0))
    # It is this job that was quicker.
    launcher.hand_over("42")
    with pytest.raises(SupersededError, match="was taken over by job 42"):
        launcher.hand_over("43")


def test_a_new_owner_whose_file_is_gone(
    run: RunDir, fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tool("scontrol", "exit 1")
    launcher = claim.claim(run, this_process("launching"))
    put(run, ownership.job_owner("42", 0))
    monkeypatch.setattr(owner_files, "read", lambda folder, number: None)
    with pytest.raises(SupersededError) as caught:
        launcher.hand_over("43")
    assert str(caught.value) == (
        f"run {run.path} has another owner now: leaving, nothing more is written"
    )


def test_the_owner_of_another_host(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    put(run, elsewhere(since="S"), silent_s=40)
    with pytest.raises(LaunchError) as caught:
        claim.claim(run, this_process("training"))
    assert str(caught.value) == (
        f"run {run.path} is trained by process 7 on host other since S:"
        " it has given no sign for 40 s; try again in 20 s"
    )
    put(run, elsewhere(since="S", token="b", timeout_s=5), silent_s=7)
    assert claim.claim(run, this_process("training")).number == 3
    assert capsys.readouterr().err == (
        "process 7 on host other since S has given no sign for 7 s: taking over in 2 s\n"
    )


def test_a_clock_that_was_set_forward_kills_nobody(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files look old, until the owner gives its next sign."""
    number = put(run, elsewhere(since="S", timeout_s=5), silent_s=4000)
    monkeypatch.setattr(claim.time, "sleep", lambda s: owner_files.touch(run.path, number))
    with pytest.raises(LaunchError, match="is trained by process 7 on host other"):
        claim.claim(run, this_process("training"))


def test_an_owner_gives_signs_of_life(run: RunDir) -> None:
    with claim.hold(run, "training", timeout_s=1) as held:
        path = run.path / f"owner.{held.number}"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 60
        while path.stat().st_mtime < 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert owner_sight.line(run) == "nobody"


def test_an_owner_that_cannot_be_read(run: RunDir) -> None:
    (run.path / "owner.9").write_text("{")
    with pytest.raises(LaunchError, match=r"owner\.9 cannot be read, so its owner is not known"):
        claim.claim(run, this_process("training"))
    assert owner_sight.line(run) == "not known: owner.9 cannot be read"
    at = time.time() - 1000
    os.utime(run.path / "owner.9", (at, at))
    claim._gives_a_sign, real = lambda folder, sight: False, claim._gives_a_sign
    try:
        assert claim.claim(run, this_process("training")).number == 10
    finally:
        claim._gives_a_sign = real


def test_a_copy_has_no_owner(run: RunDir, project: Path) -> None:
    claimed = claim.claim(run, elsewhere())
    claimed.let_go()
    shutil.copytree(run.path, project / "copy")
    copy = RunDir(project / "copy")
    assert claim.claim(copy, this_process("training")).number == 2
    run.path.rename(project / "moved")
    with pytest.raises(LaunchError, match="process 7 on host other"):
        claim.claim(RunDir(project / "moved"), this_process("training"))


def test_a_folder_that_cannot_be_written_is_one_line(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> float:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(owner_files, "server_time", refuse)
    with pytest.raises(
        LaunchError, match="its owner cannot be recorded: Permission denied; make it"
    ):
        claim.claim(run, this_process("training"))
    assert owner_sight.line(run) == "not known: Permission denied"


def test_a_full_disk_is_named_where_a_run_is_claimed(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, number: int, owner: Owner) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(owner_files, "create", refuse)
    with pytest.raises(LaunchError) as caught:
        claim.claim(run, this_process("training"), building=run.path / "code")
    assert str(caught.value) == (
        f"{run.path}: its owner cannot be recorded: No space left on device; make room on the disk,"
        " or choose another run.root"
    )


def test_removed_owner_files_are_put_back(run: RunDir) -> None:
    held = claim.claim(run, this_process("training"))
    (run.path / "owner.1").unlink()
    assert held.is_held()
    assert owner_files.read(run.path, 1) == held.owner
    (run.path / "owner.1").unlink()
    put(run, elsewhere())
    assert not held.is_held()


def test_who_has_lost_a_run_writes_nothing_more(run: RunDir) -> None:
    claimed = claim.claim(run, this_process("launching"))
    claimed.let_go()
    journal.append(run.journal, {"event": "launched"})
    put(run, elsewhere(since="S"))
    before = contents(run.path)
    line = f"run {run.path} was taken over by process 7 on host other since S: leaving"
    for act in (
        lambda: journal.append(run.journal, {"event": "warning"}),
        lambda: failures.write(run, Failure(0, "", Cause.EXCEPTION, "a")),
        lambda: fence.check(RunDir(Path(os.path.relpath(run.path))).path),
        claimed.require,
    ):
        with pytest.raises(SupersededError, match=line):
            act()
    claimed.release()
    assert contents(run.path) == before


def test_a_checkpoint_of_a_lost_run_gets_no_name(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner loses the run between each pair of writes, one after the other."""
    monkeypatch.setattr(checkpoint_folder, "is_complete", lambda path: True)
    monkeypatch.setattr(checkpoint_folder, "_num_shards", lambda path: 2)
    state = DataState(0, {}, {})
    folder = run.checkpoints
    for lost_at in range(4):
        for old in (1, 2):
            (folder / f"step_{old}").mkdir(parents=True, exist_ok=True)
        (folder / "latest").write_text("step_2\n")
        asked = iter(range(9))

        def require(lost_at: int = lost_at, asked: Iterator[int] = asked) -> None:
            if next(asked) == lost_at:
                raise SupersededError("lost")

        partial = create_partial(folder, 3)
        with pytest.raises(SupersededError):
            finish_partial(partial, {"step": 3, "world_size": 1}, state, {}, 1, require)
        there = sorted(path.name for path in folder.iterdir() if path.suffix != ".partial")
        assert ("step_3" in there) is (lost_at > 0)
        assert (folder / "latest").read_text() == ("step_3\n" if lost_at > 1 else "step_2\n")
        assert {"step_1", "step_2"} <= set(there)
        for path in folder.glob("step_3*"):
            shutil.rmtree(path)


def test_a_run_of_an_earlier_version_belongs_to_its_last_job(
    run: RunDir, fake_tool: FakeTool
) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=RUNNING NodeList=node1")
    journal.append(run.journal, {"event": "started", "attempt": 1, "job_id": "42", "restarts": 3})
    with pytest.raises(LaunchError, match="is trained by job 42, RUNNING on node1 since its"):
        claim.claim(run, this_process("training"))
    assert claim.claim(run, ownership.job_owner("42", 3)).number == 1
    assert owner_files.highest(run.path) == 1


def test_the_last_job_of_an_earlier_version_has_its_own_restarts(
    run: RunDir, fake_tool: FakeTool
) -> None:
    fake_tool("scontrol", "echo JobId=43 JobState=RUNNING NodeList=node1")
    journal.append(run.journal, {"event": "started", "attempt": 1, "job_id": "42", "restarts": 3})
    journal.append(run.journal, {"event": "launched", "job_id": "43"})
    assert claim.claim(run, ownership.job_owner("43", 0)).number == 1


def test_a_look_refuses_for_a_live_owner_only_and_claims_nothing(run: RunDir) -> None:
    """Before anything is built: whoever launches learns at once that the run is somebody's."""
    holder = Holder(this_process("launching"))
    number = put(run, elsewhere(), silent_s=5.0)
    with pytest.raises(LaunchError, match=r"is trained by process 7 on host other"):
        holder.refuse(run)
    number = put(run, elsewhere(token="dead"), silent_s=3600.0)
    holder.refuse(run)
    assert owner_files.highest(run.path) == number
