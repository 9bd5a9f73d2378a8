"""Which token is the mask: config.json, the user, or the tokenizer says it; nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from llada_sft.config.sections.model import ModelConfig
from llada_sft.demo.data import make_tokenizer
from llada_sft.errors import CheckpointError, LladaSftError
from llada_sft.model import NetworkConfig
from llada_sft.model.families import dream, llada2
from llada_sft.model.settings import find_mask_token, read_settings, require_trainable
from llada_sft.training.build_network import resolve_network, token_ids
from tests.unit.model.test_llada2 import TINY

MASK = make_tokenizer().mask_token_id
LETTER = make_tokenizer().convert_tokens_to_ids("a")


def write(folder: Path, named: int | None, by_tokenizer: bool = True) -> Path:
    """Write LLaDA2's config.json and a tokenizer."""
    tokenizer = make_tokenizer()
    if not by_tokenizer:
        tokenizer.mask_token = None
    tokenizer.save_pretrained(folder)
    sizes = TINY | {"vocab_size": len(tokenizer), "mask_token_id": named}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    (folder / "config.json").write_text(json.dumps(llada2.FAMILY.config_json(**sizes | ids)))
    return folder


@pytest.mark.parametrize(
    ("named", "given", "by_tokenizer", "found"),
    [
        (3, None, True, 3),
        (3, 3, True, 3),
        (None, None, True, MASK),
        (None, 3, True, 3),
        (None, "a", True, LETTER),
        (None, "a", False, LETTER),
        (None, "<|mdm_mask|>", False, MASK),
        (LETTER, "a", False, LETTER),
    ],
)
def test_who_names_it(
    tmp_path: Path, named: int | None, given: str | int | None, by_tokenizer: bool, found: int
) -> None:
    directory = write(tmp_path, named, by_tokenizer)
    network = resolve_network(ModelConfig(path=str(directory), mask_token=given))
    assert token_ids(network).mask_token_id == found
    # An export names it.
    assert NetworkConfig(read_settings(directory, given)).to_dict()["mask_token_id"] == found


def refusal(directory: Path, given: str | int | None) -> str:
    with pytest.raises(LladaSftError) as caught:
        resolve_network(ModelConfig(path=str(directory), mask_token=given))
    return str(caught.value)


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    directory = write(tmp_path, None, by_tokenizer=False)
    path = directory / "config.json"
    assert refusal(directory, None) == (
        f"{path}: mask_token_id: must be given, got null, and the tokenizer names no mask token;"
        " set model.mask_token to its text or its id"
    )
    assert refusal(directory, "<mask>") == (
        f"model.mask_token: {directory}/tokenizer.json has no such token, got '<mask>'"
    )
    assert refusal(directory, 10**6).startswith(f"{path}: mask_token_id: does not fit vocab_size,")
    write(directory, 3)
    assert refusal(directory, "a") == (
        f"model.mask_token: {path} has mask_token_id 3, got 'a'; remove it"
    )


def test_a_random_network_takes_it_too(tmp_path: Path) -> None:
    directory = write(tmp_path, None, by_tokenizer=False)
    size = {"d_model": 16, "n_layers": 1, "n_heads": 2, "mlp_hidden_size": 8}
    section = {"path": str(directory), "init": "random", "size": size, "mask_token": "a"}
    assert token_ids(resolve_network(ModelConfig.model_validate(section))).mask_token_id == LETTER


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"mask_token": {"content": "m"}}},
        {"special_tokens_map.json": {"mask_token": "m"}},
        {
            "tokenizer_config.json": {"mask_token": None},
            "special_tokens_map.json": {"mask_token": "m"},
        },
    ],
)
@pytest.mark.parametrize(
    "tokenizer",
    [
        {"added_tokens": [{"id": 7, "content": "m"}]},
        {"model": {"vocab": {"m": 7}}},
        {"model": {"vocab": [["x", 0.0]] * 7 + [["m", -1.0]]}},
    ],
)
def test_where_a_tokenizer_names_it(
    tmp_path: Path, files: dict[str, Any], tokenizer: dict[str, Any]
) -> None:
    assert find_mask_token(tmp_path) is None
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert find_mask_token(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert find_mask_token(tmp_path) == 7
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not JSON"):
        find_mask_token(tmp_path)


def test_the_tokenizer_comes_before_what_a_missing_key_means(tmp_path: Path) -> None:
    """Dream's class has a default."""
    make_tokenizer().save_pretrained(tmp_path)
    values = {"model_type": "Dream", "vocab_size": 200000, "mask_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_settings(tmp_path)["mask_token_id"] == MASK
    (tmp_path / "tokenizer.json").unlink()
    del values["mask_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    network = dream.FAMILY.architecture(read_settings(tmp_path))
    assert network.mask_token_id == 151666


def test_dropout_in_attention_is_not_trained(tmp_path: Path) -> None:
    """The class means 0.1 where the key is missing; the released files say 0."""
    directory = write(tmp_path, 3)
    values = json.loads((directory / "config.json").read_text())
    del values["attention_dropout"]
    network = llada2.FAMILY.architecture(values)
    with pytest.raises(CheckpointError) as caught:
        require_trainable(directory, network)
    assert str(caught.value) == (
        f"{directory}/config.json: attention_dropout: training has no dropout, got 0.1"
        " (a missing key may mean that); set it to 0 there"
    )
