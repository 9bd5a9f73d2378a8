"""The same code on one CUDA device: golden numbers, and a run of ZeRO-3 in bf16."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llada_sft.config.sections.optim import OptimConfig
from llada_sft.demo.data import write_demo
from llada_sft.diffusion.objective import (
    confidence_loss,
    diffusion_loss,
    masked_cross_entropy,
)
from llada_sft.model import Network, NetworkConfig, build_model, load_model
from llada_sft.model.kernels.choice import Kernels
from llada_sft.model.kernels.use import use_kernels
from llada_sft.model.layers.attention import Sequences
from llada_sft.model.layers.blocks import Blocks
from llada_sft.model.layers.experts import StackedExperts
from llada_sft.model.layers.flex import attend_flex, plan_flex
from llada_sft.model.layers.head import LossTerms, weighted_cross_entropy
from llada_sft.model.layers.kept_bytes import Checkpointing
from llada_sft.training.masks.micro_batch import MicroBatch
from llada_sft.training.module import build_optimizer, parameter_groups
from tests.distributed.ranks import run_on_ranks
from tests.distributed.training_workers import losses

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]
GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_llada"


@pytest.mark.parametrize("name", ["tiny_llada", "tiny_llada_moe", "tiny_llada_moe_shared"])
def test_golden_logits_and_loss(name: str) -> None:
    golden = GOLDEN.parent / name
    expected = load_file(golden / "expected.safetensors", device="cuda")
    model = load_model(golden, device="cuda")
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


@pytest.mark.parametrize("name", ["tiny_llada2_moe", "tiny_llada2_moe_b"])
def test_golden_logits_of_llada2(name: str) -> None:
    golden = GOLDEN.parent / name
    expected = load_file(golden / "expected.safetensors", device="cuda")
    with torch.no_grad():
        logits = load_model(golden, device="cuda")(expected["input_ids"]).logits
    torch.testing.assert_close(logits, expected["logits"], atol=1e-4, rtol=0)


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


@pytest.mark.skipif(find_spec("flash_attn") is None, reason="needs flash-attn")
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_flash_attention_of_a_packed_row_equals_padded_rows(checkpointing: Checkpointing) -> None:
    model, lengths = load_model(GOLDEN, dtype=torch.bfloat16, device="cuda"), (7, 1, 292)
    use_kernels(model, Kernels(attention="flash_attn"))
    model.set_activation_checkpointing(checkpointing)
    ids = torch.randint(0, 500, (1, 300), device="cuda")
    places = torch.arange(292, device="cuda")
    real = places < torch.tensor(lengths, device="cuda")[:, None]
    rows = torch.zeros(3, 292, dtype=torch.int64, device="cuda")
    rows[real] = ids[0]
    gradients, found = [], []
    for logits in (
        model(ids, sequences=Sequences(lengths)).logits[0],
        model(rows, real).logits[real],
    ):
        model.zero_grad()
        torch.autograd.backward(logits.float().logsumexp(-1).sum())
        found.append(logits.detach().float())
        gradients.append(torch.cat([p.grad.flatten().float() for p in model.parameters()]))
    assert torch.linalg.vector_norm(found[0] - found[1]) < 0.02 * found[1].norm()
    assert torch.linalg.vector_norm(gradients[0] - gradients[1]) < 0.1 * gradients[1].norm()


@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.filterwarnings("ignore")
def test_blocks_have_the_values_and_gradients_of_the_chunks(
    dtype: torch.dtype, packed: bool, doubled: bool
) -> None:
    """FlexAttention, compiled, against the way of the CPU in fp32; lengths are of any size."""
    model = load_model(GOLDEN, dtype=dtype, device="cuda")
    exact = load_model(GOLDEN, device="cuda")
    exact.load_state_dict(model.state_dict())
    exact.flex_attention = False
    blocks, lengths = Blocks(32, doubled), (7, 70, 223)
    shape = (1, 300 * blocks.halves) if packed else (2, 200 * blocks.halves)
    real = None if packed else torch.arange(200, device="cuda") < torch.tensor([[200], [77]]).cuda()
    shown = torch.ones(shape, dtype=torch.bool, device="cuda")
    if real is not None:
        shown = real.repeat(1, blocks.halves)
    ids, found = torch.randint(0, 500, shape, device="cuda"), []
    for network in (model, exact):
        sequences = Sequences(lengths) if packed else None
        logits = network(ids, real, sequences=sequences, blocks=blocks).logits[shown].float()
        torch.autograd.backward(logits.logsumexp(-1).sum())
        slopes = [p.grad.flatten().float() for p in network.parameters() if p.grad is not None]
        found.append((logits.detach(), torch.cat(slopes)))
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    for got, expected in zip(*found, strict=True):
        assert torch.linalg.vector_norm(got - expected) < tolerance * expected.norm()


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
@pytest.mark.filterwarnings("ignore")
def test_blocks_that_are_computed_again(checkpointing: Checkpointing) -> None:
    model, found = load_model(GOLDEN, dtype=torch.bfloat16, device="cuda"), []
    ids = torch.randint(0, 500, (1, 600), device="cuda")
    for kept in ("none", checkpointing):
        model.set_activation_checkpointing(kept)
        model.zero_grad()
        logits = model(ids, sequences=Sequences((77, 223)), blocks=Blocks(32, True)).logits
        torch.autograd.backward(logits.float().logsumexp(-1).sum())
        slopes = [p.grad.flatten().float() for p in model.parameters() if p.grad is not None]
        found.append(torch.cat(slopes))
    assert torch.linalg.vector_norm(found[0] - found[1]) < 0.01 * found[0].norm()


@pytest.mark.filterwarnings("ignore")
def test_memory_of_blocks_grows_with_the_row() -> None:
    """A pack of 8,192: a tenth of the dense mask of 16,384 positions, of one byte a pair."""
    blocks, lengths = Blocks(32, doubled=True), [608, 96, 320] * 8
    device, heads = torch.device("cuda"), []
    for number in (4, 1, 1):
        shape = (1, 2 * 8192, number, 64)
        heads.append(torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True))
    slopes = torch.ones_like(heads[0])

    def run() -> None:
        mixed = attend_flex(*heads, plan_flex(blocks, lengths, None, device))
        torch.autograd.grad(mixed, heads, slopes)

    run()  # compiles
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    assert torch.cuda.max_memory_allocated() - before < (2 * 8192) ** 2 / 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_experts_compute_what_they_do_on_the_cpu(dtype: torch.dtype) -> None:
    """Values and gradients, two of the eight experts without a token."""
    torch.manual_seed(0)
    experts = StackedExperts(8, 64, 32, ("gate", "up", "down")).to(dtype)
    for parameter in experts.parameters():
        parameter.data.normal_(std=0.1)
    x, slopes = torch.randn(2, 200, 64).to(dtype)
    chosen, weights = torch.randn(200, 6).topk(2).indices + 1, torch.rand(200, 2).to(dtype)
    found = []
    for device in ("cpu", "cuda"):
        experts.to(device).zero_grad()
        y = experts(x.to(device), chosen.to(device), weights.to(device))
        torch.autograd.backward(y, slopes.to(device))
        grads = [p.grad for p in experts.parameters() if p.grad is not None]
        found.append([each.detach().float().cpu() for each in (y, *grads)])
    for on_cpu, on_gpu in zip(*found, strict=True):
        difference = torch.linalg.vector_norm(on_gpu - on_cpu)
        assert difference < (1e-2 if dtype == torch.bfloat16 else 1e-5) * on_cpu.norm()


def odd_config(head_dim: int) -> NetworkConfig:
    """Return the config of one layer with four heads of any size."""
    return NetworkConfig.from_size(
        d_model=4 * head_dim,
        n_layers=1,
        n_heads=4,
        mlp_hidden_size=64,
        max_sequence_length=64,
        vocab_size=512,
        mask_token_id=510,
        eos_token_id=505,
        pad_token_id=505,
    )


def packed_batch(lengths: tuple[int, ...]) -> MicroBatch:
    """Make a micro-batch in host memory, as the feed does; every third token is masked."""
    ids = torch.randint(0, 500, (1, sum(lengths)))
    positions = torch.arange(0, sum(lengths), 3)
    return MicroBatch(
        ids,
        attention_mask=None,
        positions=positions,
        targets=ids[0, positions],
        coefficients=torch.full((len(positions),), 1 / sum(lengths)),
        sequences=Sequences(lengths),
    )


def loss_of(model: Network, batch: MicroBatch) -> Tensor:
    loss: Tensor = model(
        batch.noisy_ids,
        positions=batch.positions,
        sequences=batch.sequences,
        targets=batch.targets,
        coefficients=batch.coefficients,
    ).loss
    return loss


def gradient(model: Network, batch: MicroBatch) -> tuple[float, Tensor]:
    model.zero_grad()
    loss = loss_of(model, batch)
    torch.autograd.backward(loss)
    return loss.item(), torch.cat([p.grad.flatten().float() for p in model.parameters()])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full", "offload"])
@pytest.mark.filterwarnings("ignore")
def test_every_way_has_the_same_loss_and_gradients(
    checkpointing: Checkpointing, compiled: bool
) -> None:
    """In bf16, against fp32 with everything kept: the kernel for variable lengths, Triton's."""
    model = load_model(GOLDEN, dtype=torch.bfloat16, device="cuda")
    exact = load_model(GOLDEN, device="cuda")
    exact.load_state_dict(model.state_dict())
    model.set_activation_checkpointing(checkpointing)
    if compiled:
        model.compile_blocks()
    for lengths in ((7, 1, 292), (300,), (3,) * 50):
        batch = packed_batch(lengths).to(torch.device("cuda"))
        expected, got = gradient(exact, batch), gradient(model, batch)
        assert got[0] == pytest.approx(expected[0], rel=0.02)
        difference = torch.linalg.vector_norm(got[1] - expected[1])
        assert difference < 0.1 * torch.linalg.vector_norm(expected[1])


def test_inputs_of_blocks_that_wait_on_the_host_are_not_on_the_device() -> None:
    """The gradients are those of `full`, to what atomic additions leave open."""
    model, found, kept = load_model(GOLDEN, dtype=torch.bfloat16, device="cuda"), [], []
    batch = packed_batch((700, 324)).to(torch.device("cuda"))
    for checkpointing in ("full", "offload"):
        model.set_activation_checkpointing(checkpointing)
        gradient(model, batch)  # what is allocated once
        model.zero_grad()
        before = torch.cuda.memory_allocated()
        loss = loss_of(model, batch)
        torch.cuda.synchronize()
        kept.append(torch.cuda.memory_allocated() - before)
        torch.autograd.backward(loss)
        found.append(torch.cat([p.grad.flatten().float() for p in model.parameters()]))
    network = model.architecture
    # The last block's input may still be there.
    assert kept[0] - kept[1] >= 2 * 1024 * network.width * (network.num_layers - 1)
    assert torch.linalg.vector_norm(found[0] - found[1]) < 0.01 * found[0].norm()


@pytest.mark.parametrize("checkpointing", ["none", "offload"])
def test_the_step_does_not_wait_for_the_device(checkpointing: Checkpointing) -> None:
    model = load_model(GOLDEN, dtype=torch.bfloat16, device="cuda")
    model.set_activation_checkpointing(checkpointing)
    batch = packed_batch((7, 1, 292))
    # What is allocated once.
    gradient(model, batch.to(torch.device("cuda")))
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.backward(loss_of(model, batch.to(torch.device("cuda"))))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_of_the_loss_is_bounded_by_its_pieces() -> None:
    positions, width, vocabulary = 8192, 64, 32768
    x = torch.randn(positions, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocabulary, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(positions, dtype=torch.int64, device="cuda")
    coefficients = torch.ones(positions, device="cuda")
    piece_bytes = 32 << 20
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss = weighted_cross_entropy(x, weight, targets, coefficients, piece_bytes)
    torch.autograd.backward(loss)
    # Logits in bf16, their logarithms in fp32, the slopes in bf16; and the weight's gradient.
    gradients = 3 * weight.numel() * 4
    assert torch.cuda.max_memory_allocated() - before < 3 * piece_bytes + gradients
    assert positions * vocabulary * 4 > 10 * piece_bytes


@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="needs liger-kernel")
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("head_dim", [32, 40])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_ligers_kernels_have_the_same_loss_and_gradients(
    head_dim: int, checkpointing: Checkpointing, dtype: torch.dtype, close: float
) -> None:
    """Compiled by Triton, against torch's operations in fp32."""
    model = build_model(odd_config(head_dim)).to("cuda", dtype)
    exact = build_model(odd_config(head_dim)).to("cuda")
    exact.load_state_dict(model.state_dict())
    use_kernels(model, Kernels(norm="liger", swiglu="liger", rope="liger", loss="liger"))
    model.set_activation_checkpointing(checkpointing)
    batch = packed_batch((7, 1, 32)).to(torch.device("cuda"))
    gradient(model, batch)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.zero_grad()
        torch.autograd.backward(loss_of(model, batch))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected, got = gradient(exact, batch), gradient(model, batch)
    assert got[0] == pytest.approx(expected[0], rel=1e-5 if dtype == torch.float32 else 0.02)
    assert torch.linalg.vector_norm(got[1] - expected[1]) < close * expected[1].norm()


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_steps_in_8_bits_stay_near_to_those_in_32() -> None:
    found, batch = [], packed_batch((7, 1, 292)).to(torch.device("cuda"))
    for kind in ("adamw", "adamw_8bit"):
        model = load_model(GOLDEN, device="cuda")
        optim = OptimConfig(kind=kind, lr=1e-3)
        optimizer = build_optimizer(optim, parameter_groups(model, optim.weight_decay))
        losses_of_kind = []
        for _ in range(5):
            losses_of_kind.append(gradient(model, batch)[0])
            optimizer.step()
        found.append(losses_of_kind)
    assert found[0][-1] < found[0][0]
    assert found[1] == pytest.approx(found[0], rel=1e-2)


@pytest.mark.parametrize("head_dim", [40, 96])
def test_odd_head_sizes(head_dim: int) -> None:
    model = build_model(odd_config(head_dim)).to("cuda", torch.bfloat16)
    ids, lengths = torch.randint(0, 500, (1, 40), device="cuda"), (7, 1, 32)
    together = model(ids, sequences=Sequences(lengths)).logits[0]
    alone = torch.cat([model(part).logits[0] for part in ids.split(lengths, dim=1)])
    assert torch.linalg.vector_norm(together - alone) < 0.02 * torch.linalg.vector_norm(alone)


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


def test_the_confidence_loss_in_pieces_is_that_of_the_full_logits() -> None:
    random = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 64, generator=random).cuda() for rows in (300, 5000))
    x.requires_grad_()
    logits = x @ weight.T
    # Every second position is predicted right.
    targets = (logits.argmax(-1) + torch.arange(300, device="cuda") % 2) % 5000
    rows, ones = torch.arange(300, device="cuda") // 50, torch.ones(300, device="cuda")
    full = masked_cross_entropy(logits, targets, ones) + confidence_loss(
        logits, targets, rows, ones
    )
    terms = LossTerms(ones, rows, 6, ones)
    in_pieces = weighted_cross_entropy(x, weight, targets, terms, piece_bytes=1 << 20)
    torch.testing.assert_close(in_pieces, full, rtol=1e-4, atol=0)
    (expected,) = torch.autograd.grad(full, x)
    (got,) = torch.autograd.grad(in_pieces, x)
    assert torch.linalg.vector_norm(got - expected) < 1e-4 * torch.linalg.vector_norm(expected)
