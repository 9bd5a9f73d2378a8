"""The reverse process: from a masked answer to text, as the official sampler does it.

The answer starts fully masked and is uncovered block by block, from left to right. Each step
predicts every masked token at once and keeps the most confident ones of the current block (or
random ones); the others stay masked. Tokens once uncovered never change.

Only masked positions up to the end of the current block can be uncovered: the softmax and the noise
are computed there, and a predictor that can compute logits there alone is asked for no others.

Shapes: B prompts, P prompt tokens, L = P + gen_length, V vocabulary, M candidates: masked positions
that a step may uncover.

Source: LLaDA (arXiv 2502.09992), algorithms 4 and 5, and the official generate.py, whose result
this one reproduces token for token.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from llada_sft.choices import Remasking


class HasLogits(Protocol):
    """What a mask predictor returns."""

    @property
    def logits(self) -> Tensor:
        """[B, L, V] floating."""


class MaskPredictor(Protocol):
    """A network that predicts all positions at once."""

    def __call__(self, input_ids: Tensor, /) -> HasLogits: ...


# Takes ids [B, L] int64 and indices [M] int64 into the flattened B·L positions; returns the logits
# of these, [M, V] floating.
PredictAt = Callable[[Tensor, Tensor], Tensor]


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
    steps_per_block = steps_of_block(steps, gen_length, block_length)
    if remasking not in ("low_confidence", "random"):
        raise ValueError(f"remasking must be 'low_confidence' or 'random', got {remasking!r}")
    num_prompts, prompt_length = prompt_ids.shape
    answer = prompt_ids.new_full((num_prompts, gen_length), mask_token_id)
    ids = torch.cat([prompt_ids, answer], dim=1)  # [B, L]

    def predict(ids: Tensor, wanted: Tensor) -> Tensor:
        return model(ids).logits.flatten(0, 1)[wanted]

    uncover_blocks(
        guided(predict, ids != mask_token_id, cfg_scale, mask_token_id),
        ids,
        torch.full_like(ids[:, 0], prompt_length),
        num_blocks=gen_length // block_length,
        block_length=block_length,
        steps_per_block=steps_per_block,
        temperature=temperature,
        remasking=remasking,
        mask_token_id=mask_token_id,
        generator=generator,
        suppress_tokens=suppress_tokens,
    )
    return ids


def uncover_blocks(
    predict: PredictAt,
    ids: Tensor,
    starts: Tensor,
    *,
    num_blocks: int,
    block_length: int,
    steps_per_block: int,
    temperature: float,
    remasking: Remasking,
    mask_token_id: int,
    generator: torch.Generator | None,
    suppress_tokens: Sequence[int] = (),
    last_tokens: Sequence[int] = (),
) -> None:
    """Uncover masked answers in place, block by block, in as many passes as there are steps.

    Args:
        predict: The mask predictor.
        ids: [B, L] int64; after its answer, a row may have padding other than the mask token.
        starts: [B] int64, where each answer starts.
        num_blocks: Blocks of each answer.
        block_length: Tokens of a block.
        steps_per_block: Passes for each block.
        temperature: As in `generate`.
        remasking: As in `generate`.
        mask_token_id: As in `generate`.
        generator: As in `generate`.
        suppress_tokens: As in `generate`.
        last_tokens: Of no confidence; that of others is their probability among all but these.
    """
    places = torch.arange(ids.shape[1], device=ids.device)
    for block in range(num_blocks):
        ends = (starts + (block + 1) * block_length)[:, None]  # [B, 1]
        in_block = (places >= ends - block_length) & (places < ends)
        num_masked = ((ids == mask_token_id) & in_block).sum(dim=1)  # [B]
        for num_kept in num_transfer_tokens(num_masked, steps_per_block).T.tolist():
            eligible = (ids == mask_token_id) & (places < ends)  # [B, L]
            wanted = eligible.flatten().nonzero()[:, 0]  # [M]
            logits = predict(ids, wanted)  # [M, V]
            allowed = without(logits, suppress_tokens)
            predicted = _sample(allowed, wanted, ids.shape, temperature, generator)  # [M]
            logits = without(logits, last_tokens)
            confidence = _confidence(logits, predicted, wanted, ids.shape, remasking, generator)
            _uncover(ids, wanted, predicted, confidence, num_kept)


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


def steps_of_block(steps: int, gen_length: int, block_length: int) -> int:
    """Return the passes for each block.

    Raises:
        ValueError: The lengths or the steps cannot be divided evenly.
    """
    if gen_length % block_length:
        raise ValueError(
            f"gen_length must be a multiple of block_length, got {gen_length} and {block_length}"
        )
    num_blocks = gen_length // block_length
    if steps % num_blocks:
        raise ValueError(
            f"steps must be a multiple of the number of blocks, got {steps} and {num_blocks}"
        )
    return steps // num_blocks


def guided(
    predict: PredictAt, is_prompt: Tensor, cfg_scale: float, mask_token_id: int
) -> PredictAt:
    """Push logits away from those of a masked prompt; twice the rows are computed.

    Args:
        predict: Takes any number of rows.
        is_prompt: [B, L] bool, true at what is masked for the other rows.
        cfg_scale: Strength; 0 returns `predict`.
        mask_token_id: From the model's config.

    Source: Nie et al., "Scaling up Masked Diffusion Models on Text" (arXiv 2410.18514), eq. 8.
    """
    if cfg_scale == 0:
        return predict

    def predict_both(ids: Tensor, wanted: Tensor) -> Tensor:
        without_prompt = ids.masked_fill(is_prompt, mask_token_id)
        both = torch.cat([wanted, wanted + ids.numel()])
        logits, unconditional = predict(torch.cat([ids, without_prompt]), both).chunk(2)
        return unconditional + (cfg_scale + 1) * (logits - unconditional)

    return predict_both


def without(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return logits [M, V] by which tokens are never chosen."""
    if not tokens:
        return logits
    return logits.index_fill(-1, torch.tensor(tokens, device=logits.device), -torch.inf)


def _sample(
    logits: Tensor,
    wanted: Tensor,
    shape: torch.Size,
    temperature: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Return a token for each candidate, [M] int64.

    The Gumbel noise is drawn in float64: in lower precision its tails are cut off, and the sampler
    becomes greedier than its temperature says (arXiv 2409.02908). It is drawn for all positions,
    as the official code does, so that a seed means the same there and here.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    uniform = torch.rand(
        (*shape, logits.shape[-1]), dtype=torch.float64, device=logits.device, generator=generator
    )
    return with_gumbel_noise(logits, uniform.flatten(0, 1)[wanted], temperature).argmax(dim=-1)


def with_gumbel_noise(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Return scores whose largest one is a draw from the softmax at a temperature, float64.

    Args:
        logits: [..., V] floating.
        uniform: [..., V] float64, in [0, 1).
        temperature: Above 0.
    """
    return logits.double().exp() / (-uniform.log()) ** temperature


def probability_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the probability of one token at each position, [M] float64.

    Args:
        logits: [M, V] floating.
        tokens: [M] int64.
    """
    probabilities = logits.double().softmax(dim=-1)
    return probabilities.gather(-1, tokens[:, None]).squeeze(-1)


def _confidence(
    logits: Tensor,
    predicted: Tensor,
    wanted: Tensor,
    shape: torch.Size,
    remasking: Remasking,
    generator: torch.Generator | None,
) -> Tensor:
    """Return how much each prediction deserves to be kept, [M] floating."""
    if remasking == "random":
        return torch.rand(shape, device=logits.device, generator=generator).flatten()[wanted]
    return probability_of(logits, predicted)


def _uncover(
    ids: Tensor, wanted: Tensor, predicted: Tensor, confidence: Tensor, num_kept: list[int]
) -> None:
    """Write the `num_kept[b]` most confident predictions of each row into `ids`, in place."""
    scores = confidence.new_full(ids.shape, -torch.inf)  # [B, L]
    scores.view(-1)[wanted] = confidence
    tokens = ids.clone()  # [B, L]
    tokens.view(-1)[wanted] = predicted
    for row, count in enumerate(num_kept):
        kept = scores[row].topk(count).indices
        ids[row, kept] = tokens[row, kept]
