"""What a draw of noise masks: an example, or with `objective.kind: block` a block of one.

A noisy block sees none of the other noisy blocks. So it is to the block objective what an example
is to that of full attention: it has a level of its own, a loss of its own among the losses by
level, and the mean of its own entropies in the confidence loss. Its loss is divided by what that of
its example is divided by, so that an example counts as ever.

Shapes: L positions of a row, B rows, S positions of one example's span, P parts of a micro-batch.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llada_sft.config.sections.objective import ObjectiveConfig
from llada_sft.diffusion.blocks import block_key, block_level, blocks_with, draw_band
from llada_sft.diffusion.levels import LevelDensity
from llada_sft.diffusion.noise import Noise, draw_noise, draw_twins, independent


class NoisyPart(NamedTuple):
    """A part of an example.

    Attributes:
        place: Where it is in its example.
        noise: Of its tokens.
        drawn: Whether the noise has a level. It has none where the hook has corrupted the input,
            and in a block with nothing but an EOS and void tokens, which are always masked.
    """

    place: slice
    noise: Noise
    drawn: bool = True


def whole(noise: Noise, drawn: bool = True) -> list[NoisyPart]:
    """Return an example that is one part."""
    return [NoisyPart(slice(0, len(noise.masked)), noise, drawn)]


def parts_of(
    answer: Tensor,
    always: Tensor,
    block_length: int,
    draw: Callable[[Tensor, int, int, int], Noise],
) -> list[NoisyPart]:
    """Return the blocks of an example that have something to learn.

    Args:
        answer: [S] bool, what noise is drawn over.
        always: [S] bool, what is always masked.
        block_length: Tokens of a block.
        draw: Makes the noise of a block of its part of `answer`, of where it starts, and of which
            one it is of how many.
    """
    count, place, parts = len(blocks_with(answer, block_length)), 0, []
    for block in blocks_with(answer | always, block_length):
        own = answer[block]
        if own.any():
            parts.append(NoisyPart(block, draw(own, block.start, place, count)))
            place += 1
        else:
            parts.append(NoisyPart(block, Noise(own, t=1.0, weight=0.0), drawn=False))
    return parts


def draw_parts(
    objective: ObjectiveConfig,
    answer: Tensor,
    always: Tensor,
    u: float | None,
    key: int,
    density: LevelDensity | None,
) -> list[list[NoisyPart]]:
    """Draw the noise of an example: its parts, or those of each of its twins.

    Args:
        objective: The objective section.
        answer: [S] bool, what noise is drawn over.
        always: [S] bool, what is always masked.
        u: The example's uniform number; None: levels are independent.
        key: The example's key.
        density: What levels are drawn from; None: from [0, 1) uniformly.
    """
    twins, length = objective.draws, objective.block_tokens
    if objective.band is not None:
        level = independent(key) if u is None else u
        of_answer = objective.normalization == "answer"
        noises = draw_band(answer, level, key, objective.band, twins, of_answer)
        return [whole(noise) for noise in noises]

    def both(mask: Tensor, level: float, own_key: int) -> Sequence[Noise]:
        arguments = (mask, level, own_key, objective.masking, objective.eps, density)
        return draw_twins(*arguments) if twins == 2 else [draw_noise(*arguments)]

    if not length:
        level = independent(key) if u is None else u
        return [whole(noise) for noise in both(answer, level, key)]

    def of_twin(twin: int) -> Callable[[Tensor, int, int, int], Noise]:
        def draw(mask: Tensor, start: int, place: int, count: int) -> Noise:
            own_key = block_key(key, start)
            return both(mask, block_level(u, own_key, place, count), own_key)[twin]

        return draw

    return [parts_of(answer, always, length, of_twin(twin)) for twin in range(twins)]


class Parts:
    """All parts of a micro-batch, in the order of its tokens.

    Args:
        spans: Where each row or packed example is in the flattened B · L positions.
        rows: The parts of each.
        twins: How many of the rows that follow one another are one draw.

    Attributes:
        spans: Where each part is in the flattened positions, P of them.
        noises: Of each.
        rows: The row or packed example that each belongs to.
        drawn: Of each, whether its noise has a level.
        numbers: int64 [P], which draw each is of; twins have one.
    """

    def __init__(
        self, spans: Sequence[slice], rows: Sequence[Sequence[NoisyPart]], twins: int = 1
    ) -> None:
        self.spans: list[slice] = []
        self.noises: list[Noise] = []
        self.rows: list[int] = []
        self.drawn: list[bool] = []
        numbers: list[int] = []
        first = 0
        for row, (span, parts) in enumerate(zip(spans, rows, strict=True)):
            for place, noise, drawn in parts:
                self.spans.append(slice(span.start + place.start, span.start + place.stop))
                self.noises.append(noise)
                self.drawn.append(drawn)
                self.rows.append(row)
            numbers += range(first, first + len(parts))
            if row % twins == twins - 1:
                first += len(parts)
        self.numbers = torch.tensor(numbers, dtype=torch.int64)
        self._ends = torch.tensor([span.stop for span in self.spans], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.spans)

    def at(self, positions: Tensor) -> Tensor:
        """Return the part at each flat index, int64 [M]; 0 where there is none at all."""
        found = torch.bucketize(positions, self._ends, right=True)
        return found.clamp(max=max(0, len(self) - 1))

    def of_draws(self) -> list[int]:
        """Return the first part of each draw."""
        seen: dict[int, int] = {}
        for part, number in enumerate(self.numbers.tolist()):
            seen.setdefault(number, part)
        return list(seen.values())
