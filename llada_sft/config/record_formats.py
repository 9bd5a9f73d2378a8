"""The formats of records, and their fields: the names that `data.fields` may map to others."""

from collections.abc import Mapping
from typing import Literal

KnownFormat = Literal["messages", "sharegpt", "prompt_response", "alpaca", "text"]
# auto: detected from the first rows; raw: the hook gets each record as it is.
RecordFormat = Literal["auto", "raw", KnownFormat]
MultiTurn = Literal["random", "last", "all"]

# A row with the fields of two formats is of the first: texts are often stored next to what they
# were rendered from.
REQUIRED: Mapping[KnownFormat, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_response": ("prompt", "response"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
# Fields that a record may lack, and those of one turn of a conversation.
_MORE: Mapping[KnownFormat, tuple[str, ...]] = {
    "messages": ("role", "content", "system"),
    "sharegpt": ("from", "value", "system"),
    "prompt_response": ("system",),
    "alpaca": ("input", "system"),
    "text": (),
}
FIELDS: Mapping[KnownFormat, tuple[str, ...]] = {
    name: required + _MORE[name] for name, required in REQUIRED.items()
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
    formats = FIELDS.values() if record_format == "auto" else [FIELDS[record_format]]
    known = dict.fromkeys(name for names in formats for name in names)
    if unknown := [name for name in fields if name not in known]:
        what = "any format" if record_format == "auto" else f"format: {record_format}"
        raise ValueError(
            f"{unknown[0]!r} is not a field of {what}, which are {', '.join(known)}; "
            "write {field of the format: field of your rows}"
        )
