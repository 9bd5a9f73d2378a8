"""What a journal says of its run: entries by attempt, and what each attempt came to."""

import pytest

from llada_sft.cluster.causes import Cause
from llada_sft.cluster.history import History
from llada_sft.cluster.journal import Entry

LAUNCHED: Entry = {"event": "launched", "job_id": "42"}


def started(number: int, job_id: str = "42") -> Entry:
    return {"event": "started", "attempt": number, "job_id": job_id, "nodes": f"node{number}"}


def checkpoint(number: int, step: int) -> Entry:
    return {"event": "checkpoint", "attempt": number, "step": step}


def ended(number: int, cause: str = "preempted") -> Entry:
    return {"event": "ended", "attempt": number, "cause": cause}


def test_before_the_first_attempt() -> None:
    for entries in ([], [LAUNCHED]):
        history = History(entries)
        assert (history.attempts, history.last, history.open) == ([], None, None)
        assert (history.next_number, history.current_number) == (1, 1)
        assert (history.last_cause, history.total_steps) == ("", None)
        assert (history.given_up, history.is_at_rest) == (None, False)


def test_an_entry_belongs_to_the_attempt_that_it_names() -> None:
    unnumbered: Entry = {"event": "changed", "detail": "between"}
    late = checkpoint(1, 20)
    unknown: Entry = {"event": "warning", "attempt": 7}
    first, second = History(
        [LAUNCHED, started(1), ended(1), unnumbered, started(2), late, unknown]
    ).attempts
    assert first.entries == [started(1), ended(1), unnumbered, late]
    assert second.entries == [started(2), unknown]
    assert (first.number, second.number) == (1, 2)


def test_starts_without_a_number_are_counted() -> None:
    entries: list[Entry] = [{"event": "started"}, {"event": "ended"}, {"event": "started"}]
    history = History(entries)
    assert [attempt.number for attempt in history.attempts] == [1, 2]
    assert [attempt.ended is not None for attempt in history.attempts] == [True, False]


def test_steps_of_an_attempt() -> None:
    resumed: Entry = {"event": "resumed", "attempt": 2, "step": 10}
    before, after = History(
        [started(1), checkpoint(1, 10), checkpoint(1, 20), started(2), resumed, checkpoint(2, 25)]
    ).attempts
    assert (before.resumed_step, before.known_step, before.step_before) == (None, 20, 0)
    assert (before.new_steps, before.saved_steps) == (20, 20)
    assert (after.resumed_step, after.known_step, after.step_before) == (10, 25, 20)
    # The checkpoint at step 20 was damaged: 15 steps were made, of which 5 are new.
    assert (after.new_steps, after.saved_steps) == (5, 15)


def test_an_attempt_without_a_checkpoint_has_saved_nothing() -> None:
    resumed: Entry = {"event": "resumed", "attempt": 2, "step": 20}
    (_, attempt) = History([started(1), checkpoint(1, 20), started(2), resumed]).attempts
    assert (attempt.new_steps, attempt.saved_steps, attempt.known_step) == (0, 0, 20)


@pytest.mark.parametrize(
    ("word", "cause"), [("hang", Cause.HANG), ("a word of the future", None), ("", None)]
)
def test_the_cause_of_an_end(word: str, cause: Cause | None) -> None:
    history = History([started(1), ended(1, word)])
    assert history.attempts[0].cause == cause
    assert history.last_cause == word


def test_the_first_failure_and_the_last_end_count() -> None:
    failures: list[Entry] = [
        {"event": "failed", "attempt": 1, "error": error, "step": step}
        for error, step in (("first", 3), ("second", 4))
    ]
    (attempt,) = History([started(1), ended(1), *failures, ended(1, "exception")]).attempts
    assert (attempt.error, attempt.last_step, attempt.cause) == ("first", 3, Cause.EXCEPTION)


def test_where_it_ended_if_nothing_failed() -> None:
    at_step: Entry = {"event": "ended", "attempt": 1, "cause": "preempted", "step": 12}
    assert History([started(1), at_step]).attempts[0].last_step == 12


def test_the_open_attempt_is_the_last_one_without_an_end() -> None:
    running = History([started(1), started(2), ended(1)])
    assert running.open is running.last is running.attempts[1]
    assert History([started(1), started(2), ended(2)]).open is None


def test_causes_of_signals() -> None:
    signals: list[Entry] = [
        {"event": "signal", "attempt": 1},
        {"event": "signal", "attempt": 1, "cause": "preempted"},
    ]
    assert History([started(1), *signals]).attempts[0].signal_causes == [Cause.PREEMPTED]


def test_given_up_until_it_is_started_again() -> None:
    given_up: Entry = {"event": "given_up", "attempt": 1, "job_id": "42", "detail": "why"}
    entries = [LAUNCHED, started(1), ended(1, "hang"), given_up]
    warning: Entry = {"event": "warning", "attempt": 1}
    assert History(entries).given_up == History([*entries, warning]).given_up == given_up
    assert History(entries).is_at_rest
    again = History([*entries, LAUNCHED])
    assert (again.given_up, again.is_at_rest) == (None, False)
    assert (again.why_given_up("42"), again.why_given_up("43")) == ("why", "")


def test_at_rest_until_something_is_prepared() -> None:
    entries = [LAUNCHED, started(1), ended(1)]
    warning: Entry = {"event": "warning", "attempt": 1}
    changed: Entry = {"event": "changed"}
    assert History(entries).is_at_rest
    assert History([*entries, warning]).is_at_rest
    assert not History([*entries, changed]).is_at_rest


def test_the_job_of_a_moved_run_is_not_its_own() -> None:
    moved: Entry = {"event": "changed", "moved_from": "/old"}
    excluded: Entry = {"event": "excluded", "attempt": 1, "job_id": "42", "node": "node1"}
    entries = [LAUNCHED, started(1), excluded, ended(1)]
    assert (History(entries).job_id, History(entries).excluded()) == ("42", [excluded])
    assert (History([*entries, moved]).job_id, History([*entries, moved]).excluded()) == (None, [])
    again: Entry = {"event": "launched", "job_id": "43"}
    assert (History([*entries, moved, again]).job_id, History([*entries, again]).excluded()) == (
        "43",
        [],
    )


def test_attempts_of_a_job() -> None:
    history = History([started(1, "41"), started(2, "42"), started(3, "42")])
    assert [attempt.number for attempt in history.of_job("42")] == [2, 3]
    assert history.of_job(None) == []
