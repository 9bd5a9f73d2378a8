"""The training loss: weighted cross-entropy at the masked positions.

    loss = (1 / N) Σ_examples (1 / L_i) Σ_masked weight · CE

with N the examples of the *global* batch and L_i the tokens of answer i. Everything around the
cross-entropy is one coefficient for each masked position, and that is how training calls it
(`masked_cross_entropy`): the head runs at masked positions only, and packing, accumulation and
the number of ranks are all folded into the coefficients.

Shapes: B examples, L positions, V vocabulary, M masked positions in all.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_cross_entropy(logits: Tensor, targets: Tensor, coefficients: Tensor) -> Tensor:
    """Return Σ coefficient · CE(logits, target), computed in fp32.

    Args:
        logits: [M, V] floating, the head's output at the masked positions.
        targets: [M] int64, the tokens under the masks.
        coefficients: [M] fp32, weight / (L_i · N) of each position.

    Returns:
        A scalar, fp32; zero, with a graph, when M is 0.
    """
    losses = F.cross_entropy(logits.float(), targets, reduction="none")  # [M]
    return (coefficients * losses).sum()


def diffusion_loss(
    logits: Tensor,
    input_ids: Tensor,
    masked: Tensor,
    weights: Tensor,
    answer_lengths: Tensor | int,
    num_examples: Tensor | float,
) -> Tensor:
    """Return the masked-diffusion loss of a batch from its full logits.

        (1 / num_examples) Σ_masked weight · CE(logits, input_ids) / answer_length

    To normalise by token instead of by answer (`normalization: token`), pass `answer_lengths=1`
    and, as `num_examples`, the number of response tokens of the global batch.

    Args:
        logits: [B, L, V] floating; position i predicts token i, there is no shift.
        input_ids: [B, L] int64, the clean tokens, before masking.
        masked: [B, L] bool, the positions that were masked. Never `noisy_ids == mask_token_id`: a
            text may contain that id.
        weights: fp32, broadcastable to [B, L]: 1 / p_mask (Bernoulli masking) or Lr / l (exact).
        answer_lengths: broadcastable to [B, L]: tokens of each answer, EOS padding included.
        num_examples: Examples of the global batch.

    Returns:
        A scalar, fp32.

    Source: LLaDA (arXiv 2502.09992), eq. 5 and eq. 14; the official GUIDELINES.md, SFT.
    """
    coefficients = torch.as_tensor(weights / answer_lengths / num_examples, device=logits.device)
    return masked_cross_entropy(
        logits[masked],  # [M, V]
        input_ids[masked],  # [M]
        coefficients.float().expand(masked.shape)[masked],  # [M]
    )


def confidence_loss(
    logits: Tensor, targets: Tensor, rows: Tensor, coefficients: Tensor, temperature: float = 0.5
) -> Tensor:
    """Return Σ_rows coefficient · mean entropy of the predictions that are right, in fp32.

    It makes right predictions more certain, so that a sampler may write more of them at once. This
    is another objective, added to the likelihood's: its minimum is not the distribution of the
    data. A prediction is right where the largest logit is the target's; a row without right ones
    adds nothing.

    Args:
        logits: [M, V] floating, the head's output at the masked positions.
        targets: [M] int64.
        rows: [M] int64, which row each position belongs to.
        coefficients: [M] fp32, what the entropy of each is multiplied by.
        temperature: Of the softmax whose entropy is taken.

    Source: dParallel (arXiv 2509.26488), certainty-forcing loss; there the mean is over the right
    positions of a micro-batch.
    """
    right = (logits.argmax(-1) == targets).float()
    counts = torch.bincount(rows, right).clamp(min=1)
    log_q = (logits.float() / temperature).log_softmax(-1)
    entropies = -(log_q.exp() * log_q).sum(-1)  # [M]
    return (coefficients * right / counts[rows] * entropies).sum()
