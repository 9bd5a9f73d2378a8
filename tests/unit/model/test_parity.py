"""The network, the loss, the gradients and the sampler against the official code's numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llada_sft.diffusion.generate import generate
from llada_sft.diffusion.objective import diffusion_loss
from llada_sft.model import Network, load_model

CASES = json.loads(
    (Path(__file__).parents[2] / "golden" / "tiny_llada" / "generate.json").read_text()
)


def test_logits(golden: Network, expected: dict[str, Tensor]) -> None:
    logits = golden(expected["input_ids"]).logits
    torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=0)


def sft_loss(model: Network, expected: dict[str, Tensor]) -> Tensor:
    ids = expected["input_ids"]
    num_examples, length = ids.shape
    return diffusion_loss(
        model(expected["sft_noisy_ids"]).logits,
        ids,
        expected["sft_masked"],
        1 / expected["sft_p_mask"][:, None],
        (length - expected["sft_prompt_lengths"])[:, None],
        num_examples,
    )


def test_loss(golden: Network, expected: dict[str, Tensor]) -> None:
    assert sft_loss(golden, expected).item() == pytest.approx(expected["sft_loss"].item(), rel=1e-6)


def test_gradients(golden: Network, expected: dict[str, Tensor]) -> None:
    torch.autograd.backward(sft_loss(golden, expected))
    gradients = {name: p.grad for name, p in golden.named_parameters() if p.grad is not None}
    assert {f"grad.{name}" for name in gradients} == {k for k in expected if k.startswith("grad.")}
    for name, gradient in gradients.items():
        official = expected[f"grad.{name}"]
        head = gradient if gradient.shape == official.shape else gradient.flatten()[:4096]
        assert (head - official).norm() <= 1e-5 * official.norm(), name
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert norm.item() == pytest.approx(expected["grad_norm"].item(), rel=1e-5)


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: f"{case['steps']}-steps")
def test_generation(golden_dir: Path, case: dict[str, Any]) -> None:
    model = load_model(golden_dir, dtype=torch.float64)
    prompt = torch.tensor(case["prompt"])
    settings = {k: v for k, v in case.items() if k not in ("prompt", "output")}
    ids = generate(model, prompt, mask_token_id=CASES["mask_id"], **settings)
    assert ids[:, : prompt.shape[1]].equal(prompt)
    assert ids[:, prompt.shape[1] :].tolist() == case["output"]
