"""Local steps -> what the training step runs: noisy micro-batches with a weight for each token.

1. A rank's `LocalStep` comes from data/ (perhaps from a background process).
2. The ranks agree on the counts of the global batch (`Consensus`), and with them on when an epoch
   is over: when no rank has rows left. Ranks that finish first run weight-zero micro-batches.
3. Each example gets its noise. The example's number in the global batch gives its place in the
   low-discrepancy sequence; (seed, epoch, file, line, part) key which of its tokens are masked.
4. Each masked token gets its coefficient: weight / (answer length · N), N over the global batch,
   times the number of ranks, because DeepSpeed averages gradients over ranks.

Lightning fetches one step ahead of the one it trains. Agreement thus happens one step ahead too,
on every rank alike; what is decided there is carried in the batch.

Shapes: B rows of a micro-batch, L positions, M masked positions of the micro-batch, S positions of
one example's span: its row, or its part of the one row where examples are packed.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llada_sft.config.schema import ObjectiveConfig
from llada_sft.data.collate import CleanBatch, pad
from llada_sft.data.counts import RowCounts
from llada_sft.data.datamodule import LocalStep, Positions, TokenIds
from llada_sft.data.encode import Example
from llada_sft.diffusion.likelihood import validation_noise
from llada_sft.diffusion.noise import (
    Noise,
    draw_noise,
    independent,
    low_discrepancy,
    noise_key,
    step_shift,
)
from llada_sft.errors import LladaSftError
from llada_sft.training.consensus import Consensus, Report
from llada_sft.training.host import Phase


class MicroBatch:
    """What the network and the loss need.

    Not a dataclass and not a collection, on purpose: Lightning walks into those and converts every
    floating tensor to bf16, the coefficients of the loss among them.

    Attributes:
        noisy_ids: int64 [B, L], the mask token at masked positions.
        attention_mask: bool [B, L], or None where every token is real.
        positions: int64 [M], flat indices into B * L of the masked positions; never empty.
        targets: int64 [M], the tokens under the masks.
        coefficients: fp32 [M], what the cross-entropy of each is multiplied by.
        sequence_lengths: Tokens of each example of a packed row, else None.
        rows: File and line of each example.
    """

    def __init__(
        self,
        noisy_ids: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        targets: Tensor,
        coefficients: Tensor,
        sequence_lengths: tuple[int, ...] | None = None,
        rows: tuple[tuple[str, int], ...] = (),
    ) -> None:
        self.noisy_ids, self.attention_mask = noisy_ids, attention_mask
        self.sequence_lengths, self.rows = sequence_lengths, rows
        self.positions, self.targets, self.coefficients = positions, targets, coefficients

    def to(self, device: torch.device, non_blocking: bool = False) -> "MicroBatch":
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return MicroBatch(
            move(self.noisy_ids),
            None if self.attention_mask is None else move(self.attention_mask),
            move(self.positions),
            move(self.targets),
            move(self.coefficients),
            self.sequence_lengths,
            self.rows,
        )


class StepBatch:
    """One optimizer step of one rank; not a dataclass, for the same reason.

    Attributes:
        micro_batches: The rank's micro-batches.
        counts: The counts of the global batch.
        epoch: The epoch that the rows belong to.
        positions: The rank's position in its files once this step is trained.
        rows: What became of the rank's rows in this epoch, as far as this attempt has read them.
    """

    def __init__(
        self,
        micro_batches: list[MicroBatch],
        counts: Report,
        epoch: int,
        positions: Positions,
        rows: RowCounts = RowCounts(),  # noqa: B008 (frozen)
    ) -> None:
        self.micro_batches, self.counts = micro_batches, counts
        self.epoch, self.positions, self.rows = epoch, positions, rows

    def to(self, device: torch.device, non_blocking: bool = False) -> "StepBatch":
        moved = [batch.to(device, non_blocking) for batch in self.micro_batches]
        return StepBatch(moved, self.counts, self.epoch, self.positions, self.rows)


def noisy_micro_batch(
    batch: CleanBatch, noises: list[Noise], divisors: list[float], mask_token_id: int
) -> MicroBatch:
    """Apply one noise to each example of a micro-batch.

    Args:
        batch: The clean micro-batch; with no examples it becomes one of weight zero.
        noises: One for each example.
        divisors: What the weighted loss of each example is divided by.
        mask_token_id: Stands at the masked positions.
    """
    clean = torch.from_numpy(batch.input_ids).flatten()  # [B·L]
    masked = torch.zeros(clean.shape, dtype=torch.bool)
    coefficients = torch.zeros(clean.shape, dtype=torch.float64)
    noisy = clean.clone()
    given = zip(batch.examples, batch.spans, noises, divisors, strict=True)
    for example, span, noise, divisor in given:
        masked[span] = noise.masked
        coefficients[span] = noise.weight / divisor
        if example.noisy_ids is not None:
            noisy[span][: len(example.noisy_ids)] = torch.from_numpy(example.noisy_ids)
        else:
            noisy[span].masked_fill_(noise.masked, mask_token_id)
    positions = masked.nonzero().squeeze(1)
    if len(positions) == 0:
        # The head must run equally often on every rank: one position, with coefficient zero.
        positions = torch.zeros(1, dtype=torch.int64)
        coefficients.zero_()
    real = batch.attention_mask
    return MicroBatch(
        noisy_ids=noisy.view(batch.input_ids.shape),
        attention_mask=None if real is None else torch.from_numpy(real),
        positions=positions,
        targets=clean[positions],
        coefficients=coefficients[positions].float(),
        sequence_lengths=batch.lengths,
        rows=tuple((example.file, example.line) for example in batch.examples),
    )


def response_masks(batch: CleanBatch) -> list[Tensor]:
    """Return the response mask of each example, [S] bool."""
    flat = torch.from_numpy(batch.response_mask).flatten()
    return [flat[span] for span in batch.spans]


@dataclass(frozen=True)
class NoiseSource:
    """Draws the noise of examples, and says what each example's loss is divided by.

    Args:
        objective: The objective section.
        seed: `run.seed`.
        mask_token_id: From the model's config.
        rank, world_size: Place of this rank's examples in the global batch.
    """

    objective: ObjectiveConfig
    seed: int
    mask_token_id: int
    rank: int
    world_size: int

    def micro_batches(self, local: LocalStep, counts: Report, step: int) -> list[MicroBatch]:
        """Turn a rank's step into noisy micro-batches; `step` counts optimizer steps from 0."""
        shift = step_shift(self.seed, step)
        number, batches = 0, []
        for batch in local.micro_batches:
            noises, masks = [], response_masks(batch)
            for example, mask in zip(batch.examples, masks, strict=True):
                # Rank r's examples are r, r + W, r + 2W, ...: together 0 ... N-1, but for gaps
                # where a rank has run short of rows or packed fewer than others.
                index = number * self.world_size + self.rank
                noises.append(self._draw(example, mask, shift, index))
                number += 1
            divisors = self._divisors(masks, counts)
            batches.append(noisy_micro_batch(batch, noises, divisors, self.mask_token_id))
        return batches

    def _draw(self, example: Example, response_mask: Tensor, shift: float, index: int) -> Noise:
        if example.noisy_ids is not None:
            return Noise(response_mask, t=1.0, weight=1.0)
        key = noise_key(self.seed, example.epoch, example.file, example.line, example.part)
        spread = self.objective.t_sampling == "low_discrepancy"
        u = low_discrepancy(shift, index) if spread else independent(key)
        return draw_noise(response_mask, u, key, self.objective.masking, self.objective.eps)

    def _divisors(self, masks: list[Tensor], counts: Report) -> list[float]:
        """N · L_i, or the response tokens of the global batch; over the number of ranks."""
        lengths = [int(mask.sum()) for mask in masks]
        if self.objective.normalization == "token":
            return [counts.response_tokens / self.world_size] * len(lengths)
        return [length * counts.examples / self.world_size for length in lengths]


class StepFeed(Iterable[StepBatch]):
    """The steps of this rank, agreed with all others, through every epoch.

    Args:
        local_steps: The rank's own steps (`step_loader`).
        noise: Draws the noise.
        consensus: The agreement of the ranks.
        stop_requested: Whether this rank was told to stop.
        first_step: Optimizer steps that were made before.
        num_sources: Sources that are mixed.
        epoch_ended: Called on every rank at the end of an epoch, with its number and what became
            of this rank's rows.
        pulse: Says what this rank begins to do.
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
    ) -> None:
        self._local_steps, self._noise, self._consensus = local_steps, noise, consensus
        self._stop_requested, self._step = stop_requested, first_step
        self._num_sources, self._epoch_ended = num_sources, epoch_ended
        self._first_step, self._pulse = first_step, pulse
        # Of this attempt, of this epoch of it, and the seconds that steps waited for data.
        self._rows, self._epoch_rows, self._waited_s = RowCounts(), RowCounts(), 0.0
        # True, on every rank alike, once any rank was told to stop.
        self.stop_agreed = False

    def __iter__(self) -> Iterator[StepBatch]:
        local_steps = iter(self._local_steps)
        local = self._next(local_steps)
        # The first step is there before training begins: it came with the start of the background
        # process, of the tokenizer and of the hook, and no step stands still for that.
        self._waited_s = 0.0
        while local is not None:
            counts = self._agree(local)
            self._begin("step")
            self.stop_agreed |= counts.stop > 0
            if counts.examples:
                batches = self._noise.micro_batches(local, counts, self._step)
                yield StepBatch(batches, counts, local.epoch, local.positions, self._epoch_rows)
                self._step += 1
            if not counts.has_rows:
                self._epoch_ended(local.epoch, self._epoch_rows)
                self._epoch_rows = RowCounts()
            # A rank at its end of the epoch waits there, by empty steps, for the others.
            if not local.end_of_epoch or not counts.has_rows:
                local = self._next(local_steps)

    def _next(self, local_steps: Iterator[LocalStep]) -> LocalStep | None:
        self._begin("data")
        start = time.monotonic()
        try:
            local = next(local_steps, None)
        except LladaSftError:
            # The others learn of it here instead of waiting for this rank.
            self._consensus.agree(Report(failed=1, by_source=(0,) * self._num_sources))
            raise
        self._waited_s += time.monotonic() - start
        if local is not None:
            self._rows += local.rows
            self._epoch_rows += local.rows
        return local

    def _begin(self, phase: Phase) -> None:
        # The first step belongs to the start: ranks may take very unequal times to come there.
        if self._step > self._first_step:
            # What is fetched now is one step ahead.
            self._pulse(phase, self._step - 1)

    def _agree(self, local: LocalStep) -> Report:
        self._begin("agreement")
        return self._consensus.agree(
            Report(
                examples=local.num_examples,
                response_tokens=local.num_response_tokens,
                tokens=local.num_tokens,
                all_tokens=local.num_positions,
                has_rows=int(not local.end_of_epoch),
                stop=int(self._stop_requested()),
                rows=self._rows.rows,
                bad=self._rows.num_bad,
                left_out=self._rows.left_out,
                too_long=self._rows.too_long,
                wait_us=round(self._waited_s * 1e6),
                rows_done=local.rows_done,
                epoch_rows=local.epoch_rows,
                by_source=local.by_source,
            )
        )


def validation_micro_batches(
    batches: list[CleanBatch], ids: TokenIds, world_size: int, consensus: Consensus
) -> list[MicroBatch]:
    """Mask validation batches once and for all, the same at every validation.

    Args:
        batches: This rank's batches.
        ids: Special tokens.
        world_size: Number of ranks.
        consensus: Counts the examples of all ranks, and the most batches that a rank has.

    Returns:
        As many micro-batches on every rank, whose losses, averaged over ranks, sum to the mean of
        (1 / L_i) (L_i / l) Σ_masked CE over all examples.
    """
    counts = consensus.agree(Report(examples=sum(len(batch.examples) for batch in batches)))
    missing = consensus.largest(len(batches)) - len(batches)
    padded = batches + [pad([], ids.eos_token_id)] * missing
    made = []
    for batch in padded:
        noises, divisors = [], []
        for example, response_mask in zip(batch.examples, response_masks(batch), strict=True):
            key = noise_key(0, 0, example.file, example.line, example.part)
            noises.append(validation_noise(response_mask, key, draw=0, num_draws=1))
            divisors.append(int(response_mask.sum()) * counts.examples / world_size)
        made.append(noisy_micro_batch(batch, noises, divisors, ids.mask_token_id))
    return made
