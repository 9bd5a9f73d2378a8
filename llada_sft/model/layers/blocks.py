"""Attention in blocks: of block-causal rows, and of the rows that block diffusion trains on.

`Blocks` says which positions see each other. `plan_blocks` decides once for a forward pass how its
layers attend, and `attend_in_blocks` does it in each layer: documents of one length together, each
in chunks of its positions (chunks.py). Memory grows with the row, not with its square.

Shapes: B rows, H query heads, K key and value heads, L positions of one half of a row, S halves (2
if noisy and clean, else 1), D features of a head, M documents that are computed together, of N
positions in each half.

Source: Arriola et al., Block Diffusion (arXiv 2503.09573), section 3.1 and appendix B.6.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llada_sft.model.layers.chunks import Chunks, add_gradients, attend_in_chunks, new_results

# A chunk is an eighth of its document, within these bounds. Small chunks are more calls and more
# sums of gradients, large ones more scores that no query needs.
_SMALLEST_CHUNK, _LARGEST_CHUNK = 32, 128
# Positions of a half that are computed together, at most, unless a single document has more.
_TOGETHER = 1024


@dataclass(frozen=True)
class Blocks:
    """Attention in blocks of `length` positions, counted from the start of each sequence.

    The last block of a sequence may be shorter.

    Attributes:
        length: Positions of a block.
        doubled: False: a position sees its own block and all before it (block-causal). True: rows
            are [noisy ; clean], two halves of L positions, each counted 0..L-1. A noisy position
            sees its own noisy block and the clean blocks before it; a clean one sees the clean
            blocks up to its own.
    """

    length: int
    doubled: bool = False

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"blocks: the length must be at least 1, got {self.length}")

    @property
    def halves(self) -> int:
        """S."""
        return 2 if self.doubled else 1


class Documents(NamedTuple):
    """Documents of one length that are computed together.

    Attributes:
        offsets: Where in a half of the row each of them starts, M of them for each row.
        length: N.
        chunk: Positions of a chunk.
        apart: Whether no half sees the other: a document is a single block.
    """

    offsets: tuple[int, ...]
    length: int
    chunk: int
    apart: bool


class BlockPlan(NamedTuple):
    """How the documents of a pass attend. A tuple: DeepSpeed looks for tensors in tuples only.

    Attributes:
        length: Positions of a block.
        halves: S.
        groups: All documents.
        real: [B, L] bool, true at real tokens; None: all are.
    """

    length: int
    halves: int
    groups: tuple[Documents, ...]
    real: Tensor | None


def plan_blocks(blocks: Blocks, lengths: Sequence[int], real: Tensor | None) -> BlockPlan:
    """Group documents, and choose the size of their chunks.

    Args:
        blocks: How they attend.
        lengths: Of the documents that follow one another in a half of a row; one where each row is
            a document.
        real: [B, L] bool, true at real tokens; None: all are. The first of each row must be.
    """
    of_length: defaultdict[int, list[int]] = defaultdict(list)
    offset = 0
    for length in lengths:
        of_length[length].append(offset)
        offset += length
    groups = []
    for length, offsets in of_length.items():
        size = min(max(length // 8, _SMALLEST_CHUNK), _LARGEST_CHUNK)
        chunk = blocks.length * max(1, size // blocks.length)
        apart = length <= blocks.length and real is None
        together = max(1, _TOGETHER // length)
        for first in range(0, len(offsets), together):
            some = tuple(offsets[first : first + together])
            groups.append(Documents(some, length, chunk, apart))
    return BlockPlan(blocks.length, blocks.halves, tuple(groups), real)


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan) -> Tensor:
    """Let every position look at its own block and at the clean blocks before it.

    Args:
        q: [B, S·L, H, D] floating.
        k: [B, S·L, K, D] floating.
        v: [B, S·L, K, D] floating.
        plan: What `plan_blocks` returned.

    Returns:
        [B, S·L, H, D]. What comes out at padding is of no meaning.
    """
    halves = [x.view(len(x), plan.halves, -1, *x.shape[2:]) for x in (q, k, v)]
    mixed: Tensor = _InBlocks.apply(*halves, plan)  # type: ignore[no-untyped-call]
    return mixed.flatten(1, 2)


class _InBlocks(torch.autograd.Function):
    """Attends group by group, in rows [B, S, L, heads, D]; keeps what it was given and returns."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan) -> Tensor:
        results = new_results(q)
        for group in plan.groups:
            own = [_gather(x, group) for x in (q, k, v)]
            own_results = [_room(x, group) for x in results]
            attend_in_chunks(own, own_results, Chunks(plan.length, group.chunk, plan.real))
            for result, values in zip(results, own_results, strict=True):
                _scatter(values, result, group)
        ctx.save_for_backward(q, k, v, *results)
        ctx.plan = plan
        return results[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        plan: BlockPlan = ctx.plan
        saved = ctx.saved_tensors  # may be asked for only once
        gradients = [x.new_empty(x.shape) for x in saved[:3]]
        for group in plan.groups:
            q, k, v, *results = (_gather(x, group) for x in saved)
            own = [_room(x, group).zero_() for x in gradients]
            chunks = Chunks(plan.length, group.chunk, plan.real)
            add_gradients([q, k, v], results, _gather(slope, group), own, chunks)
            for gradient, values in zip(gradients, own, strict=True):
                _scatter(values, gradient, group)
        return *gradients, None


def _gather(x: Tensor, group: Documents) -> Tensor:
    """Return the documents of a group: [B, S, L, ...] -> [M, S, N, ...]; one is not copied.

    If their halves are apart, each half is a document: [M·S, 1, N, ...].
    """
    each = [x[:, :, start : start + group.length] for start in group.offsets]
    documents = each[0] if len(each) == 1 else torch.cat(each)
    return documents.flatten(0, 1)[:, None] if group.apart else documents


def _room(x: Tensor, group: Documents) -> Tensor:
    """Return where values of a group are written to: in `x` itself, if they are of one document."""
    if len(group.offsets) == 1:
        return _gather(x, group)
    shape = (len(group.offsets) * x.shape[0], x.shape[1], group.length, *x.shape[3:])
    room = x.new_empty(shape)
    return room.flatten(0, 1)[:, None] if group.apart else room


def _scatter(values: Tensor, x: Tensor, group: Documents) -> None:
    """Copy what `_room` did not place in `x`."""
    number = len(group.offsets)
    if number == 1:
        return
    documents = values.view(number, *x.shape[:2], group.length, *x.shape[3:])
    for start, document in zip(group.offsets, documents, strict=True):
        x[:, :, start : start + group.length] = document
