"""What rank 0 notes while it trains, and its warning that a signal comes too late for a save."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.cluster import journal
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.rank.journal_writer import RankJournal, lead_problem
from llada_sft.cluster.rank.stopping import RankJob
from llada_sft.training.host import SavedCheckpoint


@pytest.mark.parametrize(
    ("save_s", "step_s", "lead_s", "problem"),
    [
        (
            71.2,
            12.0,
            60,
            "slurm.signal_lead_s: 60 s, but a checkpoint took 71 s and a step 12 s:"
            " set it to at least 120",
        ),
        (71.2, 12.0, 120, None),
        # It fits, but without a margin.
        (40.0, 10.0, 60, "set it to at least 90"),
        (0.0, 31.0, 60, "set it to at least 90"),
        (1.0, 0.0, 1, "set it to at least 30"),
    ],
)
def test_a_lead_that_is_too_short(
    save_s: float, step_s: float, lead_s: int, problem: str | None
) -> None:
    found = lead_problem(SavedCheckpoint(10, save_s, step_s, num_bytes=1), lead_s)
    assert (found is None) == (problem is None)
    assert (found or "").endswith(problem or "")


def test_the_warning_comes_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "journal"
    noted = RankJournal(file, {"attempt": 3})
    noted.job = RankJob("42", restarts=0, signal_lead_s=60)
    for step in (10, 20):
        noted.checkpoint_saved(SavedCheckpoint(step, 71.0, 12.0, num_bytes=1))
    warning = (
        "slurm.signal_lead_s: 60 s, but a checkpoint took 71 s and a step 12 s:"
        " set it to at least 120"
    )
    assert capsys.readouterr().out == f"warning: {warning}\n"
    found = [
        (e["event"], e["attempt"], e.get("detail")) for e in journal.read(tmp_path / "journal")
    ]
    assert found == [("checkpoint", 3, None), ("warning", 3, warning), ("checkpoint", 3, None)]


def test_the_end_knows_the_step_and_the_signals(tmp_path: Path) -> None:
    noted = RankJournal(tmp_path / "journal", {"attempt": 1})
    noted.note({"event": "resumed", "step": 10})
    noted.stop_agreed(13, ["SIGUSR2"], "rank 3")
    noted.note({"event": "warning", "detail": "of no step"})
    noted.ended(Cause.TOLD_TO_STOP)
    assert journal.read(tmp_path / "journal")[-1]["step"] == 13
    assert (noted.stop_signals, noted.signalled_ranks) == (["SIGUSR2"], "rank 3")


@pytest.mark.parametrize(
    ("answer", "cause"),
    [("PreemptTime=1795464891 JobState=RUNNING", "preempted"), ("; exit 1", None)],
)
def test_a_signal_is_noted_with_its_cause_where_slurm_answers(
    tmp_path: Path, fake_tool: Callable[[str, str], None], answer: str, cause: str | None
) -> None:
    fake_tool("scontrol", f"echo {answer}")
    noted = RankJournal(tmp_path / "journal", {"attempt": 1})
    noted.job = RankJob("42", restarts=0, signal_lead_s=60)
    noted.stop_agreed(13, ["SIGTERM"], "all ranks")
    assert journal.read(tmp_path / "journal")[0].get("cause") == noted.cause == cause


def test_the_reason_of_an_early_end_is_in_the_last_entry(tmp_path: Path) -> None:
    noted = RankJournal(tmp_path / "journal", {"attempt": 1})
    assert noted.early_end == ""
    noted.ended_early("early stop: it got worse")
    noted.ended(Cause.FINISHED, detail=noted.early_end)
    (entry,) = journal.read(tmp_path / "journal")
    assert (entry["cause"], entry["detail"]) == (Cause.FINISHED, "early stop: it got worse")
