"""Losses of routers: linear, of the global batch, of real tokens alone."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llada_sft.model.families.architecture import Experts, Router
from llada_sft.model.layers.balance import Balance, Routing, balance_loss
from llada_sft.model.layers.experts import Choice

EXPERTS = Experts(
    layers=(True, False, True),
    num_experts=5,
    per_token=2,
    size=1,
    shared_size=None,
    router=Router(),
    balance_weight=0.01,
)
CPU = torch.device("cpu")


def logits_of(num_tokens: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(7)
    return [torch.randn(num_tokens, 5, generator=draw, requires_grad=True) for _ in range(2)]


def routing_of(logits: list[Tensor], rows: slice = slice(None)) -> Routing:
    """What a forward pass leaves of some tokens."""
    routing = Routing()
    for of_layer in logits:
        routing.choice(2).choose(of_layer[rows])
        routing.logits.append(of_layer[rows])
    return routing


def test_the_first_step_has_no_gradient() -> None:
    """No load is known: all experts count the same, and probabilities sum to one."""
    logits = logits_of(12)
    balance = Balance(EXPERTS, balance_weight=1.0, z_weight=0.0)
    balance.begin_step(12, world_size=1, device=CPU)
    loss = balance.loss(routing_of(logits), real=None)
    assert loss.item() == pytest.approx(2.0)
    for gradient in torch.autograd.grad(loss, logits):
        assert gradient.abs().max() < 1e-7


def test_with_the_load_of_the_same_tokens_it_is_the_released_function() -> None:
    logits = logits_of(12)
    balance = Balance(EXPERTS, balance_weight=1.0, z_weight=0.0)
    balance.load_state(routing_of(logits).counts().tolist())
    balance.begin_step(12, world_size=1, device=CPU)
    loss = balance.loss(routing_of(logits), real=None)
    official = balance_loss(logits, 2)
    assert loss.item() == pytest.approx(official.item(), rel=1e-6)
    assert loss.item() > 2.01
    both = (torch.autograd.grad(each, logits) for each in (loss, official))
    for own, other in zip(*both, strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("cuts", [(12,), (3, 12), (1, 4, 5, 12)])
@pytest.mark.parametrize("world_size", [1, 2])
def test_how_tokens_meet_changes_nothing(cuts: tuple[int, ...], world_size: int) -> None:
    """Two steps; the second has the load of the first."""
    logits = logits_of(12)
    plain = torch.cat(logits)
    even_load = torch.full((5,), 0.4)
    load = routing_of(logits).counts().sum(0) / 24
    balance = Balance(EXPERTS, balance_weight=3.0, z_weight=0.5)
    for shares in (even_load, load):
        balance.begin_step(12, world_size, CPU)
        parts = [
            balance.loss(routing_of(logits, slice(low, high)), real=None)
            for low, high in zip((0, *cuts), cuts, strict=False)
        ]
        # The mean over ranks is the loss of the global batch.
        loss = torch.stack(parts).sum() / world_size
        z = plain.logsumexp(-1).square().mean()
        expected = 3.0 * 5 * (shares * plain.softmax(-1).mean(0)).sum() + 0.5 * z
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(balance.added, loss.detach() * world_size)
        gradients = zip(
            torch.autograd.grad(loss, logits),
            torch.autograd.grad(expected, logits, retain_graph=True),
            strict=True,
        )
        for own, other in gradients:
            torch.testing.assert_close(own, other)
        balance.end_step(lambda counts: counts)
    assert balance.counts.sum() == 12 * 2 * 2


def test_sigmoids_are_divided_by_their_sum() -> None:
    """One expert chosen by all: the loss grows with its share of the scores."""
    experts = replace(EXPERTS, router=Router(scores="sigmoid"))
    balance = Balance(experts, balance_weight=1.0, z_weight=0.0)
    logits = torch.tensor([[2.0, 0.0, 0.0, 0.0, -1.0]] * 3, requires_grad=True)
    balance.load_state([[6, 6, 0, 0, 0]] * 2)
    balance.begin_step(3, world_size=1, device=CPU)
    loss = balance.loss(routing_of([logits, logits]), real=None)
    scores = logits.detach()[0].sigmoid()
    shares = scores / scores.sum()
    assert loss.item() == pytest.approx(5 * (shares[0] + shares[1]).item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[:, 0] > 0).all()
    assert (gradient[:, 2:] < 0).all()


def test_padding_does_not_count() -> None:
    logits = logits_of(12)
    real = torch.arange(12) % 3 > 0
    padded, short = (Balance(EXPERTS, 1.0, 1.0) for _ in range(2))
    found = []
    for balance, routing, mask in (
        (padded, routing_of(logits), real),
        (short, routing_of([of_layer[real] for of_layer in logits]), None),
    ):
        balance.begin_step(8, world_size=1, device=CPU)
        found.append(balance.loss(routing, mask))
        balance.end_step(lambda counts: counts)
    torch.testing.assert_close(*found)
    assert padded.counts.equal(short.counts)
    (gradient, _) = torch.autograd.grad(found[0], logits)
    assert not gradient[~real].any()


def test_the_numbers_of_the_log() -> None:
    balance = Balance(EXPERTS, 1.0, 1.0)
    balance.begin_step(4, world_size=1, device=CPU)
    routing = Routing()
    for chosen in ([[0, 1]] * 4, [[0, 1], [2, 3], [4, 0], [0, 2]]):
        choice = Choice(2)
        choice.experts = torch.tensor(chosen)
        routing.choices.append(choice)
        routing.logits.append(torch.zeros(4, 5))
    balance.loss(routing, real=None)
    balance.end_step(lambda counts: counts)
    metrics = balance.metrics(lambda sums: sums, num_tokens=4)
    assert list(metrics) == list(Balance.COLUMNS)
    assert metrics == pytest.approx(
        {
            "balance_loss": 2.0,
            "router_z_loss": torch.tensor(5.0).log().item() ** 2,
            # All tokens of the first layer chose expert 0: 1 for 2/5.
            "expert_load": 2.5,
            "experts_unused": 3,
            "routed": 1.0,
        }
    )
    again = Balance(EXPERTS, 1.0, 1.0)
    again.load_state(balance.state())
    assert again.counts.equal(balance.counts)
    again.begin_step(4, world_size=1, device=CPU)
    balance.begin_step(4, world_size=1, device=CPU)
    logits = logits_of(4)
    assert again.loss(routing_of(logits), None).equal(balance.loss(routing_of(logits), None))
