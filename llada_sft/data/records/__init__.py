"""What a row says: a record of any known format -> a conversation -> the ids of its tokens.

    formats.py         which format a record is of, and what its fields are called there
    read.py            a record -> a conversation, token ids or plain text
    conversation.py    the turns of a conversation, with the roles that we know
    refused.py         rows that are not for SFT
    turns.py           which answers of a conversation are learned
    normalize.py       what a hook gets: all of these by the config and the epoch
    unread.py          the fields that nobody reads
    detect.py          the format of a dataset, detected from its first rows
    chat_tokens.py     what the shipped hook does: a conversation, or plain text -> tokens
    chat_template.py   turns -> the text that the model reads
    special_tokens.py  special tokens that somebody typed

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
