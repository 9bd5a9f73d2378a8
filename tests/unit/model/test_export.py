"""What we write, we and the official code can read."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from llada_sft.errors import CheckpointError
from llada_sft.model import Network, NetworkConfig, build_model, export, load_model
from llada_sft.model.export import LazyTensor, export_checkpoint, network_tensors, zero3_tensors
from llada_sft.model.index import read_index


def test_round_trip(
    golden: Network, golden_dir: Path, golden_config: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "exports" / "run-1"
    export_checkpoint(
        network_tensors(golden),
        golden.config,
        golden_dir,
        out,
        torch.float32,
        max_shard_size=300_000,
    )
    assert read_index(out).keys() == read_index(golden_dir).keys()
    assert len(sorted(out.glob("model-*-of-*.safetensors"))) > 1
    assert json.loads((out / "config.json").read_text()).keys() == golden_config.keys()
    again = load_model(out)
    for a, b in zip(golden.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not (tmp_path / "exports" / "run-1.partial").exists()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_modes_are_those_of_the_umask(
    golden: Network, golden_dir: Path, tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        export_checkpoint(network_tensors(golden), golden.config, golden_dir, tmp_path / "a/out")
    finally:
        os.umask(before)
    for path in (tmp_path / "a", *(tmp_path / "a").rglob("*")):
        expected = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == expected & ~umask, path


def test_the_index_is_the_official_kind(golden: Network, golden_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_checkpoint(
        network_tensors(golden),
        golden.config,
        golden_dir,
        out,
        torch.bfloat16,
        max_shard_size="200KB",
    )
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * sum(p.numel() for p in golden.parameters())
    assert set(index["weight_map"].values()) == {f.name for f in out.glob("*.safetensors")}
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert golden.config.dtype == torch.float32


def test_the_tokenizer_and_the_code_go_along(small_config: NetworkConfig, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "modeling_llada.py", "README.md"):
        (source / name).write_text(name)
    model = build_model(small_config)
    export_checkpoint(network_tensors(model), small_config, source, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "modeling_llada.py",
        "tokenizer.json",
    ]


def test_one_shard_at_a_time(small_config: NetworkConfig, tmp_path: Path) -> None:
    """A tensor is asked for only after the shard before it is on the disk."""
    model = build_model(small_config)
    out = tmp_path / "out"
    files_seen = []

    def watched(tensor: LazyTensor) -> LazyTensor:
        def read() -> Tensor:
            files_seen.append(len(list((tmp_path / "out.partial").glob("*.safetensors"))))
            return tensor.read()

        return LazyTensor(tensor.shape, read)

    tensors = {name: watched(tensor) for name, tensor in network_tensors(model).items()}
    export_checkpoint(tensors, small_config, tmp_path, out, torch.float32, max_shard_size=10_000)
    assert files_seen == sorted(files_seen)
    assert files_seen[-1] == len(list(out.glob("*.safetensors"))) - 1


def test_nothing_is_overwritten(small_config: NetworkConfig, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")
    with pytest.raises(CheckpointError) as error:
        export_checkpoint({}, small_config, tmp_path, tmp_path)
    assert str(error.value) == f"{tmp_path}: exists and is not empty; choose another directory"
    out = tmp_path / "precious" / "out" / "deeper"
    with pytest.raises(CheckpointError) as error:
        export_checkpoint({}, small_config, tmp_path, out)
    assert str(error.value) == f"{out}: {tmp_path}/precious is a file; choose another directory"


def test_an_incomplete_network_is_not_exported(small_config: NetworkConfig, tmp_path: Path) -> None:
    tensors = network_tensors(build_model(small_config))
    del tensors["model.transformer.ln_f.weight"]
    with pytest.raises(CheckpointError, match=r"ln_f\.weight: missing"):
        export_checkpoint(tensors, small_config, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_export_is_done_again(small_config: NetworkConfig, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "model-00001-of-00009.safetensors").write_text("half")
    model = build_model(small_config)
    export_checkpoint(network_tensors(model), small_config, tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_not_a_training_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        zero3_tensors(tmp_path)
    assert str(error.value) == f"{tmp_path}: not a training checkpoint: no directory 'checkpoint'"


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_the_present_folder_is_not_replaced(
    golden: Network, golden_dir: Path, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as error:
        export_checkpoint(network_tensors(golden), golden.config, golden_dir, Path(out))
    assert str(error.value) == f"{out}: has no name of its own; name a folder to make"


def test_where_nothing_can_be_written(golden: Network, golden_dir: Path) -> None:
    out = Path("/proc/exported")
    with pytest.raises(CheckpointError) as error:
        export_checkpoint(network_tensors(golden), golden.config, golden_dir, out)
    assert str(error.value) == (
        f"{out}: not written: {out}.partial: No such file or directory; choose another directory"
    )


def test_a_full_disk(
    golden: Network, golden_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(export, "save_file", full)
    out = tmp_path / "out"
    with pytest.raises(CheckpointError) as error:
        export_checkpoint(network_tensors(golden), golden.config, golden_dir, out)
    assert str(error.value) == (
        f"{out}: not written: {out}.partial: I/O error: No space left on device (os error 28);"
        " choose another directory"
    )
    assert not list(tmp_path.iterdir())
