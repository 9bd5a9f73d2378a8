"""LLaDA-MoE against the official code's numbers, without and with a shared expert."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llada_sft.data.examples.tokenizer import load_tokenizer
from llada_sft.data.records.chat_template import ChatTemplate, template_of
from llada_sft.data.records.conversation import Turn
from llada_sft.demo.data import make_tokenizer
from llada_sft.diffusion.generate import generate
from llada_sft.diffusion.objective import diffusion_loss
from llada_sft.errors import CheckpointError
from llada_sft.model import NetworkConfig, build_model, load_model
from llada_sft.model.export import export_checkpoint, network_tensors
from llada_sft.model.families import family_of
from llada_sft.model.families.llada_moe import FAMILY
from llada_sft.model.flops import needed_operations
from llada_sft.model.layers.attention import Sequences
from llada_sft.model.layers.balance import Routing, balance_loss
from llada_sft.model.layers.experts import route
from llada_sft.model.layers.kept_bytes import Checkpointing
from llada_sft.model.settings import architecture_of, read_settings, require_trainable
from llada_sft.training.build_network import token_ids
from tests.unit.model.golden_states import assert_states

GOLDEN = Path(__file__).parents[2] / "golden"
NAMES = ("tiny_llada_moe", "tiny_llada_moe_shared")
CASES = [
    (name, case)
    for name in NAMES
    for case in json.loads((GOLDEN / name / "generate.json").read_text())["cases"]
]


class Golden:
    """One of the two networks, and what the official code computes with it."""

    def __init__(self, name: str) -> None:
        self.directory = GOLDEN / name
        self.model = load_model(self.directory)
        self.expected: dict[str, Tensor] = load_file(self.directory / "expected.safetensors")
        self.experts = self.model.architecture.experts
        assert self.experts is not None
        self.layers = [layer for layer, there in enumerate(self.experts.layers) if there]

    def sft_loss(self) -> tuple[Tensor, Routing]:
        """Return the loss of the noisy ids without the auxiliary one."""
        expected, routing = self.expected, Routing()
        ids = expected["input_ids"]
        logits = self.model(expected["sft_noisy_ids"], routing=routing).logits
        loss = diffusion_loss(
            logits,
            ids,
            expected["sft_masked"],
            1 / expected["sft_p_mask"][:, None],
            (ids.shape[1] - expected["sft_prompt_lengths"])[:, None],
            len(ids),
        )
        return loss, routing

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """Return the gradients by official names."""
        self.model.zero_grad()
        torch.autograd.backward(loss)
        gradients: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            assert parameter.grad is not None, name
            official = self.model.architecture.official_tensors(name, tuple(parameter.shape))
            whole = parameter.grad.clone()
            parts = [whole] if len(official) == 1 else list(whole)
            gradients |= {part: grad for (part, _), grad in zip(official, parts, strict=True)}
        return gradients


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_logits_and_hidden_states(golden: Golden) -> None:
    assert_states(golden.model, golden.expected)


def test_choices_of_routers(golden: Golden) -> None:
    routing = Routing()
    assert golden.experts is not None
    golden.model(golden.expected["input_ids"], routing=routing)
    for layer, logits, choice in zip(golden.layers, routing.logits, routing.choices, strict=True):
        official = golden.expected[f"router_logits.{layer}"]
        torch.testing.assert_close(logits, official, atol=1e-5, rtol=0)
        assert choice.experts is not None
        assert choice.experts.equal(golden.expected[f"router_selected.{layer}"])
        _, weights = route(logits, None, choice.choose, golden.experts.router)
        official = golden.expected[f"router_weights.{layer}"]
        torch.testing.assert_close(weights, official, atol=1e-6, rtol=0)


def test_expert_bias(golden: Golden, tmp_path: Path) -> None:
    """The bias decides which experts are chosen, and what they count; it is a buffer."""
    biases = {
        name.removeprefix("extra_expert_bias."): tensor
        for name, tensor in golden.expected.items()
        if name.startswith("extra_expert_bias.")
    }
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(golden.directory, source)
    values = json.loads((source / "config.json").read_text())
    values["moe_router_enable_expert_bias"] = True
    (source / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.expert_bias: missing"):
        load_model(source)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    index["weight_map"] |= dict.fromkeys(biases, "bias.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(biases, source / "bias.safetensors")
    model = load_model(source)
    logits = model(golden.expected["input_ids"]).logits
    official = golden.expected["logits_if_expert_bias"]
    torch.testing.assert_close(logits, official, atol=1e-5, rtol=0)
    export_checkpoint(network_tensors(model), model.config, source, out, torch.float32)
    assert load_model(out)(golden.expected["input_ids"]).logits.equal(logits)


def test_losses(golden: Golden) -> None:
    assert golden.experts is not None
    loss, routing = golden.sft_loss()
    expected = golden.expected
    assert loss.item() == pytest.approx(expected["sft_loss"].item(), rel=1e-5)
    auxiliary = balance_loss(routing.logits, golden.experts.per_token)
    assert auxiliary.item() == pytest.approx(expected["aux_loss"].item(), rel=1e-5)
    with_auxiliary = loss + golden.experts.balance_weight * auxiliary
    assert with_auxiliary.item() == pytest.approx(expected["sft_loss_with_aux"].item(), rel=1e-5)
    routing = Routing()
    golden.model(expected["input_ids"], routing=routing)
    auxiliary = balance_loss(routing.logits, golden.experts.per_token)
    assert auxiliary.item() == pytest.approx(expected["aux_loss_input_ids"].item(), rel=1e-5)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("kind", ["grad", "grad_with_aux"])
def test_gradients(golden: Golden, checkpointing: Checkpointing, kind: str) -> None:
    assert golden.experts is not None
    golden.model.set_activation_checkpointing(checkpointing)
    loss, routing = golden.sft_loss()
    if kind == "grad_with_aux":
        auxiliary = balance_loss(routing.logits, golden.experts.per_token)
        loss = loss + golden.experts.balance_weight * auxiliary
    own = golden.gradients(loss)
    compared = 0
    for name, official in golden.expected.items():
        if not name.startswith(f"{kind}."):
            continue
        gradient = own[name.removeprefix(f"{kind}.")]
        gradient = gradient if gradient.shape == official.shape else gradient.flatten()[:4096]
        assert (gradient - official).abs().max() <= 1e-5 * official.abs().max(), name
        compared += 1
    assert compared == (len(own) if kind == "grad" else compared)
    norm = torch.stack([gradient.norm() for gradient in own.values()]).norm()
    official_norm = golden.expected[kind.replace("grad", "grad_norm")].item()
    assert norm.item() == pytest.approx(official_norm, rel=1e-5)
    if kind == "grad":
        rows, embedding = golden.expected["grad_embed_rows_ids"], own["model.embed_tokens.weight"]
        official = golden.expected["grad_embed_rows"]
        torch.testing.assert_close(embedding[rows], official, atol=1e-5, rtol=1e-5)
        assert not embedding[rows[0]].any()


@pytest.mark.parametrize(("name", "case"), CASES)
def test_generation(name: str, case: dict[str, Any]) -> None:
    model = load_model(GOLDEN / name, torch.float64)
    settings = {key: case[key] for key in ("steps", "gen_length", "block_length")}
    more = {key: case[key] for key in ("cfg_scale", "remasking") if key in case}
    prompt = torch.tensor(case["prompt"])
    ids = generate(model, prompt, **settings, **more, mask_token_id=510)
    assert ids[:, prompt.shape[1] :].tolist() == case["output"]


def test_export_has_the_official_names_and_the_same_logits(golden: Golden, tmp_path: Path) -> None:
    model, out = golden.model, tmp_path / "out"
    tensors, reads = network_tensors(model), []
    for name, tensor in tensors.items():
        read = tensor.read
        object.__setattr__(tensor, "read", lambda n=name, r=read: (reads.append(n), r())[1])
    export_checkpoint(
        tensors, model.config, golden.directory, out, torch.float32, max_shard_size=60_000
    )
    assert sorted(reads) == sorted(tensors)  # each stack of experts once, in several files
    official = json.loads((golden.directory / "model.safetensors.index.json").read_text())
    exported = json.loads((out / "model.safetensors.index.json").read_text())
    assert exported["weight_map"].keys() == official["weight_map"].keys()
    values = json.loads((golden.directory / "config.json").read_text())
    written = read_settings(out)
    assert {key: written[key] for key in values if key != "transformers_version"} == {
        key: values[key] for key in values if key != "transformers_version"
    }
    ids = golden.expected["input_ids"]
    assert load_model(out)(ids).logits.equal(model(ids).logits)


def test_a_bias_of_the_router_is_not_trained(golden: Golden) -> None:
    values = json.loads((golden.directory / "config.json").read_text())
    values |= {"moe_router_enable_expert_bias": True, "mask_token_id": 510}
    with pytest.raises(CheckpointError, match="a router with a bias cannot be trained"):
        require_trainable(golden.directory, architecture_of(values))


def refusals(**changes: Any) -> list[str]:
    return list(FAMILY.problems(FAMILY.config_json(**changes)))


def test_the_released_sizes() -> None:
    values = FAMILY.config_json(qk_layernorm=True, max_position_embeddings=8192)
    network = FAMILY.architecture(values)
    number = sum(torch.Size(shape).numel() for shape in network.parameter_shapes().values())
    assert number / 1e9 == pytest.approx(7.36, abs=0.005)
    # Each token is computed by 8 of 64 experts: with the head, 1.4 billion parameters.
    used = needed_operations(network, tokens=1, squares=0, masked=1) / 6
    assert used / 1e9 == pytest.approx(1.40, abs=0.005)
    ids = (network.mask_token_id, network.eos_token_id, network.pad_token_id)
    assert ids == (156895, 156892, 156892)
    assert network.pad_row == 156892


@pytest.mark.parametrize("moe_layer_freq", [[1, 1], [0, 0]])
def test_an_export_says_what_missing_keys_mean(moe_layer_freq: list[int], tmp_path: Path) -> None:
    values = {
        "architectures": ["LLaDAMoEModelLM"],
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "dense_intermediate_size": 8,
        "rope_theta": 1000,
        "partial_rotary_factor": 1,
        "moe_layer_freq": moe_layer_freq,
    }
    if any(moe_layer_freq):
        sizes = ("expert_intermediate_size", "num_experts", "num_experts_per_tok")
        values |= dict(zip(sizes, (8, 4, 2), strict=True))
    assert list(FAMILY.problems(values)) == []
    config = NetworkConfig(values)
    network = config.architecture
    assert (network.num_kv_heads, network.qk_norm, network.max_length) == (4, False, 4096)
    (tmp_path / "config.json").write_text(config.to_json_string())
    assert architecture_of(read_settings(tmp_path)) == network


def test_ids_of_a_small_vocabulary_must_be_named() -> None:
    network = FAMILY.architecture(FAMILY.config_json(vocab_size=512, pad_token_id=505))
    assert (network.mask_token_id, network.eos_token_id, network.pad_row) == (None, None, 505)


@pytest.mark.parametrize(
    "identity",
    [
        {"model_type": "llada", "architectures": ["LLaDAMoEModelLM"]},
        {"model_type": "lladamoe", "architectures": ["LLaDAMoEModelLM"]},
        {"model_type": "llada"},
        {"model_type": "lladamoe"},
        {"architectures": ["LLaDAMoEModelLM"]},
    ],
)
def test_it_is_told_apart_from_llada(identity: dict[str, Any], tmp_path: Path) -> None:
    values = {
        key: value for key, value in FAMILY.config_json().items() if key not in FAMILY.identity
    }
    values |= identity
    assert family_of(values) is FAMILY
    (tmp_path / "config.json").write_text(NetworkConfig(values).to_json_string())
    written = read_settings(tmp_path)
    assert written["architectures"] == ["LLaDAMoEModelLM"]
    assert written["model_type"] == identity.get("model_type", "llada")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"hidden_act": "gelu"}, 'hidden_act: only "silu" is implemented, got "gelu"'),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: only null is implemented, got {"),
        ({"attention_dropout": 0.1}, "attention_dropout: only 0.0 is implemented, got 0.1"),
        ({"attention_bias": "yes"}, 'attention_bias: must be true or false, got "yes"'),
        ({"clip_qkv": -1}, "clip_qkv: must be a positive number, got -1"),
        ({"num_attention_heads": -1}, "num_attention_heads: must be at least 1, got -1"),
        ({"rope_theta": -1}, "rope_theta: must be a positive number, got -1"),
        ({"num_experts": -1}, "num_experts: must be at least 1, got -1"),
        (
            {"num_experts_per_tok": 65},
            "num_experts_per_tok: must be at most num_experts, 64, got 65",
        ),
        ({"expert_intermediate_size": None}, "expert_intermediate_size: must be a whole number"),
        ({"moe_layer_freq": []}, "moe_layer_freq: must be a list of 16 numbers, 0 or 1, got []"),
        ({"moe_layer_freq": 1}, "moe_layer_freq: must be a list of 16 numbers, 0 or 1, got 1"),
        ({"moe_layer_freq": [0] + [1] * 15}, "dense_intermediate_size: must be a whole number"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor: must make an even number of the"),
        ({"partial_rotary_factor": 0.01}, "partial_rotary_factor: must make an even number of"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: must divide num_attention_heads, 16"),
        ({"router_aux_loss_coef": -0.1}, "router_aux_loss_coef: must be a positive number"),
        ({"mask_token_id": 157184}, "mask_token_id: does not fit vocab_size, 157184, got 157184"),
    ],
)
def test_what_it_cannot_be(changes: dict[str, Any], line: str) -> None:
    (found,) = refusals(**changes)
    assert found.startswith(line)


@pytest.mark.parametrize(
    "ignored",
    [
        {"norm_topk_prob": True},
        {"moe_router_score_function": "sigmoid"},
        {"routed_scaling_factor": 2.5, "router_num_group": 8, "router_topk_group": 4},
        {"num_key_value_heads": None, "tie_word_embeddings": True, "router_aux_loss_coef": 0},
        {"moe_layer_freq": [0] * 16, "dense_intermediate_size": 8192, "num_experts": -1},
    ],
)
def test_what_the_released_code_ignores_or_has(ignored: dict[str, Any]) -> None:
    assert refusals(**ignored) == []
    network = FAMILY.architecture(FAMILY.config_json(**ignored))
    assert (network.experts is None) == ("dense_intermediate_size" in ignored)


def test_every_feature_of_attention(tmp_path: Path) -> None:
    """Biases, clipping and a tied head have no golden numbers: they load, run and export."""
    values = json.loads((GOLDEN / NAMES[1] / "config.json").read_text())
    values |= {"attention_bias": True, "clip_qkv": 0.5, "tie_word_embeddings": True}
    model = build_model(NetworkConfig(values), seed=5)
    names = {name for name, _ in model.named_parameters()}
    assert {f"model.layers.1.self_attn.{part}_proj.bias" for part in "qkvo"} <= names
    assert "lm_head.weight" not in names
    export_checkpoint(
        network_tensors(model), model.config, tmp_path, tmp_path / "out", torch.float32
    )
    ids = torch.arange(24).view(2, 12)
    assert load_model(tmp_path / "out")(ids).logits.equal(model(ids).logits)
    unclipped = model.config.changed(clip_qkv=None)
    assert not build_model(unclipped, seed=5)(ids).logits.equal(model(ids).logits)


def test_the_chat_template_of_a_tokenizer_without_one(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    ids = (tokenizer.eos_token_id, tokenizer.mask_token_id)
    values = FAMILY.config_json(eos_token_id=ids[0], mask_token_id=ids[1])
    known = token_ids(NetworkConfig(values))
    assert (known.eos_token_id, known.mask_token_id) == ids
    loaded = load_tokenizer(tmp_path, known.mask_token_id, known.chat_template)
    turns: list[Turn] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Bye!"},
    ]
    assert ChatTemplate(loaded, template_of(loaded)).prompt(turns) == (
        "<role>SYSTEM</role>Be brief.<|role_end|><role>HUMAN</role>Hi?<|role_end|>"
        "<role>ASSISTANT</role>Yes.<|role_end|><role>HUMAN</role>Bye!<|role_end|>"
        "<role>ASSISTANT</role>"
    )
    loaded.chat_template = "{{ messages }}"
    loaded.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path, known.mask_token_id, known.chat_template)
    assert again.chat_template == "{{ messages }}"


def test_packed_and_padded_rows_are_each_computed_alone(golden: Golden) -> None:
    ids, lengths = golden.expected["input_ids"], (17, 40, 23)
    pieces = [ids[row, :length] for row, length in enumerate(lengths)]
    alone = torch.cat([golden.model(piece[None]).logits[0] for piece in pieces])
    packed = golden.model(torch.cat(pieces)[None], sequences=Sequences(lengths)).logits[0]
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)
    real = torch.arange(40) < torch.tensor(lengths)[:, None]
    padded = golden.model(ids, attention_mask=real).logits[real]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)
