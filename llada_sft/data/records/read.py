"""A record of a known format -> a conversation, token ids or plain text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llada_sft.config.record_formats import KnownFormat
from llada_sft.data.records.conversation import Turn, check_string, read_tools, read_turns
from llada_sft.data.records.formats import (
    Names,
    RecordRules,
    check_format,
    kind_of,
    turn_names,
)
from llada_sft.data.records.refused import why_not_learned
from llada_sft.data.records.turns import LEARN
from llada_sft.errors import DataError

# The label of a token that is not learned, as in PyTorch's cross-entropy.
_CONTEXT = -100
# What a turn of `messages` calls its role and its text, without `data.fields`.
_TURN_NAMES = turn_names("messages", {})


@dataclass(frozen=True)
class Conversation:
    """Turns, all with a role; not yet with an answer to learn.

    Attributes:
        turns: In their order.
        history: How many of them, at the start, are learned with `data.multi_turn: all` alone.
        tools: What the assistant may call; None if nothing.
    """

    turns: list[Turn]
    history: int = 0
    tools: list[Any] | None = None


@dataclass(frozen=True)
class Tokenized:
    """Token ids of prompt and response, and which of them are learned."""

    input_ids: list[int]
    response_mask: list[bool]


def read_record(
    record: object, record_format: KnownFormat, rules: RecordRules
) -> Conversation | Tokenized | str:
    """Read a record of one format.

    Args:
        record: The JSON value of a row.
        record_format: Which one.
        rules: Names, roles and ignored fields.

    Raises:
        DataError: What is wrong, by the names that the rows have.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"a record must be a JSON object, got {kind_of(record)}")
    if rules.ignored:
        record = {name: value for name, value in record.items() if name not in rules.ignored}
    # Before what is missing: a pair has no response.
    if why_not := why_not_learned(record, set(rules.fields.values())):
        raise DataError(why_not)
    if len(record) == 1 and record_format == "messages" in record and not rules.fields:
        # Nothing but turns, as most rows are: each row of a training comes here twice.
        return Conversation(read_turns(record["messages"], "messages", rules, *_TURN_NAMES))
    names = check_format(record, record_format, rules.fields)
    if record_format == "text":
        return _text(record, names["text"])
    if record_format == "tokens":
        return _tokens(record, names)
    conversation = _READERS[record_format](record, names, rules)
    turns = _with_system(conversation.turns, record, names["system"])
    return Conversation(
        turns,
        conversation.history + len(turns) - len(conversation.turns) if conversation.history else 0,
        read_tools(record.get(names["tools"]), names["tools"]),
    )


def _messages(record: Mapping[str, Any], names: Names, rules: RecordRules) -> Conversation:
    name = names["messages"]
    return Conversation(
        read_turns(record[name], name, rules, *turn_names("messages", rules.fields))
    )


def _sharegpt(record: Mapping[str, Any], names: Names, rules: RecordRules) -> Conversation:
    name = names["conversations"]
    return Conversation(
        read_turns(record[name], name, rules, *turn_names("sharegpt", rules.fields))
    )


def _prompt_response(record: Mapping[str, Any], names: Names, rules: RecordRules) -> Conversation:
    history = _history(record, names["history"])
    prompt = _said(record, names["prompt"], "user", rules)
    for turn in prompt:
        if turn["role"] == "assistant":
            # Only what the row names as its response is learned.
            turn[LEARN] = False
    response = _said(record, names["response"], "assistant", rules)
    return Conversation([*history, *prompt, *response], len(history))


def _alpaca(record: Mapping[str, Any], names: Names, rules: RecordRules) -> Conversation:
    prompt, response = _text(record, names["instruction"]), _text(record, names["output"])
    given = record.get(names["input"])
    if given is not None and check_string(given, names["input"]).strip():
        prompt = f"{prompt}\n\n{given}"
    history = _history(record, names["history"])
    return Conversation([*history, *_pair(prompt, response)], len(history))


_READERS: Mapping[KnownFormat, Callable[[Mapping[str, Any], Names, RecordRules], Conversation]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "prompt_response": _prompt_response,
    "alpaca": _alpaca,
}


def _pair(prompt: str, response: str) -> list[Turn]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _said(record: Mapping[str, Any], name: str, role: str, rules: RecordRules) -> list[Turn]:
    """Read a prompt or a response: a text, a turn, or a list of turns."""
    said = record[name]
    if isinstance(said, Mapping):
        said = [said]
    if isinstance(said, list) and said and isinstance(said[0], Mapping):
        return read_turns(said, name, rules, *turn_names("messages", rules.fields))
    return [{"role": role, "content": _text(record, name)}]


def _history(record: Mapping[str, Any], name: str) -> list[Turn]:
    """Read the turns before the prompt: pairs of question and answer."""
    pairs = record.get(name)
    if not pairs:
        return []
    if not isinstance(pairs, list):
        raise DataError(f"{name!r} must be a list of pairs, got {kind_of(pairs)}")
    turns = []
    for number, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"'{name}[{number}]' must be a pair of texts, got {kind_of(pair)}")
        question, answer = (
            check_string(text, f"{name}[{number}][{place}]") for place, text in enumerate(pair)
        )
        turns += _pair(question, answer)
    return turns


def _with_system(turns: list[Turn], record: Mapping[str, Any], name: str) -> list[Turn]:
    system = record.get(name)
    if system in (None, "") or not (text := check_string(system, name)).strip():
        return turns
    if turns[0]["role"] in ("system", "developer"):
        raise DataError(f"both {name!r} and a system turn; keep one")
    return [{"role": "system", "content": text}, *turns]


def _text(record: Mapping[str, Any], name: str) -> str:
    text = check_string(record[name], name)
    if not text.strip():
        raise DataError(f"{name!r} is empty")
    return text


def _tokens(record: Mapping[str, Any], names: Names) -> Tokenized:
    ids = _numbers(record, names["input_ids"])
    labels = _numbers(record, names["labels"])
    real = _numbers(record, names["attention_mask"]) or [1] * len(ids)
    lengths = {len(ids), len(labels), len(real)}
    if len(lengths) > 1:
        raise DataError(
            f"{names['input_ids']!r} and {names['labels']!r} must have the same length,"
            f" got {len(ids)} and {len(labels)}"
            if len(ids) != len(labels)
            else f"{names['attention_mask']!r} must have the length of {names['input_ids']!r},"
            f" got {len(real)} and {len(ids)}"
        )
    is_mask = names["labels"] != "labels" and set(labels) <= {0, 1}
    learned = [bool(label) if is_mask else label != _CONTEXT for label in labels]
    if not is_mask:
        _check_labels(ids, labels, names["labels"])
    kept = [place for place, one in enumerate(real) if one]
    return Tokenized([ids[place] for place in kept], [learned[place] for place in kept])


def _check_labels(ids: Sequence[int], labels: Sequence[int], name: str) -> None:
    """Check that labels are the ids themselves.

    Raises:
        DataError: They are others, as those that somebody has shifted.
    """
    for place, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if label not in (_CONTEXT, token):
            raise DataError(
                f"'{name}[{place}]' must be {_CONTEXT} or the id of its token, {token};"
                f" got {label}: labels are not shifted here"
            )


def _numbers(record: Mapping[str, Any], name: str) -> list[int]:
    values = record.get(name)
    if values is None and name == "attention_mask":
        return []
    if not isinstance(values, list) or not all(isinstance(value, int) for value in values):
        raise DataError(f"{name!r} must be a list of integers, got {kind_of(values)}")
    return values
