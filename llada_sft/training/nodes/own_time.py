"""The time of a step that a rank spends by itself, without a wait for another rank.

All ranks leave a step together: how long it took says nothing of who was late. What differs is the
time of what needs no other rank: here the forward passes of the blocks, once their weights are
gathered. The rank with the most of it is the one that the others wait for. Collectives, the
backward pass and the optimizer's step are not counted, and of a recomputation only whole blocks.

On CUDA the times are those of events in the stream, read once the step has ended: the host never
waits for them.
"""

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class OwnTime:
    """Measures the blocks of a rank's network.

    Attributes:
        last_us: Microseconds of the last step; 0 before there is one, or where the device had not
            reached its end.
    """

    def __init__(self) -> None:
        self.last_us = 0
        self._is_counting = False
        # On the CPU seconds; on CUDA pairs of events.
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._start: float | torch.cuda.Event | None = None

    def watch(self, blocks: Iterable[nn.Module]) -> None:
        """Measure these from now on; DeepSpeed's hooks, which gather weights, must be there."""
        for block in blocks:
            block.register_forward_pre_hook(self._begin)
            # Before DeepSpeed's hook that releases the weights.
            block.register_forward_hook(self._end, prepend=True)

    def begin_step(self) -> None:
        """Count from here on: evaluation is not counted."""
        self._is_counting = True
        self._seconds, self._start = 0.0, None
        self._events.clear()

    def end_step(self) -> None:
        """Count no further, and read what was counted."""
        self._is_counting = False
        seconds = self._seconds
        if self._events:
            ended = self._events[-1][1].query()  # type: ignore[no-untyped-call]
            milliseconds = sum(s.elapsed_time(e) for s, e in self._events) if ended else 0.0
            seconds = milliseconds / 1e3
        self.last_us = round(seconds * 1e6)

    def _begin(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._is_counting:
            self._start = _event() if inputs[0].is_cuda else time.perf_counter()

    def _end(self, block: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        # A recomputation may end before the block does: then there is a start without an end.
        start, self._start = self._start, None
        if isinstance(start, torch.cuda.Event):
            self._events.append((start, _event()))
        elif start is not None:
            self._seconds += time.perf_counter() - start


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
