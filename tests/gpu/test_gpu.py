"""The same code on one CUDA device: golden numbers, and a run of ZeRO-3 in bf16."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llada_sft.demo.data import write_demo
from llada_sft.diffusion.objective import diffusion_loss
from llada_sft.model import load_model
from llada_sft.model.attention import Sequences
from tests.distributed.ranks import run_on_ranks
from tests.distributed.training_workers import losses

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]
GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_llada"


def test_golden_logits_and_loss() -> None:
    expected = load_file(GOLDEN / "expected.safetensors", device="cuda")
    model = load_model(GOLDEN, device="cuda")
    with torch.no_grad():
        logits = model(expected["input_ids"]).logits
        noisy_logits = model(expected["sft_noisy_ids"]).logits
    torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=0)
    num_examples, length = expected["input_ids"].shape
    loss = diffusion_loss(
        noisy_logits,
        expected["input_ids"],
        expected["sft_masked"],
        1 / expected["sft_p_mask"][:, None],
        (length - expected["sft_prompt_lengths"])[:, None],
        num_examples,
    )
    assert loss.item() == pytest.approx(expected["sft_loss"].item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_of_sequences_equals_each_alone(dtype: torch.dtype) -> None:
    """Half precision goes through the kernel for variable lengths, fp32 one sequence at a time."""
    model = load_model(GOLDEN, dtype=dtype, device="cuda")
    ids = torch.randint(0, 500, (1, 300), device="cuda")
    lengths = (7, 1, 292)
    together = model(ids, sequences=Sequences(lengths)).logits[0]
    alone = torch.cat([model(part).logits[0] for part in ids.split(lengths, dim=1)])
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert torch.linalg.vector_norm(together - alone) < tolerance * torch.linalg.vector_norm(alone)
    gradients = []
    for logits in (together, alone):
        model.zero_grad()
        torch.autograd.backward(logits.float().logsumexp(-1).sum())
        gradients.append(torch.cat([p.grad.flatten().float() for p in model.parameters()]))
    difference = torch.linalg.vector_norm(gradients[0] - gradients[1])
    assert difference < 5 * tolerance * torch.linalg.vector_norm(gradients[1])


@pytest.mark.timeout(400)
def test_fit_save_resume_export_in_bf16(tmp_path: Path) -> None:
    write_demo(tmp_path / "demo")
    overrides = [
        "train.accelerator=cuda",
        "train.precision=bf16",
        "train.max_steps=40",
        "train.checkpoint_every_steps=10",
        "train.validate_every_steps=20",
        "log.every_n_steps=1",
        "log.tensorboard=false",
        "slurm.ranks_per_node=1",
        f"model.path={tmp_path / 'demo/tokenizer'}",
        f"data.train={tmp_path / 'demo/data/train'}",
        f"data.validation={tmp_path / 'demo/data/heldout'}",
    ]
    (result,) = run_on_ranks(
        "tests.distributed.training_workers:interrupted_runs", 1, 380, accelerator="cuda",
        folder=str(tmp_path), config_file="config/demo.yaml", overrides=overrides, stops=[15],
    )  # fmt: skip
    assert result["outcomes"] == ["finished", "stopped", "finished"]
    whole, resumed = losses(tmp_path / "whole"), losses(tmp_path / "stopped_15")
    assert list(whole) == list(resumed) == list(range(1, 41))
    assert float(whole[40]) < 0.8 * float(whole[1])
    # Atomic additions of CUDA come in any order: equal to what bf16 resolves, not bit for bit.
    assert float(resumed[40]) == pytest.approx(float(whole[40]), rel=0.05)
    assert float(resumed[16]) == pytest.approx(float(whole[16]), rel=0.01)
