"""Attention in blocks, of documents of one length: chunk by chunk.

A query sees the keys of its own block, and the clean blocks before it. So a document is cut into
chunks of whole blocks: the queries of a chunk attend to the chunk itself and to the clean positions
before it, and to nothing else. No mask is larger than a chunk times its keys, and no scores are
kept for the backward pass.

Shapes: M documents, S halves (2 if noisy and clean, else 1), N positions of a half, H query heads,
K key and value heads, D features of a head, T positions of a chunk, E of the row up to its end.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def attend_in_chunks(
    q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, length: int, chunk: int
) -> Tensor:
    """Let every position look at its own block and at the clean blocks before it.

    Args:
        q: [M, S, N, H, D] floating, the noisy half and then the clean one, if there are two.
        k: [M, S, N, K, D] floating.
        v: [M, S, N, K, D] floating.
        real: [M, N] bool, true at real tokens; None: all are. The first of each document must be.
        length: Positions of a block.
        chunk: T, whole blocks; the last chunk may be shorter.

    Returns:
        [M, S, N, H, D].
    """
    return cast(Tensor, _InChunks.apply(q, k, v, real, length, chunk))  # type: ignore[no-untyped-call]


class _InChunks(torch.autograd.Function):
    """The backward pass of all chunks together: gradients of keys are added up in one place."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, length: int, chunk: int
    ) -> Tensor:
        mixed, logs = q.new_empty(q.shape), None
        if _has_logarithms(q):
            logs = q.new_empty(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32))
        keys, values = _Keys(k, chunk), _Keys(v, chunk)
        masks = _Masks(q, real, length)
        for rows in _chunks(q, chunk):
            inputs = _own(q, rows), keys.of(rows), values.of(rows)
            mixed_rows, logs_of_rows = _attend(*inputs, masks.of(rows))
            _put(mixed, rows, mixed_rows)
            if logs is not None and logs_of_rows is not None:
                _put(logs, rows, logs_of_rows)
        ctx.save_for_backward(q, k, v, real, mixed, logs)
        ctx.sizes = length, chunk
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, real, mixed, logs = ctx.saved_tensors
        length, chunk = ctx.sizes
        keys, values = _Keys(k, chunk), _Keys(v, chunk)
        masks = _Masks(q, real, length)
        of_q, of_k, of_v = q.new_empty(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
        for rows in _chunks(q, chunk):
            inputs = _own(q, rows), keys.of(rows), values.of(rows)
            slopes, mask = _own(slope, rows), masks.of(rows)
            if logs is None:
                gradients = _gradients_again(inputs, mask, slopes)
            else:
                results = _own(mixed, rows), _own(logs, rows)
                gradients = _gradients(inputs, mask, results, slopes)
            _put(of_q, rows, gradients[0])
            _add_to_keys(of_k, rows, gradients[1])
            _add_to_keys(of_v, rows, gradients[2])
        return of_q, of_k, of_v, None, None, None


def _chunks(x: Tensor, chunk: int) -> Iterator[slice]:
    """Yield the positions of each chunk, the last one first."""
    for start in reversed(range(0, x.shape[2], chunk)):
        yield slice(start, min(start + chunk, x.shape[2]))


def _own(x: Tensor, rows: slice) -> Tensor:
    """Return the positions of a chunk in both halves: [M, S·T, ...]."""
    return x[:, :, rows].flatten(1, 2)


def _put(x: Tensor, rows: slice, values: Tensor) -> None:
    """Write what belongs to the positions that `_own` returns."""
    place = x[:, :, rows]
    place.copy_(values.reshape(place.shape))


class _Keys:
    """The keys, or the values, of each chunk in one piece of memory, which all chunks share.

    They are the clean positions up to the end of the chunk and, if there are two halves, then its
    noisy positions. These are written over the clean ones that follow the chunk, which only later
    chunks look at: so the last chunk must come first.
    """

    def __init__(self, x: Tensor, chunk: int) -> None:
        """Take [M, S, N, K, D]."""
        self.noisy, self.space = None, x[:, -1]
        if x.shape[1] == 2:
            self.noisy, self.space = x[:, 0], F.pad(self.space, (0, 0, 0, 0, 0, chunk))

    def of(self, rows: slice) -> Tensor:
        """Return [M, E or E + T, K, D]."""
        if self.noisy is None:
            return self.space[:, : rows.stop]
        end = 2 * rows.stop - rows.start
        self.space[:, rows.stop : end] = self.noisy[:, rows]
        return self.space[:, :end]


def _add_to_keys(x: Tensor, rows: slice, values: Tensor) -> None:
    """Add gradients of what `_Keys.of` returned to those of all keys, [M, S, N, K, D]."""
    x[:, -1, : rows.stop] += values[:, : rows.stop]
    if x.shape[1] == 2:
        x[:, 0, rows] = values[:, rows.stop :]


class _Masks:
    """What is added to the scores of each chunk: 0 where a query sees a key, else -inf."""

    def __init__(self, q: Tensor, real: Tensor | None, length: int) -> None:
        self.q, self.real, self.length = q, real, length
        # By the positions of a chunk. The first one that is asked for has the most keys.
        self.masks: dict[int, Tensor] = {}

    def of(self, rows: slice) -> Tensor | None:
        """Return [1 or M, 1, S·T, E or E + T]; None: all keys are seen."""
        halves, size = self.q.shape[1], rows.stop - rows.start
        if halves == 1 and size <= self.length and self.real is None:
            return None
        if size not in self.masks:
            seen = _seen_within(size, self.length, halves, self.q.device)
            added = self.q.new_zeros(seen.shape).masked_fill_(~seen, -torch.inf)
            # All that is before the chunk is seen.
            self.masks[size] = F.pad(added, (rows.start, 0))
        mask = self.masks[size][None, None, :, -(rows.start + halves * size) :]
        if self.real is None:
            return mask
        clean, noisy = self.real[:, : rows.stop], self.real[:, rows]
        real = clean if halves == 1 else torch.cat([clean, noisy], dim=1)
        return mask.masked_fill(~real[:, None, None], -torch.inf)


def _seen_within(size: int, length: int, halves: int, device: torch.device) -> Tensor:
    """Return which positions of a chunk see each other: [S·T, S·T] bool.

    Queries are the noisy positions and then the clean ones; keys the clean ones and then the noisy
    ones. A chunk starts with a block.
    """
    key = torch.arange(size, device=device) // length
    query = key[:, None]
    if halves == 1:
        return key <= query
    of_noisy = torch.cat([key < query, key == query], dim=1)
    of_clean = F.pad(key <= query, (0, size))
    return torch.cat([of_noisy, of_clean])


def _has_logarithms(q: Tensor) -> bool:
    """Whether the kernel returns logarithms of the sums of softmax, for its backward pass."""
    return q.device.type == "cpu"


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Mix values [M, keys, K, D] for queries [M, S·T, H, D]; and logarithms [M, S·T, H]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if not _has_logarithms(q):
        grouped = q.shape[1] != k.shape[1]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        return mixed.transpose(1, 2), None
    # What scaled_dot_product_attention calls on CPU.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mixed, logs = kernel(q, k, v, attn_mask=mask)
    return mixed.transpose(1, 2), logs.transpose(1, 2)


def _gradients(
    inputs: tuple[Tensor, ...], mask: Tensor | None, results: tuple[Tensor, ...], slope: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of queries, keys and values, from what `_attend` took and returned."""
    slope, *heads = (x.transpose(1, 2) for x in (slope, *inputs, *results))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    gradients = kernel(slope, *heads, dropout_p=0.0, is_causal=False, attn_mask=mask)
    return tuple(gradient.transpose(1, 2) for gradient in gradients)


def _gradients_again(
    inputs: tuple[Tensor, ...], mask: Tensor | None, slope: Tensor
) -> tuple[Tensor, ...]:
    """The same, where the kernel returns no logarithms: the chunk is computed again."""
    q, k, v = (x.detach().requires_grad_() for x in inputs)
    with torch.enable_grad():
        mixed, _ = _attend(q, k, v, mask)
    return torch.autograd.grad(mixed, (q, k, v), slope)
