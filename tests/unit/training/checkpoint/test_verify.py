"""A checkpoint that is not what was written is found, and said in one line."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llada_sft.training.checkpoint.folder import shards_due
from llada_sft.training.checkpoint.verify import Defect, Share, examine, summary
from tests.unit.training.checkpoint_files import (
    MODEL,
    NETWORK,
    OPTIMIZER,
    WHOLE_MODEL,
    as_of_older_version,
    damage,
    model_state,
    optimizer_state,
    reseal,
    write_checkpoint,
)

CASES = 120
ALL = Share(0, 1)


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.made}",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints"), 4)


@pytest.fixture
def checkpoint(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "step_4"))


def texts(checkpoint: Path, share: Share = ALL) -> list[str]:
    return [finding.text for finding in examine(checkpoint, share, NETWORK)]


def test_adapters_belong_to_the_weights_that_they_were_trained_on(checkpoint: Path) -> None:
    manifest = checkpoint / "checkpoint.json"
    assert examine(checkpoint, ALL, NETWORK, base="one") == []
    content = json.loads(manifest.read_text()) | {"adapters": {"base_weights": "one"}}
    manifest.write_text(json.dumps(content))
    reseal(checkpoint)
    assert examine(checkpoint, ALL, NETWORK, base="one") == []
    text = "is of adapters for other weights of the network: one"
    assert examine(checkpoint, Share(1, 2), NETWORK, base="other") == [Defect("base", text)]


def test_a_whole_one(checkpoint: Path) -> None:
    pulses: list[None] = []
    assert examine(checkpoint, ALL, NETWORK, lambda: pulses.append(None)) == []
    # Each file was read.
    assert len(pulses) == 6
    for world_size in (1, 2, 3):
        for rank in range(world_size):
            assert examine(checkpoint, Share(rank, world_size), NETWORK) == []


@pytest.mark.parametrize("seed", range(CASES))
def test_any_damage_is_found_by_one_rank_at_least(checkpoint: Path, seed: int) -> None:
    what = damage(checkpoint, random.Random(seed))
    of_ranks = [examine(checkpoint, Share(rank, 2), NETWORK) for rank in range(2)]
    kinds = {finding.kind for found in of_ranks for finding in found}
    assert "damaged" in kinds and "code" not in kinds, what
    assert all("\n" not in finding.text for found in of_ranks for finding in found)
    # And by whoever reads all files.
    assert "damaged" in {finding.kind for finding in examine(checkpoint, ALL, NETWORK)}, what


OF_RANK_1 = OPTIMIZER.format(1)


def cut(path: Path) -> None:
    os.truncate(path, 100)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "how", "line"),
    [
        (OF_RANK_1, Path.unlink, "{name} is gone"),
        (OF_RANK_1, cut, "{name} has 100 bytes, {size} were written"),
        (OF_RANK_1, zero, "{name} holds nothing but zeros"),
        (OF_RANK_1, change, "{name} is not what was written: its checksum differs"),
        ("data_state.json", zero, "{name} holds nothing but zeros"),
        ("latest", Path.unlink, "{name} is gone"),
        ("checkpoint.json", Path.unlink, "{name} is gone"),
        ("checkpoint.json", cut, "{name} is not JSON: torn or changed"),
        ("checkpoint.json", zero, "{name} holds nothing but zeros"),
    ],
)
def test_each_damage_has_its_line(
    checkpoint: Path, name: str, how: Callable[[Path], None], line: str
) -> None:
    size = (checkpoint / name).stat().st_size
    how(checkpoint / name)
    assert examine(checkpoint, ALL, NETWORK) == [
        Defect("damaged", line.format(name=name, size=size))
    ]


def test_a_file_of_other_ranks_or_another_network(checkpoint: Path) -> None:
    wide = NETWORK | {"wte.weight": (40, 32)}
    there, here = (sum(-(-_product(s) // 2) for s in n.values()) for n in (wide, NETWORK))
    for name, state, kind, line in [
        (MODEL, model_state(3, NETWORK), "damaged", "was written by 3 ranks, the others by 2"),
        (OPTIMIZER, optimizer_state(3, NETWORK), "damaged", "was written by 3 ranks, the others"),
        (MODEL, model_state(2, wide), "network", "is of another network: wte.weight is [40, 32]"),
        (OPTIMIZER, optimizer_state(2, wide), "network", f"{there} weights there, {here} here"),
    ]:
        path = checkpoint / name.format(1)
        kept = path.read_bytes()
        torch.save(state, path)
        reseal(checkpoint)
        (finding,) = examine(checkpoint, Share(1, 2), NETWORK)
        assert finding.kind == kind
        assert line in finding.text
        assert examine(checkpoint, Share(0, 2), NETWORK) == []
        path.write_bytes(kept)
        reseal(checkpoint)


def _product(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def test_the_network_does_not_matter_where_it_is_not_known(checkpoint: Path) -> None:
    assert examine(checkpoint, ALL, {}) == []
    other = NETWORK | {"new.weight": (3,)}
    found = examine(checkpoint, ALL, other)
    assert {finding.kind for finding in found} == {"network"}
    assert "new.weight is nothing there, [3] here" in summary(found)


@pytest.mark.parametrize("step", [2, 4])
def test_without_checksums_a_file_of_another_step_is_found(checkpoint: Path, step: int) -> None:
    torch.save({**model_state(2, NETWORK), "global_step": step}, checkpoint / MODEL.format(1))
    reseal(checkpoint)
    as_of_older_version(checkpoint)
    found = [] if step == 4 else [Defect("damaged", f"{MODEL.format(1)} is of step {step}")]
    assert examine(checkpoint, ALL, NETWORK) == found


def test_a_file_too_many(checkpoint: Path) -> None:
    name = OPTIMIZER.format(2)
    torch.save(optimizer_state(3, NETWORK), checkpoint / name)
    assert texts(checkpoint) == [f"{name} is not of this checkpoint"]


def test_the_folder_of_another_step(checkpoint: Path) -> None:
    moved = checkpoint.rename(checkpoint.with_name("step_8"))
    assert texts(moved) == ["checkpoint.json is that of step 4"]


def test_one_of_an_older_version_has_sizes_only(checkpoint: Path) -> None:
    as_of_older_version(checkpoint)
    assert texts(checkpoint) == []
    cut(checkpoint / "latest")
    assert texts(checkpoint) == ["latest has 100 bytes, 10 were written"]
    (checkpoint / "latest").write_text("checkpoint")
    zero(checkpoint / OF_RANK_1)
    (line,) = texts(checkpoint)
    assert line.startswith(f"{OF_RANK_1} is not a file of tensors: RuntimeError: ")
    assert "\n" not in line


@pytest.mark.parametrize(
    "text", ["", "\0" * 340, "{}", "null", '{"epoch": 1, "files": {"a": 3}}', "[" * 100_000]
)
def test_small_files_of_an_older_version_are_read(checkpoint: Path, text: str) -> None:
    for name, line in (
        ("latest", "latest does not name the folder checkpoint"),
        ("data_state.json", "data_state.json is not what was written: "),
    ):
        kept = (checkpoint / name).read_text()
        (checkpoint / name).write_text(text)
        # With sizes that are right.
        reseal(checkpoint)
        as_of_older_version(checkpoint)
        (finding,) = examine(checkpoint, ALL, NETWORK)
        assert finding.kind == "damaged"
        assert finding.text.startswith(line)
        (checkpoint / name).write_text(kept)


def test_what_another_node_does_not_see_yet_is_not_called_gone(checkpoint: Path) -> None:
    hidden = checkpoint / OF_RANK_1
    hidden.rename(checkpoint / "hidden")
    (finding,) = examine(checkpoint, Share(1, 2), NETWORK)
    assert finding == Defect("unreadable", f"{OF_RANK_1} cannot be found on rank 1's node")


def test_what_cannot_be_read_is_not_called_damaged(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path, pulse: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("llada_sft.training.checkpoint.verify.record_of_file", failing)
    found = examine(checkpoint, Share(1, 2), NETWORK)
    assert {finding.kind for finding in found} == {"unreadable"}
    assert f"{OF_RANK_1} cannot be read: Input/output error" in [one.text for one in found]


@pytest.mark.parametrize("name", [MODEL.format(1), OPTIMIZER.format(0)])
@pytest.mark.parametrize("older", [False, True])
def test_code_is_refused_and_not_run(
    checkpoint: Path, tmp_path: Path, name: str, older: bool
) -> None:
    torch.save({"a": torch.ones(3), "b": Hostile(tmp_path / "ran")}, checkpoint / name)
    reseal(checkpoint)
    if older:
        as_of_older_version(checkpoint)
    (finding,) = examine(checkpoint, ALL, NETWORK)
    assert finding == Defect("code", f"{name} holds code (posix.system)")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_names_no_function_is_damage_without_a_checksum(
    checkpoint: Path, older: bool
) -> None:
    name = OPTIMIZER.format(1)
    torch.save({"a": b"bytes"}, checkpoint / name, pickle_protocol=4)
    reseal(checkpoint)
    if older:
        as_of_older_version(checkpoint)
    (finding,) = examine(checkpoint, ALL, NETWORK)
    text = f"{name} holds more than tensors and plain values"
    assert finding == Defect("damaged" if older else "code", text)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_is_refused_too(checkpoint: Path, tmp_path: Path, protocol: int) -> None:
    import pickle

    name = OPTIMIZER.format(1)
    (checkpoint / name).write_bytes(pickle.dumps(Hostile(tmp_path / "ran"), protocol))
    reseal(checkpoint)
    (finding,) = examine(checkpoint, ALL, NETWORK)
    assert finding.kind == "code"
    assert finding.text.startswith(f"{name} is not a file of tensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)")]
)
def test_too_little_memory_is_no_fault_of_the_checkpoint(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("llada_sft.training.checkpoint.verify.load_data", failing)
    found = examine(checkpoint, ALL, NETWORK)
    assert {finding.kind for finding in found} == {"unreadable"}
    assert found[0].text.endswith("cannot be read: not enough memory")


def test_many_findings_are_counted() -> None:
    found = [Defect("damaged", f"{name} is gone") for name in "aabcde"]
    assert summary(found) == "a is gone; b is gone; c is gone; and 2 more"


@pytest.mark.parametrize("stage", [1, 2])
def test_stages_1_and_2_have_one_model_and_an_optimizer_of_each_rank(
    stage: int, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path, 4, world_size=3, stage=stage)
    assert texts(checkpoint) == []
    # The model's file is examined once.
    assert [Share(rank, 3).has(WHOLE_MODEL) for rank in range(3)] == [True, False, False]
    other = {"wte.weight": (20, 31)}
    (defect,) = examine(checkpoint, Share(0, 3), other)
    assert (defect.kind, "is of another network" in defect.text) == ("network", True)
    shutil.copy(checkpoint / WHOLE_MODEL, tmp_path / "kept.pt")
    (checkpoint / WHOLE_MODEL).unlink()
    assert texts(checkpoint) == [f"{WHOLE_MODEL} is gone"]
    shutil.copy(tmp_path / "kept.pt", checkpoint / WHOLE_MODEL)
    torch.save(optimizer_state(2, NETWORK, stage), checkpoint / OPTIMIZER.format(1))
    reseal(checkpoint)
    assert texts(checkpoint) == [f"{OPTIMIZER.format(1)} was written by 2 ranks, the others by 3"]


def test_the_files_that_a_stage_has() -> None:
    names = [OPTIMIZER.format(rank) for rank in range(3)]
    assert shards_due([*names, WHOLE_MODEL], 3) == 4
    # A whole model that was not written is not missed silently.
    assert shards_due(names, 3) == 6
