"""A mixture of experts: each token is computed by the few experts that its router chose.

The experts of a layer are one parameter for each of their three matrices. Tokens are sorted by
expert, and each matrix multiplies the groups in one call, also where some are empty: nothing
depends on which experts the tokens of a rank choose, and no token is dropped.

Shapes: T tokens, C width of the residual stream, E experts, k of them for each token, F width
inside an expert.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada_sft.model.families.architecture import Router

# Finds the chosen experts, [T, k] int64, by the scores of all, [T, E]. A method rather than an
# object: DeepSpeed looks for tensors in the objects that its modules are given.
Choose = Callable[[Tensor], Tensor]
_GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What the strides of matrices must be a multiple of.
_GROUPED_BYTES = 16
# How many scores of a group say how good it is.
_BEST_OF_GROUP = 2
# Added to the sum that weights are divided by, as the released code does.
_TINY = 1e-20


class Choice:
    """The experts of the tokens of one layer, chosen once.

    Activation checkpointing computes a layer twice. The second time may round differently, and so
    might choose other experts where two have nearly the same probability: it takes these.

    Args:
        per_token: k.

    Attributes:
        experts: [T, k] int64, the most probable one first; None before the layer was computed.
    """

    def __init__(self, per_token: int) -> None:
        self._per_token = per_token
        self.experts: Tensor | None = None

    def choose(self, scores: Tensor) -> Tensor:
        """Return the experts with the highest scores, or those that were chosen before."""
        if self.experts is None:
            self.experts = scores.detach().topk(self._per_token, dim=-1).indices
        return self.experts


def route(
    logits: Tensor, bias: Tensor | None, choose: Choose, router: Router
) -> tuple[Tensor, Tensor]:
    """Choose the experts of tokens, and what each expert's result counts.

    The scores are fp32. What a chosen expert counts is its score; with the bias where the router
    says so.

    Source: LLaDA-MoE's modeling_lladamoe.py (softmax); sigmoid, groups and a bias that only
    chooses: DeepSeek-V3 (arXiv 2412.19437), section 2.1.2, as in LLaDA2's modeling_llada2_moe.py.

    Args:
        logits: [T, E] floating, of the router.
        bias: [E] floating; None: there is none.
        choose: Finds the experts.
        router: What is made of the logits.

    Returns:
        The experts, [T, k] int64, and what each counts, [T, k] of the dtype of `logits`.
    """
    if router.scores == "sigmoid":
        scores = logits.float().sigmoid()
    else:
        scores = torch.softmax(logits, dim=-1, dtype=torch.float32)
    ranked = scores if bias is None else scores + bias
    chosen = choose(_in_best_groups(ranked.detach(), router))
    counted = ranked if router.bias == "weights" else scores
    weights = counted.gather(-1, chosen)
    if router.normalised and chosen.shape[1] > 1:
        weights = weights / (weights.sum(-1, keepdim=True) + _TINY)
    return chosen, (weights * router.scale).to(logits.dtype)


def _in_best_groups(scores: Tensor, router: Router) -> Tensor:
    """Return scores, [T, E], that are -inf outside of each token's best groups."""
    if router.kept_groups == router.num_groups:
        return scores
    num_tokens, num_experts = scores.shape
    groups = scores.view(num_tokens, router.num_groups, num_experts // router.num_groups)
    values = groups.topk(_BEST_OF_GROUP, dim=-1).values.sum(-1)  # [T, G]
    best = values.topk(router.kept_groups, dim=-1).indices
    is_left = torch.ones_like(values, dtype=torch.bool).scatter_(-1, best, False)
    return groups.masked_fill(is_left[..., None], -torch.inf).view_as(scores)


class StackedExperts(nn.Module):
    """The SwiGLU MLPs of a layer.

    Args:
        number: E.
        width: C.
        size: F.
        names: Of the three matrices: gate, up and down.
    """

    def __init__(self, number: int, width: int, size: int, names: tuple[str, str, str]) -> None:
        super().__init__()
        self._names = gate, up, down = names
        for name in (gate, up):
            self.register_parameter(name, nn.Parameter(torch.empty(number, size, width)))
        self.register_parameter(down, nn.Parameter(torch.empty(number, width, size)))

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Sum what the chosen experts compute of each token, [T, C].

        Args:
            x: [T, C] floating.
            chosen: [T, k] int64.
            weights: [T, k] floating, what each counts.
        """
        gate, up, down = (self.get_parameter(name) for name in self._names)
        per_token = chosen.shape[1]
        order = chosen.flatten().argsort(stable=True)  # [T·k], by expert
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order), device=order.device)
        ends = count(chosen, len(gate)).cumsum(0, dtype=torch.int32)  # [E]
        rows = _rows(x, order // per_token, places, per_token)  # [T·k, C]
        inside = F.silu(_grouped(rows, gate, ends)) * _grouped(rows, up, ends)
        results = _rows(_grouped(inside, down, ends), places, order, 1)
        counted = results.view(*chosen.shape, -1) * weights[..., None]
        return counted.sum(1).to(x.dtype)


def count(chosen: Tensor, number: int, real: Tensor | None = None) -> Tensor:
    """Count how many tokens chose each expert, [E] int64, without waiting for the device.

    Args:
        chosen: [T, k] int64.
        number: E.
        real: [T] bool, the tokens that count; None: all.
    """
    ones = torch.ones_like(chosen) if real is None else real.long()[:, None].expand_as(chosen)
    counts = torch.zeros(number, dtype=torch.int64, device=chosen.device)
    return counts.scatter_add_(0, chosen.flatten(), ones.flatten())


def _grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply groups of rows, each with its own matrix.

    Torch's own gradient would keep a view of the weight: under ZeRO-3 the gathered weight would
    stay in memory until the backward pass.

    Args:
        x: [N, I] floating, group after group.
        weight: [E, O, I] of the same dtype.
        ends: [E] int32, where each group ends.

    Returns:
        [N, O].
    """
    product: Tensor = _Grouped.apply(x, weight, ends)  # type: ignore[no-untyped-call]
    return product


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, ends)
        return _product(x, weight.transpose(1, 2), ends)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, ends = ctx.saved_tensors
        wants_x, wants_weight, _ = ctx.needs_input_grad
        grad = grads[0].contiguous()
        return (
            _product(grad, weight, ends) if wants_x else None,
            _outer_product(grad, x, ends) if wants_weight else None,
            None,
        )


def _product(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Return x_n · matrix_e, [N, O], for the rows n of each group e; matrices are [E, I, O]."""
    if _fits_grouped(x, *matrices.shape[1:]):
        return F.grouped_mm(x, matrices, offs=ends)
    parts = zip(_groups(x, ends), matrices, strict=True)
    return torch.cat([part @ matrix for part, matrix in parts])


def _outer_product(y: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """Return Σ_n y_n · x_nᵀ over the rows n of each group, [E, O, I]."""
    if _fits_grouped(x, y.shape[1], x.shape[1]):
        return F.grouped_mm(y.T, x, offs=ends)
    parts = zip(_groups(y, ends), _groups(x, ends), strict=True)
    return torch.stack([of_y.T @ of_x for of_y, of_x in parts])


def _fits_grouped(x: Tensor, *sizes: int) -> bool:
    """Return whether torch's grouped product takes such rows."""
    return x.dtype in _GROUPED_DTYPES and not any(
        size * x.itemsize % _GROUPED_BYTES for size in sizes
    )


def _groups(x: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
    return torch.split(x, torch.diff(ends, prepend=ends.new_zeros(1)).tolist())


def _rows(x: Tensor, indices: Tensor, back: Tensor, copies: int) -> Tensor:
    """Take rows of which each is taken `copies` times.

    Torch's own gradient of it adds in no fixed order on CUDA.

    Args:
        x: [N, C].
        indices: [N · copies] int64, which rows.
        back: [N · copies] int64, where the copies of the first row are, then of the second, ...
        copies: How often each row is taken.
    """
    taken: Tensor = _Rows.apply(x, indices, back, copies)  # type: ignore[no-untyped-call]
    return taken


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, back: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.copies = copies
        return x.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        grad = grads[0].index_select(0, back)
        if ctx.copies > 1:
            grad = grad.view(-1, ctx.copies, grad.shape[-1]).sum(1)
        return grad, None, None, None
