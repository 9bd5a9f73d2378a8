"""Attention in blocks, of documents of one length: chunk by chunk.

A query sees the keys of its own block, and the clean blocks before it. So a document is cut into
chunks of whole blocks: the queries of a chunk attend to the chunk itself and to the clean positions
before it, and to nothing else. No mask is larger than a chunk times its keys, and no scores are
kept for the backward pass.

Shapes: M documents, S halves (2 if noisy and clean, else 1), N positions of a half, H query heads,
K key and value heads, D features of a head, T positions of a chunk, E of the row up to its end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Chunks:
    """How documents are cut.

    Attributes:
        length: Positions of a block.
        size: T, whole blocks; the last chunk may be shorter.
        real: [M, N] bool, true at real tokens; None: all are.
    """

    length: int
    size: int
    real: Tensor | None


def new_results(q: Tensor) -> list[Tensor]:
    """Return where `attend_in_chunks` writes for queries [B, S, L, H, D].

    The mixed values are of the same shape. On CPU there are besides the logarithms of the sums of
    softmax, [B, S, L, H] fp32 or fp64: its kernel needs them for the backward pass.
    """
    mixed = q.new_empty(q.shape)
    if q.device.type != "cpu":
        return [mixed]
    logs = q.new_empty(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32))
    return [mixed, logs]


def attend_in_chunks(inputs: Sequence[Tensor], results: Sequence[Tensor], how: Chunks) -> None:
    """Let every position look at its own block and at the clean blocks before it.

    Args:
        inputs: Queries [M, S, N, H, D], keys and values [M, S, N, K, D]; the noisy half is before
            the clean one, if there are two.
        results: Is written; of these documents what `new_results` returned.
        how: How they are cut.
    """
    q, k, v = inputs
    keys, values, masks = _Keys(k, how.size), _Keys(v, how.size), _Masks(q, how)
    for rows in _chunks(q, how.size):
        own = _own(q, rows), keys.of(rows), values.of(rows)
        for result, found in zip(results, _attend(*own, masks.of(rows), len(results)), strict=True):
            _put(result, rows, found)


def add_gradients(
    inputs: Sequence[Tensor],
    results: Sequence[Tensor],
    slope: Tensor,
    gradients: Sequence[Tensor],
    how: Chunks,
) -> None:
    """Do the backward pass.

    Args:
        inputs: What `attend_in_chunks` was given.
        results: What it wrote.
        slope: [M, S, N, H, D], the gradient of the mixed values.
        gradients: Zeros, to which those of `inputs` are added.
        how: How documents are cut.
    """
    q, k, v = inputs
    of_q, of_k, of_v = gradients
    keys, values, masks = _Keys(k, how.size), _Keys(v, how.size), _Masks(q, how)
    for rows in _chunks(q, how.size):
        own = _own(q, rows), keys.of(rows), values.of(rows)
        found = [_own(result, rows) for result in results]
        of_rows, of_keys, of_values = _gradients(own, masks.of(rows), found, _own(slope, rows))
        _put(of_q, rows, of_rows)
        _add_to_keys(of_k, rows, of_keys)
        _add_to_keys(of_v, rows, of_values)


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

    def __init__(self, q: Tensor, how: Chunks) -> None:
        self.q, self.real, self.length = q, how.real, how.length
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


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, num_results: int
) -> tuple[Tensor, ...]:
    """Mix values [M, keys, K, D] for queries [M, S·T, H, D]; and logarithms [M, S·T, H]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if num_results == 1:
        grouped = q.shape[1] != k.shape[1]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        return (mixed.transpose(1, 2),)
    # What scaled_dot_product_attention calls on CPU.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mixed, logs = kernel(q, k, v, attn_mask=mask)
    return mixed.transpose(1, 2), logs.transpose(1, 2)


def _gradients(
    inputs: Sequence[Tensor], mask: Tensor | None, results: Sequence[Tensor], slope: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of what `_attend` was given.

    Where it returns no logarithms, the chunk is computed again.
    """
    if len(results) == 1:
        q, k, v = (x.detach().requires_grad_() for x in inputs)
        with torch.enable_grad():
            (mixed,) = _attend(q, k, v, mask, 1)
        return torch.autograd.grad(mixed, (q, k, v), slope)
    slope, *others = (x.transpose(1, 2) for x in (slope, *inputs, *results))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    gradients = kernel(slope, *others, dropout_p=0.0, is_causal=False, attn_mask=mask)
    return tuple(gradient.transpose(1, 2) for gradient in gradients)
