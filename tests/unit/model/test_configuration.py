"""config.json: every official key survives, and what we cannot compute is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llada_sft.errors import CheckpointError
from llada_sft.model.configuration import NetworkConfig, read_config
from llada_sft.model.families import llada
from llada_sft.model.network import Network
from llada_sft.model.settings import architecture_of, read_settings


def write(directory: Path, values: dict[str, Any]) -> Path:
    (directory / "config.json").write_text(json.dumps(values))
    return directory


def refusal(directory: Path) -> list[str]:
    with pytest.raises(CheckpointError) as error:
        read_config(directory)
    return str(error.value).splitlines()


def test_every_key_survives_load_and_save(
    golden_dir: Path, golden_config: dict[str, Any], tmp_path: Path
) -> None:
    read_config(golden_dir).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["transformers_version"], golden_config["transformers_version"]
    assert saved == golden_config


def test_unknown_keys_survive_too(golden_config: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, golden_config | {"bos_token_id": 504, "made_by": "someone"})
    saved = json.loads(read_config(tmp_path).to_json_string())
    assert (saved["bos_token_id"], saved["made_by"]) == (504, "someone")


def test_a_config_from_sizes_has_the_official_keys(
    small_config: NetworkConfig, golden_config: dict[str, Any]
) -> None:
    values = json.loads(small_config.to_json_string())
    assert values.keys() == golden_config.keys()
    assert values["auto_map"]["AutoModel"] == ("GSAI-ML/LLaDA-8B-Base--modeling_llada.LLaDAModelLM")
    assert values["torch_dtype"] == "float32"


def test_what_is_not_implemented_is_refused_all_at_once(
    golden_config: dict[str, Any], tmp_path: Path
) -> None:
    changes = {"alibi": True, "block_type": "sequential", "residual_dropout": 0.1}
    file = write(tmp_path, golden_config | changes) / "config.json"
    assert refusal(tmp_path) == [
        f"{file}: alibi: only false is implemented, got true",
        f'{file}: block_type: only "llama" is implemented, got "sequential"',
        f"{file}: residual_dropout: only 0.0 is implemented, got 0.1",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation_type", "swiglu"),
        ("attention_dropout", 0.1),
        ("attention_layer_norm", True),
        ("bias_for_layer_norm", True),
        ("block_group_size", 2),
        ("embedding_dropout", 0.1),
        ("include_bias", True),
        ("include_qkv_bias", True),
        ("input_emb_norm", True),
        ("layer_norm_type", "default"),
        ("layer_norm_with_affine", False),
        ("rope", False),
        ("rope_full_precision", False),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("clip_qkv", 8.0),
        ("partial_rotary_factor", 0.5),
        ("scale_logits", True),
    ],
)
def test_each_refused_value(
    golden_config: dict[str, Any], tmp_path: Path, key: str, value: object
) -> None:
    (line,) = refusal(write(tmp_path, golden_config | {key: value}))
    assert f": {key}: only " in line


GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.mark.parametrize("name", ["tiny_llada", "tiny_llada_moe", "tiny_llada2_moe", "tiny_dream"])
def test_rope_parameters_of_transformers_5(tmp_path: Path, name: str) -> None:
    """They take the place of `rope_theta`, without which some members mean 10,000."""
    values = json.loads((GOLDEN / name / "config.json").read_text())
    expected = read_config(write(tmp_path, values)).architecture
    names = ("rope_theta", "partial_rotary_factor")
    inside = {key: values.pop(key) for key in names if key in values}
    values |= {"rope_theta": None, "rope_parameters": inside | {"rope_type": "default"}}
    assert read_config(write(tmp_path, values)).architecture == expected


@pytest.mark.parametrize("name", ["tiny_llada", "tiny_llada_moe", "tiny_llada2_moe", "tiny_dream"])
def test_rope_parameters_that_ask_for_other_positions(tmp_path: Path, name: str) -> None:
    values = json.loads((GOLDEN / name / "config.json").read_text())
    theta = values["rope_theta"]
    scaled = {"rope_type": "linear", "factor": 2.0}
    (line,) = refusal(write(tmp_path, values | {"rope_parameters": scaled}))
    assert f"rope_scaling: only null is implemented, got {json.dumps(scaled)}" in line
    other = {"rope_parameters": {"rope_theta": 7.0}}
    (line,) = refusal(write(tmp_path, values | other))
    assert f"rope_theta: is 7.0 in rope_parameters, got {theta}; keep one" in line
    (line,) = refusal(write(tmp_path, values | {"rope_parameters": [7.0]}))
    assert "rope_parameters: must be an object, got [7.0]" in line


def test_missing_keys_are_named(golden_config: dict[str, Any], tmp_path: Path) -> None:
    del golden_config["mask_token_id"], golden_config["d_model"], golden_config["rope_theta"]
    file = write(tmp_path, golden_config) / "config.json"
    assert refusal(tmp_path) == [
        f"{file}: d_model: must be a whole number, got null",
        f"{file}: mask_token_id: must be a whole number, got null",
        f"{file}: rope_theta: must be a number, got null",
    ]


def test_contradictions_are_named(golden_config: dict[str, Any], tmp_path: Path) -> None:
    changes = {"n_heads": 5, "n_kv_heads": 3, "mask_token_id": 512}
    file = write(tmp_path, golden_config | changes) / "config.json"
    assert refusal(tmp_path) == [
        f"{file}: d_model / n_heads: must be an even whole number, got 64 / 5",
        f"{file}: n_kv_heads: must divide n_heads, 5, got 3",
        f"{file}: mask_token_id: does not fit embedding_size, 512, got 512",
    ]


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("n_heads", 0, "must be at least 1, got 0"),
        ("d_model", -64, "must be at least 1, got -64"),
        ("d_model", True, "must be a whole number, got true"),
        ("n_kv_heads", 0, "must be at least 1, got 0"),
        ("n_kv_heads", "4", 'must be a whole number, got "4"'),
        ("mlp_ratio", 1.5, "must be a whole number, got 1.5"),
        ("embedding_size", "512", 'must be a whole number, got "512"'),
        ("embedding_size", 256, None),
        ("mask_token_id", -1, "must be at least 0, got -1"),
        ("eos_token_id", [505], "must be a whole number, got [505]"),
        ("mask_token_id", 505, "must not be eos_token_id, which can be learned, got 505 for both"),
        ("eos_token_id", 512, "does not fit embedding_size, 512, got 512"),
        ("rope_theta", 0, "must be a positive number, got 0"),
        ("rope_theta", float("nan"), "must be a positive number, got NaN"),
        ("rms_norm_eps", "small", 'must be a number, got "small"'),
    ],
)
def test_values_that_no_network_can_have(
    golden_config: dict[str, Any], tmp_path: Path, key: str, value: object, problem: str | None
) -> None:
    lines = refusal(write(tmp_path, golden_config | {key: value}))
    assert problem is None or lines == [f"{tmp_path}/config.json: {key}: {problem}"]


@pytest.mark.parametrize("text", ["[]", "5", "null", "[" * 100_000])
def test_json_that_is_not_a_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    (line,) = refusal(tmp_path)
    assert line.startswith(f"{tmp_path}/config.json: ")


@pytest.mark.parametrize(
    "more",
    [{}, {"n_kv_heads": 2}, {"mlp_hidden_size": None, "n_kv_heads": None}, {"embedding_size": 513}],
)
def test_shapes_are_those_of_the_network(
    golden_config: dict[str, Any], tmp_path: Path, more: dict[str, Any]
) -> None:
    write(tmp_path, golden_config | more)
    config = read_config(tmp_path)
    with torch.device("meta"):
        network = Network(config)
    shapes = {name: tuple(one.shape) for name, one in network.named_parameters()}
    described = architecture_of(read_settings(tmp_path))
    assert list(described.parameter_shapes().items()) == list(shapes.items())


def test_another_architecture(tmp_path: Path) -> None:
    file = write(tmp_path, {"model_type": "llama"}) / "config.json"
    assert refusal(tmp_path) == [
        f"{file}: model_type: no network that is implemented here"
        " (LLaDA-MoE, LLaDA, LLaDA2, Dream), got 'llama', architectures None"
    ]


def test_no_config(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == [
        f"{tmp_path}/nowhere: no config.json; a model is a directory in Hugging Face's layout"
    ]


def test_what_is_no_model_but_is_known(tmp_path: Path) -> None:
    run, adapter = tmp_path / "a run", tmp_path / "adapter"
    (run / "checkpoints").mkdir(parents=True)
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert refusal(run) == [
        f"{run}: no config.json: this is a run, not a model; write one with"
        f"  llada-sft export '{run}' OUT"
    ]
    assert refusal(adapter) == [
        f"{adapter}: no config.json: these are adapters alone; export the run without --adapter:"
        " they are merged into its network"
    ]


def test_damaged_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    (line,) = refusal(tmp_path)
    assert line.startswith(f"{tmp_path}/config.json: not JSON: ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not JSON: "),
        ("[]", "must be a JSON object; download the file again"),
        *(
            (
                f'{{"suppress_tokens": {tokens}}}',
                f"suppress_tokens: must be a list of token ids below 512, got {tokens}",
            )
            for tokens in ("7", "[512]", "[-1]", "[true]", '["a"]')
        ),
    ],
)
def test_damaged_generation_config(
    golden_config: dict[str, Any], tmp_path: Path, text: str, problem: str
) -> None:
    file = write(tmp_path, golden_config) / "generation_config.json"
    file.write_text(text)
    (line,) = refusal(tmp_path)
    assert line.startswith(f"{file}: {problem}")


def test_what_samplers_must_not_write(golden_config: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, golden_config)
    assert read_config(tmp_path).suppress_tokens == ()
    for given, tokens in (("null", ()), ("[]", ()), ("[3, 511]", (3, 511))):
        (tmp_path / "generation_config.json").write_text(f'{{"suppress_tokens": {given}}}')
        assert read_config(tmp_path).suppress_tokens == tokens
    assert read_config(tmp_path).changed(rope_theta=1e4).suppress_tokens == (3, 511)


@pytest.mark.parametrize(
    ("n_kv_heads", "multi_query", "expected"), [(None, None, 4), (None, True, 1), (2, None, 2)]
)
def test_key_value_heads(n_kv_heads: int | None, multi_query: bool | None, expected: int) -> None:
    values = llada.FAMILY.config_json(
        n_heads=4, d_model=32, n_kv_heads=n_kv_heads, multi_query_attention=multi_query
    )
    assert architecture_of(values).num_kv_heads == expected
