"""journal.jsonl -> the attempts of a run, and where it stands."""

from collections.abc import Sequence
from typing import Any

from llada_sft.cluster.causes import FIXED_BY_THE_USER, Cause
from llada_sft.cluster.history import Attempt, History
from llada_sft.cluster.journal import Entry
from llada_sft.report.limits import Limits

_ASKED = frozenset(
    {Cause.PREEMPTED, Cause.TIME_LIMIT, Cause.REQUEUED, Cause.TOLD_TO_STOP, Cause.CANCELLED}
)
# What of an entry is said elsewhere.
_NOT_SHOWN = frozenset({"time", "event", "attempt", "traceback", "versions", "job_id", "nodes"})
# Entries that say more about a run than its checkpoints do, which are many.
_COMMON = frozenset({"checkpoint"})


def timeline_of(history: History, limits: Limits) -> dict[str, Any]:
    """Return the attempts, and the journal's entries outside of them, for the page."""
    attempts = [_attempt(attempt) for attempt in history.attempts]
    events = [_event(entry) for entry in _chosen(history.entries, limits.entries)]
    return {
        "attempts": [
            {name: _cut(value, limits) for name, value in attempt.items()}
            for attempt in attempts[-limits.entries :]
        ],
        "num_attempts": len(attempts),
        "events": [{**event, "text": limits.cut(event["text"])} for event in events],
        "num_events": len(history.entries),
    }


def state_of(history: History) -> dict[str, str]:
    """Return where the run stands: a word, its kind (for the colour), and one line more."""
    if history.given_up is not None:
        return _state("given up", "fault", history.given_up.get("detail", ""))
    if history.last is None:
        launched = any(entry.get("event") == "launched" for entry in history.entries)
        return _state("launched" if launched else "not launched", "open")
    if history.open is not None:
        return _state("running, or ended by force", "open")
    ended = history.last.ended or Entry()
    word = ended.get("cause", "ended")
    return _state(word, cause_kind(history.last.cause), ended.get("error", ended.get("detail", "")))


def cause_kind(cause: Cause | None) -> str:
    """Return what a cause means for its reader: `good`, `asked`, `mistake`, `fault` or `open`."""
    if cause is None:
        return "open"
    if cause is Cause.FINISHED:
        return "good"
    if cause in _ASKED:
        return "asked"
    return "mistake" if cause in FIXED_BY_THE_USER else "fault"


def _state(word: str, kind: str, detail: str = "") -> dict[str, str]:
    return {"word": word, "kind": kind, "detail": detail}


def _attempt(attempt: Attempt) -> dict[str, Any]:
    ended = attempt.ended or Entry()
    return {
        "number": attempt.number,
        "job_id": attempt.job_id or "",
        "nodes": attempt.nodes,
        "world_size": attempt.world_size,
        "start": attempt.started.get("time", ""),
        # Of one that nobody saw end, the last sign of life.
        "end": attempt.entries[-1].get("time", ""),
        "first_step": attempt.resumed_step,
        "last_step": attempt.known_step,
        "new_steps": attempt.new_steps,
        "cause": ended.get("cause", "" if attempt.ended is None else "ended"),
        "kind": cause_kind(attempt.cause),
        "detail": ended.get("detail", ""),
        "error": attempt.error or ended.get("error", ""),
        "versions": _versions(attempt.entries),
    }


def _versions(entries: Sequence[Entry]) -> str:
    """Return the versions of packages that an attempt ran with, in one line."""
    known = next((entry["versions"] for entry in entries if "versions" in entry), {})
    return ", ".join(f"{name} {version}" for name, version in known.items() if version)


def _event(entry: Entry) -> dict[str, Any]:
    said = (f"{key} {_plain(value)}" for key, value in entry.items() if key not in _NOT_SHOWN)
    return {
        "time": entry.get("time", ""),
        "event": entry.get("event", "?"),
        "attempt": entry.get("attempt"),
        "step": entry.get("step"),
        "text": ", ".join(said),
    }


def _plain(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_plain(inner)}" for key, inner in value.items())
    return f"{value:,}" if type(value) is int else str(value)


def _chosen(entries: Sequence[Entry], most: int) -> list[Entry]:
    """Return at most so many entries: of too many first the older checkpoints are skipped."""
    surplus = len(entries) - most
    kept = []
    for entry in entries:
        if surplus > 0 and entry.get("event") in _COMMON:
            surplus -= 1
        else:
            kept.append(entry)
    return kept[-most:]


def _cut(value: object, limits: Limits) -> object:
    return limits.cut(value) if isinstance(value, str) else value
