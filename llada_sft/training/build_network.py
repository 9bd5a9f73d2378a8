"""The config's `model` section -> the network that is trained."""

from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from llada_sft.config.schema import Config
from llada_sft.config.sections.model import ModelConfig
from llada_sft.data.examples.tokenizer import TokenIds, load_tokenizer
from llada_sft.errors import DataError
from llada_sft.model.adapter_plan import AdapterPlan, plan_adapters
from llada_sft.model.adapters import add_adapters, import_packages
from llada_sft.model.configuration import NetworkConfig, read_config
from llada_sft.model.index import fingerprint, read_index
from llada_sft.model.kernels.choice import Kernels
from llada_sft.model.kernels.use import use_kernels
from llada_sft.model.layers.balance import Balance
from llada_sft.model.layers.kept_bytes import Checkpointing, most_kept, within_budget
from llada_sft.model.loading import build_model
from llada_sft.model.network import Network
from llada_sft.model.settings import find_mask_token, require_experts, require_trainable


def resolve_network(config: ModelConfig) -> NetworkConfig:
    """Read the network's own config, or make one from `model.size` and the tokenizer.

    Raises:
        LladaSftError: The directory, or the tokenizer, cannot be used.
    """
    directory = Path(config.path)
    if config.size is None:
        network = read_config(directory, config.mask_token)
        require_trainable(directory, network.architecture)
        return network
    mask_token_id = find_mask_token(directory, config.mask_token)
    tokenizer = load_tokenizer(directory, mask_token_id)
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"{directory}: tokenizer has no EOS token; "
            "name it in tokenizer_config.json ('eos_token')"
        )
    return NetworkConfig.from_size(
        **config.size.model_dump(),
        vocab_size=len(tokenizer),
        mask_token_id=tokenizer.mask_token_id if mask_token_id is None else mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


def trained_network(config: Config) -> NetworkConfig:
    """Return the network's config as a training leaves it.

    Raises:
        LladaSftError: The directory, or the tokenizer, cannot be used.
    """
    network = resolve_network(config.model)
    if config.objective.kind == "block" and not network.architecture.decodes_in_blocks:
        # Samplers run it as it is trained.
        return network.changed(decodes_in_blocks=True)
    return network


def plan_training(config: Config, network: NetworkConfig) -> AdapterPlan | None:
    """Return the adapters that are trained; None: the network's own parameters are.

    Raises:
        ConfigError: A package is not installed, or a target matches nothing.
    """
    if config.lora is None:
        return None
    import_packages(config.lora)
    return plan_adapters(network.architecture, config.lora)


def base_weights(config: Config) -> str:
    """Return what identifies the weights that adapters are trained on.

    Raises:
        CheckpointError: The model directory cannot be read.
    """
    if config.model.size is not None:
        return f"random, of seed {config.run.seed}"
    return fingerprint(read_index(Path(config.model.path)))


def build_network(
    config: ModelConfig,
    network: NetworkConfig,
    seed: int,
    compiled: bool = False,
    checkpointing: Sequence[Checkpointing] | None = None,
    adapters: AdapterPlan | None = None,
    kernels: Kernels | None = None,
) -> Network:
    """Build the network and fill it; under ZeRO-3 it is born partitioned.

    Args:
        config: The model section.
        network: What `resolve_network` or `trained_network` returned.
        seed: Seed of the random weights.
        compiled: Whether its blocks are compiled.
        checkpointing: What `checkpointing_of` chose; None keeps as little as possible.
        adapters: What is trained instead of the network's own parameters.
        kernels: What `choose_kernels` chose; None: torch's operations.
    """
    model = build_model(network if config.size else Path(config.path), seed, network)
    if adapters is not None:
        add_adapters(model, adapters, seed)
    model.set_activation_checkpointing(checkpointing or "full")
    if kernels is not None:
        use_kernels(model, kernels)
    if compiled:
        model.compile_blocks()
    return model


def checkpointing_of(config: Config, network: NetworkConfig, compiled: bool) -> list[Checkpointing]:
    """Return what is kept of each block for its backward pass: the same on every rank.

    It follows from the config alone: the micro-batches of a run have at most so many tokens.
    """
    model = config.model
    if model.activation_checkpointing != "auto":
        return [model.activation_checkpointing] * network.architecture.num_layers
    assert model.activation_gb is not None
    return within_budget(
        network.architecture,
        most_tokens(config),
        _element_bytes(config),
        1e9 * model.activation_gb,
        compiled,
    )


def checkpointing_line(
    config: Config, network: NetworkConfig, kinds: Sequence[Checkpointing]
) -> str | None:
    """Return the line about what `auto` has chosen; None without `auto`."""
    model = config.model
    if model.activation_checkpointing != "auto":
        return None
    tokens = most_tokens(config)
    kept = tokens * most_kept(network.architecture, kinds, _element_bytes(config)) / 1e9
    blocks = ", ".join(f"{number} {kind}" for kind, number in Counter(kinds).items())
    unit = "tokens" if config.objective.kind == "full" else "positions"
    line = (
        f"model.activation_checkpointing: auto: blocks: {blocks}; they keep at most {kept:.3g} GB"
        f" of a micro-batch of {tokens:,} {unit} (model.activation_gb: {model.activation_gb:g})"
    )
    assert model.activation_gb is not None
    if kept > model.activation_gb:
        return f"{line}; more than is given: there is nothing more to compute again"
    return line


def most_tokens(config: Config) -> int:
    """Return the most tokens that the network can run on in a micro-batch."""
    tokens = config.data.max_tokens or config.train.micro_batch_size * config.data.max_length
    return tokens * config.objective.halves


def _element_bytes(config: Config) -> int:
    return 2 if config.train.precision == "bf16" else 4


def build_balance(config: ModelConfig, network: NetworkConfig) -> Balance | None:
    """Return what keeps the load of experts even; None if the network has no experts.

    Raises:
        ConfigError: A weight of a loss is given that its routers do not have.
    """
    experts = network.architecture.experts
    require_experts(experts, config.router_balance_weight, config.router_z_weight)
    if experts is None:
        return None
    weight = config.router_balance_weight
    weight = experts.balance_weight if weight is None else weight
    return Balance(experts, weight, config.router_z_weight)


def compiles(
    config: ModelConfig, hooks_inside: bool, device: torch.device, dora: bool = False
) -> bool:
    """Return whether blocks are compiled; `auto` means on CUDA, where Triton is there.

    Not if the config asks by name for a kernel inside blocks.

    Args:
        config: The model section.
        hooks_inside: Whether ZeRO-3 has hooks for the modules inside a block: they cannot be
            compiled.
        device: Where this rank computes.
        dora: Whether adapters are DoRA's, at which the compiler cuts a block into many pieces.
    """
    if config.compile == "auto":
        whole = not hooks_inside and not dora and not config.liger_in_blocks
        return device.type == "cuda" and find_spec("triton") is not None and whole
    return config.compile == "on"


def token_ids(network: NetworkConfig, block_length: int = 0) -> TokenIds:
    """Return what encoding the data needs to know of a network, and of blocks, if there are any."""
    found = network.architecture
    assert found.mask_token_id is not None and found.eos_token_id is not None
    return TokenIds(
        vocab_size=found.vocab_size,
        eos_token_id=found.eos_token_id,
        mask_token_id=found.mask_token_id,
        chat_template=network.chat_template,
        pad_token_id=found.pad_token_id,
        reserved=found.reserved_token_ids,
        block_length=block_length,
    )
