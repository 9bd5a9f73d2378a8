"""What the training tells the journal, with stand-ins for the clock and for the other ranks."""

from collections.abc import Mapping, Sequence
from typing import cast

import pytest

from llada_sft.training.consensus import Consensus
from llada_sft.training.host import Host
from llada_sft.training.log import step_journal as notes_module
from llada_sft.training.log.step_journal import Notes

Noted = list[Mapping[str, object]]


class Ranks:
    """Gather this rank's item and those of the others."""

    def __init__(self, others: Sequence[object]) -> None:
        self._others = others

    def gather(self, item: object) -> list[object]:
        return [item, *self._others]


def make_notes(
    own: Sequence[str] = (), others: Sequence[object] = (), rank: int = 0
) -> tuple[Notes, Noted]:
    noted: Noted = []
    host = Host(note=noted.append, signals=lambda: own)
    return Notes(host, cast(Consensus, Ranks(others)), rank), noted


def test_where_it_goes_on() -> None:
    notes, noted = make_notes()
    notes.resumed(40)
    (entry,) = noted
    assert (entry["event"], entry["step"]) == ("resumed", 40)
    assert {"llada-sft", "torch", "deepspeed"} <= cast(dict[str, str], entry["versions"]).keys()


def test_the_time_of_checkpoints_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    notes, noted = make_notes()
    # The first step is no measure. The second ends at 112 and is saved until 183; then steps of 5
    # and 3 seconds, saved for 2.
    times = iter([100, 112, 183, 188, 191, 193])
    monkeypatch.setattr(notes_module.time, "monotonic", lambda: next(times))
    notes.step_ended()
    notes.step_ended()
    notes.saved(2, num_bytes=10)
    notes.step_ended()
    notes.step_ended()
    notes.saved(4, num_bytes=20)
    event = {"event": "checkpoint"}
    assert noted == [
        {**event, "step": 2, "seconds": 71, "step_seconds": 12, "num_bytes": 10},
        {**event, "step": 4, "seconds": 2, "step_seconds": 5, "num_bytes": 20},
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
    notes, noted = make_notes(own, others)
    notes.told_to_stop(7)
    assert noted == [{"event": "signal", "step": 7, "signals": signals, "detail": whom}]


def test_other_ranks_note_nothing() -> None:
    notes, noted = make_notes(["SIGTERM"], [[]], rank=1)
    notes.resumed(0)
    notes.step_ended()
    notes.told_to_stop(1)
    notes.saved(1, num_bytes=1)
    assert noted == []
