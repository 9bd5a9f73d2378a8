"""The one small collective per optimizer step, and everything that ranks decide together.

It runs over gloo on the CPU, also on GPU nodes: it never waits for the device. The ranks decide
nothing else together in the training loop: equal numbers here mean equal decisions, so no rank can
wait for a collective that another rank skips.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields, replace
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llada_sft.errors import PeerFailedError

# The numbers of a report of which the ranks' largest counts, not their sum.
_LARGEST = ("steps_left", "epoch_steps", "most_work", "gpu_bytes", "resident_bytes")


@dataclass(frozen=True)
class Report:
    """What one rank reports, or all ranks together: sums, where nothing else is said.

    Attributes:
        examples: Examples of the step.
        response_tokens: Tokens of their responses, EOS tail included.
        tokens: Tokens of the examples, without what was added to their rows.
        all_tokens: All tokens the network runs on, padding and empty micro-batches included.
        has_rows: This rank may have more rows in this epoch.
        stop: This rank was signalled to stop.
        failed: This rank cannot continue.
        rows, bad, left_out: Rows read, bad rows, and good ones without an example, since this
            attempt of the run started.
        too_long: Examples cut or skipped for their length, also since the attempt started.
        wait_us: Microseconds of waiting for data since the attempt started, without the first step.
        rows_done, epoch_rows: Rows done in this epoch, and all rows of the epoch.
        steps_left, epoch_steps: The rank's steps after this one in the epoch, and its steps of a
            whole epoch (`LocalStep`).
        estimated: 1 if these depend on a sample.
        writes_ended: The rank's parts of checkpoints whose writing in the background has ended,
            well or not, since the attempt started.
        squares: The sum of the squares of the examples' lengths.
        work, most_work: What the network does for the rank's step (`UnmaskedBatch.work`): the sum
            of the ranks, and the most of one.
        masked: Masked tokens of the step, if the loss is divided by them, else 0
            (`NoiseSource.num_masked`).
        gpu_bytes, resident_bytes: The most memory that the rank had: tensors on its GPU (0 without
            one), and its process.
        own_us, most_own_us: Microseconds that the rank spent by itself on its last step
            (`OwnTime`), and waited for data: the median of the ranks, and the most of one. 0 if
            that is not known. One rank reports `own_us` alone.
        slowest_rank: The rank with the most.
        by_source: What each source contributed to the step, in the unit that the sources share;
            empty with one dataset. It has the same length on all ranks.
        by_level: What an earlier step says of the losses by noise level (`LevelLosses`); empty
            where levels are drawn uniformly.
    """

    examples: int = 0
    response_tokens: int = 0
    tokens: int = 0
    has_rows: int = 0
    stop: int = 0
    failed: int = 0
    all_tokens: int = 0
    rows: int = 0
    bad: int = 0
    left_out: int = 0
    too_long: int = 0
    wait_us: int = 0
    rows_done: int = 0
    epoch_rows: int = 0
    steps_left: int = 0
    epoch_steps: int = 0
    estimated: int = 0
    writes_ended: int = 0
    squares: int = 0
    work: int = 0
    most_work: int = 0
    masked: int = 0
    gpu_bytes: int = 0
    resident_bytes: int = 0
    own_us: int = 0
    most_own_us: int = 0
    slowest_rank: int = 0
    by_source: tuple[int, ...] = ()
    by_level: tuple[int, ...] = ()

    def numbers(self) -> list[int]:
        """Return all counts in one list, those of the sources and of the levels last."""
        *single, by_source, by_level = astuple(self)
        return [*single, *by_source, *by_level]

    def like(self, numbers: Iterable[int]) -> "Report":
        """Return the report that such a list describes, with as many sources and levels as here."""
        values = iter(numbers)
        single: dict[str, Any] = {field.name: next(values) for field in fields(Report)[:-2]}
        by_source = tuple(islice(values, len(self.by_source)))
        return Report(**single, by_source=by_source, by_level=tuple(values))

    def together(self, ranks: Tensor) -> "Report":
        """Combine the `numbers` of all ranks, int64 [ranks, numbers], this one's among them."""
        summed, largest = (self.like(row.tolist()) for row in (ranks.sum(0), ranks.amax(0)))
        own_us = ranks[:, _OWN_US]
        return replace(
            summed,
            **{name: getattr(largest, name) for name in _LARGEST},
            own_us=int(own_us.median()),
            most_own_us=int(own_us.max()),
            slowest_rank=int(own_us.argmax()),
        )


_OWN_US = [field.name for field in fields(Report)].index("own_us")


class Consensus:
    """Agreement of all ranks, over a process group of its own."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo")

    def agree(self, report: Report) -> Report:
        """Combine the reports of all ranks; every rank must call this equally often.

        Raises:
            PeerFailedError: A rank said that it failed (not on that rank itself).
        """
        numbers = torch.tensor(report.numbers(), dtype=torch.int64)
        ranks = [torch.empty_like(numbers) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(ranks, numbers, group=self._group)
        summed = report.together(torch.stack(ranks))
        if summed.failed and not report.failed:
            raise PeerFailedError(f"{summed.failed} other rank(s) stopped; see their lines")
        return summed

    def largest(self, number: int) -> int:
        """Return the largest of the ranks' numbers."""
        value = torch.tensor(number, dtype=torch.int64)
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self._group)
        return int(value)

    def gather(self, item: object) -> list[object]:
        """Return the items of all ranks, in rank order, on every rank."""
        items: list[object] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(items, item, group=self._group)
        return items

    def barrier(self) -> None:
        dist.barrier(group=self._group)
