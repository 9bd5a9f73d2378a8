"""Attention in blocks: of block-causal rows, and of the rows that block diffusion trains on.

A query sees the keys of its own block and of clean blocks before it. So the rows are cut into
chunks of a few blocks, and the queries of a chunk attend to exactly the keys that one of them sees:
the chunk itself and the clean positions before it. Chunks of several documents that have the same
place in their document are one call. No mask is larger than a chunk times the keys of it, and the
backward pass makes the scores of each chunk again: memory grows with the row, not with its square.

Shapes: B rows, H query heads, K key and value heads, L positions of one half of a row, S halves (2
if noisy and clean, else 1), D features of a head, G chunks that are computed together, T positions
of a chunk, E clean positions up to the end of a chunk.

Source: Arriola et al., Block Diffusion (arXiv 2503.09573), section 3.1 and appendix B.6.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Positions of a chunk, at least: fewer are more calls, more are more scores that no query needs.
_CHUNK = 32
# Keys of all chunks that are computed together, at most, unless a single chunk has more.
_KEYS = 4096


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


class Chunks(NamedTuple):
    """Chunks at the same place of their documents, with the same number of positions.

    Attributes:
        start: Where in its document each one starts.
        length: T.
        offsets: Where in a half of the row each document starts, G of them.
    """

    start: int
    length: int
    offsets: tuple[int, ...]

    @property
    def end(self) -> int:
        """E."""
        return self.start + self.length


class BlockPlan(NamedTuple):
    """How the chunks of a pass attend. A tuple: DeepSpeed looks for tensors in tuples only.

    Attributes:
        length: Positions of a block.
        halves: S.
        chunks: All of them.
        real: [B, L] bool, true at real tokens; None: all are.
    """

    length: int
    halves: int
    chunks: tuple[Chunks, ...]
    real: Tensor | None


def plan_blocks(blocks: Blocks, lengths: Sequence[int], real: Tensor | None) -> BlockPlan:
    """Cut documents into chunks.

    Args:
        blocks: How they attend.
        lengths: Of the documents that follow one another in a half of a row; one where each row is
            a document.
        real: [B, L] bool, true at real tokens; None: all are. The first of each row must be.
    """
    chunk = blocks.length * max(1, _CHUNK // blocks.length)
    places: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    offset = 0
    for length in lengths:
        for start in range(0, length, chunk):
            places[start, min(chunk, length - start)].append(offset)
        offset += length
    chunks = []
    for (start, length), offsets in places.items():
        together = max(1, _KEYS // (start + length))
        for first in range(0, len(offsets), together):
            chunks.append(Chunks(start, length, tuple(offsets[first : first + together])))
    return BlockPlan(blocks.length, blocks.halves, tuple(chunks), real)


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
    mixed = _InChunks.apply(*halves, plan)  # type: ignore[no-untyped-call]
    return mixed.flatten(1, 2)  # type: ignore[no-any-return]


class _InChunks(torch.autograd.Function):
    """Attends chunk by chunk; the backward pass computes each chunk again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan) -> Tensor:
        """Take and return [B, S, L, heads, D]."""
        ctx.save_for_backward(q, k, v)
        ctx.plan = plan
        mixed = torch.empty_like(q)
        for chunks in plan.chunks:
            mask = _mask(chunks, plan, q.device)
            inputs = (_own(q, chunks), _keys(k, chunks), _keys(v, chunks))
            _write(mixed, _attend(*inputs, mask), chunks)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = ctx.saved_tensors
        slopes = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for chunks in ctx.plan.chunks:
            mask = _mask(chunks, ctx.plan, q.device)
            inputs = (_own(q, chunks), _keys(k, chunks), _keys(v, chunks))
            for x in inputs:
                x.requires_grad_()
            with torch.enable_grad():
                mixed = _attend(*inputs, mask)
            of_q, of_k, of_v = torch.autograd.grad(mixed, inputs, _own(slope, chunks))
            _write(slopes[0], of_q, chunks)
            _add_to_keys(slopes[1], of_k, chunks)
            _add_to_keys(slopes[2], of_v, chunks)
        return *slopes, None


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Mix [G·B, keys, K, D] for the queries [G·B, S·T, H, D] that see them."""
    grouped = q.shape[2] != k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    return mixed.transpose(1, 2)


def _own(x: Tensor, chunks: Chunks) -> Tensor:
    """Return the positions of chunks, those of all halves: [G·B, S·T, heads, D]."""
    spans = [x[:, :, _span(offset + chunks.start, chunks.length)] for offset in chunks.offsets]
    return torch.cat(spans).flatten(1, 2)


def _keys(x: Tensor, chunks: Chunks) -> Tensor:
    """Return what chunks look at: [G·B, keys, K, D].

    Keys are the clean positions of a document up to the chunk's end; before these, if there are
    two halves, the noisy ones of the chunk.
    """
    clean = [x[:, -1, _span(offset, chunks.end)] for offset in chunks.offsets]
    if x.shape[1] == 1:
        return torch.cat(clean)
    noisy = [x[:, 0, _span(offset + chunks.start, chunks.length)] for offset in chunks.offsets]
    return torch.cat([torch.cat(both, dim=1) for both in zip(noisy, clean, strict=True)])


def _write(x: Tensor, values: Tensor, chunks: Chunks) -> None:
    """Put the values of `_own` where they are from."""
    shape = (len(chunks.offsets), *x.shape[:2], chunks.length)
    for offset, value in zip(chunks.offsets, values.view(*shape, *x.shape[3:]), strict=True):
        x[:, :, _span(offset + chunks.start, chunks.length)] = value


def _add_to_keys(x: Tensor, values: Tensor, chunks: Chunks) -> None:
    """Add the values of `_keys` to where they are from."""
    for offset, value in zip(chunks.offsets, values.chunk(len(chunks.offsets)), strict=True):
        x[:, -1, _span(offset, chunks.end)] += value[:, -chunks.end :]
        if x.shape[1] == 2:
            own = _span(offset + chunks.start, chunks.length)
            x[:, 0, own] += value[:, : chunks.length]


def _span(start: int, length: int) -> slice:
    return slice(start, start + length)


def _mask(chunks: Chunks, plan: BlockPlan, device: torch.device) -> Tensor | None:
    """Return which keys the queries of a chunk see: [1 or G·B, 1, S·T, keys] bool; None: all."""
    whole = plan.halves == 1 and chunks.length <= plan.length
    if whole and plan.real is None:
        return None
    block = torch.arange(chunks.end, device=device) // plan.length  # [E]
    own = block[chunks.start :, None]  # [T, 1]
    mask = block <= own  # [T, E]
    if plan.halves == 2:
        noisy, clean = torch.cat([own == own.T, block < own], 1), F.pad(mask, (chunks.length, 0))
        mask = torch.cat([noisy, clean])  # [2·T, T + E]
    if plan.real is None:
        return mask[None, None]
    real = _keys(plan.real[:, None].expand(-1, plan.halves, -1), chunks)  # [G·B, keys]
    return mask & real[:, None, None]
