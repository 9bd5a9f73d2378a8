"""Validation rows as masked micro-batches, which are the same on any number of ranks.

1. Each row comes once for each of its masks, with the number of the mask in the place of the epoch.
2. These are grouped into micro-batches, set by set, before anything is dealt to the ranks.
3. Micro-batch b is of rank b mod W. Ranks that have one fewer get an empty one: all ranks run the
   network equally often.

An *item* is one mask of one row. Items of all sets are numbered through, and every rank knows what
each number stands for.

Shapes: M masked positions of a micro-batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from llada_sft.config.sections.data import DataConfig
from llada_sft.data.examples.encode import Example
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.data.steps.collate import UnmaskedBatch, pad
from llada_sft.data.steps.packing import micro_batches
from llada_sft.diffusion.blocks import block_key, blocks_with
from llada_sft.diffusion.grid import grid_levels, grid_masks
from llada_sft.diffusion.noise import Noise, noise_key
from llada_sft.keys import hashed
from llada_sft.placement import Placement
from llada_sft.training.masks.micro_batch import MicroBatch
from llada_sft.training.masks.noisy_batch import noisy_micro_batch
from llada_sft.training.masks.parts import NoisyPart, Parts, parts_of, whole
from llada_sft.training.masks.two_halves import in_two_halves
from llada_sft.training.masks.void_end import always_masked, answer_masks
from llada_sft.training.noising import response_masks
from llada_sft.training.validation.rows import ValidationSet


@dataclass(frozen=True)
class SetItems:
    """The items of one set: row by row, and the masks of a row after one another.

    Attributes:
        name: Of the set.
        first: The number of its first item.
        draws: Masks of each row.
        lengths: Response tokens of each row.
        corrupted: Of each row, whether the hook has corrupted it: then it has no noise level.
        levels: Of each row the noise levels of its parts (masks/parts.py): of all of it, or of each
            block with answer tokens.
    """

    name: str
    first: int
    draws: int
    lengths: tuple[int, ...]
    corrupted: tuple[bool, ...]
    levels: list[list[list[float]]]

    def __len__(self) -> int:
        return len(self.lengths) * self.draws


@dataclass(frozen=True)
class _OwnBatch:
    """A micro-batch of this rank before it is masked, with the items of its examples."""

    batch: UnmaskedBatch
    of_set: SetItems | None
    items: tuple[int, ...]


class GridBatch:
    """A masked micro-batch; not a dataclass, as `MicroBatch`.

    Attributes:
        batch: Its coefficients are (Lr / l) / Lr = 1 / l, and 1 / Lr at an EOS that is always
            masked: the loss of each example, without the weights of the data and a division by
            their number.
        weights: [M] fp32, those of the data at the masked positions.
        items: The number of the item of each example.
        examples: The number of the example at each masked position, int64 [M] on the CPU.
    """

    def __init__(
        self, batch: MicroBatch, weights: Tensor, items: Sequence[int], examples: Tensor
    ) -> None:
        self.batch, self.weights = batch, weights
        self.items, self.examples = tuple(items), examples


class ValidationBatches:
    """A rank's micro-batches of all sets; they are masked when they are used.

    Args:
        sets: All of them, the same on every rank.
        config: The data section.
        ids: Special tokens.
        placement: This rank.
        micro_batch_size: Items of a micro-batch that is not packed.
        draws: Masks of each row.

    Attributes:
        sets: The items of each.
    """

    def __init__(
        self,
        sets: Sequence[ValidationSet],
        config: DataConfig,
        ids: TokenIds,
        placement: Placement,
        micro_batch_size: int,
        draws: int,
    ) -> None:
        self._ids = ids
        self.sets: list[SetItems] = []
        self._own: list[_OwnBatch] = []
        num_batches = first = 0
        for each in sets:
            items = _items_of(each, first, draws)
            self.sets.append(items)
            first += len(items)
            for batch in _grouped(each, config, micro_batch_size, ids.eos_token_id, items):
                if num_batches % placement.world_size == placement.rank:
                    self._own.append(batch)
                num_batches += 1
        self._length = -(-num_batches // placement.world_size)

    def __len__(self) -> int:
        """Return how many micro-batches there are: the same on every rank."""
        return self._length

    def __iter__(self) -> Iterator[GridBatch]:
        yield from map(self._masked, self._own)
        for _ in range(self._length - len(self._own)):
            yield self._masked(_OwnBatch(pad([], self._ids.eos_token_id), None, ()))

    def _masked(self, own: _OwnBatch) -> GridBatch:
        batch = own.batch
        parts = Parts(batch.spans, _rows(own))
        lengths = [float(mask.sum()) for mask in response_masks(batch)]
        divisors = [lengths[row] for row in parts.rows]
        unweighted, mask = replace(batch, loss_weights=None), self._ids.mask_token_id
        made = noisy_micro_batch(unweighted, parts.noises, divisors, mask, parts=parts)
        if batch.block_length:
            _drop_weightless(made)
        weights = torch.ones(len(made.positions))
        if batch.loss_weights is not None:
            weights = torch.from_numpy(batch.loss_weights).flatten()[made.positions]
        examples = _examples_at(made.positions, batch.spans)
        if batch.block_length:
            made = in_two_halves(made, batch, batch.block_length)
        return GridBatch(made, weights, own.items, examples)


def _examples_at(positions: Tensor, spans: Sequence[slice]) -> Tensor:
    ends = torch.tensor([span.stop for span in spans], dtype=torch.int64)
    return torch.bucketize(positions, ends, right=True)


def _drop_weightless(made: MicroBatch) -> None:
    """Leave masked positions that count for nothing out: void tokens that fill up a block."""
    kept = made.coefficients != 0
    if kept.any():
        made.positions, made.targets = made.positions[kept], made.targets[kept]
        made.coefficients = made.coefficients[kept]


def _items_of(each: ValidationSet, first: int, draws: int) -> SetItems:
    lengths = tuple(int(example.response_mask.sum()) for example in each.examples)
    return SetItems(
        name=each.name,
        first=first,
        draws=draws,
        lengths=lengths,
        corrupted=tuple(example.noisy_ids is not None for example in each.examples),
        levels=_levels(each.examples, lengths, draws),
    )


def _levels(
    examples: Sequence[Example], lengths: Sequence[int], draws: int
) -> list[list[list[float]]]:
    """Return the levels of the parts of each row, spread over the parts of all rows."""
    counts = [
        _block_counts(example) if example.block_length else [length]
        for example, length in zip(examples, lengths, strict=True)
    ]
    levels = iter(grid_levels([count for of_row in counts for count in of_row], draws))
    return [[next(levels) for _ in of_row] for of_row in counts]


def _block_counts(example: Example) -> list[int]:
    """Count the answer tokens of each block that has some, without what is always masked."""
    answer = torch.from_numpy(example.response_mask).clone()
    if example.hidden:
        answer[-example.hidden :] = False
    return [int(answer[block].sum()) for block in blocks_with(answer, example.block_length)]


def _grouped(
    each: ValidationSet, config: DataConfig, micro_batch_size: int, eos: int, items: SetItems
) -> Iterator[_OwnBatch]:
    """Yield the micro-batches of a set, in their order."""
    rows = {example.key: row for row, example in enumerate(each.examples)}
    drawn = (
        replace(example, epoch=draw) for example in each.examples for draw in range(items.draws)
    )
    for batch in micro_batches(config, micro_batch_size, eos, [], drawn):
        numbers = [rows[key._replace(epoch=0)] * items.draws + key.epoch for key in batch.keys]
        yield _OwnBatch(batch, items, tuple(items.first + number for number in numbers))


def _rows(own: _OwnBatch) -> list[list[NoisyPart]]:
    """Return the noise of each example: its mask of those of its row."""
    batch, of_set = own.batch, own.of_set
    corrupted = batch.corrupted or (False,) * len(batch.keys)
    masks: dict[int, dict[int, list[Noise]]] = {}
    rows = []
    for key, answer, always, by_hook, item in zip(
        batch.keys, answer_masks(batch), always_masked(batch), corrupted, own.items, strict=True
    ):
        assert of_set is not None
        row = (item - of_set.first) // of_set.draws
        if by_hook:
            # What the hook has corrupted is learned as it is.
            rows.append(whole(Noise(answer, t=1.0, weight=1.0), drawn=False))
            continue
        row_key = hashed("validation", noise_key(0, 0, key.file, key.line, key.part))
        levels, cache = of_set.levels[row], masks.setdefault(row, {})
        draw = partial(_masks_of_part, cache, levels, row_key, batch.block_length, key.epoch)
        if batch.block_length:
            rows.append(parts_of(answer, always, batch.block_length, draw))
        else:
            rows.append(whole(draw(answer, 0, 0, 1)))
    return rows


def _masks_of_part(
    cache: dict[int, list[Noise]],
    levels: Sequence[Sequence[float]],
    row_key: int,
    block_length: int,
    draw: int,
    answer: Tensor,
    start: int,
    place: int,
    count: int,
) -> Noise:
    """Return one of the masks of a part of a row, which are made together; see `parts_of`."""
    assert len(levels) == count
    if place not in cache:
        key = block_key(row_key, start) if block_length else row_key
        cache[place] = grid_masks(answer, levels[place], key)
    return cache[place][draw]
