"""Rows that are not for SFT: pairs of a better and a worse answer, and answers with a verdict."""

from collections.abc import Collection, Mapping
from typing import Any

# The better answer of a pair, and the worse one.
_CHOSEN = ("chosen", "preferred_output")
_REJECTED = ("rejected", "rejected_response", "rejected_messages", "non_preferred_output")
# Whether an answer is a good one.
_VERDICTS = ("kto_tag", "label")
# All fields of such rows.
JUDGEMENTS = frozenset({*_CHOSEN, *_REJECTED, *_VERDICTS})
_NOT_LEARNED = "which SFT does not learn; to learn"


def why_not_learned(record: Mapping[str, Any], read: Collection[str]) -> str | None:
    """Return why a row is not learned, and how to learn it nevertheless; None if nothing is wrong.

    Args:
        record: The row, without the fields that `data.ignore_fields` names.
        read: The fields that are read: who names `chosen` in `data.fields` wants it learned.
    """
    if JUDGEMENTS.isdisjoint(record):
        return None
    chosen, rejected = _first(_CHOSEN, record), _first(_REJECTED, record)
    if chosen in read:
        return None
    if chosen is not None:
        pair = f"{chosen!r}, {rejected!r}" if rejected else f"{chosen!r}"
        return (
            f"is a preference row ({pair}), {_NOT_LEARNED} the better answer:"
            f" {_how_to_learn(record, chosen)}"
        )
    if rejected is not None:
        return (
            f"is a preference row ({rejected!r}), {_NOT_LEARNED} the other answer:"
            f" data.ignore_fields=[{rejected}]"
        )
    for name in _VERDICTS:
        if isinstance(record.get(name), bool):
            shown = "true" if record[name] else "false"
            return (
                f"has a KTO label ({name!r}: {shown}), {_NOT_LEARNED} every answer whatever its"
                f" label: data.ignore_fields=[{name}]"
            )
    return None


def _first(names: Collection[str], record: Mapping[str, Any]) -> str | None:
    return next((name for name in names if record.get(name) is not None), None)


def _how_to_learn(record: Mapping[str, Any], chosen: str) -> str:
    answer = record[chosen]
    turns = answer if isinstance(answer, list) else [answer]
    if isinstance(record.get("input"), Mapping):
        return "store it after the messages of 'input', as 'messages'"
    if len(turns) > 1 and all(isinstance(turn, Mapping) for turn in turns):
        return f"data.fields={{messages: {chosen}}}"
    if "instruction" in record:
        return f"data.fields={{output: {chosen}}}"
    before = _first(("conversations", "messages"), record)
    prompt = f"prompt: {before}, " if before and "prompt" not in record else ""
    return f"data.fields={{{prompt}response: {chosen}}}"
