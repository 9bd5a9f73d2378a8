"""WHAT a run is: one typed, frozen `Config`, and nothing else is configuration.

Every section is a pydantic model (strict types, no unknown keys); the reader fills it from YAML and
reports every mistake with its line. A section never reaches further than the part it is named for.

Names carry their units. Defaults are those of LLaDA's supervised fine-tuning (arXiv 2502.09992,
appendix B) wherever the paper states a value.
"""

from typing import Annotated, Literal

from pydantic import (
    Field,
    model_validator,
)

from llada_sft.config.sections.data import DataConfig
from llada_sft.config.sections.deepspeed import DeepSpeedConfig
from llada_sft.config.sections.model import LoraConfig, ModelConfig
from llada_sft.config.sections.objective import ObjectiveConfig, require_possible
from llada_sft.config.sections.optim import OptimConfig
from llada_sft.config.sections.slurm import SlurmConfig, check_range
from llada_sft.config.sections.train import TrainConfig
from llada_sft.config.sections.validation import (
    ValidationConfig,
    require_comparable,
)
from llada_sft.config.values import (
    LocalPath,
    NonEmptyStr,
    NonNegativeInt,
    PositiveInt,
    RunName,
    Section,
)

# How long the watchdog needs for its reports, with room for a busy machine.
_WATCHDOG_REPORTS_S = 120


class RunConfig(Section):
    # Names the run directory, and the job.
    name: RunName
    # The folder that holds the run directories; on a cluster it must be shared by all nodes.
    root: LocalPath = "runs"
    # Keys every random choice: the noise, and the weights of `model.init: random`.
    seed: NonNegativeInt = 0
    # A process on another host that owns the run (a launcher, or --local) counts as dead after this
    # many seconds without a sign of life. A process on this host, and a job, are seen directly.
    owner_timeout_s: Annotated[int, Field(ge=5)] = 180


class LogConfig(Section):
    # debug: rank 0 prints where its start has spent its time.
    level: Literal["info", "debug"] = "info"
    # Optimizer steps between two lines of the log.
    every_n_steps: PositiveInt = 10
    # Write logs/tensorboard in the run directory.
    tensorboard: bool = True
    # Write logs/metrics.csv in the run directory.
    csv: bool = True
    # The project at Weights & Biases (README). All attempts of a run are one curve there.
    wandb_project: NonEmptyStr | None = None


class Config(Section):
    run: RunConfig
    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig = ObjectiveConfig.model_construct()
    optim: OptimConfig = OptimConfig.model_construct()
    # null = all parameters are trained.
    lora: LoraConfig | None = None
    train: TrainConfig = TrainConfig.model_construct()
    validation: ValidationConfig = ValidationConfig.model_construct()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig.model_construct()
    slurm: SlurmConfig = SlurmConfig.model_construct()
    log: LogConfig = LogConfig.model_construct()

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.slurm.nodes * self.slurm.ranks_per_node

    @property
    def largest_world_size(self) -> int:
        """Number of ranks on the most nodes that `slurm.elastic` allows."""
        return self.slurm.node_range[-1] * self.slurm.ranks_per_node

    @property
    def collective_timeout_s(self) -> int:
        """Seconds that a collective may take: more than the watchdog needs, on all ranks."""
        least = self.train.hang_timeout_s + self.train.hang_grace_s + _WATCHDOG_REPORTS_S
        return max(least, 60 * (self.deepspeed.timeout_min or 0))

    @property
    def global_batch_size(self) -> int:
        """Examples of one optimizer step, over all ranks and accumulated micro-batches.

        With `data.batching: packed` it is the largest possible number of tokens, of both twins with
        `objective.pairs`.
        """
        micro = self.data.max_tokens or self.in_examples.train.micro_batch_size
        return self.world_size * micro * self.train.accumulate_grad_batches

    @property
    def in_examples(self) -> "Config":
        """The config with micro-batches measured in examples read, not in rows that are computed.

        They differ with `objective.pairs`.
        """
        draws = self.objective.draws
        if draws == 1:
            return self
        size, tokens = self.train.micro_batch_size, self.data.max_tokens
        train = {} if tokens else {"micro_batch_size": size // draws}
        data = {"max_tokens": tokens // draws} if tokens else {}
        sections = {
            "train": self.train.model_copy(update=train),
            "data": self.data.model_copy(update=data),
        }
        return self.model_copy(update=sections)

    @property
    def global_batch_unit(self) -> Literal["examples", "tokens"]:
        """What `global_batch_size` counts."""
        return "tokens" if self.data.batching == "packed" else "examples"

    @model_validator(mode="after")
    def _packed_is_one_row(self) -> "Config":
        size = self.train.micro_batch_size
        if self.data.batching == "packed" and size != 1:
            raise ValueError(
                "train.micro_batch_size: must stay 1 with data.batching: packed, whose "
                f"micro-batches are measured in data.max_tokens, got {size}"
            )
        return self

    @model_validator(mode="after")
    def _best_by_a_number_of_validation(self) -> "Config":
        early, names = self.train.early_stop, self.data.validation_sets
        require_comparable("train.keep_best", self.train.keep_best, names)
        if early is not None:
            require_comparable("train.early_stop.metric", early.metric, names)
        return self

    @model_validator(mode="after")
    def _twins_fit_a_micro_batch(self) -> "Config":
        if self.objective.pairs == "none":
            return self
        size, data = self.train.micro_batch_size, self.data
        if data.max_tokens is None and size % 2:
            raise ValueError(
                "objective.pairs: antithetic has each example in two rows of a micro-batch:"
                f" train.micro_batch_size must be even, got {size}"
            )
        if data.max_tokens is not None and data.max_tokens < 2 * data.max_length:
            raise ValueError(
                "objective.pairs: antithetic has each example twice in a micro-batch:"
                f" data.max_tokens must be at least twice data.max_length, got {data.max_tokens}"
                f" for {data.max_length}"
            )
        return self

    @model_validator(mode="after")
    def _objective_fits_the_data(self) -> "Config":
        require_possible(self.objective, self.data)
        return self

    @model_validator(mode="after")
    def _examples_fit_the_network(self) -> "Config":
        # The limit of a checkpoint is in its config.json, which preflight checks.
        size = self.model.size
        if size is not None and self.data.max_length > size.max_sequence_length:
            raise ValueError(
                "data.max_length: must be at most model.size.max_sequence_length, "
                f"{size.max_sequence_length}, got {self.data.max_length}"
            )
        return self

    @property
    def unfit_for_flash_attention(self) -> str | None:
        """What flash-attn's kernel would need instead; None if it can be used."""
        needs = (
            ("data.batching", self.data.batching, "packed"),
            ("objective.kind", self.objective.kind, "full"),
            ("train.precision", self.train.precision, "bf16"),
        )
        for key, value, needed in needs:
            if value != needed:
                return f"{key}: {needed}, got {value}"
        return None

    @model_validator(mode="after")
    def _flash_attention_can_be_used(self) -> "Config":
        if self.model.attention_kernel == "flash_attn" and self.unfit_for_flash_attention:
            raise ValueError(
                f"model.attention_kernel: flash_attn needs {self.unfit_for_flash_attention};"
                " set that, or attention_kernel: auto"
            )
        return self

    @model_validator(mode="after")
    def _compiled_blocks_have_no_hooks_inside(self) -> "Config":
        if self.model.compile == "on" and self.deepspeed.hooks_inside_blocks:
            raise ValueError(
                "model.compile: on needs deepspeed.leaf_blocks: true; set that, or compile: off"
            )
        return self

    @model_validator(mode="after")
    def _adapters_fit_the_stage(self) -> "Config":
        if self.lora is None:
            return self
        if self.lora.base == "nf4" and self.deepspeed.stage == 3:
            raise ValueError(
                "lora.base: nf4 needs deepspeed.stage: 1 or 2: stage 3 would cut the 4-bit blocks"
                " up; set that, or base: full"
            )
        if self.lora.dora and self.deepspeed.hooks_inside_blocks:
            raise ValueError(
                "lora.dora: needs deepspeed.leaf_blocks: true at stage 3: it computes with the"
                " weights of other modules of the block; set that"
            )
        return self

    @model_validator(mode="after")
    def _8_bit_states_stay_where_they_are(self) -> "Config":
        if self.optim.kind != "adamw_8bit":
            return self
        if self.deepspeed.offload_optimizer != "none":
            raise ValueError(
                "optim.kind: adamw_8bit needs deepspeed.offload_optimizer: none, got"
                f" {self.deepspeed.offload_optimizer}; set that, or kind: adamw"
            )
        if len(self.slurm.node_range) > 1:
            raise ValueError(
                "optim.kind: adamw_8bit needs slurm.elastic: null: its states cannot be resumed on"
                " another number of ranks; set that, or kind: adamw"
            )
        return self

    @model_validator(mode="after")
    def _second_slices_divide_the_ranks(self) -> "Config":
        size, per_node = self.deepspeed.zero_hpz_partition_size, self.slurm.ranks_per_node
        for world_size in (nodes * per_node for nodes in self.slurm.node_range):
            # On fewer ranks, DeepSpeed takes all of them.
            if world_size > size and world_size % size:
                raise ValueError(
                    "deepspeed.zero_hpz_partition_size: must divide the number of ranks,"
                    f" got {size} for {world_size} ranks; take slurm.ranks_per_node, {per_node}"
                )
        return self

    @model_validator(mode="after")
    def _elastic_divides_the_batch(self) -> "Config":
        accumulate = self.train.accumulate_grad_batches
        check_range(self.slurm.nodes, accumulate, self.slurm.node_range)
        return self
