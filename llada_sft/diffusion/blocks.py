"""Block diffusion: the noise of each block of an example, and a recipe with one level for all.

The bound of a sequence is the sum over its blocks of the bound of each, given the blocks before it
(arXiv 2503.09573, eq. 4). A block is noised as an example is under full attention, alone: of its n
answer tokens, l ~ U{1..n} are masked, with the weight n / l (`diffusion/noise.py`). Here is what
blocks add to that: where they are, and levels that are spread over those of an example.

`draw_band` is the published recipe of LLaDA2.0's training code, which is no bound.

Shapes: L positions of one example; K blocks of it have answer tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from llada_sft.diffusion.noise import Noise, independent
from llada_sft.keys import hashed


def blocks_with(tokens: Tensor, block_length: int) -> list[slice]:
    """Return the blocks that have at least one of these tokens.

    Args:
        tokens: [L] bool.
        block_length: Positions of a block, counted from the start; the last may be shorter.
    """
    length = len(tokens)
    numbers = (tokens.nonzero().squeeze(1) // block_length).tolist()
    starts = [number * block_length for number in dict.fromkeys(numbers)]
    return [slice(start, min(start + block_length, length)) for start in starts]


def block_key(key: int, start: int) -> int:
    """Return the 64-bit key of a block's noise.

    Args:
        key: Of the example's noise.
        start: Where in the example the block starts.
    """
    return hashed("block", key, start)


def rotated(u: float, place: int, count: int) -> float:
    """Return element `place` of `count` equidistant points of [0, 1), rotated by u.

    Each point is uniform if u is, and all of them together are spread evenly. With u from a low
    discrepancy sequence over examples, those of any one place are, too.

    Source: Owen, "Quasi-Monte Carlo sampling" (2003), Cranley-Patterson rotation.
    """
    moved = u + place / count
    return moved if moved < 1 else moved - 1


def block_level(u: float | None, key: int, place: int, count: int) -> float:
    """Return the uniform number of a block.

    Args:
        u: Of the example; None: the blocks of all examples are independent.
        key: Of the block.
        place, count: Which of the K blocks it is.
    """
    return independent(key) if u is None else rotated(u, place, count)


def draw_band(
    response_mask: Tensor,
    u: float,
    key: int,
    band: tuple[float, float],
    twins: int = 1,
    of_answer: bool = True,
) -> list[Noise]:
    """Mask each answer token with one probability for all of them, uniform in a band.

    This is a biased recipe, named so on purpose: without the weight 1/t, and with levels of a part
    of [0, 1) alone, the loss is no bound of the likelihood. It is a mean over the masked tokens:
    of each answer (their weight is L / m with m of L answer tokens masked, and of an answer without
    masked ones nothing is learned), or of the whole batch (their weight is 1).

    Args:
        response_mask: [L] bool, true at the tokens of the response.
        u: Uniform in [0, 1): the place of the probability in the band.
        key: The example's key; it decides which tokens are masked.
        band: Least and largest probability.
        twins: 2 draws a second mask with the numbers 1 - u and 1 - U.
        of_answer: Whether the mean is over those of each answer.

    Source: LLaDA2.0 (arXiv 2512.15745) and its training code dFactory, which draws in [0.3, 0.8).
    """
    response = response_mask.nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(key)
    uniform = torch.rand(len(response), generator=generator, dtype=torch.float64)
    low, high = band
    noises = []
    for level, numbers in ((u, uniform), (1 - u, 1 - uniform))[:twins]:
        masked = torch.zeros_like(response_mask)
        chosen = response[numbers < low + (high - low) * level]
        masked[chosen] = True
        share = len(chosen) / len(response)
        weight = 1 / share if of_answer and len(chosen) else 1.0
        noises.append(Noise(masked, share, weight, level))
    return noises


@torch.no_grad()
def generate_in_blocks(
    predict: Callable[[Tensor], Tensor],
    prompt: Tensor,
    gen_length: int,
    block_length: int,
    mask_token_id: int,
) -> Tensor:
    """Answer a prompt block by block, the most certain token of a block in each pass.

    It makes `gen_length` passes, whatever is predicted: ranks that predict together stay together.
    The samplers `llada2` and `llada21` of `llada_sft.generation` write more tokens at once.

    Args:
        predict: Returns the logits [1, L, V] of token ids [1, L], with block-causal attention.
        prompt: [1, P] int64.
        gen_length: Tokens of the answer, its end included.
        block_length: Tokens of a block, counted from the start of the prompt.
        mask_token_id: Stands where nothing is written yet; it is never written.

    Returns:
        [1, P + gen_length] int64.
    """
    start, end = prompt.shape[1], prompt.shape[1] + gen_length
    # The network knows whole blocks.
    canvas = prompt.new_full((1, end + -end % block_length), mask_token_id)
    canvas[:, :start] = prompt
    is_open = torch.zeros(canvas.shape[1], dtype=torch.bool, device=prompt.device)
    is_open[start:end] = True
    blocks = torch.arange(canvas.shape[1], device=prompt.device) // block_length
    for _ in range(gen_length):
        logits = predict(canvas)[0].double()  # [L, V]
        logits[:, mask_token_id] = -torch.inf
        confidences, tokens = logits.softmax(-1).max(-1)
        # The first block that has an open place.
        in_block = is_open & (blocks == blocks[is_open][0])
        place = confidences.masked_fill(~in_block, -1.0).argmax()
        canvas[0, place], is_open[place] = tokens[place], False
    return canvas[:, :end]
