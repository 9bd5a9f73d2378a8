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
5. With `objective.kind: block` each block has noise of its own (masks/parts.py), wrong tokens may
   stand among those that are not masked (masks/edits.py), and the clean tokens come next to the
   noisy ones (masks/two_halves.py).

Shapes: B rows of a micro-batch, L positions, M masked positions of the micro-batch, S positions of
one example's span: its row, or its part of the one row where examples are packed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from llada_sft.config.sections.objective import ObjectiveConfig
from llada_sft.data.examples.row_counts import RowCounts
from llada_sft.data.rows.position import ExampleKey, Positions
from llada_sft.data.steps.collate import UnmaskedBatch
from llada_sft.data.steps.local_step import LocalStep
from llada_sft.data.steps.yields import RowYield
from llada_sft.diffusion.levels import LevelDensity, LevelStatistics
from llada_sft.diffusion.noise import Noise, low_discrepancy, noise_key, step_shift
from llada_sft.keys import hashed
from llada_sft.model.layers.head import LossTerms
from llada_sft.training.consensus import Report
from llada_sft.training.masks.edits import Edits, EditSource
from llada_sft.training.masks.level_losses import BatchLevels, LevelLosses
from llada_sft.training.masks.micro_batch import MicroBatch
from llada_sft.training.masks.noisy_batch import noisy_micro_batch
from llada_sft.training.masks.parts import NoisyPart, Parts, draw_parts, whole
from llada_sft.training.masks.twins import each_twice
from llada_sft.training.masks.two_halves import in_two_halves
from llada_sft.training.masks.void_end import always_masked, answer_masks
from llada_sft.training.schedule.plan import Pace


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

    @property
    def computed_tokens(self) -> int:
        """Real tokens that the network runs on in the global batch: both halves of blocks."""
        halves = {
            1 if batch.blocks is None else batch.blocks.halves for batch in self.micro_batches
        }
        return self.counts.tokens * max(halves)

    def to(self, device: torch.device) -> "StepBatch":
        moved = [batch.to(device) for batch in self.micro_batches]
        fields = vars(self) | {"micro_batches": moved}
        return StepBatch(**fields)


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
        edits: Replaces tokens that are not masked; None: nothing does.
    """

    objective: ObjectiveConfig
    seed: int
    mask_token_id: int
    rank: int
    world_size: int
    levels: LevelLosses | None = None
    edits: EditSource | None = None

    @property
    def draws(self) -> int:
        """How many masks are drawn of each example."""
        return self.objective.draws

    def micro_batches(self, local: LocalStep, counts: Report, step: int) -> list[MicroBatch]:
        """Turn a rank's step into noisy micro-batches; `step` counts optimizer steps from 0."""
        density = None if self.levels is None else self.levels.agreed(counts.by_level).density()
        drawn = self._drawn(local, step, density)
        return [
            self._noisy(batch, rows, counts)
            for batch, rows in zip(local.micro_batches, drawn, strict=True)
        ]

    def num_masked(self, local: LocalStep, step: int) -> int:
        """Count the masked tokens of a rank's step, if the loss is divided by those of all ranks.

        That is the mean over masked tokens of `objective.band`; else it is 0.
        """
        if self.objective.band is None or self.objective.normalization == "answer":
            return 0
        rows = chain.from_iterable(self._drawn(local, step, None))
        return sum(int(part.noise.masked.sum()) for parts in rows for part in parts)

    def _drawn(
        self, local: LocalStep, step: int, density: LevelDensity | None
    ) -> Iterator[list[list[NoisyPart]]]:
        """Yield the parts of all rows of each micro-batch; twins are two rows."""
        shift, number = step_shift(self.seed, step), 0
        for batch in local.micro_batches:
            rows: list[list[NoisyPart]] = []
            corrupted = batch.corrupted or (False,) * len(batch.keys)
            examples = zip(
                batch.keys, answer_masks(batch), always_masked(batch), corrupted, strict=True
            )
            for key, mask, always, by_hook in examples:
                # Rank r's examples are r, r + W, r + 2W, ...: together 0 ... N-1, but for gaps
                # where a rank has run short of rows or packed fewer than others.
                index = number * self.world_size + self.rank
                # What the hook has corrupted is learned as it is.
                rows += (
                    [whole(Noise(mask, t=1.0, weight=1.0), drawn=False)] * self.draws
                    if by_hook
                    else self._draw(key, mask, always, shift, index, density)
                )
                number += 1
            yield rows

    def _noisy(
        self, batch: UnmaskedBatch, rows: Sequence[Sequence[NoisyPart]], counts: Report
    ) -> MicroBatch:
        if self.draws == 2:
            batch = each_twice(batch)
        parts = Parts(batch.spans, rows, self.draws)
        learned = torch.from_numpy(batch.response_mask).flatten()
        lengths = [int(mask.sum()) for mask in response_masks(batch)]
        of_rows = self._divisors(lengths, counts)
        divisors = [of_rows[row] for row in parts.rows]
        confidence = None
        if self.objective.confidence_weight:
            # With weight λ: λ times the part's share of the batch, for the mean of its entropies.
            sizes = self._sizes(parts, learned)
            confidence = [
                self.objective.confidence_weight * noise.importance * size / by
                for noise, size, by in zip(parts.noises, sizes, divisors, strict=True)
            ]
        made = noisy_micro_batch(
            batch,
            parts.noises,
            divisors,
            self.mask_token_id,
            confidence=confidence,
            void_weight=self.objective.void_weight,
            parts=parts,
            edits=self._edits(batch, parts),
        )
        of_parts = parts.at(made.positions)
        made.terms = made.terms or LossTerms(made.coefficients, of_parts, max(1, len(parts)))
        made.levels = self._levels(batch, parts, counts, made)
        if self.objective.block_tokens:
            made = in_two_halves(made, batch, self.objective.block_tokens)
        return made

    def _sizes(self, parts: Parts, learned: Tensor) -> list[int]:
        """Count what `_divisors` counts of each part: its response tokens, or the masked ones."""
        if self.objective.band is not None and self.objective.normalization == "token":
            return [int(noise.masked.sum()) for noise in parts.noises]
        return [int(learned[span].sum()) for span in parts.spans]

    def _levels(
        self, batch: UnmaskedBatch, parts: Parts, counts: Report, made: MicroBatch
    ) -> BatchLevels:
        # Twins are one draw of one level. What has no level does not count: NaN.
        firsts = parts.of_draws()
        of_rank = self._num_parts(counts) / self.world_size
        found = parts.at(made.positions)
        shares = [
            noise.t if drawn else math.nan
            for noise, drawn in zip(parts.noises, parts.drawn, strict=True)
        ]
        rows = found
        if made.replaced is not None:
            # In a row without a level: the losses of a level are those of masked tokens.
            rows, shares = rows.masked_fill(made.replaced, len(shares)), [*shares, math.nan]
        return BatchLevels(
            examples=parts.numbers[found].numpy() if len(parts) else found.numpy(),
            coefficients=made.coefficients.double().numpy(),
            levels=[parts.noises[first].level for first in firsts],
            scales=[
                of_rank / parts.noises[first].importance if parts.drawn[first] else math.nan
                for first in firsts
            ],
            rows=rows.numpy(),
            shares=shares,
            num_examples=len(batch.keys) // self.draws,
        )

    def _num_parts(self, counts: Report) -> float:
        """Count the parts of the global batch; blocks as if all were full of answer."""
        length = self.objective.block_tokens
        if not length or self.objective.band is not None:
            return counts.examples
        return max(counts.response_tokens / length, 1.0)

    def _draw(
        self,
        example: ExampleKey,
        mask: Tensor,
        always: Tensor,
        shift: float,
        index: int,
        density: LevelDensity | None,
    ) -> list[list[NoisyPart]]:
        """Draw the noise of an example, or of its twins."""
        key = noise_key(self.seed, example.epoch, example.file, example.line, example.part)
        spread = self.objective.t_sampling == "low_discrepancy"
        u = low_discrepancy(shift, index) if spread else None
        return draw_parts(self.objective, mask, always, u, key, density)

    def _edits(self, batch: UnmaskedBatch, parts: Parts) -> Edits | None:
        """Replace answer tokens that are not masked; twins each have their own."""
        if self.edits is None:
            return None
        free = torch.zeros(batch.input_ids.size, dtype=torch.bool)
        for span, noise, drawn in zip(parts.spans, parts.noises, parts.drawn, strict=True):
            free[span] = ~noise.masked if drawn else False
        rows = []
        for row, (key, span, answer) in enumerate(
            zip(batch.keys, batch.spans, answer_masks(batch), strict=True)
        ):
            of_example = noise_key(self.seed, key.epoch, key.file, key.line, key.part)
            own = hashed("twin", of_example, row % self.draws)
            rows.append((span, answer & free[span], own))
        return self.edits.choose(torch.from_numpy(batch.input_ids).flatten(), rows)

    def _divisors(self, lengths: list[int], counts: Report) -> list[float]:
        """N · L_i, or the response tokens of the global batch; over the number of ranks.

        Twice that for twins. Of a band, its masked tokens, of which there are as many as there are.
        """
        if self.objective.normalization == "token":
            of_all = counts.response_tokens * self.draws
            if self.objective.band is not None:
                of_all = max(counts.masked, 1)
            return [of_all / self.world_size] * len(lengths)
        return [length * counts.examples * self.draws / self.world_size for length in lengths]
