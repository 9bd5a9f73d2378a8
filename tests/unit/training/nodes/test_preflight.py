"""What rank 0 makes of findings, and of readings of clocks."""

from pathlib import Path
from typing import Any, cast

import pytest

from llada_sft.config import load_config
from llada_sft.errors import LaunchError, NodeError, PeerFailedError
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.training.host import Host
from llada_sft.training.nodes import preflight as preflight_module
from llada_sft.training.nodes.facts import RankFacts
from llada_sft.training.nodes.findings import NodeFinding
from llada_sft.training.nodes.meeting import Meeting, SilentError
from llada_sft.training.nodes.preflight import Preflight

ROOT = Path(__file__).parents[4]
WARNING = NodeFinding("node2: little room", False)
OF_NODE = NodeFinding("node3: torch 2.9.0", True, ("node3",))
OF_JOB = NodeFinding("torch differs", True)


def judged(findings: list[NodeFinding], *overrides: str) -> list[Any]:
    """Let rank 0 of eight nodes of two ranks judge; return what it notes."""
    notes: list[Any] = []
    config = load_config(ROOT / "config/demo.yaml", [*overrides])
    placement = Placement(0, 16, 0, 0, "127.0.0.1", 1)
    preflight = Preflight(config, RunDir(Path("run")), placement, Host(note=notes.append))
    preflight._facts = [RankFacts(rank, f"node{1 + rank // 2}") for rank in range(16)]
    preflight.nodes = [fact.node for fact in preflight._facts]
    preflight._end_or_warn(findings)
    return notes


def test_warnings_are_printed_and_noted(capsys: pytest.CaptureFixture[str]) -> None:
    assert judged([]) == []
    assert judged([WARNING]) == [{"event": "warning", "detail": "node2: little room"}]
    assert capsys.readouterr().err == "warning: node2: little room\n"


def test_errors_of_a_minority_name_its_first_node() -> None:
    other = NodeFinding("node5: its clock is 600 s behind", True, ("node5",))
    with pytest.raises(NodeError) as caught:
        judged([OF_NODE, other, WARNING])
    assert str(caught.value) == "node3: torch 2.9.0\nnode5: its clock is 600 s behind"
    assert (caught.value.node, caught.value.rank) == ("node3", 4)


@pytest.mark.parametrize(
    "findings",
    [
        [OF_JOB],
        [OF_NODE, OF_JOB],
        # Each alone is one of a minority; together they are five of eight nodes.
        [NodeFinding(f"node{n}: x", True, (f"node{n}",)) for n in range(1, 6)],
    ],
)
def test_other_errors_are_a_mistake(findings: list[NodeFinding]) -> None:
    with pytest.raises(LaunchError) as caught:
        judged(findings)
    *lines, advice = str(caught.value).splitlines()
    assert lines == [finding.text for finding in findings]
    assert advice == (
        "make the nodes alike, or run without some of them (slurm.exclude);"
        " train.preflight=warn starts in spite of this"
    )


def test_errors_can_be_warnings() -> None:
    notes = judged([OF_NODE, OF_JOB], "train.preflight=warn")
    assert [note["detail"] for note in notes] == [OF_NODE.text, OF_JOB.text]


class Ended:
    """A meeting that rank 0 has ended with an error, before a word or after it read the clocks."""

    def __init__(self, clock: float | None) -> None:
        self.heard = {"clock": clock, "verdict": None}
        self.is_left = False

    def hear(self, name: str, limit_s: float = 0.0) -> float | None:
        return self.heard[name]

    def answer(self, name: str, value: object) -> None:
        assert name == "reading"

    def leave(self) -> None:
        self.is_left = True


@pytest.mark.parametrize("clock", [None, 1e9])
def test_another_rank_refers_to_the_line_of_rank_0(clock: float | None) -> None:
    config = load_config(ROOT / "config/demo.yaml", [])
    placement = Placement(1, 16, 0, 1, "127.0.0.1", 1)
    meeting = Ended(clock)
    with pytest.raises(PeerFailedError) as caught:
        Preflight(config, RunDir(Path("run")), placement, Host())._hear(cast(Meeting, meeting))
    assert str(caught.value) == ("the nodes differ, or a rank does not answer; see rank 0's line")
    assert meeting.is_left


def test_many_silent_ranks_are_counted() -> None:
    class Answered:
        def value(self, name: str, rank: int) -> str:
            return f"node{1 + rank // 2}"

    preflight = Preflight(
        load_config(ROOT / "config/demo.yaml"),
        RunDir(Path("run")),
        Placement(0, 32, 0, 0, "127.0.0.1", 1),
        Host(),
    )
    error = preflight._silent(Answered(), SilentError([*range(4, 16)]), "to answer")  # type: ignore[arg-type]
    first, *_, last = str(error).splitlines()
    assert first == (
        "rank 4 (node3): was asked to answer, no answer within 40 s (train.preflight_timeout_s)"
    )
    assert last == "and 4 ranks more"
    assert (error.node, error.rank) == ("node3", 4)


@pytest.mark.parametrize("ahead_s", [0.0, 600.0, -600.0])
@pytest.mark.parametrize(("there_s", "back_s"), [(0.0, 0.0), (3.0, 3.0), (2.0, 4.0)])
def test_of_the_two_ways_of_a_message_only_the_difference_remains(
    monkeypatch: pytest.MonkeyPatch, ahead_s: float, there_s: float, back_s: float
) -> None:
    sent_s = 1000.0
    # The rank reads its clock when the message is there, and answers at once.
    read_at = sent_s + there_s + ahead_s
    monkeypatch.setattr(preflight_module.time, "time", lambda: sent_s + there_s + back_s)
    found = preflight_module._clock_s(read_at - sent_s, read_at)
    assert found == pytest.approx(ahead_s + (there_s - back_s) / 2)
