"""A model directory: what is known of it at once, and its network, loaded when it is first needed.

An evaluation whose answers are all known needs no network.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from llada_sft.data.examples.tokenizer import load_tokenizer
from llada_sft.errors import DataError
from llada_sft.keys import digest
from llada_sft.model.configuration import read_config
from llada_sft.model.index import fingerprint, read_index
from llada_sft.model.loading import load_model
from llada_sft.model.network import Network

# What an answer depends on, next to the weights.
_MEANINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class LoadedModel:
    """A model directory.

    Args:
        directory: In Hugging Face's layout.
        dtype: bf16, fp32, or auto: bf16 on a GPU.
        device: None: a GPU if there is one.

    Raises:
        CheckpointError: It is no model directory.
        DataError: Its tokenizer cannot be loaded; or neither it nor the model names a mask token.
    """

    def __init__(self, directory: Path, dtype: str, device: str | None = None) -> None:
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.directory, self.device = directory, torch.device(device)
        if dtype == "auto":
            dtype = "bf16" if self.device.type == "cuda" else "fp32"
        self.dtype = dtype
        config = read_config(directory)
        self.max_length = config.architecture.max_length
        self.decodes_in_blocks = config.architecture.decodes_in_blocks
        self.eos_token_id = config.architecture.eos_token_id
        raw = load_tokenizer(directory, config.mask_token_id)
        rows = config.architecture.num_embeddings
        if (last := max(raw.get_vocab().values(), default=0)) >= rows:
            raise DataError(
                f"{directory}: tokenizer.json has tokens up to {last:,}, config.json rows for"
                f" {rows:,}: they are not of one model"
            )
        self.has_template = bool(raw.chat_template)
        self.tokenizer: Any = raw
        named = config.mask_token_id
        self.mask_token_id = int(raw.mask_token_id if named is None else named)
        if not raw.chat_template and config.chat_template is not None:
            raw.chat_template = config.chat_template

    @cached_property
    def weights(self) -> str:
        """What identifies the weights."""
        return fingerprint(read_index(self.directory))

    @cached_property
    def files(self) -> dict[str, str]:
        """A digest of each file that says what the weights and the tokens mean, by its name."""
        paths = [self.directory / name for name in _MEANINGS]
        return {path.name: digest(path.read_bytes(), 16).hex() for path in paths if path.is_file()}

    @cached_property
    def network(self) -> Network:
        """The network, in evaluation mode."""
        return load_model(self.directory, _DTYPES[self.dtype], self.device)

    @property
    def device_name(self) -> str:
        """Name the device as its maker does."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return self.device.type
