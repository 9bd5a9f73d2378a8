"""LLaDA2 against the numbers of both developers' code, and in other shapes against its formulas."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from llada_sft.model import Network, NetworkConfig, build_model, load_model
from llada_sft.model.export import network_tensors, official_parts
from llada_sft.model.families import family_of
from llada_sft.model.families.llada2 import FAMILY, MINI
from llada_sft.model.flops import needed_operations
from llada_sft.model.layers.attention import Sequences
from llada_sft.model.layers.balance import Routing
from llada_sft.model.layers.blocks import Blocks
from llada_sft.model.layers.experts import route
from llada_sft.model.layers.kept_bytes import Checkpointing
from llada_sft.model.settings import read_settings
from tests.unit.model.golden_states import assert_states
from tests.unit.model.plain_llada2 import PlainLLaDA2

GOLDEN = Path(__file__).parents[2] / "golden"
NAMES = ("tiny_llada2_moe", "tiny_llada2_moe_b")


class Golden:
    """One of the two networks, and what the official code computes with it."""

    def __init__(self, name: str) -> None:
        self.directory = GOLDEN / name
        self.model = load_model(self.directory)
        self.expected: dict[str, Tensor] = load_file(self.directory / "expected.safetensors")
        experts = self.model.architecture.experts
        assert experts is not None
        self.router, self.block_length = experts.router, int(self.expected["block_size"])
        self.layers = [layer for layer, there in enumerate(experts.layers) if there]


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def gradients(model: Network) -> dict[str, Tensor]:
    """Return the gradients by official names."""
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        official = model.architecture.official_tensors(name, tuple(parameter.shape))
        parts = [parameter.grad] if len(official) == 1 else list(parameter.grad)
        found |= {part: grad for (part, _), grad in zip(official, parts, strict=True)}
    return found


def test_logits_and_hidden_states(golden: Golden) -> None:
    assert_states(golden.model, golden.expected)


def test_choices_of_routers(golden: Golden) -> None:
    routing = Routing()
    golden.model(golden.expected["input_ids"], routing=routing)
    for layer, logits, choice in zip(golden.layers, routing.logits, routing.choices, strict=True):
        official = golden.expected[f"router_logits.{layer}"].flatten(0, 1)
        torch.testing.assert_close(logits, official, atol=1e-5, rtol=0)
        assert choice.experts is not None
        assert choice.experts.equal(golden.expected[f"router_selected.{layer}"].flatten(0, 1))
        _, weights = route(logits, None, choice.choose, golden.router)
        official = golden.expected[f"router_weights.{layer}"].flatten(0, 1)
        torch.testing.assert_close(weights, official, atol=1e-6, rtol=0)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_loss_and_gradients_under_full_attention(
    golden: Golden, checkpointing: Checkpointing
) -> None:
    model, expected = golden.model, golden.expected
    model.set_activation_checkpointing(checkpointing)
    logits = model(expected["sft_noisy_ids"]).logits
    loss = F.cross_entropy(logits.flatten(0, 1), expected["sft_labels"].flatten())
    assert loss.item() == pytest.approx(expected["sft_full_loss_noisy_inputs"].item(), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    own, before = gradients(model), "grad_full_noisy."
    official = {
        name.removeprefix(before): gradient
        for name, gradient in expected.items()
        if name.startswith(before)
    }
    assert len(official) >= 6
    for name, gradient in official.items():
        assert (own[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
    assert not own["model.word_embeddings.weight"][expected["grad_embed_rows_ids"][0]].any()
    assert not any("expert_bias" in name for name in own)


def test_logits_in_blocks(golden: Golden) -> None:
    model, expected, length = golden.model, golden.expected, golden.block_length
    logits = model(expected["input_ids"], blocks=Blocks(length)).logits
    torch.testing.assert_close(logits, expected["logits_block_causal"], atol=1e-5, rtol=0)
    both = torch.cat([expected["sft_noisy_ids"], expected["input_ids"]], dim=1)
    logits = model(both, blocks=Blocks(length, doubled=True)).logits[:, :40]
    torch.testing.assert_close(logits, expected["bd_logits_noisy_half"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_loss_and_gradients_of_block_diffusion(
    golden: Golden, checkpointing: Checkpointing
) -> None:
    """dFactory's loss: the mean over the masked positions, without 1/t."""
    model, expected = golden.model, golden.expected
    model.set_activation_checkpointing(checkpointing)
    both = torch.cat([expected["sft_noisy_ids"], expected["input_ids"]], dim=1)
    masked = expected["sft_labels"] >= 0
    # Flat indices into rows of 80.
    positions = F.pad(masked, (0, 40)).flatten().nonzero().flatten()
    loss = model(
        both,
        positions=positions,
        targets=expected["sft_labels"][masked],
        coefficients=torch.full((len(positions),), 1 / len(positions)),
        blocks=Blocks(golden.block_length, doubled=True),
    ).loss
    assert loss.item() == pytest.approx(expected["sft_bd_loss"].item(), rel=1e-5)
    loss.backward()
    own = gradients(model)
    for name, gradient in own.items():
        official = expected[f"grad.{name}"]
        gradient = gradient if gradient.shape == official.shape else gradient.flatten()[:4096]
        assert (gradient - official).abs().max() <= 1e-5 * official.abs().max(), name
    norm = torch.stack([gradient.norm() for gradient in own.values()]).norm()
    assert norm.item() == pytest.approx(expected["grad_norm"].item(), rel=1e-5)
    rows, embedding = expected["grad_embed_rows_ids"], own["model.word_embeddings.weight"]
    torch.testing.assert_close(embedding[rows], expected["grad_embed_rows"], atol=1e-5, rtol=1e-5)
    assert not embedding[rows[0]].any()


def test_packed_and_padded_rows_are_each_computed_alone(golden: Golden) -> None:
    ids, lengths = golden.expected["input_ids"], (17, 40, 23)
    pieces = [ids[row, :length] for row, length in enumerate(lengths)]
    alone = torch.cat([golden.model(piece[None]).logits[0] for piece in pieces])
    packed = golden.model(torch.cat(pieces)[None], sequences=Sequences(lengths)).logits[0]
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)
    real = torch.arange(40) < torch.tensor(lengths)[:, None]
    padded = golden.model(ids, attention_mask=real).logits[real]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)


TINY: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "use_bias": False,
    "attention_dropout": 0.0,
    "max_position_embeddings": 64,
    "rope_theta": 1000.0,
    "mask_token_id": 52,
    "eos_token_id": 51,
    "pad_token_id": 51,
    "num_experts": 12,
    "num_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 10,
    "first_k_dense_replace": 1,
}


def randomised(values: dict[str, Any]) -> Network:
    """Return a network whose parameters and buffers are all random and none is small."""
    model = build_model(NetworkConfig(values), seed=5)
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            scale = tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 0.2
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * scale)
            if tensor.dim() == 1 and not tensor.requires_grad:
                continue
            if tensor.dim() == 1:
                tensor += 1
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 0},
        {"num_key_value_heads": 3, "head_dim": None, "num_attention_heads": 3},
        {"head_dim": None, "num_attention_heads": 5, "num_key_value_heads": 1},
        {"head_dim": 7, "partial_rotary_factor": 0.6},
        {"head_dim": 15},
        {"head_dim": 7, "use_qkv_bias": True},
        {"head_dim": 16, "use_qkv_bias": True, "use_bias": True},
        {"partial_rotary_factor": 1.0},
        {"partial_rotary_factor": 0.25},
        {"n_group": 1, "topk_group": 1},
        {"topk_group": 4},
        {"topk_group": 1, "num_experts_per_tok": 3},
        {"n_group": 6, "topk_group": 2},
        {"num_experts_per_tok": 1},
        {"num_experts_per_tok": 1, "routed_scaling_factor": 1.0},
        {"routed_scaling_factor": 1.0},
        {"first_k_dense_replace": 0},
        {"first_k_dense_replace": 2},
        {"first_k_dense_replace": 3, "num_experts": 7},
        {"num_experts": None},
        {"num_shared_experts": None},
        {"num_shared_experts": 0},
        {"num_shared_experts": 3},
        {"hidden_size": 20, "moe_intermediate_size": 9},
        {"tie_word_embeddings": True},
    ],
    ids=str,
)
def test_other_shapes_are_what_the_formulas_say(changes: dict[str, Any]) -> None:
    values = FAMILY.config_json(**(TINY | changes))
    assert list(FAMILY.problems(values)) == []
    model = randomised(values)
    parts = official_parts(network_tensors(model), model.config)
    tensors = {name: part.read().clone().requires_grad_() for name, part in parts.items()}
    assert {name: tuple(t.shape) for name, t in tensors.items()} == (
        model.architecture.tensor_shapes()
    )
    head = "model.word_embeddings" if values["tie_word_embeddings"] else "lm_head"
    plain = PlainLLaDA2(values, tensors, head)
    ids = torch.arange(18).reshape(2, 9) * 5 % 53
    official, own = torch.stack([plain.logits(row) for row in ids]), model(ids).logits
    torch.testing.assert_close(own, official, atol=2e-5, rtol=1e-5)
    for logits in (own, official):
        logits.logsumexp(-1).sum().backward()
    for name, gradient in gradients(model).items():
        expected = tensors[name].grad
        expected = torch.zeros_like(gradient) if expected is None else expected  # has no token
        assert (gradient - expected).abs().max() <= 1e-4 * expected.abs().max(), name


def test_the_released_sizes() -> None:
    network = FAMILY.architecture(FAMILY.config_json(**MINI))
    number = sum(torch.Size(shape).numel() for shape in network.parameter_shapes().values())
    assert number / 1e9 == pytest.approx(16.26, abs=0.005)
    experts = [s for name, s in network.parameter_shapes().items() if ".mlp.experts." in name]
    assert sum(torch.Size(shape).numel() for shape in experts) / number == pytest.approx(
        0.94, abs=0.005
    )
    # Each token is computed by 8 of 256 experts: with head and embedding, 1.4 billion parameters.
    used = needed_operations(network, tokens=1, squares=0, masked=1) / 6
    assert (used + network.num_embeddings * network.width) / 1e9 == pytest.approx(1.43, abs=0.005)
    ids = (network.mask_token_id, network.eos_token_id, network.pad_row)
    assert ids == (None, 156892, 156892)
    assert network.linear_names() == {
        "query_key_value", "dense", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip


@pytest.mark.parametrize(
    "identity",
    [
        {"model_type": "llada2_moe", "architectures": ["LLaDA2MoeModelLM"]},
        {"model_type": "llada2_moe_veomni"},
        {"model_type": "llada21_moe"},
        {"architectures": ["LLaDA2MoeModelLM"]},
    ],
)
def test_its_names(identity: dict[str, Any], tmp_path: Path) -> None:
    values = {key: v for key, v in FAMILY.config_json(**TINY).items() if key not in FAMILY.identity}
    assert family_of(values | identity) is FAMILY
    (tmp_path / "config.json").write_text(NetworkConfig(values | identity).to_json_string())
    assert read_settings(tmp_path)["model_type"] == identity.get("model_type", "llada2_moe")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"hidden_act": "gelu"}, 'hidden_act: only "silu" is implemented, got "gelu"'),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: only null is implemented, got {"),
        ({"use_sliding_window": True}, "use_sliding_window: only false is implemented, got true"),
        ({"use_bias": "yes"}, 'use_bias: must be true or false, got "yes"'),
        ({"head_dim": 0}, "head_dim: must be at least 1, got 0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: must divide num_attention_heads, 4"),
        ({"partial_rotary_factor": 0.1}, "partial_rotary_factor: must make pairs of the 8"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor: must make pairs of the 8"),
        ({"head_dim": 7, "partial_rotary_factor": 1}, "partial_rotary_factor: must make pairs of"),
        ({"n_group": 5}, "num_experts / n_group: must be a whole number above 1, got 12 / 5"),
        ({"n_group": 12}, "num_experts / n_group: must be a whole number above 1, got 12 / 12"),
        ({"topk_group": 5}, "topk_group: must be at most n_group, 4, got 5"),
        ({"topk_group": 0}, "topk_group: must be at least 1, got 0"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok: must be at most the 6 experts of"),
        ({"routed_scaling_factor": 0}, "routed_scaling_factor: must be a positive number, got 0"),
        ({"attention_dropout": -0.1}, "attention_dropout: must be a positive number, got -0.1"),
        ({"intermediate_size": None}, "intermediate_size: must be a whole number, got null"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size: must be a whole number, got"),
        ({"first_k_dense_replace": -1}, "first_k_dense_replace: must be at least 0, got -1"),
        ({"pad_token_id": 53}, "pad_token_id: does not fit vocab_size, 53, got 53"),
    ],
)  # fmt: skip
def test_what_it_cannot_be(changes: dict[str, Any], line: str) -> None:
    (problem,) = FAMILY.problems(FAMILY.config_json(**(TINY | changes)))
    assert problem.startswith(line)


def test_the_formulas_give_the_official_numbers_under_three_masks(golden: Golden) -> None:
    """What other shapes are compared with."""
    expected, values = golden.expected, json.loads((golden.directory / "config.json").read_text())
    parts = official_parts(network_tensors(golden.model), golden.model.config)
    plain = PlainLLaDA2(values, {name: part.read() for name, part in parts.items()})
    ids, block = expected["input_ids"][0], torch.arange(40) // golden.block_length
    for sees, name in ((None, "logits"), (block <= block[:, None], "logits_block_causal")):
        torch.testing.assert_close(plain.logits(ids, sees), expected[name][0], atol=2e-5, rtol=0)
    both = torch.cat([expected["sft_noisy_ids"][0], ids])
    logits = plain.logits(both, expected["bd_mask"].bool(), torch.arange(40).repeat(2))[:40]
    torch.testing.assert_close(logits, expected["bd_logits_noisy_half"][0], atol=2e-5, rtol=0)
