"""A rank's step -> noisy micro-batches with a weight for each token.

1. Each example gets its noise. The example's number in the global batch gives its place in the
   low-discrepancy sequence; (seed, epoch, file, line, part) key which of its tokens are masked.
2. Each masked token gets its coefficient: weight / (answer length · N), N over the global batch,
   times the number of ranks, because DeepSpeed averages gradients over ranks. Weights of the data
   (`loss_weights`) multiply it; the answer length and N count tokens and examples without them.
3. With `objective.pairs` each example is there twice (masks/twins.py): its loss is the mean of the
   two, so each row counts half. With `objective.t_density: importance` levels are drawn by the
   losses of earlier steps (masks/level_losses.py).
4. With `data.end: void` the EOS and void tokens are masked as well (masks/void_end.py).

Shapes: B rows of a micro-batch, L positions, M masked positions of the micro-batch, S positions of
one example's span: its row, or its part of the one row where examples are packed.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llada_sft.config.schema import ObjectiveConfig
from llada_sft.data.examples.row_counts import RowCounts
from llada_sft.data.rows.position import ExampleKey, Positions
from llada_sft.data.steps.collate import UnmaskedBatch
from llada_sft.data.steps.local_step import LocalStep
from llada_sft.data.steps.yields import RowYield
from llada_sft.diffusion.levels import LevelDensity, LevelStatistics
from llada_sft.diffusion.noise import (
    Noise,
    draw_noise,
    draw_twins,
    independent,
    low_discrepancy,
    noise_key,
    step_shift,
)
from llada_sft.model.layers.attention import Sequences
from llada_sft.model.layers.head import LossTerms
from llada_sft.training.consensus import Report
from llada_sft.training.masks.level_losses import BatchLevels, LevelLosses
from llada_sft.training.masks.twins import each_twice
from llada_sft.training.masks.void_end import answer_masks, hidden_ends
from llada_sft.training.schedule.plan import Pace


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
        sequences: The examples of a packed row, else None.
        rows: File and line of each example, of twins once.
        terms: The coefficients, and what else the loss takes and gives; None in a validation.
        levels: Which levels the losses belong to; None in a validation.
        real: bool [B * L], the tokens of the examples, without what was added to their rows, be it
            learned or not; None where nothing was added.
    """

    def __init__(
        self,
        noisy_ids: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        targets: Tensor,
        coefficients: Tensor,
        sequences: Sequences | None = None,
        rows: tuple[tuple[str, int], ...] = (),
        terms: LossTerms | None = None,
        levels: BatchLevels | None = None,
        real: Tensor | None = None,
    ) -> None:
        self.noisy_ids, self.attention_mask = noisy_ids, attention_mask
        self.sequences, self.rows, self.real = sequences, rows, real
        self.terms, self.levels = terms, levels
        self.positions, self.targets, self.coefficients = positions, targets, coefficients

    def to(self, device: torch.device) -> "MicroBatch":
        sequences = self.sequences
        if sequences is not None:
            ends, places = moved(sequences.ends, device), moved(sequences.places, device)
            sequences = Sequences(sequences.lengths, ends, places)
        coefficients, terms = moved(self.coefficients, device), self.terms
        if terms is not None:
            confidence = terms.confidence
            terms = LossTerms(
                coefficients,
                rows=moved(terms.rows, device),
                num_rows=terms.num_rows,
                confidence=None if confidence is None else moved(confidence, device),
            )
        return MicroBatch(
            noisy_ids=moved(self.noisy_ids, device),
            attention_mask=(
                None if self.attention_mask is None else moved(self.attention_mask, device)
            ),
            positions=moved(self.positions, device),
            targets=moved(self.targets, device),
            coefficients=coefficients,
            sequences=sequences,
            rows=self.rows,
            terms=terms,
            levels=self.levels,
            real=None if self.real is None else moved(self.real, device),
        )


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without waiting for what the device has still to do."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        # From memory that is not pinned, the copy would wait. Torch keeps the pinned memory until
        # it is read.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class StepBatch:
    """One optimizer step of one rank; not a dataclass, for the same reason.

    Attributes:
        micro_batches: The rank's micro-batches.
        counts: The counts of the global batch.
        epoch: The epoch that the rows belong to.
        positions: The rank's position in its files once this step is trained: for each file of
            which it differs from the batch before. The first batch has all files.
        rows: What became of the rank's rows in this epoch, as far as this attempt has read them.
        pace: What the schedule says of the step; None if there is no schedule.
        yields: For each source, what the rank's rows make.
        drawn_with: What the noise levels were drawn with, if by the losses of earlier steps.
    """

    def __init__(
        self,
        micro_batches: list[MicroBatch],
        counts: Report,
        epoch: int,
        positions: Positions,
        rows: RowCounts = RowCounts(),  # noqa: B008 (frozen)
        pace: Pace | None = None,
        yields: tuple[RowYield, ...] = (),
        drawn_with: LevelStatistics | None = None,
    ) -> None:
        self.pace, self.yields, self.drawn_with = pace, yields, drawn_with
        self.micro_batches, self.counts = micro_batches, counts
        self.epoch, self.positions, self.rows = epoch, positions, rows

    def to(self, device: torch.device) -> "StepBatch":
        moved = [batch.to(device) for batch in self.micro_batches]
        fields = vars(self) | {"micro_batches": moved}
        return StepBatch(**fields)


def noisy_micro_batch(
    batch: UnmaskedBatch,
    noises: list[Noise],
    divisors: list[float],
    mask_token_id: int,
    confidence: list[float] | None = None,
    void_weight: float = 0.0,
) -> MicroBatch:
    """Apply one noise to each example of a micro-batch.

    Args:
        batch: The clean micro-batch; with no examples it becomes one of weight zero.
        noises: One for each example.
        divisors: What the weighted loss of each example is divided by.
        mask_token_id: Stands at the masked positions.
        confidence: What the confidence loss of each example is multiplied by; None: it has none.
        void_weight: What the loss of void tokens is multiplied by (masks/void_end.py).
    """
    clean = torch.from_numpy(batch.input_ids).flatten()  # [B·L]
    masked = torch.zeros(clean.shape, dtype=torch.bool)
    coefficients = torch.zeros(clean.shape, dtype=torch.float64)
    of_confidence = torch.zeros(clean.shape, dtype=torch.float64)
    corrupted = batch.corrupted or (False,) * len(batch.keys)
    if batch.noisy_ids is None:
        noisy = clean.clone()
    else:
        noisy = torch.from_numpy(batch.noisy_ids).flatten().clone()
    for number, (span, noise) in enumerate(zip(batch.spans, noises, strict=True)):
        masked[span] = noise.masked
        coefficients[span] = noise.weight / divisors[number]
        of_confidence[span] = 0.0 if confidence is None else confidence[number]
        if not corrupted[number]:
            noisy[span].masked_fill_(noise.masked, mask_token_id)
    ends = hidden_ends(batch, noises, divisors, void_weight)
    if ends is not None:
        masked |= ends.masked
        noisy.masked_fill_(ends.masked, mask_token_id)
        coefficients = torch.where(ends.masked, ends.coefficients, coefficients)
        of_confidence.masked_fill_(ends.void, 0.0)
    if batch.loss_weights is not None:
        weights = torch.from_numpy(batch.loss_weights).flatten()
        coefficients *= weights
        of_confidence *= weights
    positions = masked.nonzero().squeeze(1)
    if len(positions) == 0:
        # The head must run equally often on every rank: one position, with coefficient zero.
        positions = torch.zeros(1, dtype=torch.int64)
        coefficients.zero_()
        of_confidence.zero_()
    real, coefficients = batch.attention_mask, coefficients[positions].float()
    terms = None
    if confidence is not None:
        rows, num_rows = examples_at(batch, positions), max(1, len(batch.keys))
        if ends is not None:
            # In a row of their own: predicted right, they do not count among an answer's tokens.
            rows, num_rows = rows.masked_fill(ends.void[positions], num_rows), num_rows + 1
        terms = LossTerms(coefficients, rows, num_rows, of_confidence[positions].float())
    return MicroBatch(
        noisy_ids=noisy.view(batch.input_ids.shape),
        attention_mask=None if real is None else torch.from_numpy(real),
        positions=positions,
        targets=clean[positions],
        coefficients=coefficients,
        sequences=Sequences(batch.lengths) if batch.packed else None,
        rows=tuple((key.file, key.line) for key in dict.fromkeys(batch.keys)),
        terms=terms,
        real=_real_tokens(batch),
    )


def examples_at(batch: UnmaskedBatch, positions: Tensor) -> Tensor:
    """Return the number of the example at each flat index, int64 [M]; 0 where there is none."""
    ends = torch.tensor([span.stop for span in batch.spans], dtype=torch.int64)
    return torch.bucketize(positions, ends, right=True)


def _real_tokens(batch: UnmaskedBatch) -> Tensor | None:
    rows, width = batch.input_ids.shape
    if batch.num_tokens == rows * width:
        return None
    lengths = torch.zeros(rows, dtype=torch.int64)
    lengths[: len(batch.lengths)] = torch.tensor(batch.lengths, dtype=torch.int64)
    return (torch.arange(width) < lengths[:, None]).flatten()


def response_masks(batch: UnmaskedBatch) -> list[Tensor]:
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
        levels: The losses by noise level, from which levels are drawn; None: uniformly.
    """

    objective: ObjectiveConfig
    seed: int
    mask_token_id: int
    rank: int
    world_size: int
    levels: LevelLosses | None = None

    @property
    def draws(self) -> int:
        """How many masks are drawn of each example."""
        return self.objective.draws

    def micro_batches(self, local: LocalStep, counts: Report, step: int) -> list[MicroBatch]:
        """Turn a rank's step into noisy micro-batches; `step` counts optimizer steps from 0."""
        shift = step_shift(self.seed, step)
        density = None if self.levels is None else self.levels.agreed(counts.by_level).density()
        number, batches = 0, []
        for batch in local.micro_batches:
            noises: list[Noise] = []
            corrupted = batch.corrupted or (False,) * len(batch.keys)
            for key, mask, by_hook in zip(batch.keys, answer_masks(batch), corrupted, strict=True):
                # Rank r's examples are r, r + W, r + 2W, ...: together 0 ... N-1, but for gaps
                # where a rank has run short of rows or packed fewer than others.
                index = number * self.world_size + self.rank
                # What the hook has corrupted is learned as it is.
                noises += (
                    [Noise(mask, t=1.0, weight=1.0)] * self.draws
                    if by_hook
                    else self._draw(key, mask, shift, index, density)
                )
                number += 1
            batches.append(self._noisy(batch, noises, counts))
        return batches

    def _noisy(self, batch: UnmaskedBatch, noises: list[Noise], counts: Report) -> MicroBatch:
        if self.draws == 2:
            batch = each_twice(batch)
        lengths = [int(mask.sum()) for mask in response_masks(batch)]
        divisors = self._divisors(lengths, counts)
        confidence = None
        if self.objective.confidence_weight:
            # With weight λ: λ times the example's part of the batch, for the mean of its entropies.
            confidence = [
                self.objective.confidence_weight * noise.importance * length / divisor
                for noise, length, divisor in zip(noises, lengths, divisors, strict=True)
            ]
        made = noisy_micro_batch(
            batch,
            noises,
            divisors,
            self.mask_token_id,
            confidence=confidence,
            void_weight=self.objective.void_weight,
        )
        rows = examples_at(batch, made.positions)
        made.terms = made.terms or LossTerms(made.coefficients, rows, max(1, len(batch.keys)))
        made.levels = self._levels(batch, noises, counts, made)
        return made

    def _levels(
        self, batch: UnmaskedBatch, noises: list[Noise], counts: Report, made: MicroBatch
    ) -> BatchLevels:
        # Twins are one draw of one level. What the hook has corrupted has none: NaN does not count.
        drawn = noises[:: self.draws]
        of_rank = counts.examples / self.world_size
        scales = [of_rank / noise.importance for noise in drawn]
        for number, by_hook in enumerate(batch.corrupted[:: self.draws]):
            scales[number] = math.nan if by_hook else scales[number]
        corrupted = batch.corrupted or (False,) * len(noises)
        shares = [
            math.nan if by_hook else noise.t
            for noise, by_hook in zip(noises, corrupted, strict=True)
        ]
        return BatchLevels(
            examples=examples_at(batch, made.positions).numpy() // self.draws,
            coefficients=made.coefficients.double().numpy(),
            levels=[noise.level for noise in drawn],
            scales=scales,
            rows=examples_at(batch, made.positions).numpy(),
            shares=shares,
        )

    def _draw(
        self,
        example: ExampleKey,
        response_mask: Tensor,
        shift: float,
        index: int,
        density: LevelDensity | None,
    ) -> list[Noise]:
        """Draw the noise of an example, or of its twins."""
        objective = self.objective
        key = noise_key(self.seed, example.epoch, example.file, example.line, example.part)
        spread = objective.t_sampling == "low_discrepancy"
        u = low_discrepancy(shift, index) if spread else independent(key)
        arguments = (response_mask, u, key, objective.masking, objective.eps, density)
        return [draw_noise(*arguments)] if self.draws == 1 else [*draw_twins(*arguments)]

    def _divisors(self, lengths: list[int], counts: Report) -> list[float]:
        """N · L_i, or the response tokens of the global batch; over the number of ranks.

        Twice that for twins.
        """
        if self.objective.normalization == "token":
            return [counts.response_tokens * self.draws / self.world_size] * len(lengths)
        return [length * counts.examples * self.draws / self.world_size for length in lengths]
