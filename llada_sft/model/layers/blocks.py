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
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llada_sft.model.layers.chunks import attend_in_chunks

# A chunk is an eighth of its document, within these bounds. Small chunks are more calls and more
# sums of gradients, large ones more scores that no query needs.
_SMALLEST_CHUNK, _LARGEST_CHUNK = 32, 128
# Positions of a half that are computed together, at most, unless a single document has more.
_TOGETHER = 4096


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
    """Documents of one length, by their numbers in the row; and the positions of their chunks."""

    numbers: tuple[int, ...]
    chunk: int


class BlockPlan(NamedTuple):
    """How the documents of a pass attend. A tuple: DeepSpeed looks for tensors in tuples only.

    Attributes:
        length: Positions of a block.
        halves: S.
        lengths: Positions of each document in a half of the row.
        groups: All documents.
        real: [B, L] bool, true at real tokens; None: all are.
    """

    length: int
    halves: int
    lengths: tuple[int, ...]
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
    for number, length in enumerate(lengths):
        of_length[length].append(number)
    groups = []
    for length, numbers in of_length.items():
        size = min(max(length // 8, _SMALLEST_CHUNK), _LARGEST_CHUNK)
        chunk = blocks.length * max(1, size // blocks.length)
        together = max(1, _TOGETHER // length)
        for first in range(0, len(numbers), together):
            groups.append(Documents(tuple(numbers[first : first + together]), chunk))
    return BlockPlan(blocks.length, blocks.halves, tuple(lengths), tuple(groups), real)


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
    halves = (x.view(len(x), plan.halves, -1, *x.shape[2:]) for x in (q, k, v))
    documents = [torch.split(x, list(plan.lengths), dim=2) for x in halves]
    mixed = [q] * len(plan.lengths)
    for numbers, chunk in plan.groups:
        q, k, v = (_cat([x[number] for number in numbers]) for x in documents)  # [M, S, N, ...]
        if q.shape[2] <= plan.length and plan.real is None:
            together = _attend_within_halves(q, k, v)
        else:
            together = attend_in_chunks(q, k, v, plan.real, plan.length, chunk)
        for number, one in zip(numbers, together.chunk(len(numbers)), strict=True):
            mixed[number] = one
    return _cat(mixed, dim=2).flatten(1, 2)


def _attend_within_halves(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend in documents of a single block: no half sees the other."""
    grouped = q.shape[3] != k.shape[3]
    shape = q.shape
    q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))  # [M·S, H or K, N, D]
    mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
    return mixed.transpose(1, 2).view(shape)


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join tensors; one alone is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tuple(tensors), dim)
