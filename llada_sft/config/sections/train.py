"""The section `train`: batches, how long, checkpoints, and what ends a training."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llada_sft.config.sections.validation import EarlyStopConfig
from llada_sft.config.values import (
    NonEmptyStr,
    PositiveInt,
    Seconds,
    Section,
)

# A trace takes megabytes for each step.
MOST_PROFILED_STEPS = 100


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
    # Copy a checkpoint's bytes to host memory and write them while the training continues; false
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
