"""What the training tells the journal, with stand-ins for the clock and for the other ranks."""

from collections.abc import Sequence
from typing import cast

import pytest

from llada_sft.training.consensus import Consensus
from llada_sft.training.host import Host, SavedCheckpoint
from llada_sft.training.log import step_journal
from llada_sft.training.log.step_journal import StepJournal

Recorded = list[object]


class Ranks:
    """Gather this rank's item and those of the others."""

    def __init__(self, others: Sequence[object]) -> None:
        self._others = others

    def gather(self, item: object) -> list[object]:
        return [item, *self._others]


def make_journal(
    own: Sequence[str] = (), others: Sequence[object] = (), rank: int = 0
) -> tuple[StepJournal, Recorded]:
    recorded: Recorded = []
    host = Host(
        note=recorded.append,
        stop_agreed=lambda *stop: recorded.append(stop),
        checkpoint_saved=recorded.append,
        signals=lambda: own,
    )
    return StepJournal(host, cast(Consensus, Ranks(others)), rank), recorded


def test_where_it_goes_on() -> None:
    journal, recorded = make_journal()
    journal.resumed(40)
    (entry,) = cast(list[dict[str, object]], recorded)
    assert (entry["event"], entry["step"]) == ("resumed", 40)
    assert {"llada-sft", "torch", "deepspeed"} <= cast(dict[str, str], entry["versions"]).keys()


def test_the_time_of_checkpoints_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    journal, recorded = make_journal()
    # The first step is no measure. The second ends at 112 and is saved until 183; then steps of 5
    # and 3 seconds, saved for 2.
    times = iter([100, 112, 183, 188, 191, 193])
    monkeypatch.setattr(step_journal.time, "monotonic", lambda: next(times))
    journal.step_ended()
    journal.step_ended()
    journal.checkpoint_saved(2, num_bytes=10)
    journal.step_ended()
    journal.step_ended()
    journal.checkpoint_saved(4, num_bytes=20)
    assert recorded == [
        SavedCheckpoint(step=2, seconds=71, step_seconds=12, num_bytes=10),
        SavedCheckpoint(step=4, seconds=2, step_seconds=5, num_bytes=20),
    ]


def test_the_time_of_a_checkpoint_that_was_written_while_steps_were_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal, recorded = make_journal()
    # Begun for 3 seconds after a step of 10, written for 20 during two steps of 12, completed in 1;
    # then a step of 5 and a checkpoint of its own.
    times = iter([100, 110, 113, 125, 137, 138, 143, 145])
    monkeypatch.setattr(step_journal.time, "monotonic", lambda: next(times))
    journal.step_ended()
    journal.step_ended()
    journal.checkpoint_begun()
    journal.step_ended()
    journal.step_ended()
    journal.checkpoint_saved(2, num_bytes=10, write_s=20)
    journal.step_ended()
    journal.checkpoint_saved(5, num_bytes=10)
    assert recorded == [
        SavedCheckpoint(step=2, seconds=24, step_seconds=12, num_bytes=10),
        SavedCheckpoint(step=5, seconds=2, step_seconds=5, num_bytes=10),
    ]


@pytest.mark.parametrize(
    ("own", "others", "signals", "whom"),
    [
        (["SIGTERM"], [], ["SIGTERM"], "all ranks"),
        ([], [[], ["SIGUSR2"]], ["SIGUSR2"], "rank 2"),
        (["SIGUSR2"], [[], ["SIGTERM"]], ["SIGTERM", "SIGUSR2"], "ranks 0, 2"),
        ([], [["SIGUSR2"]] * 9, ["SIGUSR2"], "9 of 10 ranks"),
    ],
)
def test_who_was_told_to_stop(
    own: list[str], others: list[list[str]], signals: list[str], whom: str
) -> None:
    journal, recorded = make_journal(own, others)
    journal.stop_agreed(7)
    assert recorded == [(7, signals, whom)]


def test_other_ranks_note_nothing() -> None:
    journal, recorded = make_journal(["SIGTERM"], [[]], rank=1)
    journal.resumed(0)
    journal.step_ended()
    journal.stop_agreed(1)
    journal.checkpoint_saved(1, num_bytes=1)
    assert recorded == []
