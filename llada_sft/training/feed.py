"""Local steps -> steps that all ranks have agreed on.

1. A rank's `LocalStep` comes from data/ (perhaps from a background process).
2. The ranks agree on the counts of the global batch (`Consensus`), and with them on when an epoch
   is over: when no rank has rows left. Ranks that finish first run weight-zero micro-batches.
3. The step's examples get their noise (noising.py).

Lightning fetches one step ahead of the one it trains. Agreement thus happens one step ahead too,
on every rank alike; what is decided there is carried in the batch.
"""

import time
from collections.abc import Callable, Iterable, Iterator

from llada_sft.data.examples.row_counts import RowCounts
from llada_sft.data.rows.position import Positions
from llada_sft.data.steps.local_step import LocalStep
from llada_sft.errors import LladaSftError
from llada_sft.training.consensus import Consensus, Report
from llada_sft.training.host import Phase
from llada_sft.training.log.efficiency import peak_memory
from llada_sft.training.noising import NoiseSource, StepBatch
from llada_sft.training.schedule.plan import Schedule


class StepFeed(Iterable[StepBatch]):
    """The steps of this rank, agreed with all others, through every epoch.

    Args:
        local_steps: The rank's own steps (`step_loader`).
        noise: Draws the noise.
        consensus: The agreement of the ranks.
        stop_requested: Whether this rank was signalled to stop.
        first_step: Optimizer steps that were made before.
        num_sources: Sources that are mixed.
        epoch_ended: Called on every rank at the end of an epoch, with its number and what became
            of this rank's rows.
        pulse: Called with what this rank starts to do.
        schedule: Gives each step its learning rate.
        max_steps: Optimizer steps after which the training ends, if its rows do not end it before.
        writes_ended: Returns how many of this rank's writes in the background have ended.
        own_us: Returns the microseconds of the last step that this rank spent by itself.
    """

    def __init__(
        self,
        local_steps: Iterable[LocalStep],
        noise: NoiseSource,
        consensus: Consensus,
        stop_requested: Callable[[], bool],
        first_step: int,
        num_sources: int = 0,
        epoch_ended: Callable[[int, RowCounts], None] = lambda epoch, rows: None,
        pulse: Callable[[Phase, int], None] = lambda phase, step: None,
        schedule: Schedule | None = None,
        max_steps: int | None = None,
        writes_ended: Callable[[], int] = lambda: 0,
        own_us: Callable[[], int] = lambda: 0,
    ) -> None:
        self._schedule, self._max_steps = schedule, max_steps
        self._local_steps, self._noise, self._consensus = local_steps, noise, consensus
        self._stop_requested, self._step = stop_requested, first_step
        self._num_sources, self._epoch_ended = num_sources, epoch_ended
        self._first_step, self._pulse = first_step, pulse
        # Of this attempt, of this epoch of it, and the seconds that steps waited for data.
        self._rows, self._epoch_rows, self._waited_s = RowCounts(), RowCounts(), 0.0
        # What has changed since the last batch: not every local step becomes one.
        self._moved: Positions = {}
        # True, on every rank alike, once any rank was signalled to stop.
        self.stop_agreed = False
        self._writes_ended, self._own_us = writes_ended, own_us
        # The waits for data that a report has had.
        self._reported_wait_s = 0.0
        # Of all ranks together.
        self.writes_ended = 0

    def __iter__(self) -> Iterator[StepBatch]:
        local_steps = iter(self._local_steps)
        local = self._next(local_steps)
        # The first step is there before training starts: it came with the start of the background
        # process, of the tokenizer and of the hook, and no step waits for that.
        self._waited_s = 0.0
        while local is not None:
            counts = self._agree(local)
            self._begin("step")
            self.stop_agreed |= counts.stop > 0
            self.writes_ended = counts.writes_ended
            if counts.examples:
                yield self._batch(local, counts)
                self._step += 1
            if self._step == self._max_steps:
                # A bad row that follows must not end a training that has made all of its steps.
                return
            if not counts.has_rows:
                self._epoch_ended(local.epoch, self._epoch_rows)
                self._epoch_rows = RowCounts()
            # A rank at its end of the epoch waits there, by empty steps, for the others.
            if not local.end_of_epoch or not counts.has_rows:
                local = self._next(local_steps)

    def _batch(self, local: LocalStep, counts: Report) -> StepBatch:
        schedule, step = self._schedule, self._step
        positions, self._moved = self._moved, {}
        micro_batches = self._noise.micro_batches(local, counts, step)
        levels = self._noise.levels
        return StepBatch(
            micro_batches=micro_batches,
            counts=counts,
            epoch=local.epoch,
            positions=positions,
            rows=self._epoch_rows,
            pace=None if schedule is None else schedule.next(step, local.epoch, counts),
            yields=local.yields,
            drawn_with=None if levels is None else levels.statistics,
        )

    def _next(self, local_steps: Iterator[LocalStep]) -> LocalStep | None:
        self._begin("data")
        start = time.monotonic()
        try:
            local = next(local_steps, None)
        except LladaSftError:
            # The others learn of it here instead of waiting for this rank.
            by_source = (0,) * self._num_sources
            self._consensus.agree(Report(failed=1, by_source=by_source, by_level=self._by_level()))
            raise
        self._waited_s += time.monotonic() - start
        if local is not None:
            self._rows += local.rows
            self._epoch_rows += local.rows
            self._moved |= local.positions
        return local

    def _begin(self, phase: Phase) -> None:
        # The first step belongs to the start: ranks may take very unequal times to come there.
        if self._step > self._first_step:
            # What is fetched now is one step ahead.
            self._pulse(phase, self._step - 1)

    def _agree(self, local: LocalStep) -> Report:
        self._begin("agreement")
        gpu_bytes, resident_bytes = peak_memory()
        # The network runs on each example as often as its noise is drawn.
        draws = self._noise.draws
        return self._consensus.agree(
            Report(
                examples=local.num_examples,
                response_tokens=local.num_response_tokens,
                tokens=draws * local.num_tokens,
                all_tokens=draws * local.num_positions,
                has_rows=int(not local.end_of_epoch),
                stop=int(self._stop_requested()),
                rows=self._rows.rows,
                bad=self._rows.num_bad,
                left_out=self._rows.left_out,
                too_long=self._rows.too_long,
                wait_us=round(self._waited_s * 1e6),
                rows_done=local.rows_done,
                epoch_rows=local.epoch_rows,
                steps_left=local.steps_left,
                epoch_steps=local.epoch_steps,
                estimated=int(local.estimated),
                writes_ended=self._writes_ended(),
                squares=draws * local.num_squares,
                work=draws * local.work,
                most_work=draws * local.work,
                masked=self._noise.num_masked(local, self._step),
                gpu_bytes=gpu_bytes,
                resident_bytes=resident_bytes,
                own_us=self._own_time_us(),
                by_source=local.by_source,
                by_level=self._by_level(),
            )
        )

    def _own_time_us(self) -> int:
        """Return what the last step took this rank by itself, with the wait for data since then."""
        wait_s = self._waited_s - self._reported_wait_s
        self._reported_wait_s = self._waited_s
        of_step = self._own_us()
        return of_step + round(wait_s * 1e6) if of_step else 0

    def _by_level(self) -> tuple[int, ...]:
        levels = self._noise.levels
        return () if levels is None else levels.report(self._step)
