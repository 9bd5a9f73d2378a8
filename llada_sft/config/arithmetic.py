"""The numbers that follow from a config, as lines of text: what a step is, how long the run is."""

from dataclasses import dataclass

from llada_sft.config.schema import Config


@dataclass(frozen=True)
class RowCount:
    """Rows of the training files; `busiest_rank` is the largest number that one rank reads."""

    total: int
    busiest_rank: int
    # Worked out from the mean length of a line instead of read through.
    estimated: bool = False


def steps_per_epoch(config: Config, rows: RowCount) -> int:
    """Count the steps until the rank with the most rows has read them all; padded batches only."""
    rows_per_step = config.train.micro_batch_size * config.train.accumulate_grad_batches
    return -(-rows.busiest_rank // rows_per_step)


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
        max_tokens = batch * config.data.max_length
        lines += [
            f"global batch     {batch:,} examples = {train.micro_batch_size} micro × {factors}",
            f"tokens per step  at most {max_tokens:,} = {batch:,} × {config.data.max_length:,}",
        ]
    return lines if num_rows is None else lines + _length(config, num_rows)


def _length(config: Config, rows: RowCount) -> list[str]:
    about = "≈ " if rows.estimated else ""
    lines = [f"rows per epoch   {about}{rows.total:,}"]
    if config.data.batching == "packed":
        lines += ["steps per epoch  as the tokens have it; estimated where training begins"]
    else:
        steps = steps_per_epoch(config, rows)
        total = steps * config.train.epochs
        lines += [
            f"steps per epoch  {about}{steps:,}, until the busiest rank has read"
            f" its {about}{rows.busiest_rank:,} rows",
            f"steps in all     {about}{total:,} = {config.train.epochs} epochs × {steps:,}",
        ]
    if config.train.max_steps is not None:
        lines.append(f"                 stops after {config.train.max_steps:,} (train.max_steps)")
    return lines
