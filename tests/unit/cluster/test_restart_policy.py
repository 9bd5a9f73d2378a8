"""The restart budget, as a table: attempts of a job, and what follows from the last one's end."""

from pathlib import Path

import pytest

from llada_sft.cluster import history, journal
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.history import History
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.restart_policy import Decision, decide
from llada_sft.config import Config, load_config

ROOT = Path(__file__).parents[3]
# cause, step, error and checkpoint of an attempt.
Told = tuple[Cause, int | None, str, int | None]


@pytest.fixture
def config() -> Config:
    budget = ["slurm.node_failure_restarts=2", "slurm.attempts_without_progress=4"]
    return load_config(ROOT / "config/demo.yaml", budget)


def written(*attempts: Told, job: str = "42", first: int = 1) -> list[Entry]:
    entries: list[Entry] = []
    for number, (cause, step, error, saved) in enumerate(attempts, start=first):
        base: Entry = {"attempt": number, "job_id": job}
        entries.append({"event": "started", **base})
        if saved is not None:
            entries.append({"event": "checkpoint", "attempt": number, "step": saved})
        if error:
            failed: Entry = {"event": "failed", **base, "cause": cause, "error": error}
            entries.append(failed if step is None else {**failed, "step": step})
        entries.append({"event": "ended", **base, "cause": cause})
    return entries


def fault(
    cause: Cause, step: int | None = 12, error: str = "ValueError: a", saved: int = 0
) -> Told:
    return (cause, step, error, saved or None)


def stop(cause: Cause, saved: int = 0) -> Told:
    return (cause, None, "", saved or None)


E = Cause.EXCEPTION
NO_PROGRESS = (
    "{} attempts in a row without progress (slurm.attempts_without_progress): {} ended by a time"
    " limit or a preemption before 3 new steps were saved (slurm.min_steps_per_attempt): raise"
    " slurm.time_min, or lower slurm.signal_lead_s; the last: {}"
)


@pytest.mark.parametrize(
    ("cause", "decision"),
    [
        (Cause.FINISHED, Decision(restart=False, exit_code=0)),
        (Cause.CANCELLED, Decision(restart=False, exit_code=0)),
        (Cause.MISTAKE, Decision(restart=False, exit_code=2)),
        (Cause.DISK_FULL, Decision(restart=False, exit_code=2)),
        (Cause.NONFINITE, Decision(restart=False, exit_code=2)),
        (Cause.PREEMPTED, Decision(restart=True, exit_code=0)),
        (Cause.TIME_LIMIT, Decision(restart=True, exit_code=0)),
        (Cause.REQUEUED, Decision(restart=True, exit_code=0)),
        (Cause.TOLD_TO_STOP, Decision(restart=True, exit_code=0)),
        (Cause.EXCEPTION, Decision(restart=True, exit_code=1)),
        (Cause.HANG, Decision(restart=True, exit_code=71)),
        (Cause.KILLED, Decision(restart=True, exit_code=1)),
        (Cause.OUT_OF_MEMORY, Decision(restart=True, exit_code=1)),
        (Cause.NODE_FAILURE, Decision(restart=True, exit_code=1)),
        (Cause.LOST, Decision(restart=True, exit_code=1)),
    ],
)
def test_a_first_end(config: Config, cause: Cause, decision: Decision) -> None:
    assert decide(History(written(fault(cause))), config) == decision


@pytest.mark.parametrize(
    ("attempts", "why"),
    [
        pytest.param(
            [fault(E), fault(E)],
            "the same exception at step 12 in two attempts: ValueError: a",
            id="the same twice",
        ),
        pytest.param(
            [fault(E, 12, "ValueError: row 7 at 0xff"), fault(E, 12, "ValueError: row 8 at 0xa1")],
            "the same exception at step 12 in two attempts: ValueError: row 8 at 0xa1",
            id="numbers are no difference",
        ),
        pytest.param(
            [fault(E, None), fault(E, None)],
            "the same exception before the first step in two attempts: ValueError: a",
            id="at the start",
        ),
        pytest.param(
            [fault(E), stop(Cause.PREEMPTED), fault(E)],
            "the same exception at step 12 in two attempts: ValueError: a",
            id="with a preemption between",
        ),
        pytest.param([fault(E), fault(E, 13)], "", id="at another step"),
        pytest.param([fault(E), fault(E, 12, "KeyError: a")], "", id="another exception"),
        pytest.param([fault(E), fault(Cause.KILLED), fault(E)], "", id="not in a row"),
        pytest.param(
            [fault(Cause.HANG, 12, "rank 1"), fault(Cause.HANG, 12, "rank 2")],
            "the same hang at step 12 in two attempts: rank 2",
            id="a hang, of whichever rank",
        ),
        pytest.param(
            [fault(Cause.OUT_OF_MEMORY, 12, "rank 1"), fault(Cause.OUT_OF_MEMORY, 12, "rank 1")],
            "the same out of memory at step 12 in two attempts: rank 1",
            id="out of memory",
        ),
        pytest.param(
            [fault(Cause.KILLED, 1, "k", 1), fault(Cause.NODE_FAILURE, 2, "n", 2)],
            "",
            id="two nodes lost",
        ),
        pytest.param(
            [
                fault(Cause.KILLED, 1, "k", 1),
                stop(Cause.TIME_LIMIT),
                fault(Cause.LOST, 2, "l", 2),
                fault(Cause.NODE_FAILURE, 3, "n", 3),
            ],
            "3 attempts ended with a lost node or a killed rank, and"
            " slurm.node_failure_restarts is 2; the last: n",
            id="three nodes lost",
        ),
        pytest.param([fault(E, n) for n in range(3)], "", id="three without progress"),
        pytest.param(
            [fault(E, n) for n in range(4)],
            "4 failed attempts in a row without a new checkpoint"
            " (slurm.attempts_without_progress); the last: ValueError: a",
            id="four without progress",
        ),
        pytest.param(
            [fault(E, 0), fault(E, 1), fault(E, 2, saved=2), fault(E, 3)],
            "",
            id="one with progress",
        ),
        pytest.param(
            [fault(E, 9, saved=8), *(fault(E, n, saved=8) for n in range(4))],
            "4 failed attempts in a row without a new checkpoint"
            " (slurm.attempts_without_progress); the last: ValueError: a",
            id="the same checkpoint again",
        ),
        pytest.param(
            [
                fault(E, 0),
                *[stop(Cause.TOLD_TO_STOP)] * 3,
                fault(E, 1),
                stop(Cause.REQUEUED),
                fault(E, 2),
            ],
            "",
            id="stops by a person between failures are no failures",
        ),
        pytest.param(
            [fault(E, 0), *[stop(Cause.REQUEUED)] * 3, *(fault(E, n) for n in (1, 2, 3))],
            "4 failed attempts in a row without a new checkpoint"
            " (slurm.attempts_without_progress); the last: ValueError: a",
            id="four failures with stops between",
        ),
        pytest.param(
            [stop(Cause.PREEMPTED, saved=3 * n) for n in range(1, 51)],
            "",
            id="fifty preemptions with progress",
        ),
        pytest.param([stop(Cause.REQUEUED)] * 50, "", id="fifty requeues by a person"),
        pytest.param([stop(Cause.TOLD_TO_STOP)] * 50, "", id="fifty signals by a person"),
        pytest.param(
            [stop(Cause.PREEMPTED)] * 3, "", id="three preemptions without a step: one more"
        ),
        pytest.param(
            [stop(Cause.PREEMPTED)] * 4,
            NO_PROGRESS.format(4, 4, "preempted"),
            id="four preemptions without a step",
        ),
        pytest.param(
            [stop(Cause.TIME_LIMIT, saved=20 + n) for n in range(5)],
            NO_PROGRESS.format(4, 4, "time limit"),
            id="one step in each time limit, after an attempt with twenty",
        ),
        pytest.param(
            [stop(Cause.TIME_LIMIT, saved=2 * n) for n in range(1, 5)],
            NO_PROGRESS.format(4, 4, "time limit"),
            id="two steps in each time limit",
        ),
        pytest.param(
            [
                stop(Cause.TIME_LIMIT, saved=1),
                stop(Cause.TIME_LIMIT, saved=2),
                stop(Cause.TIME_LIMIT, saved=5),
                stop(Cause.TIME_LIMIT, saved=6),
                stop(Cause.PREEMPTED, saved=7),
            ],
            "",
            id="three steps in one of them",
        ),
        pytest.param(
            [
                stop(Cause.TIME_LIMIT, saved=1),
                stop(Cause.REQUEUED),
                stop(Cause.PREEMPTED),
                fault(E),
                stop(Cause.TIME_LIMIT),
            ],
            NO_PROGRESS.format(4, 3, "time limit"),
            id="mixed with a failure, and with a requeue that does not count",
        ),
        pytest.param(
            [
                stop(Cause.TIME_LIMIT),
                stop(Cause.TIME_LIMIT),
                stop(Cause.TOLD_TO_STOP, saved=8),
                stop(Cause.TIME_LIMIT),
                stop(Cause.TIME_LIMIT),
            ],
            "",
            id="a signal by a person after some steps",
        ),
        pytest.param(
            [stop(Cause.PREEMPTED), stop(Cause.PREEMPTED), stop(Cause.PREEMPTED), fault(E)],
            NO_PROGRESS.format(4, 3, "exception: ValueError: a"),
            id="a failure after preemptions",
        ),
    ],
)
def test_the_budget(config: Config, attempts: list[Told], why: str) -> None:
    decision = decide(History(written(*attempts)), config)
    assert decision.given_up == why
    assert decision.restart is (not why)
    if why:
        assert decision.exit_code == 70


def test_steps_after_a_damaged_checkpoint_are_counted_from_the_one_before(config: Config) -> None:
    entries = written(stop(Cause.TIME_LIMIT, saved=500))
    for number, last in enumerate((420, 440, 460, 480), start=2):
        again = written(stop(Cause.TIME_LIMIT, saved=last), first=number)
        entries += [
            again[0],
            {"event": "resumed", "attempt": number, "step": last - 20},
            *again[1:],
        ]
    assert decide(History(entries), config).restart


def test_steps_need_not_be_counted() -> None:
    off = load_config(ROOT / "config/demo.yaml", ["slurm.min_steps_per_attempt=0"])
    assert decide(History(written(*[stop(Cause.TIME_LIMIT)] * 50)), off).restart


def test_a_launch_by_hand_is_a_new_budget(config: Config) -> None:
    before = written(fault(E))
    launched: Entry = {"event": "launched", "job_id": "43"}
    again = written(fault(E), job="43", first=2)
    # SLURM may start a job before the launcher has noted it.
    for entries in ([*before, launched, *again], [*before, *again, launched]):
        assert decide(History(entries), config).restart
    assert not decide(History([*before, *written(fault(E), first=2)]), config).restart


def test_progress_is_measured_over_all_jobs(config: Config) -> None:
    before = written(fault(E, 20, saved=20))
    again = written(*(fault(E, n, saved=20) for n in range(4)), job="43", first=2)
    assert "without a new checkpoint" in decide(History([*before, *again]), config).given_up


def test_without_a_journal_nothing_is_restarted(config: Config) -> None:
    """A full disk takes no `ended` line: no budget could ever be used up."""
    stopped = Decision(restart=False, exit_code=1)
    assert decide(History([]), config) == stopped
    assert decide(History(written(fault(E))[:-1]), config) == stopped
    unknown: Entry = {"event": "ended", "attempt": 1, "cause": "of another version"}
    assert decide(History([*written(fault(E))[:-1], unknown]), config) == stopped


def test_given_up_belongs_to_a_job(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    journal.append(file, {"event": "given_up", "job_id": "42", "detail": "why"})
    assert history.read(file).why_given_up("42") == "why"
    assert history.read(file).why_given_up("43") == ""
