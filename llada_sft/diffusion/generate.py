"""The reverse process: from a masked answer to text, as the official sampler does it.

The answer starts fully masked and is uncovered block by block, from left to right. Each step
predicts every masked token at once and keeps the most confident ones of the current block (or
random ones); the others stay masked. Tokens once uncovered never change.

Shapes: B prompts of one length, P prompt tokens, L = P + gen_length, V vocabulary.

Source: LLaDA (arXiv 2502.09992), algorithms 4 and 5, and the official generate.py, whose result
this one reproduces token for token.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

Remasking = Literal["low_confidence", "random"]


class HasLogits(Protocol):
    """What a mask predictor returns."""

    @property
    def logits(self) -> Tensor:
        """[B, L, V] floating."""


class MaskPredictor(Protocol):
    """A network that predicts all positions at once."""

    def __call__(self, input_ids: Tensor, /) -> HasLogits: ...


@torch.no_grad()
def generate(
    model: MaskPredictor,
    prompt_ids: Tensor,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: Remasking = "low_confidence",
    mask_token_id: int = 126336,
    generator: torch.Generator | None = None,
    suppress_tokens: Sequence[int] = (),
) -> Tensor:
    """Complete prompts by masked diffusion.

    Args:
        model: The mask predictor, in evaluation mode.
        prompt_ids: [B, P] int64, on the model's device. A mask token in a prompt is filled in, too.
        steps: Forward passes in all; each block gets an equal share.
        gen_length: Tokens of the answer.
        block_length: Tokens of a block; `gen_length` is a multiple of it.
        temperature: Of the Gumbel noise; 0 takes the most likely token.
        cfg_scale: Strength of unsupervised classifier-free guidance; 0 is none, and half the work.
        remasking: Keep the most confident predictions, or random ones.
        mask_token_id: From the model's config; family members differ.
        generator: Where randomness comes from; None is torch's global generator.
        suppress_tokens: Never written. Confidence is the probability among all tokens, these
            included: where the network expects one of them, another is written last.

    Returns:
        [B, P + gen_length] int64, prompts included.
    """
    steps_per_block = _check_arguments(steps, gen_length, block_length, remasking)
    num_prompts, prompt_length = prompt_ids.shape
    answer = prompt_ids.new_full((num_prompts, gen_length), mask_token_id)
    ids = torch.cat([prompt_ids, answer], dim=1)  # [B, L]
    is_prompt = ids != mask_token_id  # [B, L]

    for start in range(prompt_length, ids.shape[1], block_length):
        end = start + block_length
        num_masked = (ids[:, start:end] == mask_token_id).sum(dim=1)  # [B]
        for num_kept in num_transfer_tokens(num_masked, steps_per_block).T.tolist():
            logits = _guided_logits(model, ids, is_prompt, cfg_scale, mask_token_id)  # [B, L, V]
            allowed = _without(logits, suppress_tokens)  # [B, L, V]
            predicted = _sample(allowed, temperature, generator)  # [B, L]
            confidence = _confidence(logits, predicted, remasking, generator)  # [B, L]
            eligible = ids == mask_token_id  # [B, L]
            eligible[:, end:] = False
            confidence = confidence.masked_fill(~eligible, -torch.inf)
            _uncover(ids, predicted, confidence, num_kept)
    return ids


def num_transfer_tokens(num_masked: Tensor, steps: int) -> Tensor:
    """Split each count over the steps as evenly as can be, larger shares first.

    Args:
        num_masked: [B] int64.
        steps: Number of shares.

    Returns:
        [B, steps] int64; each row sums to its count.
    """
    share, remainder = num_masked // steps, num_masked % steps
    step = torch.arange(steps, device=num_masked.device)
    return share[:, None] + (step < remainder[:, None]).long()


def _check_arguments(steps: int, gen_length: int, block_length: int, remasking: str) -> int:
    """Return the steps of one block."""
    if gen_length % block_length:
        raise ValueError(
            f"gen_length must be a multiple of block_length, got {gen_length} and {block_length}"
        )
    num_blocks = gen_length // block_length
    if steps % num_blocks:
        raise ValueError(
            f"steps must be a multiple of the number of blocks, got {steps} and {num_blocks}"
        )
    if remasking not in ("low_confidence", "random"):
        raise ValueError(f"remasking must be 'low_confidence' or 'random', got {remasking!r}")
    return steps // num_blocks


def _guided_logits(
    model: MaskPredictor, ids: Tensor, is_prompt: Tensor, cfg_scale: float, mask_token_id: int
) -> Tensor:
    """Return logits [B, L, V], pushed away from those of a masked prompt.

    Source: Nie et al., "Scaling up Masked Diffusion Models on Text" (arXiv 2410.18514), eq. 8.
    """
    if cfg_scale == 0:
        return model(ids).logits
    without_prompt = ids.masked_fill(is_prompt, mask_token_id)
    logits, unconditional = model(torch.cat([ids, without_prompt])).logits.chunk(2)
    return unconditional + (cfg_scale + 1) * (logits - unconditional)


def _without(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return logits [B, L, V] by which tokens are never chosen."""
    if not tokens:
        return logits
    return logits.index_fill(-1, torch.tensor(tokens, device=logits.device), -torch.inf)


def _sample(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Return a token for each position, [B, L] int64.

    The Gumbel noise is drawn in float64: in lower precision its tails are cut off, and the sampler
    becomes greedier than its temperature says (arXiv 2409.02908).
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.double()
    uniform = torch.rand(
        logits.shape, dtype=logits.dtype, device=logits.device, generator=generator
    )
    return (logits.exp() / (-uniform.log()) ** temperature).argmax(dim=-1)


def _confidence(
    logits: Tensor, predicted: Tensor, remasking: Remasking, generator: torch.Generator | None
) -> Tensor:
    """Return how much each prediction deserves to be kept, [B, L] floating."""
    if remasking == "random":
        return torch.rand(predicted.shape, device=predicted.device, generator=generator)
    probabilities = logits.double().softmax(dim=-1)
    return probabilities.gather(-1, predicted[..., None]).squeeze(-1)


def _uncover(ids: Tensor, predicted: Tensor, confidence: Tensor, num_kept: list[int]) -> None:
    """Write the `num_kept[b]` most confident predictions of each row into `ids`, in place."""
    for row, count in enumerate(num_kept):
        kept = confidence[row].topk(count).indices
        ids[row, kept] = predicted[row, kept]
