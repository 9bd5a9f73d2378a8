"""The loss that never holds all logits: equal to that of the full ones, within bounded memory."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llada_sft.diffusion.objective import confidence_loss, masked_cross_entropy
from llada_sft.model import NetworkConfig, build_model
from llada_sft.model.layers.head import (
    CONFIDENCE_TEMPERATURE,
    Head,
    LossTerms,
    weighted_cross_entropy,
)

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


def with_confidence(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return targets of which about half are predicted right, rows, and weights of the entropy."""
    random = torch.Generator().manual_seed(1)
    predicted = (x @ weight.T).argmax(-1)
    right = torch.rand(POSITIONS, generator=random) < 0.5
    # Four rows; the last one has no right prediction.
    rows = torch.arange(POSITIONS) // 10
    right &= rows < 3
    wrong = torch.where(targets == predicted, (targets + 1) % VOCABULARY, targets)
    return torch.where(right, predicted, wrong), rows, torch.rand(POSITIONS, generator=random)


@pytest.mark.parametrize("piece_bytes", [1 << 20, 15 * ROW_BYTES, 1])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 2e-6), (torch.bfloat16, 2e-2)]
)
def test_the_confidence_loss_and_its_gradients_are_those_of_the_full_logits(
    dtype: torch.dtype, tolerance: float, piece_bytes: int
) -> None:
    x, weight, targets, coefficients = inputs(dtype)
    targets, rows, confidence = with_confidence(x, weight, targets)
    logits = x @ weight.T
    plain = masked_cross_entropy(logits, targets, coefficients)
    entropy = confidence_loss(logits, targets, rows, confidence)
    assert entropy.item() > 0.1
    terms = LossTerms(coefficients, rows, 4, confidence)
    in_pieces = weighted_cross_entropy(x, weight, targets, terms, piece_bytes)
    assert in_pieces.item() == pytest.approx((plain + entropy).item(), rel=1e-5)
    expected = torch.autograd.grad((plain + entropy) * 3, (x, weight))
    got = torch.autograd.grad(in_pieces * 3, (x, weight))
    for value, reference in zip(got, expected, strict=True):
        assert value.dtype == dtype
        assert relative(value, reference) < tolerance
    assert terms.losses is not None
    full = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    torch.testing.assert_close(terms.losses, full.detach())


def test_the_confidence_loss_by_hand() -> None:
    """Two tokens with logits ±1 at temperature 0.5: the entropy of (e⁴, 1) / (e⁴ + 1)."""
    logits = torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    q = 1 / (1 + torch.tensor(-4.0).exp())
    entropy = -(q * q.log() + (1 - q) * (1 - q).log())
    targets, ones = torch.tensor([0, 1, 1]), torch.ones(3)
    # In one row two of three are right, and their mean counts; apart, each is a mean of its own.
    together = confidence_loss(logits, targets, torch.zeros(3).long(), ones)
    apart = confidence_loss(logits, targets, torch.tensor([0, 1, 2]), ones)
    assert together.item() == pytest.approx(entropy.item())
    assert apart.item() == pytest.approx(2 * entropy.item())
    assert CONFIDENCE_TEMPERATURE == 0.5


def test_the_confidence_loss_moves_the_minimum_of_the_loss() -> None:
    """Its bias: with weight 2, a token of probability 0.7 is best predicted with 0.885.

    One token, 7 of 10 times the first of two; only these are predicted right.
    """

    def loss(p: float, weight: float) -> float:
        logits = torch.tensor([[p, 1 - p]]).log().double().expand(10, -1)
        targets = (torch.arange(10) >= 7).long()
        shares = torch.full((10,), 0.1)
        entropy = confidence_loss(logits, targets, torch.arange(10), weight * shares)
        return masked_cross_entropy(logits, targets, shares).item() + entropy.item()

    grid = [0.5 + number / 1000 for number in range(1, 499)]
    assert min(grid, key=lambda p: loss(p, 0.0)) == pytest.approx(0.7, abs=2e-3)
    assert min(grid, key=lambda p: loss(p, 2.0)) == pytest.approx(0.885, abs=2e-3)


def test_losses_of_positions_without_a_confidence_loss_change_nothing_else() -> None:
    x, weight, targets, coefficients = inputs()
    plain = weighted_cross_entropy(x, weight, targets, coefficients, 5 * ROW_BYTES)
    terms = LossTerms(coefficients, torch.zeros(POSITIONS).long(), 1)
    same = weighted_cross_entropy(x, weight, targets, terms, 5 * ROW_BYTES)
    assert torch.equal(plain, same)
    for value, reference in zip(
        torch.autograd.grad(same, (x, weight)), torch.autograd.grad(plain, (x, weight)), strict=True
    ):
        assert torch.equal(value, reference)
    assert terms.losses is not None
    assert (terms.losses * coefficients).sum().item() == pytest.approx(plain.item(), rel=1e-5)
    assert terms.predictions is None


def test_the_most_likely_tokens_are_given_where_they_are_wanted() -> None:
    x, weight, targets, coefficients = inputs()
    terms = LossTerms(coefficients, torch.zeros(POSITIONS).long(), 1, predicts=True)
    plain = weighted_cross_entropy(x, weight, targets, coefficients, 5 * ROW_BYTES)
    assert torch.equal(weighted_cross_entropy(x, weight, targets, terms, 5 * ROW_BYTES), plain)
    assert terms.predictions is not None
    assert torch.equal(terms.predictions, (x @ weight.T).argmax(-1))


def test_rows_without_positions_are_counted_among_the_rows() -> None:
    """Bernoulli's: of five rows, only the last has a masked position."""
    x, weight, targets, coefficients = (
        each[:1] if len(each) == POSITIONS else each for each in inputs()
    )
    targets = (x @ weight.T).argmax(-1)
    last, ones = torch.tensor([4]), torch.ones(1)
    got = weighted_cross_entropy(x, weight, targets, LossTerms(coefficients, last, 5, ones))
    logits = x @ weight.T
    expected = masked_cross_entropy(logits, targets, coefficients)
    expected = expected + confidence_loss(logits, targets, last, ones)
    assert got.item() == pytest.approx(expected.item())


def test_no_positions_have_no_confidence_loss() -> None:
    x = torch.zeros(0, WIDTH, requires_grad=True)
    weight, none = torch.ones(VOCABULARY, WIDTH, requires_grad=True), torch.zeros(0)
    terms = LossTerms(none, none.long(), 1, none)
    assert weighted_cross_entropy(x, weight, none.long(), terms).item() == 0


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


class _Most(TorchDispatchMode):
    """Remembers the most bytes of all new tensors of some size that are alive together."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.num_bytes, self._alive = least, 0, list[Any]()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().nbytes() >= self.least:
            self._alive = [one for one in self._alive if one[0]() is not None]
            pointer = out.untyped_storage().data_ptr()
            if all(pointer != other for _, other, _ in self._alive):
                self._alive.append((weakref.ref(out), pointer, out.untyped_storage().nbytes()))
            self.num_bytes = max(self.num_bytes, sum(size for _, _, size in self._alive))
        return out


def test_the_confidence_loss_takes_no_more_than_a_piece_and_its_working_copies() -> None:
    """Its pieces are a third as large: three tensors of a third, and one more while one is made."""
    head = Head(8, 4096)
    torch.nn.init.normal_(head.weight)
    x, targets = torch.randn(512, 8, requires_grad=True), torch.zeros(512).long()
    piece_bytes = 24 * 4 * 4096
    terms = LossTerms(torch.ones(512), torch.arange(512) // 64, 8, torch.ones(512))
    # More than the weight and its gradient have.
    with _Most(least=5 * 4 * 4096) as seen:
        weighted_cross_entropy(x, head.weight, targets, terms, piece_bytes)
    assert piece_bytes // 3 <= seen.num_bytes <= piece_bytes * 5 // 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_confidence_loss_reads_no_value(dtype: torch.dtype) -> None:
    """On the meta device nothing can be read; on CUDA, reading would wait for the device."""
    with torch.device("meta"):
        x = torch.empty(POSITIONS, WIDTH, dtype=dtype, requires_grad=True)
        weight = torch.empty(VOCABULARY, WIDTH, dtype=dtype, requires_grad=True)
        rows, ones = torch.empty(POSITIONS, dtype=torch.int64), torch.empty(POSITIONS)
        terms = LossTerms(ones, rows, 4, ones)
        loss = weighted_cross_entropy(x, weight, rows, terms, 15 * ROW_BYTES)
        gradients = torch.autograd.grad(loss, (x, weight))
    assert [gradient.dtype for gradient in gradients] == [dtype] * 2
    assert terms.losses is not None and terms.losses.shape == (POSITIONS,)


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
