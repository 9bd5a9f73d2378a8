"""The section `slurm`: the job and its nodes.

`slurm.elastic` says on which numbers of nodes an attempt may run: they share out one and the same
global batch. On n nodes a rank accumulates nodes × accumulate_grad_batches / n micro-batches. Where
that is a whole number for every n of the range, the training is the same optimization on all of
them.
"""

import re
from math import gcd, lcm
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from llada_sft.config.values import (
    Count,
    LocalPath,
    Minutes,
    NonNegativeInt,
    OptionText,
    PositiveFloat,
    PositiveInt,
    SbatchKey,
    SbatchValue,
    Section,
    is_url,
    require_line,
)

# An option of sbatch or srun. true = an option without a value; false = not given, where a preset
# gives it.
OptionValue = OptionText | int | bool
# The least common multiple of a wide range may have thousands of digits.
MAX_ACCUMULATION = 1_000_000


# srun's and apptainer's lists of mounts are divided by commas, and a mount by colons.
_NOT_IN_A_MOUNT = re.compile(r"[,\\\"']")
_USER_AND_PASSWORD = re.compile(r"://[^/@#]*:[^/@#]*@")


def mount_parts(mount: str) -> tuple[str, str, str]:
    """Return source, target (the source, if it is not given) and mode of a mount."""
    source, _, rest = mount.partition(":")
    target, _, mode = rest.partition(":")
    return source, target or source, mode or "rw"


def is_image_file(kind: str, image: str) -> bool:
    """Return whether an image is a file or a folder, and not the name of one in a registry."""
    if kind == "apptainer":
        return not is_url(image)
    return image.startswith((".", "/", "~")) or image.endswith(".sqsh")


def _mount(text: str) -> str:
    parts = require_line(text).split(":")
    is_mount = len(parts) <= 3 and all(parts) and not _NOT_IN_A_MOUNT.search(text)
    if not is_mount or mount_parts(text)[2] not in ("ro", "rw"):
        raise ValueError(
            "must be SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro, of paths without commas, colons,"
            f" quotes or backslashes, got {text!r}"
        )
    if len(parts) > 1 and not parts[1].startswith("/"):
        raise ValueError(f"the path in the container must be absolute, got {text!r}")
    return text


def _image(text: str) -> str:
    if _USER_AND_PASSWORD.search(require_line(text)):
        raise ValueError(
            "must not hold a password, which would be kept with the run: log in to the registry"
            " instead (enroot's .credentials, apptainer registry login)"
        )
    return text


class ContainerConfig(Section):
    """The container in which the ranks run; everything around them runs on the host."""

    # pyxis: srun's plugin for enroot. apptainer: each rank is `apptainer exec`.
    kind: Literal["pyxis", "apptainer"]
    # A file (.sqsh, .sif), or what the tool gets from a registry: nvcr.io#nvidia/pytorch:25.01-py3
    # (pyxis), docker://nvcr.io/nvidia/pytorch:25.01-py3 (apptainer).
    image: Annotated[str, AfterValidator(_image)]
    # Folders of the nodes: SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro. The run directory is mounted
    # by itself; data, model and cache must be inside one that keeps its path.
    mounts: tuple[Annotated[str, AfterValidator(_mount)], ...] = ()
    # The folder in which the ranks start; null = the run directory.
    workdir: OptionText | None = None
    # The Python inside, with torch, DeepSpeed and the other packages of this one.
    python: OptionText = "python3"

    @model_validator(mode="after")
    def _paths_inside_are_absolute(self) -> Self:
        if self.workdir is not None and not self.workdir.startswith("/"):
            raise ValueError(
                f"workdir: must be an absolute path of the container, got {self.workdir!r}"
            )
        # Inside, `env` would take the first for an option, and the second for a variable.
        if self.python.startswith("-") or "=" in self.python:
            raise ValueError(f"python: must be a path or a name, got {self.python!r}")
        return self


class SlurmConfig(Section):
    # Nodes of the job; --nodes N is the same.
    nodes: Count = 1
    # Ranks on each node: one per GPU; on CPU as many as you like.
    ranks_per_node: Count = 8
    # GPUs asked for on each node; null = one per rank, 0 = none.
    gpus_per_node: NonNegativeInt | None = None
    # CPU cores of each rank.
    cpus_per_rank: Count = 8
    # GB (10^9 bytes) of a GPU's memory: `launch.py --plan` says what fits; null = unknown.
    gpu_mem_gb: PositiveFloat | None = None
    # null = the partition's default.
    mem_gb_per_node: PositiveInt | None = None
    # Minutes of an attempt; the job is requeued when they are over.
    time_min: Minutes = 1440
    # As sbatch takes it; null = the cluster's default. So are the next four.
    partition: SbatchValue | None = None
    # What the time is charged to.
    account: SbatchValue | None = None
    # Quality of service.
    qos: SbatchValue | None = None
    # Features that nodes must have: a100&ib.
    constraint: SbatchValue | None = None
    # Nodes that are not used: node[3,7].
    exclude: SbatchValue | None = None
    # Seconds before the time limit at which the job is signalled to save and requeue itself.
    signal_lead_s: Annotated[int, Field(ge=1, le=65535)] = 300
    # [1, 4]: start on as many nodes as SLURM has free, at least 1 and at most 4; null = on `nodes`.
    # The global batch stays what it is on `nodes`.
    elastic: tuple[Count, Count] | None = None
    # Restarts after the loss of a node or a rank that was killed; preemptions and time limits are
    # not counted.
    node_failure_restarts: NonNegativeInt = 10
    # Number of attempts in a row without progress that end the job: failed attempts without a new
    # checkpoint, and attempts that a time limit or preemption ended before min_steps_per_attempt
    # new steps.
    attempts_without_progress: PositiveInt = 3
    # See attempts_without_progress.
    min_steps_per_attempt: NonNegativeInt = 3
    # A shell script that every node sources first: modules, virtual environment, NCCL variables.
    setup: LocalPath | None = "slurm/setup.sh"
    # Further sbatch options, by their long names: {reservation: week42, exclusive: true}. true is
    # an option without a value, false takes away one of a preset.
    extra: dict[SbatchKey, OptionValue] = Field({})
    # Further srun options of the ranks, as in extra: {cpu-bind: cores}.
    srun_args: dict[SbatchKey, OptionValue] = Field({})
    # The container of the ranks (docs/clusters.md); null = the Python that launches.
    container: ContainerConfig | None = None

    @property
    def node_range(self) -> range:
        """The numbers of nodes that an attempt may run on."""
        least, most = self.elastic or (self.nodes, self.nodes)
        return range(least, most + 1)

    @model_validator(mode="after")
    def _lead_within_the_limit(self) -> "SlurmConfig":
        if self.signal_lead_s >= self.time_min * 60:
            raise ValueError(
                "signal_lead_s: must be less than time_min, or the job is signalled to stop when it"
                f" has just started: got {self.signal_lead_s} s for {self.time_min} min"
                f" ({self.time_min * 60} s)"
            )
        return self

    @model_validator(mode="after")
    def _elastic_around_nodes(self) -> "SlurmConfig":
        if self.nodes not in self.node_range:
            raise ValueError(
                "elastic: must be [least, most] with nodes between them, "
                f"got {list(self.elastic or ())} for nodes: {self.nodes}"
            )
        return self


def check_range(nodes: int, accumulate: int, allowed: range) -> None:
    """Check that each number of nodes can share out the batch of `nodes` × `accumulate`.

    Raises:
        ValueError: One cannot; names numbers that work.
    """
    unfit = next((count for count in allowed if nodes * accumulate % count), None)
    if unfit is None:
        return
    least, most = _fitting_range(nodes, accumulate, allowed)
    fitting = _fitting_accumulation(nodes, accumulate, allowed)
    other = f"train.accumulate_grad_batches={fitting}, or " if fitting else ""
    raise ValueError(
        f"slurm.elastic: {unfit} nodes cannot share out the global batch, slurm.nodes × "
        f"train.accumulate_grad_batches = {nodes} × {accumulate}, evenly; use "
        f"{other}slurm.elastic=[{least}, {most}]"
    )


def _fitting_accumulation(nodes: int, accumulate: int, allowed: range) -> int | None:
    """Return the next larger accumulation that all can share out; None if it is too large."""
    whole = 1
    for count in allowed:
        whole = lcm(whole, count)
        if whole > MAX_ACCUMULATION * nodes:
            return None
    unit = whole // gcd(whole, nodes)
    return -(-accumulate // unit) * unit


def _fitting_range(nodes: int, accumulate: int, allowed: range) -> tuple[int, int]:
    """Return the widest part of the range around `nodes` that can share out this batch."""
    least = most = nodes
    while least > allowed[0] and nodes * accumulate % (least - 1) == 0:
        least -= 1
    while most < allowed[-1] and nodes * accumulate % (most + 1) == 0:
        most += 1
    return least, most
