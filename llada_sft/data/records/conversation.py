"""The turns of a conversation, as a row has them -> turns with the roles that we know.

A turn keeps all of its fields; those of its role and its text become `role` and `content`. A
content may be null where the turn is a call of a tool.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from llada_sft.config.record_formats import ROLES
from llada_sft.data.records.formats import RecordRules, fields_of, kind_of, pair_names
from llada_sft.errors import DataError

Turn = dict[str, Any]
CALLS = ("tool_calls", "function_call")
REASONING = ("reasoning_content", "reasoning", "thinking")
SAID = ("content", *CALLS, *REASONING)
_USUAL = ("system", "user", "assistant", "human", "gpt")
# What says whether an answer is learned, and how much it counts.
FLAGS = ("train", "training", "trainable", "learn", "loss")
WEIGHT = "weight"
# The losses of larger ones would be infinite in fp32.
LARGEST_WEIGHT = 1e30


def read_turns(
    turns: object,
    where: str,
    rules: RecordRules,
    role_names: Sequence[str],
    content_names: Sequence[str],
) -> list[Turn]:
    """Read a list of turns.

    Args:
        turns: The list, at least one turn.
        where: What messages call it.
        rules: Names, roles and ignored fields.
        role_names, content_names: Fields of a turn; the first that it has is read.

    Raises:
        DataError: What is wrong with a turn.
    """
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where!r} must be a list of turns, got {kind_of(turns)}")
    read = []
    for number, turn in enumerate(turns):
        if not rules.roles and _is_usual(turn, role_names[0], content_names[0]):
            role = ROLES[turn[role_names[0]]]
            read.append({"role": role, "content": turn[content_names[0]]})
            continue
        place = f"{where}[{number}]"
        if rules.ignored and isinstance(turn, dict):
            turn = {name: value for name, value in turn.items() if name not in rules.ignored}
        has_role = isinstance(turn, dict) and any(name in turn for name in role_names)
        names = None if has_role or not isinstance(turn, dict) else pair_names(turn)
        if names is None:
            read.append(_read_turn(turn, place, rules, role_names, content_names))
        else:
            read += _read_pair(turn, place, names)
    return read


def _is_usual(turn: object, role: str, content: str) -> bool:
    """Return whether a turn is a text of a usual role and nothing else, as nearly all are."""
    return (
        type(turn) is dict
        and len(turn) == 2
        and type(turn.get(content)) is str
        and turn.get(role) in _USUAL
    )


def _read_pair(turn: Mapping[str, Any], where: str, names: tuple[str, str]) -> list[Turn]:
    """Read an entry that is a question and its answer, perhaps after a system prompt.

    All other fields are the answer's: how it is learned, its calls and its reasoning.
    """
    said = [("user", names[0]), ("assistant", names[1])]
    if turn.get("system"):
        said.insert(0, ("system", "system"))
    turns: list[Turn] = [
        {"role": role, "content": check_string(turn[name], f"{where}.{name}")}
        for role, name in said
    ]
    others = {name: value for name, value in turn.items() if name not in (*names, "system")}
    if others.get("tool_calls") is not None:
        others["tool_calls"] = _calls(others["tool_calls"], f"{where}.tool_calls")
    turns[-1] = {**others, **turns[-1]}
    return turns


def _read_turn(
    turn: object,
    where: str,
    rules: RecordRules,
    role_names: Sequence[str],
    content_names: Sequence[str],
) -> Turn:
    if not isinstance(turn, dict):
        raise DataError(f"{where!r} must be an object, got {kind_of(turn)}")
    role_name = next((name for name in role_names if name in turn), None)
    if role_name is None:
        raise _no_field(turn, where, role_names[0], "role")
    role = _role(turn[role_name], f"{where}.{role_name}", rules.roles)
    content_name = next((name for name in content_names if name in turn), content_names[0])
    calls = any(turn.get(name) for name in CALLS)
    if content_name not in turn and not calls:
        raise _no_field(turn, where, content_names[0], "content")
    text = _text(turn.get(content_name), f"{where}.{content_name}", may_be_null=calls)
    read = {name: value for name, value in turn.items() if name not in (role_name, content_name)}
    if role in ("function_call", "tool_call"):
        read["tool_calls"] = _calls_of_text(text, f"{where}.{content_name}")
        role, text = "assistant", ""
    elif read.get("tool_calls") is not None:
        read["tool_calls"] = _calls(read["tool_calls"], f"{where}.tool_calls")
    return {**read, "role": role, "content": text}


def _no_field(turn: Mapping[str, Any], where: str, name: str, own_name: str) -> DataError:
    return DataError(
        f"{where!r} has no {name!r}; {fields_of(turn)};"
        f" name yours in data.fields={{{own_name}: ...}}"
    )


def _role(word: object, where: str, roles: Mapping[str, str]) -> str:
    if not isinstance(word, str):
        raise DataError(f"{where!r} must be a string, got {kind_of(word)}")
    role = roles.get(word) or ROLES.get(word.strip().lower())
    if role is None:
        raise DataError(
            f"{where!r} is {word!r}, no known role; name it in data.roles={{{word}: user}}"
        )
    return role


def _text(content: object, where: str, may_be_null: bool) -> str | None:
    if content is None and may_be_null:
        return None
    if isinstance(content, list) and content:
        return "".join(_part(part, f"{where}[{number}]") for number, part in enumerate(content))
    return check_string(content, where)


def _part(part: object, where: str) -> str:
    if isinstance(part, Mapping):
        if part.get("type", "text") != "text":
            raise DataError(f"'{where}.type' is {part['type']!r}; only parts of text can be read")
        return check_string(part.get("text"), f"{where}.text")
    return check_string(part, where)


def check_string(value: object, where: str) -> str:
    """Return a value that must be a string.

    Raises:
        DataError: It is none.
    """
    if not isinstance(value, str):
        raise DataError(f"{where!r} must be a string, got {kind_of(value)}")
    return value


def parsed(value: object, where: str) -> object:
    """Return a JSON value; tables often hold it as text.

    Raises:
        DataError: It is text, but not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{where!r} is not JSON: {error.msg}") from None


def _calls_of_text(text: str | None, where: str) -> list[Any]:
    calls = parsed(text, where)
    return _calls(calls if isinstance(calls, list) else [calls], where)


def _calls(value: object, where: str) -> list[Any]:
    """Check calls of tools; those without a frame of `{"type": "function"}` get it."""
    calls = parsed(value, where)
    if not isinstance(calls, list):
        raise DataError(f"{where!r} must be a list of calls, got {kind_of(calls)}")
    framed = []
    for number, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(f"'{where}[{number}]' must be a call with a name, got {kind_of(call)}")
        framed.append(call if "function" in call else {"type": "function", "function": call})
    return framed


def read_tools(value: object, where: str) -> list[Any] | None:
    """Read the tools of a row: a list, or its JSON; None if there are none.

    Raises:
        DataError: They are something else.
    """
    tools = parsed(value, where) if value else None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"{where!r} must be a list of objects, got {kind_of(tools)}")
    return [
        tool
        if "function" in tool or where != "functions"
        else {"type": "function", "function": tool}
        for tool in tools
    ]
