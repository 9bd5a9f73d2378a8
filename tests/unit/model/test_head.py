"""The loss that never holds all logits: equal to that of the full ones, within bounded memory."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llada_sft.diffusion.objective import masked_cross_entropy
from llada_sft.model import NetworkConfig, build_model
from llada_sft.model.layers.head import Head, weighted_cross_entropy

WIDTH, VOCABULARY, POSITIONS = 16, 101, 37
ROW_BYTES = 4 * VOCABULARY
# One piece, several that divide the positions evenly or not, one position each; less than one row.
PIECES = [1 << 20, 37 * ROW_BYTES, 36 * ROW_BYTES, 5 * ROW_BYTES, ROW_BYTES, 1]


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(POSITIONS, WIDTH, generator=random).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=random).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (POSITIONS,), generator=random)
    return x, weight, targets, torch.rand(POSITIONS, generator=random)


def relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


@pytest.mark.parametrize("piece_bytes", PIECES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-6), (torch.bfloat16, 2e-2)]
)
def test_loss_and_gradients_are_those_of_the_full_logits(
    dtype: torch.dtype, tolerance: float, piece_bytes: int
) -> None:
    x, weight, targets, coefficients = inputs(dtype)
    whole = masked_cross_entropy(x @ weight.T, targets, coefficients)
    in_pieces = weighted_cross_entropy(x, weight, targets, coefficients, piece_bytes)
    assert in_pieces.dtype == torch.float32
    assert in_pieces.item() == pytest.approx(whole.item(), rel=1e-6)
    # A factor that comes from outside, as poisoning a step or scaling a loss has one.
    expected = torch.autograd.grad(whole * 3, (x, weight))
    got = torch.autograd.grad(in_pieces * 3, (x, weight))
    for value, reference in zip(got, expected, strict=True):
        assert value.dtype == dtype
        assert relative(value, reference) < tolerance


def test_pieces_of_a_bf16_gradient_are_summed_in_fp32() -> None:
    x, weight, targets, coefficients = inputs(torch.bfloat16)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    loss = masked_cross_entropy(exact[0] @ exact[1].T, targets, coefficients)
    (expected,) = torch.autograd.grad(loss, exact[1])
    errors = []
    for piece_bytes in (1 << 20, ROW_BYTES):
        loss = weighted_cross_entropy(x, weight, targets, coefficients, piece_bytes)
        (got,) = torch.autograd.grad(loss, weight)
        errors.append(relative(got.double(), expected))
    assert errors[1] < 1.2 * errors[0]


def test_a_frozen_head_and_frozen_hidden_states() -> None:
    x, weight, targets, coefficients = inputs()
    both = torch.autograd.grad(
        weighted_cross_entropy(x, weight, targets, coefficients), (x, weight)
    )
    frozen = weight.detach()
    loss = weighted_cross_entropy(x, frozen, targets, coefficients)
    assert torch.equal(torch.autograd.grad(loss, x)[0], both[0])
    loss = weighted_cross_entropy(x.detach(), weight, targets, coefficients)
    assert torch.equal(torch.autograd.grad(loss, weight)[0], both[1])
    with torch.no_grad():
        assert torch.equal(weighted_cross_entropy(x, weight, targets, coefficients), loss.detach())


def test_large_logits_have_a_finite_loss() -> None:
    x, weight = torch.full((1, 1), 1e4), torch.tensor([[1.0], [-1.0]])
    loss = weighted_cross_entropy(x, weight, torch.tensor([1]), torch.ones(1))
    assert loss.item() == pytest.approx(2e4)


def test_no_positions_is_zero_with_a_graph() -> None:
    x = torch.zeros(0, WIDTH, requires_grad=True)
    weight = torch.ones(VOCABULARY, WIDTH, requires_grad=True)
    loss = weighted_cross_entropy(x, weight, torch.zeros(0).long(), torch.zeros(0))
    assert loss.item() == 0
    grad_x, grad_weight = torch.autograd.grad(loss, (x, weight))
    assert grad_x.shape == (0, WIDTH) and not grad_weight.any()


class _Largest(TorchDispatchMode):
    """Remembers the most bytes that a new tensor has."""

    num_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.num_bytes = max(self.num_bytes, out.untyped_storage().nbytes())
        return out


def test_no_tensor_is_larger_than_a_piece_however_many_positions_are_masked() -> None:
    """With t = 1 all positions are masked: the full logits would be [512, 4096]."""
    head = Head(8, 4096)
    torch.nn.init.normal_(head.weight)
    x = torch.randn(512, 8, requires_grad=True)
    piece_bytes = 16 * 4 * 4096
    with _Largest() as seen:
        loss = weighted_cross_entropy(
            x, head.weight, torch.zeros(512).long(), torch.ones(512), piece_bytes
        )
        torch.autograd.backward(loss)
    assert piece_bytes <= seen.num_bytes < 2 * piece_bytes


def test_the_network_returns_the_loss_in_place_of_logits(small_config: NetworkConfig) -> None:
    model = build_model(small_config)
    ids = torch.randint(0, 99, (2, 9))
    positions, targets = torch.tensor([1, 4, 17]), torch.tensor([5, 6, 7])
    coefficients = torch.tensor([0.5, 1.0, 2.0])
    logits = model(ids, positions=positions).logits
    out = model(ids, positions=positions, targets=targets, coefficients=coefficients)
    assert out.logits is None
    expected = masked_cross_entropy(logits, targets, coefficients)
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-6)
