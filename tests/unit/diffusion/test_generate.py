"""The sampler's own rules; its parity with the official one is in tests/unit/model."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from llada_sft.diffusion.generate import generate, num_transfer_tokens

MASK, VOCAB = 9, 10


def favours_five(input_ids: Tensor) -> SimpleNamespace:
    """Token 5 everywhere, the more surely the further left; never the mask token."""
    logits = torch.zeros(*input_ids.shape, VOCAB)
    logits[..., MASK] = -torch.inf
    logits[..., 5] = torch.linspace(8, 4, input_ids.shape[1])
    return SimpleNamespace(logits=logits)


def test_transfers_are_even_with_the_larger_shares_first() -> None:
    assert num_transfer_tokens(torch.tensor([8, 3]), 3).tolist() == [[3, 3, 2], [1, 1, 1]]


def test_blocks_are_filled_from_left_to_right() -> None:
    seen = []

    def watched(input_ids: Tensor) -> SimpleNamespace:
        seen.append(input_ids[0, 2:].ne(MASK).tolist())
        return favours_five(input_ids)

    prompt = torch.tensor([[1, 2]])
    ids = generate(watched, prompt, 4, 4, block_length=2, mask_token_id=MASK)
    assert ids.tolist() == [[1, 2, 5, 5, 5, 5]]
    assert [sum(row) for row in seen] == [0, 1, 2, 3]
    assert seen[2] == [True, True, False, False]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_suppressed_tokens_are_never_written(temperature: float) -> None:
    prompt, settings = torch.tensor([[1, 2]] * 50), {"mask_token_id": MASK, "block_length": 4}
    ids = generate(favours_five, prompt, 4, 4, temperature=temperature, suppress_tokens=[5, 3],
                   **settings)  # fmt: skip
    assert not torch.isin(ids, torch.tensor([5, 3, MASK])).any()
    if temperature == 0:
        plain = generate(favours_five, prompt, 4, 4, suppress_tokens=[3], **settings)
        assert torch.equal(plain, generate(favours_five, prompt, 4, 4, **settings))
        assert (plain[:, 2:] == 5).all()


def test_a_place_where_a_suppressed_token_is_expected_is_filled_last() -> None:
    """What else may be there is likely among the others, and not among all."""
    filled = []

    def network(input_ids: Tensor) -> SimpleNamespace:
        filled.append(input_ids[0, 1:].ne(MASK).tolist())
        logits = torch.zeros(1, 4, VOCAB)
        logits[..., MASK] = -torch.inf
        # Token 4 is certain among the others in the first place, and a little likely elsewhere.
        logits[0, 1, 5], logits[0, 1, 4] = 20.0, 10.0
        logits[0, 2:, 4] = 1.0
        return SimpleNamespace(logits=logits)

    settings = {"block_length": 3, "mask_token_id": MASK, "suppress_tokens": [5]}
    ids = generate(network, torch.tensor([[1]]), 3, 3, **settings)
    assert ids.tolist() == [[1, 4, 4, 4]]
    assert [row[0] for row in filled] == [False, False, False]


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_mask_is_filled(remasking: Any, temperature: float) -> None:
    prompt = torch.tensor([[1, 2], [3, 4]])

    def run(seed: int) -> Tensor:
        return generate(
            favours_five,
            prompt,
            steps=6,
            gen_length=8,
            block_length=4,
            temperature=temperature,
            remasking=remasking,
            mask_token_id=MASK,
            generator=torch.Generator().manual_seed(seed),
        )

    assert torch.equal(run(1), run(1))
    assert torch.equal(run(1)[:, :2], prompt)
    assert not (run(1) == MASK).any()


def test_gumbel_noise_samples_the_softmax() -> None:
    probabilities = torch.tensor([0.6, 0.3, 0.1])

    def network(input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=probabilities.log().expand(*input_ids.shape, 3))

    prompt = torch.zeros(4000, 1).long()
    generator = torch.Generator().manual_seed(0)
    ids = generate(network, prompt, 1, 1, 1, 1.0, mask_token_id=MASK, generator=generator)
    share = ids[:, 1].bincount(minlength=3) / len(ids)
    torch.testing.assert_close(share, probabilities, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"gen_length": 10, "block_length": 4},
            "gen_length must be a multiple of block_length, got 10 and 4",
        ),
        (
            {"steps": 3, "gen_length": 8, "block_length": 4},
            "steps must be a multiple of the number of blocks, got 3 and 2",
        ),
        (
            {"remasking": "none"},
            "remasking must be 'low_confidence' or 'random', got 'none'",
        ),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        generate(favours_five, torch.tensor([[1]]), mask_token_id=MASK, **arguments)
    assert str(error.value) == message
