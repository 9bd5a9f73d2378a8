"""Members of the family: official configs as they are, and a new member in one file."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llada_sft.diffusion.generate import generate
from llada_sft.errors import CheckpointError
from llada_sft.model import NetworkConfig, build_model, load_model
from llada_sft.model.configuration import read_config
from llada_sft.model.export import export_checkpoint, network_tensors
from llada_sft.model.families import FAMILIES, dream, family_of, llada
from llada_sft.model.families.architecture import Architecture, BlockNames, Names
from llada_sft.model.families.family import Family
from llada_sft.model.settings import architecture_of, read_settings

TINY = {
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 4,
    "mlp_hidden_size": 48,
    "max_sequence_length": 64,
    "vocab_size": 101,
    "embedding_size": 104,
    "mask_token_id": 100,
    "eos_token_id": 99,
    "pad_token_id": 99,
}
# What the hub's files say, where it is not what `llada.DEFAULTS` says.
LLADA_8B = {
    "mask_token_id": 126336,
    "eos_token_id": 126081,
    "pad_token_id": 126081,
    "n_kv_heads": 32,
    "embedding_size": 126464,
    "include_qkv_bias": False,
    "init_device": "meta",
    "transformers_version": "4.46.3",
    "torch_dtype": "bfloat16",
    "auto_map": {
        "AutoConfig": "configuration_llada.LLaDAConfig",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        "AutoModel": "modeling_llada.LLaDAModelLM",
    },
}
ILLADA = {
    "n_kv_heads": 8,
    "mlp_hidden_size": 14336,
    "vocab_size": 155136,
    "embedding_size": 155136,
    "max_sequence_length": 8192,
    "mask_token_id": 5,
    "weight_tying": True,
}
BILLION = 1e9


def test_an_export_without_code_of_its_own_names_the_official_classes() -> None:
    assert llada.FAMILY.hub_code == {
        name: f"GSAI-ML/LLaDA-8B-Base--{official}"
        for name, official in LLADA_8B["auto_map"].items()
    }


def size_of(network: Architecture) -> int:
    return sum(torch.Size(shape).numel() for shape in network.parameter_shapes().values())


@pytest.mark.parametrize(
    ("changes", "billions"),
    [({}, 8.02), ({"max_sequence_length": 4096, "rope_theta": 500000.0}, 8.02), (ILLADA, 7.62)],
    ids=["LLaDA-8B", "LLaDA-1.5", "iLLaDA"],
)
def test_official_sizes(tmp_path: Path, changes: dict[str, Any], billions: float) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(llada.FAMILY.config_json(**(LLADA_8B | changes)))
    )
    network = read_config(tmp_path).architecture
    assert size_of(network) / BILLION == pytest.approx(billions, abs=0.005)
    assert network.tied is bool(changes.get("weight_tying"))


def test_size_of_dream() -> None:
    network = architecture_of(
        dream.FAMILY.config_json(
            vocab_size=152064,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
        )
    )
    assert size_of(network) / BILLION == pytest.approx(7.62, abs=0.005)


@pytest.mark.parametrize("key", ["weight_tying", "tie_word_embeddings"])
def test_a_tied_matrix_is_one_parameter(tmp_path: Path, key: str) -> None:
    tied = build_model(NetworkConfig(llada.FAMILY.config_json(**TINY, **{key: True})), seed=3)
    names = [name for name, _ in tied.named_parameters()]
    assert "model.transformer.wte.weight" in names
    assert "model.transformer.ff_out.weight" not in names
    assert tied.get_output_embeddings() is tied.get_input_embeddings()
    export_checkpoint(network_tensors(tied), tied.config, tmp_path, tmp_path / "out", torch.float32)
    again = load_model(tmp_path / "out")
    ids = torch.arange(12).reshape(2, 6)
    torch.testing.assert_close(again(ids).logits, tied(ids).logits, atol=1e-6, rtol=0)


def test_a_tied_matrix_has_the_gradients_of_both_uses() -> None:
    tied = build_model(NetworkConfig(llada.FAMILY.config_json(**TINY, weight_tying=True)), seed=3)
    ids, chosen = torch.arange(6)[None], torch.tensor([1, 4])
    coefficients = torch.tensor([0.5, 2.0])
    loss = tied(ids, positions=chosen, targets=ids[0, chosen], coefficients=coefficients).loss
    torch.autograd.backward(loss)
    weight = tied.get_input_embeddings().weight
    found, weight.grad = weight.grad, None
    logits = tied(ids).logits[0, chosen].log_softmax(-1)
    plain = -(coefficients * logits.gather(1, ids[0, chosen, None])[:, 0]).sum()
    torch.autograd.backward(plain)
    torch.testing.assert_close(found, weight.grad, atol=1e-6, rtol=1e-4)


def test_a_tied_matrix_counts_once_as_the_head() -> None:
    from llada_sft.model.flops import needed_operations

    untied, tied = (
        architecture_of(llada.FAMILY.config_json(**TINY, weight_tying=tying))
        for tying in (False, True)
    )
    assert needed_operations(tied, 5, 25, 3) == needed_operations(untied, 5, 25, 3)
    assert size_of(untied) - size_of(tied) == 104 * 32


@pytest.mark.parametrize("value", ["yes", 1])
def test_a_tie_that_is_no_truth_value(value: object) -> None:
    values = llada.FAMILY.config_json(**TINY, tie_word_embeddings=value)
    (line,) = llada.FAMILY.problems(values)
    assert line.startswith("tie_word_embeddings: must be true or false, got ")


def test_dream_without_some_keys_is_what_its_class_says() -> None:
    values = {"model_type": "Dream"}
    network = architecture_of(values)
    assert (network.mask_token_id, network.eos_token_id, network.num_kv_heads) == (
        151666,
        151643,
        32,
    )
    exported = json.loads(NetworkConfig(values).to_json_string())
    assert exported["rope_theta"] == 10000.0
    assert exported["auto_map"]["AutoModel"].endswith("modeling_dream.DreamModel")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: only null is implemented"),
        ({"use_sliding_window": True}, "use_sliding_window: only false is implemented"),
        ({"hidden_size": 0}, "hidden_size: must be at least 1, got 0"),
        ({"mask_token_id": None}, "mask_token_id: must be a whole number, got null"),
        (
            {"num_attention_heads": 7, "num_key_value_heads": 7},
            "hidden_size / num_attention_heads: must be an even",
        ),
        ({"mask_token_id": 151936}, "mask_token_id: does not fit vocab_size, 151936"),
    ],
)
def test_what_dream_cannot_be(changes: dict[str, Any], problem: str) -> None:
    (line,) = dream.FAMILY.problems(dream.FAMILY.config_json(**changes))
    assert line.startswith(problem)


# A member that exists in this test alone: other names, another order of keys, every feature.
TOY_NAMES = Names(
    embedding="tokens",
    blocks="stack",
    final_norm="last",
    head="vocabulary",
    of_block=BlockNames(
        attn_norm="n1",
        q="mix.q",
        k="mix.k",
        v="mix.v",
        q_norm="mix.qn",
        k_norm="mix.kn",
        attn_out="mix.o",
        mlp_norm="n2",
        gate="ffn.a",
        up="ffn.b",
        down="ffn.c",
    ),
)


def toy_architecture(values: Mapping[str, Any]) -> Architecture:
    base = llada.FAMILY.architecture(llada.FAMILY.config_json(**TINY))
    return replace(
        base,
        names=TOY_NAMES,
        num_layers=values["depth"],
        head_dim=12,
        rotary_dim=6,
        num_kv_heads=2,
        qk_norm=True,
        qkv_bias=True,
        out_bias=True,
        clip_qkv=1.5,
        shifted=True,
    )


TOY = Family(
    name="Toy",
    identity={"model_type": "toy"},
    describes=lambda values: values.get("model_type") == "toy",
    problems=lambda values: iter(() if values.get("depth") else ("depth: must be given",)),
    architecture=toy_architecture,
    defaults={"depth": 3},
    hub_code={},
)


@pytest.fixture
def toy_family(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    FAMILIES.append(TOY)
    yield
    FAMILIES.remove(TOY)


@pytest.mark.usefixtures("toy_family")
def test_a_new_member_is_one_file(tmp_path: Path) -> None:
    made = build_model(NetworkConfig(TOY.config_json()), seed=1)
    export_checkpoint(network_tensors(made), made.config, tmp_path, tmp_path / "out", torch.float32)
    assert architecture_of(read_settings(tmp_path / "out")) == made.architecture
    again = load_model(tmp_path / "out")
    ids = torch.arange(10).reshape(2, 5)
    assert again(ids).logits.equal(made(ids).logits)
    names = {name for name, _ in made.named_parameters()}
    assert {"tokens.weight", "stack.2.mix.q.bias", "stack.0.mix.qn.weight"} <= names
    kept = {name for name in names if not made.architecture.decays(name)}
    norms = ("n1.weight", "n2.weight", "qn.weight", "kn.weight", "last.weight")
    assert kept == {name for name in names if name.endswith((".bias", *norms))}
    writers = {name for name in names if made.architecture.writes_to_residual(name)}
    assert writers == {f"stack.{n}.{part}.weight" for n in range(3) for part in ("mix.o", "ffn.c")}
    assert made.architecture.linear_names() == {"q", "k", "v", "o", "a", "b", "c"}
    answer = generate(again, ids, steps=4, gen_length=4, block_length=4, mask_token_id=100)
    assert answer.shape == (2, 9)


@pytest.mark.usefixtures("toy_family")
def test_problems_of_a_new_member_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "toy"}')
    with pytest.raises(CheckpointError, match=r"config\.json: depth: must be given"):
        read_settings(tmp_path)


def test_every_member_is_found_by_its_own_config() -> None:
    for family, values in (
        (llada.FAMILY, llada.FAMILY.config_json()),
        (dream.FAMILY, dream.FAMILY.config_json()),
    ):
        assert family_of(values) is family
        assert list(family.problems({**values, "mask_token_id": 5, "eos_token_id": 4})) == []
