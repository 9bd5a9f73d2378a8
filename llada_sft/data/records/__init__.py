"""What a row says: a record of any known format -> a conversation -> the ids of its tokens.

    formats.py      a record of any known format -> a conversation, or plain text
    detect.py       the format of a dataset, detected from its first rows
    turns.py        which answers of a conversation are learned
    normalize.py    what a hook gets: formats.py and turns.py by the config and the epoch
    chat_tokens.py  what the shipped hook does: a conversation, or plain text -> tokens

Hooks import the names below from here. They are imported when they are first used: a login node
asks for formats without transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llada_sft.data.records.chat_tokens import EncodedRecord, encode_prompt, encode_record

__all__ = ["EncodedRecord", "encode_prompt", "encode_record"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.chat_tokens"), name)
