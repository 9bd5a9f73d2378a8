"""A config with its network: what the sizes of a training are worked out from."""

from dataclasses import dataclass
from pathlib import Path

from llada_sft.config.schema import Config
from llada_sft.data.examples.tokenizer import vocabulary_size
from llada_sft.model.adapter_plan import AdapterPlan, plan_adapters
from llada_sft.model.families import llada
from llada_sft.model.families.architecture import Architecture
from llada_sft.model.layers.kept_bytes import Checkpointing, within_budget
from llada_sft.model.settings import architecture_of, read_settings, require_trainable
from llada_sft.plan.memory import Load, RankMemory, Sizes, rank_memory, sizes_of

_GB = 1e9


@dataclass(frozen=True)
class Setup:
    """A config with its network.

    Attributes:
        config: The whole config.
        network: The sizes of its network.
        adapters: What is trained instead of the network's own parameters.
    """

    config: Config
    network: Architecture
    adapters: AdapterPlan | None

    @property
    def tokens(self) -> int:
        """The most tokens of a micro-batch, of both twins with `objective.pairs`."""
        config = self.config
        return config.data.max_tokens or config.train.micro_batch_size * config.data.max_length

    @property
    def halves(self) -> int:
        """How often each token is in the network: noisy and clean with `objective.kind: block`."""
        return self.config.objective.halves

    @property
    def sizes(self) -> Sizes:
        return sizes_of(self.network, self.adapters, self.config.world_size)

    def kinds(self, tokens: int) -> list[Checkpointing]:
        """Return what is kept of each block with micro-batches of so many positions."""
        model = self.config.model
        if model.activation_checkpointing != "auto":
            return [model.activation_checkpointing] * self.network.num_layers
        assert model.activation_gb is not None
        element = 2 if self.config.train.precision == "bf16" else 4
        budget = _GB * model.activation_gb
        return within_budget(self.network, tokens, element, budget, self.compiled)

    @property
    def compiled(self) -> bool:
        """Whether blocks are compiled, as far as a login node can tell."""
        model = self.config.model
        if model.compile == "auto":
            whole = not self.config.deepspeed.hooks_inside_blocks and self.config.lora is None
            return whole and not model.liger_in_blocks
        return model.compile == "on"

    def memory(self, tokens: int | None = None) -> RankMemory:
        """Return the bytes of a rank, all tokens of its micro-batch being masked."""
        tokens = self.tokens if tokens is None else tokens
        load = Load(tokens * self.halves, tokens)
        cuda = self.config.train.accelerator != "cpu"
        kinds = self.kinds(tokens * self.halves)
        return rank_memory(self.config, self.network, self.adapters, kinds, load, cuda)

    def on(self, nodes: int) -> "Setup":
        """Return the same on other nodes, with the same micro-batches."""
        slurm = self.config.slurm.model_copy(update={"nodes": nodes, "elastic": None})
        config = self.config.model_copy(update={"slurm": slurm})
        return Setup(config, self.network, self.adapters)


def setup_of(config: Config) -> Setup:
    """Read the sizes of a config's network: small files, without torch.

    Args:
        config: The config, with absolute paths.

    Raises:
        LladaSftError: The model directory cannot be read, or a LoRA target matches nothing.
    """
    network = _network(config)
    adapters = None if config.lora is None else plan_adapters(network, config.lora)
    return Setup(config, network, adapters)


def _network(config: Config) -> Architecture:
    directory = Path(config.model.path)
    if config.model.size is None:
        network = architecture_of(read_settings(directory, config.model.mask_token))
        require_trainable(directory, network)
        return network
    # Its vocabulary is the tokenizer's.
    sizes = config.model.size.model_dump() | {"vocab_size": vocabulary_size(directory)}
    # Which tokens are special takes no memory.
    special = dict.fromkeys(("mask_token_id", "eos_token_id", "pad_token_id"), 0)
    return architecture_of(llada.from_size(**sizes, **special))
