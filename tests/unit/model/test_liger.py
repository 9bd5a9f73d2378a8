"""Liger's kernels against our own operations, in Triton's interpreter on the CPU."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llada_sft.config.sections.model import LoraConfig
from llada_sft.model import Network, NetworkConfig, build_model, load_model
from llada_sft.model.adapter_plan import plan_adapters
from llada_sft.model.adapters import add_adapters
from llada_sft.model.families import llada
from llada_sft.model.kernels.choice import Kernels
from llada_sft.model.kernels.use import use_kernels
from llada_sft.model.layers import basic, block
from llada_sft.model.layers.attention import Sequences, rotary_table, rotate_both
from llada_sft.model.layers.blocks import Blocks
from llada_sft.model.layers.head import LossTerms, weighted_cross_entropy
from llada_sft.model.layers.kept_bytes import Checkpointing, kept_bytes
from tests.triton_interpreter import CAN_INTERPRET, MISSING, interpret_triton
from tests.unit.model.test_activations import Results

pytestmark = pytest.mark.skipif(not CAN_INTERPRET, reason=MISSING)
GOLDEN = Path(__file__).parents[2] / "golden"
LIGER = Kernels(norm="liger", swiglu="liger", rope="liger", loss="liger")


@pytest.fixture(autouse=True, scope="module")
def interpreted() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        interpret_triton(patch)
        yield


def relative(value: Tensor, reference: Tensor) -> float:
    value = value.detach()
    return float((value - reference).norm() / reference.norm())


def same(
    kernel: Callable[..., Any],
    own: Callable[..., Any],
    inputs: list[Tensor],
    *more: Any,
    close: float = 1e-6,
) -> None:
    """Check that results and gradients are equal, and that the results change no input."""
    found = []
    for function in (kernel, own):
        given = [x.detach().clone().requires_grad_() for x in inputs]
        results = function(*given, *more)
        results = results if isinstance(results, tuple) else (results,)
        slopes = [torch.arange(y.numel()).view(y.shape).sin().to(y.dtype) for y in results]
        assert all(torch.equal(x, before) for x, before in zip(given, inputs, strict=True))
        values = [y.detach().clone() for y in results]
        found.append([*values, *torch.autograd.grad(results, given, slopes)])
    for value, reference in zip(*found, strict=True):
        assert value.dtype == reference.dtype
        assert relative(value.float(), reference.float()) < close


# The interpreter multiplies bf16 as if it were integers; where a kernel works in fp32, it does not.
DTYPES = [(torch.float32, 1e-6), (torch.float16, 1e-3)]
FP32_INSIDE = [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)]


@pytest.mark.parametrize(("dtype", "close"), DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 40), (2, 3, 5, 24)])
def test_a_norm(shape: tuple[int, ...], dtype: torch.dtype, close: float) -> None:
    from llada_sft.model.kernels import liger

    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    same(liger.liger_rms_norm, basic.rms_norm, [x, weight], 1e-5, close=close)


@pytest.mark.parametrize(("dtype", "close"), DTYPES)
def test_swiglu(dtype: torch.dtype, close: float) -> None:
    from llada_sft.model.kernels import liger

    same(liger.liger_swiglu, block.swiglu, list(torch.randn(2, 2, 3, 36).to(dtype)), close=close)


@pytest.mark.parametrize(("dtype", "close"), FP32_INSIDE)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rotary_dim"), [(4, 4, 40, 40), (6, 3, 24, 24), (6, 2, 40, 6)]
)
@pytest.mark.parametrize("of_rows", [False, True])
def test_positions(
    heads: int,
    kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    of_rows: bool,
    dtype: torch.dtype,
    close: float,
) -> None:
    """Sizes that are not powers of two, heads of which a part is turned, and one row or each."""
    from llada_sft.model.kernels import liger

    q = torch.randn(2, 7, heads, head_dim).to(dtype)
    k = torch.randn(2, 7, kv_heads, head_dim).to(dtype)
    places = torch.stack([torch.arange(7), torch.arange(3, 10)]) if of_rows else torch.arange(7)
    table = rotary_table(places, rotary_dim, 500.0)
    same(liger.liger_rotate, rotate_both, [q, k], table, close=close)
    # Queries that are a part of a larger tensor.
    whole = torch.randn(2, 7, 2 * heads, head_dim).to(dtype)
    turned, _ = liger.liger_rotate(whole[:, :, :heads], k, table)
    expected, _ = rotate_both(whole[:, :, :heads], k, table)
    assert relative(turned.float(), expected.float()) < close


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("positions_of_piece", [100, 5])
def test_the_loss_with_a_weight_for_each_token(
    positions_of_piece: int, dtype: torch.dtype, close: float
) -> None:
    from llada_sft.model.kernels import liger

    x, weight = torch.randn(23, 16).to(dtype), torch.randn(101, 16).to(dtype)
    targets, t = torch.randint(101, (23,)), torch.rand(23).clamp(min=0.01)
    found = []
    for kernel in (liger.liger_cross_entropy, None):
        given = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        terms = LossTerms(1 / t, torch.zeros(23).long(), 1, predicts=True)
        loss = weighted_cross_entropy(*given, targets, terms, 404 * positions_of_piece, kernel)
        gradients = torch.autograd.grad(3 * loss, given)
        assert terms.losses is not None and terms.predictions is not None
        found.append([loss.detach(), *gradients, terms.losses, terms.predictions])
        with torch.no_grad():
            again = weighted_cross_entropy(x, weight, targets, 1 / t, kernel=kernel)
        assert relative(again, loss.detach()) < 1e-6
    assert torch.equal(found[0].pop(), found[1].pop())
    assert found[0][0].item() == pytest.approx(found[1][0].item(), rel=1e-5)
    for value, reference in zip(*found, strict=True):
        assert value.dtype == reference.dtype
        assert relative(value.float(), reference.float()) < close


# Of numpy, in the interpreter.
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_loss_that_is_not_finite_stays_so() -> None:
    from llada_sft.model.kernels import liger

    for wrong in (float("nan"), float("inf")):
        logits = torch.randn(2, 101)
        logits[0, 7] = wrong
        losses = liger.liger_cross_entropy(logits, torch.tensor([3, 4]), True)
        assert losses[0].isnan() and losses[1].isfinite()


def test_with_a_confidence_loss_the_kernel_is_not_called() -> None:
    def kernel(*given: object) -> Tensor:
        raise AssertionError

    x, weight = torch.randn(4, 16), torch.randn(101, 16)
    ones, rows = torch.ones(4), torch.zeros(4).long()
    terms = LossTerms(ones, rows, 1, confidence=ones)
    loss = weighted_cross_entropy(x, weight, rows, terms, kernel=kernel)
    assert loss.isfinite()


def with_loss(model: Network, blocks: Blocks | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of packed examples, weighted by 1/t, and all gradients."""
    lengths = (7, 1, 12)
    halves = 1 if blocks is None else blocks.halves
    ids = torch.arange(20 * halves)[None] * 5 % 29
    positions = torch.arange(0, 20, 2)
    loss = model(
        ids,
        positions=positions,
        sequences=Sequences(lengths),
        targets=ids[0, positions],
        coefficients=1 / torch.linspace(0.1, 1, len(positions)),
        blocks=blocks,
    ).loss
    model.zero_grad()
    torch.autograd.backward(loss)
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads


def changed_networks() -> dict[str, Callable[[], Network]]:
    def golden(name: str) -> Callable[[], Network]:
        return lambda: load_model(GOLDEN / name)

    def adapted(dora: bool) -> Callable[[], Network]:
        def build() -> Network:
            model = load_model(GOLDEN / "tiny_llada")
            plan = plan_adapters(model.architecture, LoraConfig(dora=dora))
            add_adapters(model, plan, 0)
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:
                    parameter.data.normal_(std=0.02, generator=torch.Generator().manual_seed(1))
            return model

        return build

    names = ("tiny_llada", "tiny_dream", "tiny_llada_moe_shared", "tiny_llada2_moe")
    networks = {name: golden(name) for name in names}
    return networks | {"lora": adapted(False), "dora": adapted(True)}


@pytest.mark.parametrize("name", list(changed_networks()))
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_each_member_has_the_same_loss_and_gradients(
    name: str, checkpointing: Checkpointing
) -> None:
    build = changed_networks()[name]
    own, changed = build(), build()
    use_kernels(changed, LIGER)
    assert {n: p.shape for n, p in own.named_parameters()} == {
        n: p.shape for n, p in changed.named_parameters()
    }
    changed.set_activation_checkpointing(checkpointing)
    own.set_activation_checkpointing(checkpointing)
    expected, gradients = with_loss(own, None)
    loss, found = with_loss(changed, None)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.keys() == gradients.keys() and found
    for parameter, gradient in gradients.items():
        assert relative(found[parameter], gradient) < 1e-4, parameter


def test_rows_in_blocks_have_the_same_loss_and_gradients() -> None:
    own, changed = load_model(GOLDEN / "tiny_llada"), load_model(GOLDEN / "tiny_llada")
    use_kernels(changed, LIGER)
    (expected, gradients), (loss, found) = (
        with_loss(model, Blocks(4, doubled=True)) for model in (own, changed)
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, gradient in gradients.items():
        assert relative(found[name], gradient) < 1e-4, name


@pytest.mark.parametrize("part", ["norm", "swiglu", "rope", "loss"])
def test_each_kernel_is_switched_by_itself(part: str) -> None:
    from llada_sft.model.kernels import liger

    model = load_model(GOLDEN / "tiny_llada")
    use_kernels(model, Kernels(**{part: "liger"}))
    first, head = model.blocks()[0], model.get_output_embeddings()
    norm = first.get_submodule(first.names.attn_norm)
    found = {
        "norm": norm.compute is liger.liger_rms_norm,
        "swiglu": first.swiglu is liger.liger_swiglu,
        "rope": first.rotate is liger.liger_rotate,
        "loss": head.loss_kernel is liger.liger_cross_entropy,
    }
    assert [name for name, is_used in found.items() if is_used] == [part]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_block_keeps_no_more_than_is_counted_and_so_much_less(dtype: torch.dtype) -> None:
    """Two norms keep no fp32 copy of their input, and SwiGLU no result of SiLU."""
    num_tokens, kept = 32, []
    values: dict[str, Any] = {}
    for blocks in (3, 2):
        values = llada.FAMILY.config_json(
            d_model=64, n_heads=4, mlp_hidden_size=144, n_layers=blocks,
            vocab_size=32, eos_token_id=1, mask_token_id=2, pad_token_id=1,
        )  # fmt: skip
        model = build_model(NetworkConfig(values)).to(dtype)
        use_kernels(model, LIGER)
        with Results(model) as results:
            loss = model(torch.arange(num_tokens)[None]).logits.sum()
            kept.append(results.alive)
        assert loss.requires_grad
    counted = kept_bytes(NetworkConfig(values).architecture, dtype.itemsize)["none"]
    saved = 8 * 64 + dtype.itemsize * 144
    assert (kept[0] - kept[1]) / num_tokens == pytest.approx(counted - saved, rel=0.02)
