"""What data needs to know of the model: its tokenizer, the ids of special tokens, its blocks."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from llada_sft.errors import DataError


@dataclass(frozen=True)
class TokenIds:
    """What data needs to know of the model.

    Attributes:
        vocab_size: Ids are below it.
        eos_token_id, mask_token_id: From the model's config.
        chat_template: For a tokenizer without one.
        pad_token_id: From the model's config, if it names one.
        reserved: Tokens of its tokenizer that no text has, in the order in which they are taken.
        block_length: Tokens of a block, if it is trained in blocks; 0: it is not.
    """

    vocab_size: int
    eos_token_id: int
    mask_token_id: int
    chat_template: str | None = None
    pad_token_id: int | None = None
    reserved: tuple[int, ...] = ()
    block_length: int = 0


def tokenizer_file(directory: Path) -> Path:
    """Return the file of the tokenizer of a model directory.

    Raises:
        DataError: There is none.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; the tokenizer belongs next to the model's config.json"
        )
    return path


def vocabulary_size(directory: Path) -> int:
    """Return the number of ids that tokenizer.json has, without loading a tokenizer.

    Raises:
        DataError: It cannot be read.
    """
    path = tokenizer_file(directory)
    try:
        ids = known_ids(orjson.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    return max(ids, default=-1) + 1


def known_ids(content: Mapping[str, Any]) -> set[int]:
    """Return all ids of a tokenizer.

    Args:
        content: Of its tokenizer.json.
    """
    added = {token.get("id") for token in content.get("added_tokens") or []}
    vocabulary = (content.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, dict):
        return added | set(vocabulary.values())
    return added | set(range(len(vocabulary)))


def load_tokenizer(
    directory: Path, mask_token_id: int | None = None, chat_template: str | None = None
) -> Any:
    """Load a tokenizer without running anybody's code.

    Args:
        directory: Holds tokenizer.json.
        mask_token_id: The id that the model's config names; None asks the tokenizer for its own.
        chat_template: What it gets if it has none; None: LLaDA's is used then.

    Returns:
        A transformers `PreTrainedTokenizerFast`.

    Raises:
        DataError: There is none, it is damaged, or it does not know the mask token.
    """
    path = tokenizer_file(directory)
    from transformers import PreTrainedTokenizerFast

    # A rank encodes one text at a time: a thread for each core would only be in others' way.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{directory}: tokenizer cannot be loaded: {reason}") from None
    if mask_token_id is None:
        mask_token_id = tokenizer.mask_token_id
        if mask_token_id is None:
            raise DataError(
                f"{directory}: tokenizer has no mask token; "
                "name it in tokenizer_config.json ('mask_token')"
            )
    if tokenizer.convert_ids_to_tokens(mask_token_id) is None:
        raise DataError(f"{path}: tokenizer has no mask token: id {mask_token_id} is not in it")
    if not tokenizer.chat_template and chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer
