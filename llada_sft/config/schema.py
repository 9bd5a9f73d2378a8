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

from llada_sft.config.data_section import DataConfig
from llada_sft.config.model_section import LoraConfig, ModelConfig
from llada_sft.config.objective_section import ObjectiveConfig, require_possible
from llada_sft.config.slurm_section import SlurmConfig, check_range
from llada_sft.config.validation_section import (
    EarlyStopConfig,
    ValidationConfig,
    require_comparable,
)
from llada_sft.config.values import (
    Beta,
    Elements,
    Fraction,
    LocalPath,
    Minutes,
    NonEmptyStr,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RunName,
    Seconds,
    Section,
)

# A trace takes megabytes for each step.
MOST_PROFILED_STEPS = 100
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


class OptimConfig(Section):
    # adamw = torch's; adamw_8bit = that of bitsandbytes, whose moments take one byte each instead
    # of four (docs/zero.md). Master weights and sums of gradients are fp32 in any case.
    kind: Literal["adamw", "adamw_8bit"] = "adamw"
    # The learning rate after the warm-up.
    lr: PositiveFloat = 2.5e-5
    # What it has come down to at the end of the schedule.
    final_lr: NonNegativeFloat = 2.5e-6
    # Of AdamW.
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    # Below 1e-37 it is 0 in fp32, and 0 / 0 is NaN.
    eps: Annotated[float, Field(ge=1e-37, le=1)] = 1e-8
    # Of AdamW; of matrices alone, not of gains and biases.
    weight_decay: NonNegativeFloat = 0.1
    # warmup_constant_decay: linear warm-up, constant, linear to final_lr over the last part;
    # cosine: linear warm-up, then half a cosine to final_lr.
    schedule: Literal["warmup_constant_decay", "cosine"] = "warmup_constant_decay"
    # Optimizer steps from 0 to lr.
    warmup_steps: NonNegativeInt = 50
    # The part of all steps, at the end, in which warmup_constant_decay comes down.
    decay_fraction: Fraction = 0.1
    # Largest global L2 norm of the gradient; 0 = no clipping.
    gradient_clip: NonNegativeFloat = 1.0


class TrainConfig(Section):
    # Examples of a micro-batch; with data.batching: packed it stays 1, for all are in one row.
    micro_batch_size: PositiveInt = 1
    # Micro-batches of each rank in an optimizer step.
    accumulate_grad_batches: PositiveInt = 1
    # How often each row is trained.
    epochs: PositiveInt = 3
    # Stop after this many optimizer steps, also in the middle of an epoch.
    max_steps: PositiveInt | None = None
    # Of weights and activations; optimizer states and sums of gradients are fp32 in any case.
    precision: Literal["bf16", "fp32"] = "bf16"
    # auto = CUDA where there is a GPU.
    accelerator: Literal["auto", "cuda", "cpu"] = "auto"
    # CPU threads of each rank.
    threads_per_rank: Annotated[int, Field(ge=1, le=1024)] = 1
    # Optimizer steps between two validations, and rows of data.validation that are used.
    validate_every_steps: PositiveInt = 500
    # Rows of each validation set that are used, its first ones.
    validation_max_rows: PositiveInt = 1024
    # Optimizer steps between two checkpoints.
    checkpoint_every_steps: PositiveInt = 500
    # The newest ones are kept, so many; older ones are deleted.
    keep_checkpoints: PositiveInt = 2
    # A number of the validation, as in the log: the checkpoint of the step at which it was lowest
    # is kept as well, and `llada-sft export --best` takes it; null = none.
    keep_best: NonEmptyStr | None = None
    # {metric: validation_loss, patience: 3}: the training ends after so many validations in a row
    # without a lower one; null = it does not.
    early_stop: EarlyStopConfig | None = None
    # Copy a checkpoint's bytes to host memory and write them while the training goes on; false
    # lets the training wait for the disk. The last checkpoint and that of a stop are waited for.
    # The copies stay in host memory: all bytes of a checkpoint, divided by the nodes.
    async_checkpoints: bool = True
    # A checkpoint cannot be written (the disk is full): the previous one is intact, and the run
    # stops, or continues to the next checkpoint.
    on_failed_save: Literal["stop", "go_on"] = "stop"
    # A loss or gradient is NaN or infinite: the run stops before the step is made, or skips the
    # step; both name the rows.
    on_nonfinite: Literal["stop", "skip"] = "stop"
    # With on_nonfinite: skip, this many skipped steps in a row stop the run.
    max_skipped_steps: PositiveInt = 10
    # Seconds without progress after which the ranks write their stacks and the attempt ends.
    hang_timeout_s: Annotated[Seconds, Field(ge=1)] = 900
    # Additional seconds for the start, a checkpoint and a validation.
    hang_grace_s: Annotated[Seconds, Field(ge=0)] = 1800
    # Before anything is built the ranks compare their nodes: versions, code, GPUs, folders, clocks
    # and links (docs/slurm-jobs.md). stop = a difference ends the job; warn = it is a warning;
    # off = nothing is compared.
    preflight: Literal["stop", "warn", "off"] = "stop"
    # Seconds that each rank has for its part of the preflight, once all have started.
    preflight_timeout_s: Annotated[Seconds, Field(ge=4)] = 40
    # [10, 12]: rank 0 records what steps 10 to 12 spend their time on, and writes it to profile/ in
    # the run directory, for chrome://tracing or ui.perfetto.dev; null = no steps.
    profile: tuple[PositiveInt, PositiveInt] | None = None

    @model_validator(mode="after")
    def _profile_of_few_steps(self) -> "TrainConfig":
        first, last = self.profile or (1, 1)
        if not 0 <= last - first < MOST_PROFILED_STEPS:
            raise ValueError(
                f"profile: must be [first, last] of at most {MOST_PROFILED_STEPS} steps, "
                f"got [{first}, {last}]"
            )
        return self


class DeepSpeedConfig(Section):
    """ZeRO's own knobs, by DeepSpeed's names."""

    # What the ranks divide between them (docs/zero.md): 1 = the optimizer's states; 2 = gradients,
    # too; 3 = weights, too. Keys that name stage3, leaf_blocks and those of hpZ, qwZ, qgZ and
    # offloading are for 3.
    stage: Literal[1, 2, 3] = 3
    # Keep optimizer states and gradient sums in the CPU's memory, and make the step there.
    offload_optimizer: Literal["none", "cpu"] = "none"
    # Keep the weights there, too.
    offload_param: Literal["none", "cpu"] = "none"
    # Reduce gradients while the backward pass continues.
    overlap_comm: bool = True
    # Copy gradients into one buffer before they are reduced. null = unless they would be copied as
    # they are: at stage 3, where reduce_dtype is train.precision.
    contiguous_gradients: bool | None = None
    # What gradients are sent in; they are summed over micro-batches in fp32 either way. bf16 halves
    # the traffic, and is less precise (docs/zero.md).
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    # Elements that are reduced together.
    reduce_bucket_size: Annotated[Elements, Field(ge=1)] = 200_000_000
    # Elements that are gathered ahead.
    stage3_prefetch_bucket_size: Annotated[Elements, Field(ge=0)] = 50_000_000
    # Parameters with at most so many elements stay whole on each rank.
    stage3_param_persistence_threshold: Annotated[Elements, Field(ge=0)] = 100_000
    # Elements that may be whole at a time.
    stage3_max_live_parameters: Annotated[Elements, Field(ge=1)] = 1_000_000_000
    # Gather the weights of a block at once instead of one matrix after the other: fewer hooks and
    # collectives, gradients as without ZeRO; the weights of a whole block are in memory together.
    leaf_blocks: bool = True
    # hpZ: neighbouring ranks, as many as this (those of a node), keep a second copy of the weights
    # between them; until the next step they gather that one, without traffic between nodes. It is
    # 2 bytes × parameters / this on each rank. 1 = off; the number of ranks is a multiple of it.
    zero_hpz_partition_size: PositiveInt = 1
    # Weights (qwZ) and gradients (qgZ) travel as 8-bit and 4-bit integers: less traffic, and a loss
    # of precision that is not measured. CUDA only; DeepSpeed compiles the kernels with nvcc.
    zero_quantized_weights: bool = False
    # See zero_quantized_weights.
    zero_quantized_gradients: bool = False
    # A collective that takes longer than this is an error. It is never less than the watchdog needs
    # to name a rank that hangs: train.hang_timeout_s + hang_grace_s + two minutes (null = that).
    timeout_min: Minutes | None = None

    @property
    def hooks_inside_blocks(self) -> bool:
        """Whether each module of a block gathers its own weights."""
        return self.stage == 3 and not self.leaf_blocks

    def contiguous(self, precision: Literal["bf16", "fp32"]) -> bool:
        """Return whether gradients are copied into one buffer.

        Stage 3 lays them out once more for each reduction: of gradients that need no conversion the
        buffer would be one copy too many.
        """
        if self.contiguous_gradients is not None:
            return self.contiguous_gradients
        return self.stage < 3 or self.reduce_dtype != precision

    @model_validator(mode="after")
    def _of_stage_3(self) -> "DeepSpeedConfig":
        for name in _OF_STAGE_3 if self.stage < 3 else ():
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: needs stage: 3, got {value!r} at stage {self.stage}")
        return self


_OF_STAGE_3 = (
    "offload_optimizer",
    "offload_param",
    "zero_hpz_partition_size",
    "zero_quantized_weights",
    "zero_quantized_gradients",
)


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
