"""The config of a network: config.json under its official keys, and the architecture it means.

Every key of an official file is kept, also those that the network has no use for, so that what we
save is what the official code expects to read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PretrainedConfig, __version__

from llada_sft.errors import ConfigError
from llada_sft.model.families import FAMILIES, family_of, llada
from llada_sft.model.families.architecture import Architecture
from llada_sft.model.settings import read_settings, read_suppressed


class NetworkConfig(PretrainedConfig):  # type: ignore[misc]
    """What transformers and PEFT look for in a network's config, of any member of the family.

    Args:
        values: config.json, as `read_settings` returns it; None means LLaDA-8B.

    Attributes:
        architecture: The network that it asks for.
        chat_template: Of a tokenizer that has none; None: LLaDA's.
        suppress_tokens: What samplers must not write (generation_config.json).
    """

    # A declared field: transformers refuses to save a config with any other of generation's keys.
    suppress_tokens: tuple[int, ...] = ()

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        values = llada.FAMILY.config_json() if values is None else values
        family = family_of(values)
        assert family is not None
        self.architecture: Architecture = family.architecture(values)
        self.chat_template = family.chat_template
        self._values = {**family.config_json(), "auto_map": dict(family.hub_code), **values}
        super().__init__()
        self.model_type = self._values["model_type"]
        self.architectures = self._values.get("architectures")
        self.vocab_size = self.architecture.vocab_size
        self.hidden_size = self.architecture.width
        self.tie_word_embeddings = self.architecture.tied
        self.mask_token_id = self.architecture.mask_token_id
        self.eos_token_id = self.architecture.eos_token_id
        self.pad_token_id = self.architecture.pad_token_id

    @classmethod
    def from_size(cls, **sizes: int) -> Self:
        """Describe a LLaDA in another size than the 8B's, for random weights."""
        return cls(llada.from_size(**sizes))

    def changed(self, **values: Any) -> Self:
        """Return the config of a network with some official keys changed."""
        changed = type(self)({**self._values, **values})
        changed.suppress_tokens = self.suppress_tokens
        return changed

    def of_layout(self, stacked: bool) -> Self:
        """Return the config of files whose experts of a layer are one tensor each, or are not.

        Raises:
            ConfigError: Nobody else reads such files of this member.
        """
        family = family_of(self._values)
        assert family is not None
        if stacked and family.stacked_model_type is None:
            raise ConfigError(
                f"--layout: stacked is for {_with_stacks()}, this is {family.name}; remove it"
            )
        if stacked:
            return self.changed(model_type=family.stacked_model_type)
        if self.model_type == family.stacked_model_type:
            return self.changed(model_type=family.identity["model_type"])
        return self

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the whole file under its official keys: transformers saves what this returns."""
        dtype = str(self.dtype or torch.float32).removeprefix("torch.")
        return {**self._values, "torch_dtype": dtype, "transformers_version": __version__}

    def to_dict(self) -> dict[str, Any]:
        """Return the same as a dictionary."""
        return self.to_diff_dict()


def _with_stacks() -> str:
    return ", ".join(family.name for family in FAMILIES if family.stacked_model_type)


def read_config(model_dir: Path, mask_token: str | int | None = None) -> NetworkConfig:
    """Read `config.json` of a model directory, without running any code of it.

    What samplers must not write is in `generation_config.json`, if there is one.

    Args:
        model_dir: The model directory.
        mask_token: `model.mask_token`.

    Raises:
        CheckpointError: A file is missing or not JSON, or describes a network that is not
            implemented here; one line per key.
        ConfigError: `mask_token` is not in the tokenizer, or is not what `config.json` names.
    """
    config = NetworkConfig(read_settings(model_dir, mask_token))
    config.suppress_tokens = read_suppressed(model_dir, config.vocab_size)
    return config
