"""Ranks exchange values through a store; whoever is silent is named. The ranks are objects here."""

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest

from llada_sft.cluster.launch.ports import free_port
from llada_sft.placement import Placement
from llada_sft.training.nodes import meeting as meeting_module
from llada_sft.training.nodes.meeting import Meeting, SilentError

Met = Callable[[int], list[Meeting]]


@pytest.fixture
def met() -> Met:
    """Return so many ranks of a new store."""

    def meet(world_size: int) -> list[Meeting]:
        port = free_port()
        return [
            Meeting(Placement(rank, world_size, 0, rank, "127.0.0.1", port), timedelta(seconds=20))
            for rank in range(world_size)
        ]

    return meet


def test_rank_0_gets_the_answers_in_the_order_of_ranks(met: Met) -> None:
    ranks = met(3)
    for number in (2, 0, 1):
        ranks[number].answer("facts", {"rank": number, "text": "ä\n"})
    assert list(ranks[0].answers("facts", 5)) == [{"rank": n, "text": "ä\n"} for n in range(3)]


def test_silent_ranks_are_named(met: Met) -> None:
    ranks = met(4)
    for number in (0, 2):
        ranks[number].answer("here", f"node{number}")
    with pytest.raises(SilentError) as caught:
        list(ranks[0].answers("here", 0.05))
    assert caught.value.ranks == [1, 3]
    assert [ranks[0].value("here", rank) for rank in range(4)] == ["node0", None, "node2", None]


def test_all_hear_what_rank_0_announces(met: Met) -> None:
    ranks = met(3)
    ranks[0].announce("verdict", ["a", "b"])
    assert [one.hear("verdict", 5) for one in ranks[1:]] == [["a", "b"]] * 2


def test_rank_0_can_be_silent_too(met: Met) -> None:
    # Rank 0 must live: it has the store.
    _zero, one = met(2)
    with pytest.raises(SilentError) as caught:
        one.hear("verdict", 0.05)
    assert caught.value.ranks == [0]


def test_a_line_says_who_is_late(met: Met, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting_module, "_LATE_S", 0.05)
    ranks = met(7)
    lines: list[str] = []
    ranks[0].answer("here", "node0")
    late = threading.Event()

    def say(line: str) -> None:
        lines.append(line)
        if len(lines) == 1:
            for one in ranks[1:6]:
                one.answer("here", "")
        else:
            ranks[6].answer("here", "")
            late.set()

    ranks[0].wait_for_start("here", say)
    assert late.is_set()
    assert lines == [
        "waiting for 6 ranks (1, 2, 3, 4, ...) of 7 to start",
        "waiting for rank 6 of 7 to start",
    ]
