"""The head, and the cross-entropy that is taken of it without keeping any logits.

LLaDA's vocabulary has 126,464 entries: the fp32 logits of 16,384 positions are 8.3 GB, and how many
positions are masked is drawn. So the loss is computed piece by piece. Each piece is as large as a
fixed number of bytes allows; its logits become their own gradient in place, give their part of the
gradients of the hidden states and of the head's weight, and are dropped. What remains until the
backward pass are those two gradients, which it needs in any case.

The head stays a module that is called: ZeRO-3 gathers its weight for the call.

With a confidence loss, each position that is predicted right adds the entropy of its prediction,
divided by how many such positions its row has. So the head runs over all pieces once more before,
to count them: the gradient of a piece depends on counts of pieces to come.

Shapes: M chosen positions, C width of the residual stream, V rows of the head, P positions of a
piece, R rows whose positions these are.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llada_sft.model.layers.basic import Embedding, Linear

# Bytes of a piece's logits, in fp32: about 1,000 positions of LLaDA's vocabulary.
PIECE_BYTES = 512 << 20
# Of the predictions whose entropy the confidence loss takes.
CONFIDENCE_TEMPERATURE = 0.5

# A kernel for the logits of a piece: takes them [P, V], targets [P], and whether a gradient is
# needed; returns the cross-entropies, [P, 1] fp32, and writes softmax - onehot over the logits.
LossKernel = Callable[[Tensor, Tensor, bool], Tensor]


class LossTerms:
    """What the loss takes of each chosen position, where it is not the cross-entropy alone.

    Not a tuple: DeepSpeed rebuilds those of a module's arguments.

    Attributes:
        coefficients: [M] fp32, what the cross-entropy of each position is multiplied by.
        rows: [M] int64, in 0 ... R - 1: the row of each position.
        num_rows: R; a row may have no position.
        confidence: [M] fp32, what the entropy of a position that is predicted right is multiplied
            by, before it is divided by the number of these in its row; None: no confidence loss.
        predicts: Whether the most likely tokens are wanted.
        losses: [M] fp32, the cross-entropy of each position, once the head was called.
        predictions: [M] int64, the most likely token of each position, if they are wanted.
    """

    def __init__(
        self,
        coefficients: Tensor,
        rows: Tensor,
        num_rows: int,
        confidence: Tensor | None = None,
        predicts: bool = False,
    ) -> None:
        self.coefficients, self.rows, self.num_rows = coefficients, rows, num_rows
        self.confidence, self.predicts = confidence, predicts
        self.losses: Tensor | None = None
        self.predictions: Tensor | None = None


class Head(Linear):
    """The matrix from hidden states to logits; called with targets, it returns the loss.

    Attributes:
        loss_kernel: Computes the loss of a piece; None: torch's operations do.
    """

    loss_kernel: LossKernel | None = None

    def forward(
        self,
        x: Tensor,
        targets: Tensor | None = None,
        coefficients: Tensor | LossTerms | None = None,
    ) -> Tensor:
        """Return logits [..., V], or with targets the scalar loss.

        Args:
            x: [..., C] floating; with targets [M, C].
            targets: [M] int64.
            coefficients: [M] fp32; or these and more of the loss.
        """
        return _logits_or_loss(x, self.weight, targets, coefficients, self.loss_kernel)


class TiedEmbedding(Embedding):
    """The embedding of a network whose head has the same weight.

    Both uses call this one module: ZeRO-3 gathers the weight for each, and its gradient is the sum.

    Attributes:
        loss_kernel: As that of `Head`.
    """

    loss_kernel: LossKernel | None = None

    def forward(
        self,
        x: Tensor,
        targets: Tensor | None = None,
        coefficients: Tensor | LossTerms | None = None,
    ) -> Tensor:
        """Look tokens up, or be the head for hidden states.

        Args:
            x: [..., L] int64, or what `Head` takes.
            targets: [M] int64.
            coefficients: [M] fp32; or these and more of the loss.
        """
        if not x.is_floating_point():
            return super().forward(x)
        return _logits_or_loss(x, self.weight, targets, coefficients, self.loss_kernel)


def _logits_or_loss(
    x: Tensor,
    weight: Tensor,
    targets: Tensor | None,
    coefficients: Tensor | LossTerms | None,
    kernel: LossKernel | None,
) -> Tensor:
    if targets is None:
        return F.linear(x, weight)
    assert coefficients is not None
    return weighted_cross_entropy(x, weight, targets, coefficients, kernel=kernel)


def weighted_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    coefficients: Tensor | LossTerms,
    piece_bytes: int = PIECE_BYTES,
    kernel: LossKernel | None = None,
) -> Tensor:
    """Return Σ coefficient · CE(x · weightᵀ, target), with bounded memory.

    The same as `diffusion.objective.masked_cross_entropy` of the full logits. Softmax, loss and the
    sums over pieces are fp32 whatever the dtype of `x`. With `LossTerms.confidence`, it adds
    `diffusion.objective.confidence_loss`.

    Args:
        x: [M, C] floating, hidden states at the chosen positions.
        weight: [V, C] of the same dtype.
        targets: [M] int64.
        coefficients: [M] fp32, a constant; or these and more of the loss.
        piece_bytes: Most bytes of the fp32 logits that exist at one time.
        kernel: Computes the loss of each piece, unless there is a confidence loss; None: torch's
            operations do.

    Returns:
        A scalar, fp32; zero, with a graph, when M is 0.
    """
    terms = coefficients if isinstance(coefficients, LossTerms) else None
    confidence = None
    if terms is not None:
        coefficients, confidence = terms.coefficients, terms.confidence
        terms.losses = torch.empty(len(x), dtype=torch.float32, device=x.device)
        if terms.predicts:
            terms.predictions = torch.empty_like(targets)
    # The entropy and its gradient take two more tensors of the logits' size.
    size = 4 * len(weight) * (1 if confidence is None else 3)
    num_positions = max(1, piece_bytes // size)
    if terms is not None and confidence is not None:
        confidence = _among_right(terms, x, weight, targets, num_positions)
    losses, predictions = (None, None) if terms is None else (terms.losses, terms.predictions)
    kernel = kernel if confidence is None else None
    inputs = (x, weight, targets, coefficients, num_positions, confidence, losses, predictions)
    return _WeightedCrossEntropy.apply(*inputs, kernel)  # type: ignore[no-untyped-call, no-any-return]


@torch.no_grad()
def _among_right(
    terms: LossTerms, x: Tensor, weight: Tensor, targets: Tensor, num_positions: int
) -> Tensor:
    """Return each position's share of the confidence loss: 0 where the prediction is wrong."""
    assert terms.confidence is not None
    pieces = (slice(start, start + num_positions) for start in range(0, len(x), num_positions))
    right = [((x[piece] @ weight.T).argmax(-1) == targets[piece]).float() for piece in pieces]
    is_right = torch.cat(right) if right else terms.confidence
    counts = is_right.new_zeros(terms.num_rows).index_add_(0, terms.rows, is_right)
    return terms.confidence * is_right / counts[terms.rows].clamp(min=1)


class _WeightedCrossEntropy(torch.autograd.Function):
    """Computes the gradients together with the loss, while the logits exist."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        coefficients: Tensor,
        num_positions: int,
        confidence: Tensor | None,
        losses: Tensor | None,
        predictions: Tensor | None,
        kernel: LossKernel | None,
    ) -> Tensor:
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        loss = torch.zeros((), dtype=torch.float32, device=x.device)
        grad_x = torch.empty_like(x) if wants_x else None
        sums = _WeightGradient(weight, len(x), num_positions) if wants_weight else None
        for start in range(0, len(x), num_positions):
            piece = slice(start, start + num_positions)
            own_x, factors = x[piece], coefficients[piece, None]
            logits = own_x @ weight.T  # [P, V]
            if predictions is not None:
                predictions[piece] = logits.argmax(-1)
            slope_of_entropy = None
            if kernel is None:
                logits = _fp32_log_softmax(logits)
                own_losses = -logits.gather(1, targets[piece, None])  # [P, 1]
                if confidence is not None:
                    own_confidence = confidence[piece, None]
                    entropy, slope_of_entropy = _entropy(logits)
                    loss += (own_confidence * entropy).sum()
            else:
                own_losses = kernel(logits, targets[piece], wants_x or wants_weight)
            loss += (factors * own_losses).sum()
            if losses is not None:
                losses[piece] = own_losses.squeeze(1)
            if grad_x is None and sums is None:
                continue
            # From here on: the derivative by the logits, softmax - onehot, without the factors.
            # These multiply [P, C] instead of [P, V].
            slopes = logits if kernel is not None else _slopes(logits, targets[piece, None])
            if slope_of_entropy is not None:
                # Two terms with factors of their own.
                slopes.mul_(factors).add_(slope_of_entropy.mul_(own_confidence))
                factors = torch.ones_like(factors)
            slopes = slopes.to(x.dtype)
            if grad_x is not None:
                torch.mul(slopes @ weight, factors, out=grad_x[piece])
            if sums is not None:
                sums.add(slopes, (own_x * factors).to(x.dtype))
        ctx.save_for_backward(grad_x, None if sums is None else sums.total())
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        grad_x, grad_weight = ctx.saved_tensors
        # In place: nobody else has them. The graph is not run twice.
        return (
            None if grad_x is None else grad_x.mul_(grad),
            None if grad_weight is None else grad_weight.mul_(grad),
            *[None] * 7,
        )


class _WeightGradient:
    """Sums the pieces of the weight's gradient, in fp32 if there are several."""

    def __init__(self, weight: Tensor, num_positions: int, per_piece: int) -> None:
        self._weight = weight
        self._dtype = weight.dtype if num_positions <= per_piece else torch.float32
        self._sum: Tensor | None = None

    def add(self, slopes: Tensor, x: Tensor) -> None:
        """Add slopesᵀ · x, of [P, V] and [P, C]."""
        if self._sum is None:
            self._sum = (slopes.T @ x).to(self._dtype)
        elif slopes.dtype == self._dtype:
            self._sum.addmm_(slopes.T, x)
        else:
            self._sum += slopes.T @ x

    def total(self) -> Tensor:
        """Return the sum, of the weight's dtype."""
        return torch.zeros_like(self._weight) if self._sum is None else self._sum.to(self._weight)


def _entropy(log_softmax: Tensor) -> tuple[Tensor, Tensor]:
    """Return the entropies of softmax(z / T) [P, 1], and their derivative by z [P, V].

    With q that softmax and H its entropy, dH/dz = -q (log q + H) / T.
    """
    log_q = torch.log_softmax(log_softmax / CONFIDENCE_TEMPERATURE, -1)  # z but for a constant
    q = log_q.exp()
    slope = log_q.mul_(q)  # q log q
    entropy = -slope.sum(-1, keepdim=True)
    slope.add_(q.mul_(entropy)).div_(-CONFIDENCE_TEMPERATURE)
    return entropy, slope


def _slopes(log_softmax: Tensor, targets: Tensor) -> Tensor:
    """Return softmax - onehot, [P, V], in the place of the logarithm; targets are [P, 1]."""
    slopes = log_softmax.exp_()
    return slopes.scatter_add_(1, targets, slopes.new_full((), -1.0).expand(len(slopes), 1))


def _fp32_log_softmax(logits: Tensor) -> Tensor:
    """Return log softmax over the last dimension in fp32; in place if the logits are fp32."""
    if logits.dtype == torch.float32:
        return torch.log_softmax(logits, -1, out=logits)
    return torch.log_softmax(logits, -1, dtype=torch.float32)
