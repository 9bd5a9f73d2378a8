"""journal.jsonl, quarantine/ and answers.jsonl for the page."""

from pathlib import Path
from typing import Any

import pytest

from llada_sft.cluster.history import History
from llada_sft.cluster.journal import Entry
from llada_sft.report.answers import answers_of
from llada_sft.report.bad_rows import quarantined_rows
from llada_sft.report.limits import Limits
from llada_sft.report.timeline import state_of, timeline_of
from tests.report_runs import ANSWER, BAD_ROW, RECORDED, START, write_run

LIMITS = Limits()


def history(*entries: dict[str, Any]) -> History:
    return History([Entry(**entry) for entry in entries])


def ended(cause: str, **more: Any) -> dict[str, Any]:
    return {"event": "ended", "attempt": 1, "cause": cause, **more}


@pytest.mark.parametrize(
    ("entries", "word", "kind", "detail"),
    [
        ([], "not launched", "open", ""),
        ([{"event": "launched", "job_id": "7"}], "launched", "open", ""),
        ([START], "running, or ended by force", "open", ""),
        ([START, ended("finished")], "finished", "good", ""),
        ([START, ended("preempted", detail="by 8")], "preempted", "asked", "by 8"),
        ([START, ended("mistake", error="data.train: x")], "mistake", "mistake", "data.train: x"),
        ([START, ended("hang")], "hang", "fault", ""),
        # Of another version.
        ([START, ended("moonlight")], "moonlight", "open", ""),
        (
            [START, ended("hang"), {"event": "given_up", "detail": "3 failures"}],
            "given up",
            "fault",
            "3 failures",
        ),
    ],
)
def test_where_a_run_stands(
    entries: list[dict[str, Any]], word: str, kind: str, detail: str
) -> None:
    assert state_of(history(*entries)) == {"word": word, "kind": kind, "detail": detail}


def test_the_attempts_of_a_recorded_run() -> None:
    from llada_sft.cluster import history as histories

    found = timeline_of(histories.read(RECORDED.journal), LIMITS)
    killed, finished = found["attempts"]
    assert (killed["cause"], killed["kind"]) == ("killed", "fault")
    assert (finished["cause"], finished["kind"]) == ("finished", "good")
    assert (finished["first_step"], finished["last_step"]) == (40, 160)
    assert "torch" in finished["versions"]
    assert found["num_events"] == len(found["events"])


def test_of_too_many_entries_checkpoints_are_skipped_first() -> None:
    saves = [{"event": "checkpoint", "attempt": 1, "step": step} for step in range(30)]
    warning = {"event": "warning", "attempt": 1, "detail": "disk"}
    found = timeline_of(history(START, warning, *saves), Limits(entries=10))
    assert found["num_events"] == 32
    events = [event["event"] for event in found["events"]]
    assert events == ["started", "warning", *["checkpoint"] * 8]
    assert found["events"][-1]["step"] == 29


def test_an_entry_says_what_it_has() -> None:
    entry = {"event": "checkpoint", "step": 5, "num_bytes": 12345, "rows": ["a:1", "b:2"]}
    (event,) = timeline_of(history({**entry, "keys": {"optim.lr": [1, 2]}}), LIMITS)["events"]
    assert event["text"] == "step 5, num_bytes 12,345, rows a:1 b:2, keys optim.lr: 1 2"


def test_each_bad_row_counts_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", bad_rows=[BAD_ROW, {**BAD_ROW, "line": 4}])
    other = '{"file": "a.jsonl", "line": 3, "reason": "not_json", "message": "m"}\n'
    foreign = (
        '{"file": 1}\nnot json\n{"file": "b", "line": 1, "reason": "nul_byte", "message": ""}\n'
    )
    run.rank_quarantine(1).write_text(other + foreign + '{"half')
    problems: list[str] = []
    found = quarantined_rows(run, LIMITS, problems)
    assert found["reasons"] == [["not_json", 2], ["nul_byte", 1]]
    assert found["files"] == [["a.jsonl", 2], ["b", 1]]
    assert found["total"] == 3
    assert problems == ["quarantine: 2 lines cannot be read, and are not shown"]


def test_a_run_without_bad_rows(tmp_path: Path) -> None:
    assert quarantined_rows(write_run(tmp_path / "run"), LIMITS, [])["total"] == 0


def test_answers_of_a_later_attempt_win(tmp_path: Path) -> None:
    old = [{**ANSWER, "step": step, "answer": "old"} for step in (10, 20, 30)]
    new = {**ANSWER, "step": 20, "answer": "new"}
    run = write_run(tmp_path / "run", answers=[*old, new])
    steps = answers_of(run, LIMITS, [])["steps"]
    found = [(one["step"], one["answers"][0]["answer"]) for one in steps]
    assert found == [(10, "old"), (20, "new")]


@pytest.mark.parametrize(
    ("more", "has_order"),
    [
        ({"tokens": [["a", 2], ["b", 1]], "num_passes": 2}, True),
        # Of an older version.
        ({}, False),
        # Damaged, or written by somebody else.
        ({"tokens": [["a", 2]], "num_passes": 2}, False),
        ({"tokens": [["a", 3], ["b", 1]], "num_passes": 2}, False),
        ({"tokens": [["a"], ["b", 1]], "num_passes": 2}, False),
        ({"tokens": [["a", "1"], ["b", 1]], "num_passes": 2}, False),
        ({"tokens": "ab", "num_passes": 2}, False),
        ({"tokens": [["ab", 1]]}, False),
    ],
)
def test_the_order_of_writing_is_shown_where_it_is_known(
    tmp_path: Path, more: dict[str, Any], has_order: bool
) -> None:
    run = write_run(tmp_path / "run", answers=[{**ANSWER, "step": 1, **more}])
    ((answer,),) = [one["answers"] for one in answers_of(run, LIMITS, [])["steps"]]
    assert ("tokens" in answer) is has_order
    assert answer["answer"] == "ab"


def test_answers_that_do_not_fit_are_skipped_evenly(tmp_path: Path) -> None:
    answers = [{**ANSWER, "step": step, "prompt": "p" * 90} for step in range(0, 100, 10)]
    run = write_run(tmp_path / "run", answers=answers)
    found = answers_of(run, Limits(answer_bytes=800), [])
    assert [one["step"] for one in found["steps"]] == [0, 30, 60, 90]
    assert found["num_steps"] == 10


def test_damaged_answers_are_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", answers=[{**ANSWER, "step": 1}, {"step": "x"}, ANSWER])
    problems: list[str] = []
    assert len(answers_of(run, LIMITS, problems)["steps"]) == 1
    assert problems == ["answers.jsonl: 2 lines cannot be read, and are not shown"]


def test_when_nothing_else_fits_the_last_answers_are_shown(tmp_path: Path) -> None:
    answers = [{**ANSWER, "step": step, "prompt": "p" * 90} for step in (10, 20, 30)]
    run = write_run(tmp_path / "run", answers=answers)
    found = answers_of(run, Limits(answer_bytes=50), [])
    assert [one["step"] for one in found["steps"]] == [30]


def test_a_quarantine_that_cannot_be_read_or_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llada_sft.report.bad_rows._MAX_BYTES", 1 << 20)
    run = write_run(tmp_path / "run", bad_rows=[BAD_ROW])
    run.rank_quarantine(1).mkdir()
    run.rank_quarantine(2).write_bytes(b"x" * (1 << 20))
    run.rank_quarantine(3).write_text("never read")
    problems: list[str] = []
    assert quarantined_rows(run, LIMITS, problems)["total"] == 1
    assert problems[0] == "quarantine/rank_1.jsonl: cannot be read: Is a directory"
    assert problems[1] == "quarantine: only 1 MiB of its files are shown"
