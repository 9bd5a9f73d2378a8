"""The fields of a row that its format does not read, so that none is lost unseen."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from llada_sft.config.record_formats import KnownFormat
from llada_sft.data.records.conversation import FLAGS, SAID, WEIGHT
from llada_sft.data.records.formats import RecordRules, names_in, pair_names, turn_names

_OF_TURNS = {*SAID, *FLAGS, WEIGHT, "role"}
# Of a part of a content.
_OF_PARTS = {"type", "text"}
_EMPTY: tuple[object, ...] = (None, "", [], {})
# Fields of a record that hold turns, or may.
_TURNS = ("messages", "conversations", "prompt", "response")


def unread_fields(
    record: Mapping[str, Any],
    record_format: KnownFormat,
    rules: RecordRules,
    read_by_template: Collection[str] = (),
) -> set[str]:
    """Name the fields of a record that are not read and hold something.

    Args:
        record: A record of the format.
        record_format: Which one.
        rules: Names and ignored fields.
        read_by_template: Names that the chat template speaks of.

    Returns:
        Fields of the record, of its turns, and of the parts of their contents: `id`,
        `messages[].name`, `messages[].content[].image`.
    """
    if len(record) == 1 and _are_plain(record.get(record_format)):
        return set()
    names = names_in(record, record_format, rules.fields)
    unread = _holding(record, {*names.values(), *rules.ignored})
    role, content = turn_names(record_format, rules.fields)
    for name in (names[field] for field in _TURNS if field in names):
        for turn in _turns(record.get(name)):
            if len(turn) > 2:
                read = _read_of_turn(turn, role, content, read_by_template)
                unread |= {f"{name}[].{key}" for key in _holding(turn, {*read, *rules.ignored})}
            said = _first(content, turn)
            if isinstance(parts := turn.get(said), list):
                for part in _turns(parts):
                    more = _holding(part, {*_OF_PARTS, *rules.ignored})
                    unread |= {f"{name}[].{said}[].{key}" for key in more}
    return unread


def _read_of_turn(
    turn: Mapping[str, Any],
    role: Collection[str],
    content: Collection[str],
    read_by_template: Collection[str],
) -> set[str]:
    """Name what is read of a turn, or of an entry that is a question and its answer."""
    read = {*_OF_TURNS, *read_by_template}
    if any(name in turn for name in role):
        return read | {_first(role, turn), _first(content, turn)}
    # The template sees the answer's content, not a field of that name.
    return read - {"role", "content"} | {"system", *(pair_names(turn) or ())}


def _are_plain(turns: object) -> bool:
    """Return whether all turns are a role and a text, as in most rows of messages."""
    return isinstance(turns, list) and all(
        type(turn) is dict
        and len(turn) == 2
        and "role" in turn
        and type(turn.get("content")) is str
        for turn in turns
    )


def _holding(fields: Mapping[str, Any], known: Collection[str]) -> set[str]:
    """Return the fields that are not known and hold something."""
    return {name for name, value in fields.items() if name not in known and value not in _EMPTY}


def _turns(value: object) -> Iterator[Mapping[str, Any]]:
    turns = value if isinstance(value, list) else [value]
    return (turn for turn in turns if isinstance(turn, Mapping))


def _first(names: Collection[str], turn: Mapping[str, Any]) -> str:
    return next((name for name in names if name in turn), "")


def listed_unread(unread: Mapping[str, int]) -> str:
    """List fields that are not read, and how many rows have each."""
    listed = ", ".join(f"{name!r} ({count:,})" for name, count in sorted(unread.items()))
    return f"{listed}; data.ignore_fields silences this"
