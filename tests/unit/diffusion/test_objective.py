"""The loss against values worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from llada_sft.diffusion.noise import draw_noise, independent
from llada_sft.diffusion.objective import diffusion_loss, masked_cross_entropy


@pytest.fixture
def hand_case() -> dict[str, Tensor]:
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 0, 0], [7, 8, 9, 10, 1, 2, 3, 0]])
    prompt_lengths = torch.tensor([[3], [5]])
    p_mask = torch.tensor([[0.5], [0.25]])
    u = torch.tensor(
        [[0.1, 0.9, 0.2, 0.4, 0.6, 0.3, 0.05, 0.7], [0.1, 0.2, 0.3, 0.4, 0.5, 0.2, 0.9, 0.1]]
    )
    return {
        "logits": torch.sin(torch.arange(176, dtype=torch.float64)).reshape(2, 8, 11).float(),
        "input_ids": ids,
        "masked": (u < p_mask) & (torch.arange(8) >= prompt_lengths),
        "weights": 1 / p_mask,
        "answer_lengths": 8 - prompt_lengths,
    }


def test_per_answer(hand_case: dict[str, Tensor]) -> None:
    loss = diffusion_loss(**hand_case, num_examples=2)
    assert loss.item() == pytest.approx(4.44287205, abs=1e-6)


def test_per_token(hand_case: dict[str, Tensor]) -> None:
    num_tokens = int(hand_case.pop("answer_lengths").sum())
    loss = diffusion_loss(**hand_case, answer_lengths=1, num_examples=num_tokens)
    assert loss.item() == pytest.approx(4.27531242, abs=1e-6)


def test_summed_over_the_answer(hand_case: dict[str, Tensor]) -> None:
    del hand_case["answer_lengths"]
    loss = diffusion_loss(**hand_case, answer_lengths=1, num_examples=2)
    assert loss.item() == pytest.approx(17.10124969, abs=2e-6)


@pytest.mark.slow
def test_constant_logits_give_ln_of_the_vocabulary() -> None:
    """Exact masking: always; Bernoulli: in expectation."""
    vocab, length = 11, 20
    response = torch.ones(length, dtype=torch.bool)
    ids = torch.arange(length)[None] % vocab
    logits = torch.zeros(1, length, vocab)

    def loss(masking: str, key: int) -> float:
        noise = draw_noise(response, independent(key), key, masking)  # type: ignore[arg-type]
        weight = torch.tensor([[noise.weight]])
        return diffusion_loss(logits, ids, noise.masked[None], weight, length, 1).item()

    assert loss("exact", 1) == pytest.approx(math.log(vocab), rel=1e-6)
    mean = sum(loss("bernoulli", key) for key in range(4000)) / 4000
    assert mean == pytest.approx(math.log(vocab), rel=0.03)


def test_cross_entropy_is_computed_in_fp32() -> None:
    logits = torch.tensor([[8.0, 0.03125, -3.0]], dtype=torch.bfloat16)
    target = torch.tensor([0])
    expected = -torch.log_softmax(logits.double(), -1)[0, 0]
    loss = masked_cross_entropy(logits, target, torch.ones(1))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)


def test_nothing_masked_is_zero_with_a_gradient() -> None:
    """A rank that has run out of examples still takes part in the backward pass."""
    logits = torch.randn(1, 4, 5, requires_grad=True)
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    loss = diffusion_loss(logits, torch.zeros(1, 4).long(), nothing, torch.ones(1, 1), 4, 1)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()
