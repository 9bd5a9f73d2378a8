"""The numbers that follow from a config, as lines of text: what a step is, how long the run is."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llada_sft.config.schema import Config

# Tokens of a micro-batch below which a GPU waits, at about 10,000 tokens/s of an 8B network (docs/
# data.md): for Python, and for the parameters that ZeRO-3 sends between nodes.
_HOST_BOUND, _NETWORK_BOUND = 4_000, 10_000


@dataclass(frozen=True)
class RowCount:
    """Rows of the training files.

    Attributes:
        total: All of them, once.
        busiest_rank: The most that one rank reads: in an epoch, or, of sources by name, in all.
        estimated: Worked out from the mean length of a line instead of read through.
        by_source: For each source by name, its rows, and how often they come.
    """

    total: int
    busiest_rank: int
    estimated: bool = False
    by_source: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def steps_of(config: Config, num_rows: int) -> int:
    """Count the steps in which a rank reads `num_rows` rows; padded batches only."""
    micro = config.in_examples.train.micro_batch_size
    rows_per_step = micro * config.train.accumulate_grad_batches
    return -(-num_rows // rows_per_step)


def on_nodes(config: Config, nodes: int) -> Config:
    """Return the config of an attempt on `nodes` nodes of the range, with the same global batch."""
    accumulate = config.slurm.nodes * config.train.accumulate_grad_batches // nodes
    slurm = config.slurm.model_copy(update={"nodes": nodes})
    train = config.train.model_copy(update={"accumulate_grad_batches": accumulate})
    return config.model_copy(update={"slurm": slurm, "train": train})


def attempt_line(config: Config, nodes: int) -> str:
    """Return the line with the nodes of an elastic attempt and its unchanged global batch."""
    here = on_nodes(config, nodes)
    return (
        f"elastic          {nodes} of {_nodes(config)}: {here.world_size} ranks ×"
        f" {here.train.accumulate_grad_batches} accumulated; the global batch stays"
        f" {config.global_batch_size:,} {config.global_batch_unit}"
    )


def nothing_to_do(max_steps: int, step: int) -> str:
    """Return the line of a run that has already made all of its steps."""
    return (
        f"train.max_steps: {step:,} steps are made, got {max_steps:,}: there is nothing to do;"
        " raise it to train further"
    )


def stopped_early(reason: str, step: int) -> str:
    """Return the line of a run that `train.early_stop` has ended before."""
    return (
        f"train.early_stop: step {step:,}: {reason}: there is nothing to do; raise its patience, or"
        " set it to null, to train further"
    )


def no_rows_left(step: int) -> str:
    """Return the line of a run that has already trained all rows of all epochs."""
    return (
        f"train.epochs: no rows are left after step {step:,}: there is nothing to do;"
        " raise it, or the epochs of a source, to train further"
    )


def batch_arithmetic(config: Config, num_rows: RowCount | None = None) -> list[str]:
    """Work out world size, global batch and length of the run; without rows, the first two."""
    slurm, train = config.slurm, config.train
    batch = config.global_batch_size
    factors = f"{train.accumulate_grad_batches} accumulated × {config.world_size} ranks"
    lines = [
        f"world size       {config.world_size:,} = {slurm.nodes} nodes"
        f" × {slurm.ranks_per_node} ranks"
    ]
    if config.data.batching == "packed":
        max_tokens = config.data.max_tokens
        lines += [f"global batch     at most {batch:,} tokens = {max_tokens:,} micro × {factors}"]
    else:
        micro, longest = train.micro_batch_size, config.data.max_length
        draws = config.objective.draws
        rows = batch * draws
        halves = "" if draws == 1 else f" ÷ {draws} draws"
        lines += [
            f"global batch     {batch:,} examples = {micro} micro{halves} × {factors}",
            f"tokens per step  at most {rows * longest:,} = {rows:,} × {longest:,}",
            f"a micro-batch    at most {micro * longest:,} tokens = {micro} × {longest:,}",
        ]
    lines += (
        _blocks(config)
        + _pairs(config)
        + _small_micro_batch(config)
        + _elastic(config)
        + _timeout(config)
    )
    return lines if num_rows is None else lines + _length(config, num_rows)


def _blocks(config: Config) -> list[str]:
    """Say what the network runs on for each token."""
    if config.objective.kind == "full":
        return []
    tokens = config.data.max_tokens or config.train.micro_batch_size * config.data.max_length
    return [
        f"blocks           of {config.objective.block_length} tokens (objective.kind: block): the"
        " network runs on two positions for each token, a noisy and a clean one: at most"
        f" {2 * tokens:,} for a micro-batch; tokens, and tokens per second, are those of the data"
    ]


def _pairs(config: Config) -> list[str]:
    """Say what is counted once, and what twice."""
    if config.objective.pairs == "none":
        return []
    return [
        "pairs            each example is twice in its micro-batch (objective.pairs): one example"
        " of the batch and of the epoch, two rows or twice its tokens of the micro-batch"
    ]


def _small_micro_batch(config: Config) -> list[str]:
    """Warn of micro-batches on GPUs in which there is less to compute than to wait for."""
    data, slurm = config.data, config.slurm
    if config.train.accelerator == "cpu" or slurm.gpus_per_node == 0:
        return []
    tokens = data.max_tokens or config.train.micro_batch_size * data.max_length
    tokens *= config.objective.halves
    of_nodes = slurm.node_range[-1] > 1
    least, bound = (
        (_NETWORK_BOUND, "ZeRO-3's traffic between nodes")
        if of_nodes and tokens >= _HOST_BOUND
        else (_HOST_BOUND, "the host, not the GPU")
    )
    if tokens >= least:
        return []
    unit = "tokens" if config.objective.kind == "full" else "positions"
    return [
        f"warning          a micro-batch has at most {tokens:,} {unit}: below about {least:,} the"
        f" step is bound by {bound} (docs/data.md)"
    ]


def _timeout(config: Config) -> list[str]:
    """Return a line if the timeout of collectives is longer than the configured one."""
    given = config.deepspeed.timeout_min
    if given is None or given * 60 >= config.collective_timeout_s:
        return []
    return [
        f"timeout          collectives have {config.collective_timeout_s} s, not the"
        f" {given * 60} s of deepspeed.timeout_min: the watchdog must be first"
        " (train.hang_timeout_s + train.hang_grace_s)"
    ]


def _elastic(config: Config) -> list[str]:
    """Return a line on what changes with the number of nodes, and what does not."""
    if config.slurm.elastic is None:
        return []
    least, most = (on_nodes(config, count) for count in config.slurm.elastic)
    return [
        f"elastic          {_nodes(config)}: {least.world_size} to {most.world_size} ranks,"
        f" {least.train.accumulate_grad_batches} to {most.train.accumulate_grad_batches}"
        " accumulated; the same global batch"
    ]


def _nodes(config: Config) -> str:
    counts = config.slurm.node_range
    return f"{counts[0]} to {counts[-1]} nodes"


def _length(config: Config, rows: RowCount) -> list[str]:
    about = "≈ " if rows.estimated else ""
    packed = config.data.batching == "packed"
    # A hook may make several examples of a row, or none: training samples rows (docs/schedule.md).
    read = f"if each of the busiest rank's {about}{rows.busiest_rank:,} rows makes one example"
    steps = steps_of(config, rows.busiest_rank)
    if rows.by_source:
        lines = [
            f"{name:<16} {about}{count:,} rows × {epochs} epochs"
            for name, (count, epochs) in rows.by_source.items()
        ]
        lines += [] if packed else [f"steps in all     {about}{steps:,}, {read}"]
    else:
        lines = [f"rows per epoch   {about}{rows.total:,}"]
        total = steps * config.train.epochs
        lines += (
            []
            if packed
            else [
                f"steps per epoch  {about}{steps:,}, {read}",
                f"steps in all     {about}{total:,} = {config.train.epochs} epochs × {steps:,}",
            ]
        )
    if packed:
        lines += ["steps per epoch  depends on token counts; estimated when training starts"]
    if config.train.max_steps is not None:
        lines.append(f"                 stops after {config.train.max_steps:,} (train.max_steps)")
    known = [] if packed else [steps if rows.by_source else steps * config.train.epochs]
    lines += _warmup(config, [*known, *filter(None, [config.train.max_steps])])
    return lines + _rising_end(config)


def _rising_end(config: Config) -> list[str]:
    """Warn of a learning rate that rises at the end: who lowers it may forget where it ends."""
    lr, final_lr = config.optim.lr, config.optim.final_lr
    if final_lr <= lr:
        return []
    return [
        f"warning          optim.final_lr, {final_lr:g}, is above optim.lr, {lr:g}: the learning"
        " rate rises at the end"
    ]


def _warmup(config: Config, ends: list[int]) -> list[str]:
    """Warn of a warm-up that is as long as the training; `ends`: known last steps."""
    warmup = config.optim.warmup_steps
    if not ends or warmup < min(ends):
        return []
    return [
        f"warning          optim.warmup_steps, {warmup:,}, is not below the {min(ends):,} steps"
        " of the training: optim.lr is not reached, or never kept"
    ]
