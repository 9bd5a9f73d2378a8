"""The lines of `launch.py --plan`."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llada_sft.config.schema import Config
from llada_sft.config.sections.model import LoraConfig, ModelConfig
from llada_sft.errors import ConfigError
from llada_sft.model.flops import peak_rate
from llada_sft.plan.cost import checkpoint_bytes, step_operations, traffic
from llada_sft.plan.fitting import fewest_nodes, largest_micro_batch
from llada_sft.plan.memory import RankMemory, packed_bytes
from llada_sft.plan.setup import Setup, setup_of

_GB = 1e9
# The share of a GPU's memory that tensors may have: the rest is for CUDA, NCCL and what the
# allocator cannot use.
_USABLE = 0.9


@dataclass(frozen=True)
class MeasuredSpeed:
    """The speed of a run.

    Attributes:
        run: Its directory.
        model, lora: What it trains.
        ranks: Of its last attempt.
        lines: How many lines of its log were read.
        tokens_per_s: Real tokens per second of one rank.
        mfu: The share of its GPUs' rate that it reached; None if that rate is not known.
    """

    run: str
    model: ModelConfig
    lora: LoraConfig | None
    ranks: int
    lines: int
    tokens_per_s: float
    mfu: float | None

    def is_of(self, config: Config) -> bool:
        """Return whether a config trains the same parameters of the same network."""
        own, other = self.model, config.model
        return (own.path, own.size, self.lora) == (other.path, other.size, config.lora)


@dataclass(frozen=True)
class Assumptions:
    """What a config does not say.

    Attributes:
        gpu: A name as CUDA gives it.
        mfu: The share of its rate that the training reaches.
        tokens: Real tokens of an epoch; None: not known.
        measured: The speed of a run, which is taken instead of `mfu`.
    """

    gpu: str = "NVIDIA H100"
    mfu: float = 0.4
    tokens: float | None = None
    measured: MeasuredSpeed | None = None


def plan_lines(config: Config, assumed: Assumptions) -> list[str]:
    """Work a config out.

    Args:
        config: The config, with absolute paths.
        assumed: What it does not say.

    Raises:
        LladaSftError: The model directory cannot be read, or an assumption is a mistake.
    """
    if not 0 < assumed.mfu <= 1:
        raise ConfigError(f"--mfu: must be above 0 and at most 1, got {assumed.mfu:g}")
    if assumed.tokens is not None and not 0 < assumed.tokens < math.inf:
        raise ConfigError(f"--tokens: must be above 0, got {assumed.tokens:g}")
    planned = setup_of(config)
    memory = planned.memory()
    return [
        *_of_network(planned),
        *_of_memory(memory, planned),
        *_of_fit(planned),
        *_of_step(planned, assumed),
        *_of_disk(planned, memory),
    ]


def _of_network(planned: Setup) -> Iterator[str]:
    sizes, config = planned.sizes, planned.config
    trained = sum(sizes.trained)
    everything = trained + sum(sizes.frozen)
    share = "" if planned.adapters is None else f", {trained:,} of them trained"
    where = f"stage {config.deepspeed.stage}, {sizes.ranks:,} ranks"
    yield f"parameters       {everything:,}{share}; {where}"
    if sizes.packed:
        packed = sum(map(packed_bytes, sizes.packed))
        yield (
            f"                 {sum(sizes.packed):,} of the others in 4 bits, {_gb(packed)}"
            " (lora.base: nf4)"
        )


def _of_memory(memory: RankMemory, planned: Setup) -> Iterator[str]:
    tokens = planned.tokens
    yield (
        f"bytes of a rank  {_gb(memory.peak)} at the most: {memory.peak_moment}, with {tokens:,}"
        " tokens, all masked"
    )
    yield from _table(memory.standing)
    yield from _table(memory.moments[memory.peak_moment])
    others = (
        f"{name} {_gb(sum(parts.values()))}"
        for name, parts in memory.moments.items()
        if name != memory.peak_moment
    )
    yield f"                 other moments, on top of what stands: {', '.join(others)}"
    if memory.host:
        yield f"host, each rank  {_gb(sum(memory.host.values()))}, offloaded"
        yield from _table(memory.host)


def _table(parts: Mapping[str, int]) -> Iterator[str]:
    for name, size in parts.items():
        yield f"                 {_gb(size):>9}  {name}"


def _of_fit(planned: Setup) -> Iterator[str]:
    given = planned.config.slurm.gpu_mem_gb
    if given is None:
        yield "fits             unknown: set slurm.gpu_mem_gb to the memory of a GPU"
        return
    room = _USABLE * given * _GB
    fits = planned.memory().peak <= room
    yield (
        f"fits             {'yes' if fits else 'no'}: tensors may have {_USABLE:.0%} of"
        f" slurm.gpu_mem_gb, {given:g} GB"
    )
    most = largest_micro_batch(lambda tokens: planned.memory(tokens).peak <= room)
    key = "data.max_tokens" if planned.config.data.max_tokens else "tokens of a micro-batch"
    nodes = fewest_nodes(lambda nodes: planned.on(nodes).memory().peak <= room)
    few = f"{nodes:,}" if nodes else "more than 1,024"
    yield (
        f"                 at most {most:,} {key} here; at least {few} nodes with"
        f" {planned.tokens:,}"
    )


def _of_step(planned: Setup, assumed: Assumptions) -> Iterator[str]:
    config, sizes = planned.config, planned.sizes
    sent = traffic(config, sizes)
    yield (
        f"traffic          a rank receives {_gb(sent.weights)} of weights and"
        f" {_gb(sent.gradients)} of gradients in a step; a node {_gb(sent.between_nodes)} from"
        " others"
    )
    on_cpu = config.train.accelerator == "cpu"
    if on_cpu and assumed.measured is None:
        return
    a_second, why = _speed(planned, assumed)
    tokens = planned.tokens * config.train.accumulate_grad_batches
    seconds = tokens / a_second
    yield (
        f"time             {seconds:.3g} s a step and {a_second:,.0f} tokens/s for each"
        f" {'rank' if on_cpu else 'GPU'}, {why}"
    )
    if assumed.tokens is None:
        yield "                 hours of an epoch: --tokens N, as llada-sft check counts them"
        return
    steps = assumed.tokens / (tokens * sizes.ranks)
    hours = steps * seconds / 3600
    yield (
        f"                 an epoch of {assumed.tokens:,.0f} tokens: at least {steps:,.0f} steps"
        f" and {hours:,.1f} h; {config.train.epochs} epochs {config.train.epochs * hours:,.1f} h"
    )


def _speed(planned: Setup, assumed: Assumptions) -> tuple[float, str]:
    """Return the tokens per second of a GPU, and in words where the number is from."""
    config, measured = planned.config, assumed.measured
    if measured is not None and measured.is_of(config):
        return measured.tokens_per_s, (
            f"as {measured.run} has measured on {measured.ranks:,} ranks (median of"
            f" {measured.lines:,} log lines)"
        )
    if measured is not None and measured.mfu is None:
        raise ConfigError(
            f"--measured: {measured.run} trains another network or other parameters of it, and its"
            " log has no MFU: take a run of this network, or --mfu"
        )
    rate = peak_rate(assumed.gpu)
    if rate is None:
        raise ConfigError(f"--gpu: no rate is known of {assumed.gpu!r}; try H100, H200 or A100")
    mfu = assumed.mfu if measured is None or measured.mfu is None else measured.mfu
    trained = None if planned.adapters is None else planned.adapters.num_trained
    needed = step_operations(config, planned.network, planned.tokens, trained)
    tokens = planned.tokens * config.train.accumulate_grad_batches
    source = (
        "an assumption; a training logs its own, and --measured RUN takes it"
        if measured is None
        else f"that of {measured.run}, another network"
    )
    words = f"if MFU is {mfu:.0%} of {rate / 1e12:,.0f} Tflop/s ({assumed.gpu}): {source}"
    return tokens * rate * mfu / needed, words


def _of_disk(planned: Setup, memory: RankMemory) -> Iterator[str]:
    config, sizes = planned.config, planned.sizes
    size = checkpoint_bytes(config, sizes)
    # One more while it is written, and the best one.
    number = config.train.keep_checkpoints + 1 + (config.train.keep_best is not None)
    nodes = config.slurm.nodes
    yield (
        f"a checkpoint     {_gb(size)}; {_gb(number * size)} of disk for {number} of them"
        f" (train.keep_checkpoints, and the one that is written);"
        f" {size / nodes / _GB:,.1f} s to write at 1 GB/s from each node"
    )
    if config.train.async_checkpoints:
        yield f"                 {_gb(size / nodes)} of host memory on each node for the copy"


def _gb(size: float) -> str:
    return f"{size / _GB:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.2f} MB"
