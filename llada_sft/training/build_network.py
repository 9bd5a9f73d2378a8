"""The config's `model` section -> the network that is trained."""

from importlib.util import find_spec
from pathlib import Path

import torch

from llada_sft.config.schema import ModelConfig
from llada_sft.data.examples.tokenizer import TokenIds, load_tokenizer
from llada_sft.errors import DataError
from llada_sft.model.configuration import NetworkConfig, read_config
from llada_sft.model.loading import build_model
from llada_sft.model.network import Network
from llada_sft.model.settings import require_trainable


def resolve_network(config: ModelConfig) -> NetworkConfig:
    """Read the network's own config, or make one from `model.size` and the tokenizer.

    Raises:
        LladaSftError: The directory, or the tokenizer, cannot be used.
    """
    directory = Path(config.path)
    if config.size is None:
        network = read_config(directory)
        require_trainable(directory, network.architecture)
        return network
    tokenizer = load_tokenizer(directory)
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"{directory}: tokenizer has no EOS token; "
            "name it in tokenizer_config.json ('eos_token')"
        )
    return NetworkConfig.from_size(
        **config.size.model_dump(),
        vocab_size=len(tokenizer),
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


def build_network(
    config: ModelConfig, network: NetworkConfig, seed: int, compiled: bool = False
) -> Network:
    """Build the network and fill it; under ZeRO-3 it is born partitioned.

    Args:
        config: The model section.
        network: What `resolve_network` returned.
        seed: Seed of the random weights.
        compiled: Whether its blocks are compiled.
    """
    model = build_model(network if config.size else Path(config.path), seed)
    model.set_activation_checkpointing(config.activation_checkpointing)
    if compiled:
        model.compile_blocks()
    return model


def compiles(config: ModelConfig, hooks_inside: bool, device: torch.device) -> bool:
    """Return whether blocks are compiled; `auto` means on CUDA, where Triton is there.

    Args:
        config: The model section.
        hooks_inside: Whether ZeRO-3 has hooks for the modules inside a block: they cannot be
            compiled.
        device: Where this rank computes.
    """
    if config.compile == "auto":
        return device.type == "cuda" and find_spec("triton") is not None and not hooks_inside
    return config.compile == "on"


def token_ids(network: NetworkConfig) -> TokenIds:
    """Return the sizes and token ids of a network that encoding the data needs."""
    found = network.architecture
    assert found.mask_token_id is not None and found.eos_token_id is not None
    return TokenIds(found.vocab_size, found.eos_token_id, found.mask_token_id)
