"""The formats of records: their fields, the usual names of these, and the words for roles.

`data.fields` may give a field another name, `data.roles` a role another word.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

KnownFormat = Literal["messages", "sharegpt", "prompt_response", "alpaca", "tokens", "text"]
# auto: detected from the first rows; raw: the hook gets each record as it is.
RecordFormat = Literal["auto", "raw", KnownFormat]
MultiTurn = Literal["random", "last", "all"]
SpecialTokensInText = Literal["text", "token", "refuse"]

# A row with the fields of two formats is of the first: texts are often stored next to what they
# were rendered from.
REQUIRED: Mapping[KnownFormat, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_response": ("prompt", "response"),
    "alpaca": ("instruction", "output"),
    "tokens": ("input_ids", "labels"),
    "text": ("text",),
}
# Fields that a record may lack, and those of one turn of a conversation.
_OF_CHATS = ("system", "history", "tools")
_MORE: Mapping[KnownFormat, tuple[str, ...]] = {
    "messages": ("role", "content", "system", "tools"),
    "sharegpt": ("from", "value", "system", "tools"),
    "prompt_response": _OF_CHATS,
    "alpaca": ("input", *_OF_CHATS),
    "tokens": ("attention_mask",),
    "text": (),
}
FIELDS: Mapping[KnownFormat, tuple[str, ...]] = {
    name: required + _MORE[name] for name, required in REQUIRED.items()
}
# Fields of a turn, not of the record.
OF_A_TURN = {"role", "content", "from", "value"}

# Other names that a field has in files of other tools; the first that a record has is read.
_CHAT_ALIASES = {"system": ("system_prompt",), "tools": ("functions",)}
# All names of what a record may say of its whole conversation.
OF_CONVERSATIONS = frozenset(_CHAT_ALIASES).union(*_CHAT_ALIASES.values())
ALIASES: Mapping[KnownFormat, Mapping[str, tuple[str, ...]]] = {
    "messages": {
        "messages": ("conversations", "conversation"),
        "role": ("from",),
        "content": ("value",),
        **_CHAT_ALIASES,
    },
    "sharegpt": {
        "conversations": ("conversation", "messages"),
        "from": ("role",),
        "value": ("content",),
        **_CHAT_ALIASES,
    },
    "prompt_response": {
        "prompt": ("question", "query", "input"),
        "response": ("completion", "answer", "output"),
        **_CHAT_ALIASES,
    },
    "alpaca": {"input": ("context",), "output": ("response",), **_CHAT_ALIASES},
    "tokens": {"labels": ("response_mask", "loss_mask", "completion_mask", "assistant_masks")},
    "text": {},
}

# Some files have a question and its answer in each entry of a conversation, and perhaps a system
# prompt: {"human": ..., "assistant": ...}.
QUESTIONS = ("human", "user", "query", "input")
ANSWERS = ("assistant", "gpt", "response", "output")

Role = Literal["system", "user", "assistant", "tool"]
# The words for roles, in lower case. What some chat templates have words of their own for stays:
# rendering takes the role in brackets if the template does not know the word.
ROLES: Mapping[str, str] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "chatgpt": "assistant",
    "ai": "assistant",
    "tool": "tool",
    "developer": "developer",  # (system)
    "function": "function",  # (tool)
    "observation": "observation",  # (tool)
    "environment": "environment",  # (tool)
    "ipython": "ipython",  # (tool)
    "tool_response": "tool_response",  # (tool)
    # Turns of the assistant whose text is the call, as JSON.
    "function_call": "function_call",
    "tool_call": "tool_call",
}


def check_fields(record_format: RecordFormat, fields: Mapping[str, str]) -> None:
    """Check the names on the left of `data.fields`.

    Raises:
        ValueError: The format has no such field.
    """
    if not fields:
        return
    if record_format == "raw":
        raise ValueError("is for known formats; with format: raw the hook reads every field itself")
    formats: Iterable[tuple[str, ...]] = (
        FIELDS.values() if record_format == "auto" else [FIELDS[record_format]]
    )
    known = dict.fromkeys(name for names in formats for name in names)
    if unknown := [name for name in fields if name not in known]:
        what = "any format" if record_format == "auto" else f"format: {record_format}"
        raise ValueError(
            f"{unknown[0]!r} is not a field of {what}, which are {', '.join(known)}; "
            "write {field of the format: field of your rows}"
        )
