"""A record in any known format -> a conversation: a list of turns, each `{"role", "content"}`.

    messages         {"messages": [{"role": "user", "content": ...}, ...]}
    sharegpt         {"conversations": [{"from": "human", "value": ...}, ...]}
    prompt_response  {"prompt": ..., "response": ...}
    alpaca           {"instruction": ..., "input": ..., "output": ...}
    text             {"text": ...}, which is not a conversation: it is returned as it is

All but text may have a field `system`. `data.fields` gives any of these fields another name.
"""

from collections.abc import Callable, Mapping
from typing import Any

from llada_sft.config.record_formats import FIELDS, REQUIRED, KnownFormat
from llada_sft.errors import DataError

Turn = dict[str, Any]
# Field of a format -> its name in the rows.
Names = Mapping[str, str]
_ROLES = {role: role for role in ("system", "user", "assistant")}
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", **_ROLES}
_SHOWN_FIELDS = 8
_USUAL_NAMES = {known: {name: name for name in names} for known, names in FIELDS.items()}


def read_record(record: object, record_format: KnownFormat, fields: Names) -> list[Turn] | str:
    """Read a record of one format.

    Args:
        record: The JSON value of a row.
        record_format: Which one.
        fields: `data.fields`.

    Returns:
        The turns, all with text but not yet with an answer to learn; or the text.

    Raises:
        DataError: What is wrong, by the names that the rows have.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"a record must be a JSON object, got {_kind(record)}")
    names: Names = _USUAL_NAMES[record_format]
    if fields:
        names = {name: fields.get(name, name) for name in names}
    if missing := [name for name in _required(record_format, names) if name not in record]:
        raise _not_of_format(record, record_format, fields, missing)
    if record_format == "text":
        return _text(record, names["text"])
    turns = _READERS[record_format](record, names)
    system = record.get(names["system"])
    return turns if system in (None, "") else _with_system(turns, record, names["system"])


def format_of(record: object, fields: Names) -> KnownFormat | None:
    """Return the format of a record, by its fields and their types; None if it is not known."""
    if isinstance(record, Mapping):
        for record_format in REQUIRED:
            if _looks_like(record, record_format, fields):
                return record_format
    return None


def likely_format(record: object, fields: Names) -> KnownFormat:
    """Return the format that a record was meant to have, for the message that says what is wrong.

    Raises:
        DataError: It has no field of any format.
    """
    if (known := format_of(record, fields)) is not None:
        return known
    if not isinstance(record, Mapping):
        raise DataError(f"a record must be a JSON object, got {_kind(record)}")
    for record_format in REQUIRED:
        if any(name in record for name in _required(record_format, fields)):
            return record_format
    raise DataError(
        f"no known format: {_fields_of(record)}; name yours in data.fields, or read them in a hook"
    )


def _looks_like(record: Mapping[str, Any], record_format: KnownFormat, fields: Names) -> bool:
    values = [record.get(name) for name in _required(record_format, fields)]
    if record_format not in ("messages", "sharegpt"):
        return all(isinstance(value, str) for value in values)
    turns = values[0]
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], Mapping):
        return False
    of_a_turn = ("role", "content") if record_format == "messages" else ("from", "value")
    return all(fields.get(name, name) in turns[0] for name in of_a_turn)


def _required(record_format: KnownFormat, names: Names) -> list[str]:
    return [names.get(name, name) for name in REQUIRED[record_format]]


def _not_of_format(
    record: Mapping[str, Any], record_format: KnownFormat, fields: Names, missing: list[str]
) -> DataError:
    other = format_of(record, fields)
    remedy = f"; it is {other}: one run reads one format, or data.format: raw" if other else ""
    return DataError(
        f"not {record_format}: no {', '.join(map(repr, missing))}; {_fields_of(record)}{remedy}"
    )


def _fields_of(record: Mapping[str, Any]) -> str:
    if not record:
        return "it has no fields"
    names = [repr(name) for name in record]
    more = ", ..." if len(names) > _SHOWN_FIELDS else ""
    return f"its fields are {', '.join(names[:_SHOWN_FIELDS])}{more}"


def _messages(record: Mapping[str, Any], names: Names) -> list[Turn]:
    return _turns(record, names["messages"], names["role"], names["content"], _ROLES)


def _sharegpt(record: Mapping[str, Any], names: Names) -> list[Turn]:
    return _turns(record, names["conversations"], names["from"], names["value"], _SHAREGPT_ROLES)


def _prompt_response(record: Mapping[str, Any], names: Names) -> list[Turn]:
    prompt, response = _text(record, names["prompt"]), _text(record, names["response"])
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _alpaca(record: Mapping[str, Any], names: Names) -> list[Turn]:
    prompt, response = _text(record, names["instruction"]), _text(record, names["output"])
    given = record.get(names["input"])
    if given is not None and _string(given, names["input"]).strip():
        prompt = f"{prompt}\n\n{given}"
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


_READERS: Mapping[KnownFormat, Callable[[Mapping[str, Any], Names], list[Turn]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "prompt_response": _prompt_response,
    "alpaca": _alpaca,
}


def _turns(
    record: Mapping[str, Any], field: str, role: str, content: str, roles: Names
) -> list[Turn]:
    turns = record[field]
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{field!r} must be a list of turns, got {_kind(turns)}")
    read = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise DataError(f"'{field}[{number}]' must be an object, got {_kind(turn)}")
        word = turn.get(role)
        if not isinstance(word, str) or word not in roles:
            where = f"'{field}[{number}].{role}'"
            raise DataError(f"{where} must be one of {tuple(roles)}, got {word!r}")
        text = _string(turn.get(content), f"{field}[{number}].{content}")
        read.append({"role": roles[word], "content": text})
    return read


def _with_system(turns: list[Turn], record: Mapping[str, Any], field: str) -> list[Turn]:
    text = _string(record[field], field)
    if not text.strip():
        return turns
    if turns[0]["role"] == "system":
        raise DataError(f"both {field!r} and a system turn; keep one")
    return [{"role": "system", "content": text}, *turns]


def _text(record: Mapping[str, Any], field: str) -> str:
    text = _string(record[field], field)
    if not text.strip():
        raise DataError(f"{field!r} is empty")
    return text


def _string(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{field!r} must be a string, got {_kind(value)}")
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return f"an empty {type(value).__name__}" if value in ([], {}, "") else type(value).__name__
