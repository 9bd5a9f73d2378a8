"""Reading checkpoints: exact values, and a named reason for everything that is wrong."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llada_sft.errors import CheckpointError
from llada_sft.model import loading
from llada_sft.model.index import read_index
from llada_sft.model.loading import load_model, load_weights
from llada_sft.model.network import Network

SECOND = "model-00002-of-00002.safetensors"
NORM = "model.transformer.ln_f.weight"
HEAD = "model.transformer.ff_out.weight"


@pytest.fixture
def copied(golden_dir: Path, tmp_path: Path) -> Path:
    """A copy of the golden checkpoint, to be damaged."""
    directory = tmp_path / "model"
    shutil.copytree(golden_dir, directory, ignore=shutil.ignore_patterns("expected*", "generate*"))
    return directory


def edit(file: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def refusal(directory: Path) -> list[str]:
    with pytest.raises(CheckpointError) as error:
        load_model(directory)
    return str(error.value).splitlines()


def official_tensors(golden_dir: Path) -> dict[str, Tensor]:
    files = sorted(golden_dir.glob("model-*.safetensors"))
    return {name: t for file in files for name, t in load_file(file).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_value(golden_dir: Path, dtype: torch.dtype) -> None:
    model = load_model(golden_dir, dtype=dtype)
    official = official_tensors(golden_dir)
    assert not model.training
    assert dict(model.named_parameters()).keys() == official.keys()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, official[name].to(dtype)), name


def test_tensors_larger_than_the_buffer(golden_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BUFFER_BYTES", 1000)
    model = load_model(golden_dir)
    official = official_tensors(golden_dir)
    assert all(torch.equal(p, official[name]) for name, p in model.named_parameters())


def test_report(golden: Network, golden_dir: Path) -> None:
    report = load_weights(golden, golden_dir)
    assert report.num_tensors == 30
    assert report.bytes_read == sum(slot.num_bytes for slot in read_index(golden_dir).values())


def test_one_file_without_an_index(copied: Path, golden_dir: Path) -> None:
    for file in copied.glob("model*"):
        file.unlink()
    save_file(official_tensors(golden_dir), copied / "model.safetensors")
    assert load_model(copied).get_parameter(NORM).shape == (64,)


def test_missing_unexpected_and_misshapen_at_once(copied: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["model.transformer.blocks.2.q_proj.weight"]
        tensors["model.transformer.blocks.3.q_proj.weight"] = torch.zeros(2)
        tensors[HEAD] = torch.zeros(512, 63)

    edit(copied / SECOND, change)
    assert refusal(copied) == [
        f"{copied}: model.transformer.blocks.2.q_proj.weight: missing; "
        "config.json asks for shape [64, 64]",
        f"{copied}: {HEAD}: config.json asks for shape [512, 64], got [512, 63] in {SECOND}",
        f"{copied}: model.transformer.blocks.3.q_proj.weight: unexpected, in {SECOND}; "
        "the network has no such parameter",
    ]


def test_truncated_files_at_once(copied: Path) -> None:
    first = copied / "model-00001-of-00002.safetensors"
    sizes = {file: file.stat().st_size for file in (first, copied / SECOND)}
    for file, size in sizes.items():
        with file.open("r+b") as stream:
            stream.truncate(size - 4)
    assert refusal(copied) == [
        f"{file}: truncated: the header asks for {size} bytes, got {size - 4}; download it again"
        for file, size in sizes.items()
    ]


def test_of_very_many_problems_the_first_are_named(copied: Path) -> None:
    """A network of another size has one for each of its tensors."""
    config = copied / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"n_layers": 9}))
    lines = refusal(copied)
    assert len(lines) == 31
    assert all(line.endswith(("[64, 64]", "[192, 64]", "[64, 192]", "[64]")) for line in lines[:-1])
    assert lines[-1] == f"{copied}: 24 more tensors like these"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_training_that_diverged(copied: Path, value: float) -> None:
    edit(copied / SECOND, lambda tensors: tensors[HEAD].fill_(value))
    assert refusal(copied) == [
        f"{copied / SECOND}: {HEAD}: must be finite numbers, got NaN or infinity: it was written by"
        " a training that diverged, or is damaged; take another checkpoint"
    ]


def test_a_file_that_is_cut_off_while_it_is_read(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file that another machine replaces: what was checked before is not what is read."""
    monkeypatch.setattr(os, "preadv", lambda *arguments: 0)
    (line,) = refusal(copied)
    assert re.fullmatch(r".*\.safetensors: ends at byte \d+ while being read", line)


def test_a_header_that_is_cut_off(copied: Path) -> None:
    with (copied / SECOND).open("r+b") as stream:
        stream.truncate(100)
    assert refusal(copied) == [
        f"{copied / SECOND}: truncated: 100 bytes do not hold its header; download it again"
    ]


def test_a_git_lfs_pointer(copied: Path) -> None:
    """What a clone without git-lfs leaves behind."""
    text = "version https://git-lfs.github.com/spec/v1\n"
    (copied / SECOND).write_text(text)
    assert refusal(copied) == [
        f"{copied / SECOND}: truncated: {len(text)} bytes do not hold its header; download it again"
    ]


def test_a_missing_shard(copied: Path) -> None:
    (copied / SECOND).unlink()
    assert refusal(copied) == [
        f"{copied / SECOND}: missing, though model.safetensors.index.json names it; download it"
    ]


def test_no_weights(copied: Path) -> None:
    for file in copied.glob("model*"):
        file.unlink()
    assert refusal(copied) == [f"{copied}: no *.safetensors files; other formats are not read"]


@pytest.mark.parametrize(
    "text",
    ['{"weights": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": []}', "[]", "[" * 100_000],
)
def test_a_damaged_index(copied: Path, text: str) -> None:
    index = copied / "model.safetensors.index.json"
    index.write_text(text)
    assert refusal(copied) == [f"{index}: not a safetensors index; download it again"]


@pytest.mark.parametrize(
    "header",
    [
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        '{"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}',
        '{"a": []}',
        "[]",
        "[" * 100_000,
    ],
)
def test_a_header_of_something_else(copied: Path, header: str) -> None:
    (copied / SECOND).write_bytes(len(header).to_bytes(8, "little") + header.encode())
    assert refusal(copied) == [f"{copied / SECOND}: not a safetensors file; download it again"]


def test_a_folder_instead_of_a_file(copied: Path) -> None:
    index = copied / "model.safetensors.index.json"
    index.unlink()
    (copied / "config.json").rename(copied / "kept")
    (copied / "config.json").mkdir()
    (line,) = refusal(copied)
    assert "config.json" in line


def test_a_tensor_twice(copied: Path) -> None:
    edit(copied / SECOND, lambda tensors: tensors.update({NORM: torch.zeros(64)}))
    assert refusal(copied) == [
        f"{copied / SECOND}: {NORM}: also in model-00001-of-00002.safetensors"
    ]


def test_a_dtype_that_is_not_read(copied: Path) -> None:
    edit(copied / SECOND, lambda tensors: tensors.update({HEAD: torch.zeros(512, 64).char()}))
    assert refusal(copied) == [
        f"{copied / SECOND}: {HEAD}: dtype must be one of F64, F32, F16, BF16, got I8"
    ]
