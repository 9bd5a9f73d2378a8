"""Which format a record is of, and what its fields are called there.

    messages         {"messages": [{"role": "user", "content": ...}, ...]}
    sharegpt         {"conversations": [{"from": "human", "value": ...}, ...]}
    prompt_response  {"prompt": ..., "response": ...}
    alpaca           {"instruction": ..., "input": ..., "output": ...}
    tokens           {"input_ids": [...], "labels": [...]}
    text             {"text": ...}

`data.fields` gives a field another name; without it, the usual names of other tools are known
(config/record_formats.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llada_sft.config.record_formats import (
    ALIASES,
    ANSWERS,
    FIELDS,
    OF_A_TURN,
    QUESTIONS,
    REQUIRED,
    KnownFormat,
)
from llada_sft.data.records.refused import why_not_learned
from llada_sft.errors import DataError

# Field of a format -> its name in the rows.
Names = Mapping[str, str]
# Each field of a record of a format, and the names that it may have.
_POSSIBLE = {
    known: [
        (name, (name, *ALIASES[known].get(name, ()))) for name in names if name not in OF_A_TURN
    ]
    for known, names in FIELDS.items()
}
_SHOWN_FIELDS = 8
# The name of a field that a record cannot have, as its own name is given to another field.
_NOWHERE = "\0"


@dataclass(frozen=True)
class RecordRules:
    """What the config says of the rows.

    Attributes:
        fields: `data.fields`.
        roles: `data.roles`.
        ignored: `data.ignore_fields`.
    """

    fields: Names = field(default_factory=dict)
    roles: Names = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()


def names_in(record: Mapping[str, Any], record_format: KnownFormat, fields: Names) -> Names:
    """Return the name that each field of a format has in a record, or would have."""
    taken = set(fields.values())
    names = {}
    for own_name, possible in _POSSIBLE[record_format]:
        if own_name in fields:
            names[own_name] = fields[own_name]
            continue
        names[own_name] = _NOWHERE if own_name in taken else own_name
        for name in possible:
            if name not in taken and record.get(name) is not None:
                names[own_name] = name
                break
    return names


def turn_names(record_format: KnownFormat, fields: Names) -> tuple[Sequence[str], Sequence[str]]:
    """Return the names that role and content of a turn may have."""
    of_format = ("from", "value") if record_format == "sharegpt" else ("role", "content")
    aliases = ALIASES["sharegpt" if record_format == "sharegpt" else "messages"]
    role, content = (
        (fields[name],) if name in fields else (name, *aliases[name]) for name in of_format
    )
    return role, content


def format_of(record: object, fields: Names) -> KnownFormat | None:
    """Return the format of a record; None if it is not known.

    It is the first that the record has all fields of, with values of the right type: first by the
    formats' own names, then by those of other tools. Where `data.fields` names fields, it is a
    format that has these, and if none fits, the first whose fields the record has, of any type.
    """
    if not fields and type(record) is dict and _has_messages(record):
        # The first format is tried first; most rows are of it.
        return "messages"
    if not isinstance(record, Mapping):
        return None
    possible = list(_possible_formats(fields))
    for aliases in (False, True):
        for record_format in possible:
            if _fits(record, record_format, fields, aliases):
                return record_format
    if fields:
        for record_format in possible:
            if not _missing(record, record_format, names_in(record, record_format, fields)):
                return record_format
    return None


def likely_format(record: object, fields: Names) -> KnownFormat:
    """Return the format that a record was meant to have, for the message that says what is wrong.

    Raises:
        DataError: It has no field of any format, or is what SFT does not learn.
    """
    if (known := format_of(record, fields)) is not None:
        return known
    if not isinstance(record, Mapping):
        raise DataError(f"a record must be a JSON object, got {kind_of(record)}")
    if (why_not := why_not_learned(record, ())) is not None:
        raise DataError(why_not)
    for record_format in REQUIRED:
        if any(fields.get(name, name) in record for name in REQUIRED[record_format]):
            return record_format
    for record_format in REQUIRED:
        names = names_in(record, record_format, fields)
        if any(names[name] in record for name in REQUIRED[record_format]):
            return record_format
    raise DataError(
        f"no known format: {fields_of(record)}{_list_of_turns(record)}; "
        "name yours in data.fields, or read them in a hook"
    )


def check_format(record: Mapping[str, Any], record_format: KnownFormat, fields: Names) -> Names:
    """Return the names of the fields of a record that is of a format.

    Raises:
        DataError: It lacks one.
    """
    names = names_in(record, record_format, fields)
    if missing := _missing(record, record_format, names):
        other = format_of(record, fields)
        remedy = (
            f"; it is {other}: one run reads one format, or data.format: raw"
            if other not in (None, record_format)
            else _list_of_turns(record)
        )
        listed = ", ".join(map(repr, missing))
        raise DataError(f"not {record_format}: no {listed}; {fields_of(record)}{remedy}")
    return names


def fields_of(record: Mapping[str, Any]) -> str:
    """List the fields of a record, for messages."""
    if not record:
        return "it has no fields"
    names = [repr(name) for name in record]
    more = ", ..." if len(names) > _SHOWN_FIELDS else ""
    return f"its fields are {', '.join(names[:_SHOWN_FIELDS])}{more}"


def kind_of(value: object) -> str:
    """Name the type of a JSON value, for messages."""
    if value is None:
        return "null"
    return f"an empty {type(value).__name__}" if value in ([], {}, "") else type(value).__name__


def _possible_formats(fields: Names) -> Iterator[KnownFormat]:
    """Return the formats that have the fields which `data.fields` names."""
    named = set(fields)
    complete = [known for known, names in FIELDS.items() if named <= set(names)]
    some = [known for known, names in FIELDS.items() if named & set(names)]
    yield from complete or some or REQUIRED


def _missing(record: Mapping[str, Any], record_format: KnownFormat, names: Names) -> list[str]:
    needed = ((name, names[name]) for name in REQUIRED[record_format])
    return [own if name == _NOWHERE else name for own, name in needed if name not in record]


def _fits(
    record: Mapping[str, Any], record_format: KnownFormat, fields: Names, aliases: bool
) -> bool:
    """Return whether a record has the fields of a format, with values that it could have."""
    if aliases:
        names = names_in(record, record_format, fields)
        # An instruction would be missing in the prompt.
        if record_format == "prompt_response" and "instruction" in record:
            return False
    else:
        names = {name: fields.get(name, name) for name in REQUIRED[record_format]}
    values = [record.get(names[name]) for name in REQUIRED[record_format]]
    if record_format in ("messages", "sharegpt"):
        role, content = turn_names(record_format, fields)
        if not aliases:
            role, content = role[:1], content[:1]
        return _are_turns(values[0], role, content)
    if record_format == "tokens":
        return all(isinstance(value, list) and _are_numbers(value) for value in values)
    if record_format == "prompt_response":
        return all(isinstance(value, str) or _is_said(value, fields) for value in values)
    return all(isinstance(value, str) for value in values)


def _has_messages(record: dict[str, Any]) -> bool:
    """Return whether a record has the turns of its first format, by that format's own names."""
    return _are_turns(record.get("messages"), ("role",), ("content",))


def _are_turns(value: object, role: Sequence[str], content: Sequence[str]) -> bool:
    if not isinstance(value, list) or not value or not isinstance(value[0], Mapping):
        return False
    contents = (*content, "tool_calls", "function_call")
    if any(name in value[0] for name in role):
        return any(name in value[0] for name in contents)
    # Only where the names of other tools are tried.
    return len(role) > 1 and pair_names(value[0]) is not None


def pair_names(entry: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the names of question and answer in an entry that has both; None if it has not."""
    question = next((name for name in QUESTIONS if name in entry), None)
    answer = next((name for name in ANSWERS if name in entry), None)
    return None if question is None or answer is None else (question, answer)


def _is_said(value: object, fields: Names) -> bool:
    """Return whether a prompt or a response is a turn, or a list of turns."""
    role, content = turn_names("messages", fields)
    return _are_turns(value if isinstance(value, list) else [value], role, content)


def _are_numbers(values: Sequence[object]) -> bool:
    return bool(values) and all(isinstance(value, int) for value in values)


def _list_of_turns(record: Mapping[str, Any]) -> str:
    """Return what to set if a field of another name looks like a list of turns."""
    for name, value in record.items():
        entry = value[0] if isinstance(value, list) and value else None
        if isinstance(entry, Mapping) and sum(isinstance(one, str) for one in entry.values()) > 1:
            return f"; if {name!r} is the list of turns: data.fields={{messages: {name}}}"
    return ""
