"""Liger's Triton kernels, as functions that layers call in the place of their own.

They compute what torch's operations do, in one pass over memory each, and keep less for the
backward pass: of a norm its input and one number for each row, of SwiGLU its two inputs. All of
them round as our layers do: sums, rotations and softmax are fp32 whatever the dtype.

Two of them write over what they are given, which autograd does not see:

    rotary positions   over queries and keys, here over copies: selective checkpointing keeps the
                       results of matrix products, and would rotate them twice
    cross-entropy      over the logits, with their gradient, as our own loss does

And in the backward pass SwiGLU writes over its inputs, a norm over the gradient of its result:
nothing in a block reads these afterwards.

Source: Hsu et al., Liger Kernel (arXiv 2410.10989).

Shapes: B rows, L positions, H query heads, K key and value heads, D features of a head, R of them
rotated, P positions, V rows of the head.
"""

import torch
import triton
from liger_kernel.ops.cross_entropy import liger_cross_entropy_kernel
from liger_kernel.ops.rms_norm import LigerRMSNormFunction
from liger_kernel.ops.rope import LigerRopeFunction
from liger_kernel.ops.swiglu import LigerSiLUMulFunction
from torch import Tensor

# Columns that a program of the cross-entropy reads at a time, and warps, as Liger chooses them.
_MOST_COLUMNS = 32_768
_WARPS, _WARPS_OF_AMD = 32, 16


def liger_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / RMS(x) · weight, normalised in fp32 and cast before the product.

    Args:
        x: [..., C] floating.
        weight: [C] of the same dtype.
        eps: Added to the mean square.
    """
    # No offset of the weight; "llama": cast before the product.
    y: Tensor = LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama")
    return y


def liger_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return SiLU(gate) · up, both of [..., F]."""
    y: Tensor = LigerSiLUMulFunction.apply(gate, up)
    return y


def liger_rotate(q: Tensor, k: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor]:
    """Turn queries and keys by their positions, in fp32.

    Args:
        q: [B, L, H, D] floating.
        k: [B, L, K, D] floating.
        rotary: [2, L, 1, R] or [2, B, L, 1, R] fp32, from `rotary_table`.
    """
    cos, sin = rotary[..., 0, :]
    copies = [x.clone(memory_format=torch.contiguous_format).transpose(1, 2) for x in (q, k)]
    q, k = LigerRopeFunction.apply(*copies, cos, sin)
    return q.transpose(1, 2), k.transpose(1, 2)


def liger_cross_entropy(logits: Tensor, targets: Tensor, wants_slopes: bool) -> Tensor:
    """Return the cross-entropy of each position, [P, 1] fp32, without reading a value.

    Liger's own loss of a head is not called: it waits for the device to count targets, rounds the
    weight of each token to the dtype of the logits, and without a reduction keeps the head's weight
    for its backward pass, which ZeRO-3 has released by then. Its kernel has no public name.

    Args:
        logits: [P, V] floating, contiguous; if `wants_slopes`, softmax - onehot is written over
            them.
        targets: [P] int64.
        wants_slopes: Whether a gradient is needed.
    """
    positions, vocabulary = logits.shape
    losses = torch.empty(positions, dtype=torch.float32, device=logits.device)
    liger_cross_entropy_kernel[(positions,)](
        X_ptr=logits,
        X_stride=logits.stride(0),
        Y_ptr=targets,
        Y_stride=targets.stride(0),
        weight_ptr=None,
        loss_ptr=losses,
        z_loss_ptr=None,
        loss_stride=losses.stride(0),
        token_accuracy_ptr=None,
        token_accuracy_stride=0,
        predicted_tokens_ptr=None,
        predicted_tokens_stride=0,
        n_cols=vocabulary,
        # Read for a mean, or with weights of classes.
        n_non_ignore=positions,
        sum_non_ignore_weight=positions,
        weight_sum=0.0,
        # No target is negative.
        ignore_index=-1,
        lse_square_scale=0.0,
        label_smoothing=0.0,
        reduction="none",
        softcap=None,
        RETURN_Z_LOSS=False,
        RETURN_TOKEN_ACCURACY=False,
        RETURN_PREDICTED_TOKENS=False,
        BLOCK_SIZE=min(_MOST_COLUMNS, triton.next_power_of_2(vocabulary)),
        HAS_WEIGHT=False,
        HAS_SOFTCAPPING=False,
        HAS_GRADIENTS=wants_slopes,
        num_warps=_WARPS if torch.version.hip is None else _WARPS_OF_AMD,
    )
    return losses[:, None]
