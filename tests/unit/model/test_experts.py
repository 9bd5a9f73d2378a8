"""A mixture of experts: groups equal a loop, choices are kept, stacks are laid out by name."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from llada_sft.model import Network, NetworkConfig, build_model, load_model
from llada_sft.model.export import export_checkpoint, network_tensors
from llada_sft.model.families import llada_moe
from llada_sft.model.families.architecture import Router
from llada_sft.model.layers.balance import Balance, Routing
from llada_sft.model.layers.experts import Choice, StackedExperts, count, route
from llada_sft.model.layers.kept_bytes import Checkpointing

META = torch.device("meta")
TINY = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "dense_intermediate_size": 48,
    # 2 · 16 is the width: a stack could be taken for its transpose by its shape.
    "expert_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
    "moe_layer_freq": [1, 0, 1],
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "mask_token_id": 100,
    "eos_token_id": 99,
    "pad_token_id": 99,
}


@pytest.fixture
def config() -> NetworkConfig:
    return NetworkConfig(llada_moe.FAMILY.config_json(**TINY))


def one_by_one(experts: StackedExperts, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Compute each token by itself."""
    gate, up, down = experts.parameters()
    rows = []
    for token, its_experts, its_weights in zip(x, chosen, weights, strict=True):
        results = [
            weight * (down[e] @ (F.silu(gate[e] @ token) * (up[e] @ token)))
            for e, weight in zip(its_experts.tolist(), its_weights, strict=True)
        ]
        rows.append(torch.stack(results).sum(0))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float64, 1e-12)]
)
# Sizes that the grouped product takes, and sizes whose rows are not multiples of 16 bytes.
@pytest.mark.parametrize(("width", "size"), [(32, 16), (6, 5)])
@pytest.mark.parametrize("used", [(0, 1, 2, 3, 4, 5), (1, 4), (5,)])
def test_groups_equal_a_loop(
    dtype: torch.dtype, close: float, width: int, size: int, used: tuple[int, ...]
) -> None:
    """Values and gradients, also where experts have no token."""
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    experts = StackedExperts(6, width, size, ("gate_proj", "up_proj", "down_proj")).to(dtype)
    for parameter in experts.parameters():
        parameter.data.copy_(normal(*parameter.shape) / width**0.5)
    per_token = min(2, len(used))
    picks = [torch.randperm(len(used), generator=draw)[:per_token] for _ in range(11)]
    chosen = torch.tensor(used)[torch.stack(picks)]
    x, weights, slopes = normal(11, width), normal(11, per_token), normal(11, width)
    inputs = (x.requires_grad_(), weights.requires_grad_(), *experts.parameters())
    own, plain = experts(x, chosen, weights), one_by_one(experts, x, chosen, weights)
    # A gradient that is not contiguous, as that of a transposed sum.
    slopes = slopes.T.contiguous().T
    own_grads, grads = (torch.autograd.grad(y, inputs, slopes) for y in (own, plain))
    for a, b in zip((own, *own_grads), (plain, *grads), strict=True):
        assert (a - b).abs().max() <= close * b.detach().abs().max()
    for gradient in own_grads[2:]:
        unused = [e for e in range(6) if e not in used]
        assert not gradient[unused].any()


def test_probabilities_are_not_normalised_and_the_bias_counts() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.bfloat16)
    softmax = logits.float().softmax(-1)
    chosen, weights = route(logits, None, Choice(2).choose, Router())
    assert chosen.tolist() == [[0, 1]]
    assert weights.dtype == torch.bfloat16
    assert weights.equal(softmax[:, :2].bfloat16())
    bias = torch.tensor([0.0, 0.0, 0.0, 1.0])
    chosen, weights = route(logits, bias, Choice(2).choose, Router(bias="weights"))
    assert chosen.tolist() == [[3, 0]]
    assert weights.equal((softmax + bias)[:, [3, 0]].bfloat16())


def sigmoids(*scores: float) -> Tensor:
    """Return logits of one token with these scores."""
    return torch.tensor([scores]).logit()


@pytest.mark.parametrize(
    ("router", "per_token", "chosen", "weights"),
    [
        # The bias lifts expert 5 to 1.1, and counts in nothing else.
        (Router(scores="sigmoid", bias="choice"), 2, [5, 0], [0.1, 0.9]),
        (Router(scores="sigmoid", bias="choice", normalised=True), 2, [5, 0], [0.1, 0.9]),
        (Router(scores="sigmoid", bias="choice", normalised=True, scale=2.5), 1, [5], [0.25]),
        # Sums of the two best of a group of three: 1.4 and 1.5. The best expert is in the first.
        (Router(scores="sigmoid", num_groups=2, kept_groups=1), 2, [3, 4], [0.8, 0.7]),
        (
            Router(scores="sigmoid", num_groups=2, kept_groups=1, normalised=True, scale=3.0),
            3,
            [3, 4, 5],
            [1.5, 1.3125, 0.1875],
        ),
    ],
)
def test_sigmoids_in_groups(
    router: Router, per_token: int, chosen: list[int], weights: list[float]
) -> None:
    logits = sigmoids(0.9, 0.5, 0.3, 0.8, 0.7, 0.1)
    bias = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0]) if router.bias == "choice" else None
    found, counted = route(logits, bias, Choice(per_token).choose, router)
    assert found.tolist() == [chosen]
    torch.testing.assert_close(counted, torch.tensor([weights]))


def test_no_tokens_choose_nothing() -> None:
    router = Router(scores="sigmoid", num_groups=2, kept_groups=1, normalised=True)
    found, counted = route(torch.empty(0, 6), None, Choice(2).choose, router)
    assert found.shape == counted.shape == (0, 2)


def test_counts_are_of_real_tokens() -> None:
    chosen = torch.tensor([[0, 2], [2, 1], [3, 0]])
    assert count(chosen, 5).tolist() == [2, 1, 2, 1, 0]
    assert count(chosen, 5, torch.tensor([True, False, True])).tolist() == [2, 0, 1, 1, 0]


def gradients(model: Network) -> list[Tensor]:
    model.zero_grad()
    torch.autograd.backward(model(torch.arange(40).view(2, 20)).logits.logsumexp(-1).sum())
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_experts_are_not_chosen_again(
    config: NetworkConfig, checkpointing: Checkpointing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores of the second time are others, as after another rounding."""
    model = build_model(config, seed=3)
    kept = gradients(model)
    calls: dict[int, int] = {}

    def choose(self: Choice, scores: Tensor) -> Tensor:
        calls[id(self)] = calls.get(id(self), 0) + 1
        return remembered(self, scores * (1 if calls[id(self)] == 1 else -1))

    remembered = Choice.choose
    monkeypatch.setattr(Choice, "choose", choose)
    model.set_activation_checkpointing(checkpointing)
    recomputed = gradients(model)
    assert list(calls.values()) == [2, 2]
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True))


def test_stacks_are_laid_out_by_name(config: NetworkConfig, tmp_path: Path) -> None:
    model = build_model(config, seed=3)
    export_checkpoint(network_tensors(model), config, tmp_path, tmp_path / "out", torch.float32)
    files = load_file(tmp_path / "out" / "model.safetensors")
    experts = model.get_submodule("model.layers.2.mlp.experts")
    assert experts.gate_proj.shape == experts.up_proj.shape == (6, 16, 32)
    assert experts.down_proj.shape == (6, 32, 16)
    for number in range(6):
        for name in ("gate_proj", "up_proj", "down_proj"):
            official = files[f"model.layers.2.mlp.experts.{number}.{name}.weight"]
            assert official.equal(experts.get_parameter(name)[number])
    again = load_model(tmp_path / "out")
    ids = torch.arange(12).reshape(2, 6)
    assert again(ids).logits.equal(model(ids).logits)


def test_random_weights_of_experts(config: NetworkConfig) -> None:
    """As those of an MLP: what writes to the stream is smaller."""
    model = build_model(config.changed(expert_intermediate_size=256), seed=3)
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            small = name.endswith("down_proj")
            expected = 0.02 / 6**0.5 if small else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
    decayed = {name for name, _ in model.named_parameters() if model.architecture.decays(name)}
    assert "model.layers.0.mlp.gate.weight" in decayed
    assert "model.layers.0.mlp.experts.down_proj" in decayed
    assert model.architecture.linear_names() == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_forward_and_backward_read_no_value(
    config: NetworkConfig, checkpointing: Checkpointing
) -> None:
    """On torch's meta device: on CUDA, what reads a value would wait for the device."""
    with META:
        model = Network(config).to(torch.bfloat16)
    model.set_activation_checkpointing(checkpointing)
    routing = Routing()
    loss = model(
        torch.empty(1, 20, dtype=torch.int64, device=META),
        positions=torch.empty(9, dtype=torch.int64, device=META),
        targets=torch.empty(9, dtype=torch.int64, device=META),
        coefficients=torch.empty(9, device=META),
        routing=routing,
    ).loss
    assert config.architecture.experts is not None
    balance = Balance(config.architecture.experts, balance_weight=1.0, z_weight=1.0)
    balance.begin_step(20, world_size=2, device=META)
    loss = loss + balance.loss(routing, torch.empty(20, dtype=torch.bool, device=META))
    torch.autograd.backward(loss)
    balance.end_step(lambda counts: counts)
    assert balance.counts.shape == (2, 6)
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.bfloat16
