"""What a rank does around the training, with a stand-in for the training."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from llada_sft.cluster import failures, history, journal
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.failures import Failure
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.launch import prepare
from llada_sft.cluster.rank import main
from llada_sft.cluster.rank.abort import Leaving
from llada_sft.cluster.rank.main import placement_from
from llada_sft.cluster.rank.signals import StopRequest
from llada_sft.cluster.rank.stopping import RankJob, StopReason
from llada_sft.cluster.rank.watchdog import Watchdog
from llada_sft.cluster.watch import status
from llada_sft.config import Config, load_config
from llada_sft.config.sections.train import TrainConfig
from llada_sft.errors import (
    DataError,
    LaunchError,
    NodeError,
    NonFiniteError,
    PeerFailedError,
    SaveError,
)
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.training.host import Host, SavedCheckpoint

Train = Callable[[Config, RunDir, Placement, Callable[[], bool], Callable[[], None]], str]
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "1234",
}
LOCAL = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "NODE_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1234",
}


@pytest.fixture
def run(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDir]:
    """Prepare a run on CPU and pretend to be its rank 0."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in LOCAL.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(StopRequest, "install", lambda self: None)
    monkeypatch.setattr(Leaving, "exit_when_a_peer_failed", lambda self: None)
    monkeypatch.setattr("os._exit", exit_of_a_test)
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setenv("DS_ACCELERATOR", "")
    config = load_config("a.yaml", ["train.accelerator=cpu", "train.threads_per_rank=3"])
    run, _ = prepare.create(config, project, ["launch.py"])
    journal.append(run.journal, {"event": "started", "attempt": 1})
    yield run


def exit_of_a_test(code: int) -> None:
    raise SystemExit(code)


def stand_in(monkeypatch: pytest.MonkeyPatch, train: Train) -> None:
    module = ModuleType("llada_sft.training.trainer")
    module.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llada_sft.training.trainer", module)
    ranks = ModuleType("llada_sft.training.ranks")
    ranks.leave_ranks = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llada_sft.training.ranks", ranks)


def test_a_rank_under_slurm() -> None:
    assert placement_from({**LOCAL, **SLURM}) == Placement(3, 4, 1, 1, "node1", 1234)


def test_a_rank_of_a_local_run() -> None:
    assert placement_from(LOCAL) == Placement(0, 2, 0, 0, "127.0.0.1", 1234)


def test_a_rank_of_torchrun_in_an_allocation() -> None:
    """torchrun knows the place of its ranks; SLURM has only seen torchrun itself."""
    names = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "GROUP_RANK": "0"}
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1234"}
    found = placement_from({**SLURM, **names, **meet, "TORCHELASTIC_RUN_ID": "none"})
    assert found == Placement(1, 2, 1, 0, "127.0.0.1", 1234)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "RANK is not set: start ranks with launch.py or slurm/train.sbatch"),
        (
            {**SLURM, "MASTER_PORT": ""},
            "a rank variable is not a number: invalid literal for int() with base 10: ''",
        ),
    ],
)
def test_no_rank(environment: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError) as caught:
        placement_from(environment)
    assert str(caught.value) == message


def test_training_gets_the_config_of_the_run_directory(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def train(config: Config, run: RunDir, placement: Placement, host: Host) -> str:
        threads, accelerator = os.environ["OMP_NUM_THREADS"], os.environ["DS_ACCELERATOR"]
        seen.extend(
            [config, run, placement.world_size, host.stop_requested(), threads, accelerator]
        )
        return "finished"

    stand_in(monkeypatch, train)
    main.run(str(run.path))
    assert seen == [load_config(run.config), run, 2, False, "3", "cpu"]
    events = [(e["event"], e["attempt"], e.get("cause")) for e in journal.read(run.journal)]
    assert events == [("started", 1, None), ("ended", 1, "finished")]


def test_a_mistake_is_one_line_and_exit_code_2(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*_: object) -> str:
        raise DataError("shards/0.jsonl:3: bad")

    stand_in(monkeypatch, train)
    with pytest.raises(SystemExit) as caught:
        main.run(str(run.path))
    assert caught.value.code == 2
    (failure,) = failures.read_all(run)
    assert (failure.rank, failure.cause) == (0, "mistake")
    assert f"{failure.error}\n" == capsys.readouterr().err == "shards/0.jsonl:3: bad\n"
    assert [entry["event"] for entry in journal.read(run.journal)] == ["started"]


def test_a_loss_that_is_not_finite_has_a_cause_of_its_own(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object) -> str:
        raise NonFiniteError("step 3: the loss is NaN or infinite")

    stand_in(monkeypatch, train)
    with pytest.raises(SystemExit) as caught:
        main.run(str(run.path))
    assert caught.value.code == 2
    assert [one.cause for one in failures.read_all(run)] == ["non-finite loss"]
    assert status.failure_lines(run) == ["step 3: the loss is NaN or infinite"]


def test_a_node_at_fault_is_reported_for_its_first_rank(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*_: object) -> str:
        raise NodeError("node3: torch 2.9.0, the other 7 nodes have 2.13.0", "node3", 16)

    stand_in(monkeypatch, train)
    with pytest.raises(SystemExit) as caught:
        main.run(str(run.path))
    assert caught.value.code == 1
    (failure,) = failures.read_all(run)
    assert (failure.rank, failure.node, failure.witness) == (16, "node3", 0)
    assert (failure.cause, failure.consequence) == ("node failure", False)
    assert f"{failure.error}\n" == capsys.readouterr().err


def test_the_watchdog_gets_the_timeouts_and_the_pulses(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(Watchdog, "set_timeouts", lambda _, config: seen.append(config))
    monkeypatch.setattr(Watchdog, "pulse", lambda _, phase, step: seen.append((phase, step)))
    monkeypatch.setattr(Watchdog, "_watch", lambda _: None)

    def train(config: Config, run: RunDir, placement: Placement, host: Host) -> str:
        host.pulse("step", 5)
        return "finished"

    stand_in(monkeypatch, train)
    main.run(str(run.path))
    assert seen == [TrainConfig(), load_config(run.config).train, ("step", 5)]


def test_a_mistake_of_another_rank_is_told_by_that_rank_alone(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*_: object) -> str:
        raise PeerFailedError("1 other rank(s) stopped; see their lines")

    stand_in(monkeypatch, train)
    with pytest.raises(SystemExit) as caught:
        main.run(str(run.path))
    assert caught.value.code == 2
    assert capsys.readouterr().err == "1 other rank(s) stopped; see their lines\n"
    assert not run.failure(0).exists()


@pytest.mark.parametrize("inside_the_trainer", [True, False])
def test_a_defect_is_told_with_its_traceback_and_the_rank_is_gone(
    run: RunDir,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    inside_the_trainer: bool,
) -> None:
    def train(config: Config, run: RunDir, placement: Placement, host: Host) -> str:
        try:
            raise ValueError("ours\nsecond line")
        except ValueError as error:
            if inside_the_trainer:
                host.failed(error, 12)
            raise

    stand_in(monkeypatch, train)
    with pytest.raises(SystemExit) as caught:
        main.run(str(run.path))
    assert caught.value.code == 1
    (failure,) = failures.read_all(run)
    assert (failure.cause, failure.error) == ("exception", "ValueError: ours")
    assert failure.step == (12 if inside_the_trainer else None)
    assert not failure.consequence
    assert failure.traceback.startswith("Traceback")
    assert failure.traceback.endswith("ValueError: ours\nsecond line\n")
    assert capsys.readouterr().err == f"{failure.traceback}\n"


@pytest.mark.parametrize(
    ("error", "another_left", "consequence"),
    [
        (RuntimeError("[gloo/pair.cc:538] Connection closed by peer [127.0.0.1]:1"), False, True),
        (RuntimeError("NCCL error: remote process exited or network error"), False, True),
        (RuntimeError("Connection reset by peer"), False, True),
        (ConnectionResetError("Connection reset by peer"), False, False),
        (ConnectionResetError("Connection reset by peer"), True, True),
        (RuntimeError("shapes differ"), False, False),
    ],
)
def test_a_rank_that_only_lost_a_peer_says_so(
    run: RunDir,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    another_left: bool,
    consequence: bool,
) -> None:
    def train(*_: object) -> str:
        raise error

    if another_left:
        failures.write(run, Failure(1, "", Cause.EXCEPTION, "its own"))
    stand_in(monkeypatch, train)
    with pytest.raises(SystemExit):
        main.run(str(run.path))
    assert failures.read_all(run)[0].consequence is consequence


def test_another_world_than_the_configs(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(SystemExit):
        main.run(str(run.path))
    assert [failure.error for failure in failures.read_all(run)] == [
        f"{run.config}: 1 nodes × 2 ranks = 2 ranks, but 5 were started:"
        " set slurm.nodes and slurm.ranks_per_node to what the job has"
    ]


def elastic(run: RunDir, low: int, high: int) -> Config:
    changes = [f"slurm.elastic=[{low}, {high}]", "slurm.nodes=2", "train.accumulate_grad_batches=3"]
    config = load_config(run.config, changes)
    prepare.replace_config(run, config)
    return config


@pytest.mark.parametrize(("world_size", "nodes", "accumulate"), [(2, 1, 6), (4, 2, 3), (6, 3, 2)])
def test_an_elastic_job_keeps_its_global_batch(
    run: RunDir,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    world_size: int,
    nodes: int,
    accumulate: int,
) -> None:
    config, seen = elastic(run, 1, 3), []

    def train(config: Config, *_: object) -> str:
        seen.append(config)
        return "finished"

    stand_in(monkeypatch, train)
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    main.run(str(run.path))
    (given,) = seen
    assert (given.slurm.nodes, given.train.accumulate_grad_batches) == (nodes, accumulate)
    assert given.world_size == world_size
    assert given.global_batch_size == config.global_batch_size == 12
    first, attempt = capsys.readouterr().out.splitlines()
    assert first.startswith(f"attempt 1: rank 0 of {world_size}, ")
    assert attempt == (
        f"elastic          {nodes} of 1 to 3 nodes: {world_size} ranks × {accumulate}"
        " accumulated; the global batch stays 12 examples"
    )


@pytest.mark.parametrize("world_size", [2, 5, 8])
def test_another_world_than_an_elastic_one(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    elastic(run, 2, 3)
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    with pytest.raises(SystemExit):
        main.run(str(run.path))
    assert [failure.error for failure in failures.read_all(run)] == [
        f"{run.config}: 2 to 3 nodes × 2 ranks = 4 to 6 ranks, but {world_size} were started:"
        " set slurm.nodes and slurm.ranks_per_node to what the job has"
    ]


def test_a_checkpoint_that_cannot_be_written_is_a_full_disk(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object) -> str:
        raise SaveError("step_40.partial: cannot be written: No space left on device")

    stand_in(monkeypatch, train)
    with pytest.raises(SystemExit) as caught:
        main.run(str(run.path))
    assert caught.value.code == 2
    (failure,) = failures.read_all(run)
    assert (failure.cause, failure.error) == (
        "disk full",
        "step_40.partial: cannot be written: No space left on device",
    )
    assert status.failure_lines(run) == [failure.error]


def test_a_stop_without_slurm_is_noted(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, lambda *_: "stopped")
    main.run(str(run.path))
    (ended,) = journal.read(run.journal)[1:]
    assert (ended["event"], ended["cause"], ended["exit_code"]) == ("ended", "cancelled", 0)


def told(signals: list[str], whom: str) -> Train:
    """Stand in for a training whose ranks agree to stop after step 7."""

    def train(config: Config, run: RunDir, placement: Placement, host: Host) -> str:
        if placement.rank == 0:
            host.stop_agreed(7, signals, whom)
        return "stopped"

    return train


def test_ctrl_c_on_a_local_run_is_noted(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, told(["SIGTERM"], "all ranks"))
    main.run(str(run.path))
    signal, ended = journal.read(run.journal)[-2:]
    assert (signal["event"], signal["signals"], signal["attempt"]) == ("signal", ["SIGTERM"], 1)
    del ended["time"]
    assert ended == {
        "event": "ended",
        "attempt": 1,
        "step": 7,
        "cause": "cancelled",
        "detail": "SIGTERM on all ranks",
        "exit_code": 0,
    }


def test_a_signal_on_another_rank_alone(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, fake_tool: Callable[[str, str], None]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    fake_tool("scontrol", "echo JobState=RUNNING")
    asked: list[object] = []

    def after_stop(
        signals: list[str], slurm_job: object, cause: Cause, given_up: object
    ) -> StopReason:
        asked.extend([signals, slurm_job, cause])
        return StopReason(Cause.TOLD_TO_STOP)

    monkeypatch.setattr(main, "after_stop", after_stop)
    stand_in(monkeypatch, told(["SIGUSR2"], "rank 1"))
    main.run(str(run.path))
    assert asked == [["SIGUSR2"], RankJob("42", 0, 300), Cause.TOLD_TO_STOP]
    assert journal.read(run.journal)[-1]["detail"] == "SIGUSR2 on rank 1"


def test_a_job_that_could_not_be_requeued_does_not_end_with_0(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setattr(main, "after_stop", lambda *_: StopReason(Cause.TIME_LIMIT, "scontrol: no"))
    stand_in(monkeypatch, told(["SIGUSR2"], "all ranks"))
    with pytest.raises(SystemExit) as caught:
        main.run(str(run.path))
    ended = journal.read(run.journal)[-1]
    assert (caught.value.code, ended["exit_code"], ended["cause"]) == (1, 1, "time limit")
    assert ended["error"] == (
        "job 42: not requeued: scontrol: no; to resume from its last checkpoint:"
        f"  llada-sft resume {run.path}"
    )
    assert capsys.readouterr().err == ended["error"] + "\n"


def test_time_limits_without_progress_end_the_job(
    run: RunDir,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fake_tool: Callable[[str, str], None],
) -> None:
    """A job that makes a step or two in each attempt would be requeued for ever."""
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    fake_tool("scontrol", f"echo $@ >> {run.path}/calls; echo JobState=COMPLETING Reason=TimeLimit")

    def train(config: Config, run: RunDir, placement: Placement, host: Host) -> str:
        attempt = history.read(run.journal).current_number
        host.stop_agreed(attempt, ["SIGUSR2"], "rank 0")
        step = 100 + attempt if attempt > 1 else 1
        host.checkpoint_saved(SavedCheckpoint(step, 1.0, 1.0, num_bytes=1))
        return "stopped"

    stand_in(monkeypatch, train)
    for attempt in (1, 2, 3, 4, 5):
        if attempt > 1:
            again: Entry = {"event": "started", "attempt": attempt, "job_id": "42"}
            journal.append(run.journal, again)
        if attempt < 5:
            main.run(str(run.path))
    with pytest.raises(SystemExit) as caught:
        main.run(str(run.path))
    ended, given_up = journal.read(run.journal)[-2:]
    assert (caught.value.code, given_up["exit_code"], ended["cause"]) == (70, 70, "time limit")
    assert (given_up["event"], given_up["attempt"], given_up["job_id"]) == ("given_up", 5, "42")
    assert given_up["detail"].startswith("3 attempts in a row without progress (slurm.attempts_wi")
    assert f"given up: {given_up['detail']}\n" in capsys.readouterr().out
    # After four of the five.
    assert (run.path / "calls").read_text().splitlines().count("requeue 42") == 4


def test_other_ranks_keep_no_journal(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    stand_in(monkeypatch, lambda *_: "stopped")
    main.run(str(run.path))
    assert [entry["event"] for entry in journal.read(run.journal)] == ["started"]


@pytest.mark.parametrize("world_size", [1, 2, 6])
def test_an_elastic_job_trains_on_all_that_it_has(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    """A variable of srun's makes the ranks fewer, and their number is one that elastic allows."""
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    started: Entry = {"job_id": "42", "restarts": 0, "nodes": "node[1-2]", "world_size": 4}
    journal.append(run.journal, {"event": "started", "attempt": 2, **started})
    stand_in(monkeypatch, lambda *_: "finished")
    with pytest.raises(SystemExit) as caught:
        main.run(str(run.path))
    assert caught.value.code == 2
    assert [failure.error for failure in failures.read_all(run)] == [
        f"job 42: {world_size} ranks were started, and its nodes node[1-2] are to have 4:"
        " a variable or an option of srun is in the way (SLURM_NTASKS?);"
        " see srun in job.sbatch, or in slurm/train.sbatch"
    ]
