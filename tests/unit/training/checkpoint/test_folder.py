"""Checkpoints that are whole, and everything that must not be taken for one."""

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llada_sft.data.rows.position import FilePosition, Pending
from llada_sft.errors import CheckpointError
from llada_sft.training.checkpoint.checksums import FileRecord, record_of_file
from llada_sft.training.checkpoint.data_state import DataState, read_data_state
from llada_sft.training.checkpoint.folder import (
    abandon_partial,
    best_step,
    clean_partial,
    create_partial,
    finish_partial,
    is_complete,
    list_checkpoints,
    newest_checkpoint,
    partial_path,
    universal_path,
)
from llada_sft.training.checkpoint.manifest import read_manifest
from llada_sft.training.validation.best import Lowest, ValidationState

STATE = DataState(
    epoch=1,
    positions={
        "b": FilePosition(3, 2, (Pending(0, 9, 1), Pending(4, 2, 0))),
        "a": FilePosition(0, 0),
    },
    fingerprints={"a": "11", "b": "22"},
)


def write(partial: Path, world_size: int) -> dict[str, FileRecord]:
    """What DeepSpeed leaves behind."""
    shards = partial / "checkpoint"
    shards.mkdir()
    records = {}
    for rank in range(world_size):
        for kind, content in (("model", b"m" * 10), ("optim", b"o" * 20)):
            path = shards / f"zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt"
            path.write_bytes(content)
            records[f"checkpoint/{path.name}"] = FileRecord.of(content)
    return records


def make(
    folder: Path,
    step: int,
    keep: int = 9,
    world_size: int = 2,
    written: int = 2,
    best: int | None = None,
) -> Path:
    partial = create_partial(folder, step)
    records = write(partial, written)
    manifest: dict[str, object] = {"step": step, "world_size": world_size}
    if best is not None:
        lowest = Lowest("validation_loss", 1.0, best)
        manifest["validation"] = ValidationState(best=lowest).to_json()
    return finish_partial(partial, manifest, STATE, records, keep)


def test_a_finished_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    made = make(folder, 200)
    assert made == folder / "step_200"
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step_200"]
    assert (folder / "latest").read_text() == "step_200\n"
    manifest = read_manifest(made)
    assert (manifest["step"], manifest["world_size"]) == (200, 2)
    assert manifest["files"] == {
        "checkpoint/zero_pp_rank_0_mp_rank_00_model_states.pt": 10,
        "checkpoint/zero_pp_rank_0_mp_rank_00_optim_states.pt": 20,
        "checkpoint/zero_pp_rank_1_mp_rank_00_model_states.pt": 10,
        "checkpoint/zero_pp_rank_1_mp_rank_00_optim_states.pt": 20,
        "data_state.json": (made / "data_state.json").stat().st_size,
    }
    for name, checksum in manifest["checksums"].items():
        assert record_of_file(made / name)[0] == (manifest["files"][name], checksum)
    assert manifest["checksums"].keys() == manifest["files"].keys()
    assert read_data_state(made) == STATE
    assert is_complete(made)
    assert newest_checkpoint(folder) == made


def test_a_folder_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "checkpoints") is None


def test_the_number_decides_which_is_newest(tmp_path: Path) -> None:
    made = [make(tmp_path, step) for step in (1000, 200, 30)]
    assert (tmp_path / "latest").read_text() == "step_30\n"
    assert newest_checkpoint(tmp_path) == made[0]
    assert [step for step, _ in list_checkpoints(tmp_path)] == [30, 200, 1000]


def test_a_partial_one_is_never_returned(tmp_path: Path) -> None:
    made = make(tmp_path, 1)
    write(create_partial(tmp_path, 2), world_size=2)
    # Not even one that is whole but for its name.
    make(tmp_path, 3).rename(partial_path(tmp_path, 3))
    assert newest_checkpoint(tmp_path) == made
    clean_partial(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_1"]


def test_a_partial_one_is_begun_afresh(tmp_path: Path) -> None:
    write(create_partial(tmp_path, 2), world_size=4)
    partial = create_partial(tmp_path, 2)
    assert list(partial.iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda step: (step / "checkpoint.json").unlink(),
        lambda step: (step / "checkpoint.json").write_bytes(b""),
        lambda step: (step / "checkpoint.json").write_bytes(b"\0" * 200),
        lambda step: (step / "checkpoint.json").write_text('{"step": 2, "world'),
        lambda step: (step / "checkpoint.json").write_text("{}"),
        lambda step: (step / "checkpoint.json").write_text("null"),
        lambda step: (step / "checkpoint.json").write_text('{"files": ["a"]}'),
        lambda step: (step / "data_state.json").unlink(),
        lambda step: next((step / "checkpoint").glob("*rank_1*optim*")).write_bytes(b"o" * 19),
        lambda step: next((step / "checkpoint").glob("*rank_0*model*")).unlink(),
    ],
)
def test_a_damaged_one_is_never_returned(tmp_path: Path, damage: object) -> None:
    older, damaged = make(tmp_path, 1), make(tmp_path, 2)
    assert newest_checkpoint(tmp_path) == damaged
    damage(damaged)  # type: ignore[operator]
    assert not is_complete(damaged)
    assert newest_checkpoint(tmp_path) == older


def test_names_that_are_no_checkpoints(tmp_path: Path) -> None:
    made = make(tmp_path, 1)
    for name in ("step_", "step_x", "step_2.old", "step_-3"):
        make(tmp_path, 9).rename(tmp_path / name)
    (tmp_path / "step_7").write_text("a file")
    assert list_checkpoints(tmp_path) == [(1, made)]


def test_a_rank_that_wrote_nothing(tmp_path: Path) -> None:
    older = make(tmp_path, 1)
    with pytest.raises(OSError, match="not every rank's files are there") as caught:
        make(tmp_path, 2, world_size=3, written=2)
    partial = partial_path(tmp_path, 2)
    assert abandon_partial(partial, caught.value, 90) == (
        f"{partial}: cannot be written: not every rank's files are there:"
        " the checkpoint of step 1 is intact"
    )
    assert not partial.exists()
    assert newest_checkpoint(tmp_path) == older
    assert (tmp_path / "latest").read_text() == "step_1\n"


@pytest.mark.parametrize(
    ("number", "needed", "room"),
    [
        (errno.ENOSPC, 812_000_000, "; 812 MB needed, 10 MB free"),
        (errno.ENOSPC, 1_234_000, "; 1.2 MB needed, 10 MB free"),
        # Where not even the folder could be made, nobody has counted.
        (errno.ENOSPC, 0, ""),
        (errno.EDQUOT, 812_000_000, "; 812 MB needed"),
        (errno.EIO, 812_000_000, ""),
    ],
)
@pytest.mark.parametrize("steps", [[], [20], [10, 20]])
def test_one_that_cannot_be_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[int],
    number: int,
    needed: int,
    room: str,
) -> None:
    kept = [make(tmp_path, step) for step in steps]
    partial = create_partial(tmp_path, 40)
    write(partial, world_size=2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_400_000))
    before = f"the checkpoint of step {steps[-1]} is intact" if steps else "it is the first one"
    assert abandon_partial(partial, OSError(number, "No room"), needed) == (
        f"{partial}: cannot be written: No room{room}: {before}"
    )
    assert [path for _, path in list_checkpoints(tmp_path)] == kept
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == (["latest"] if steps else []) + [path.name for path in kept]


# Data state, manifest, what lies in the folder, the folder itself, `latest`; then it is moved.
@pytest.mark.parametrize("failing", range(1, 9))
def test_what_fails_last_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    older = make(tmp_path, 1)
    synced: list[int] = []

    def fsync(file: int) -> None:
        synced.append(file)
        if len(synced) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    if failing == 8:
        # It has its name already.
        made = make(tmp_path, 2)
        assert len(synced) == 8
        assert newest_checkpoint(tmp_path) == made
        return
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path, 2, keep=1)
    abandon_partial(partial_path(tmp_path, 2), OSError(errno.ENOSPC, "No room"), 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_1"]
    assert newest_checkpoint(tmp_path) == older
    assert (tmp_path / "latest").read_text() == "step_1\n"


def test_the_only_complete_one_is_never_removed(tmp_path: Path) -> None:
    make(tmp_path, 1)
    # The newest by its number, and damaged since: it does not count as one of those kept.
    (make(tmp_path, 9) / "checkpoint.json").unlink()
    made = make(tmp_path, 2, keep=1)
    assert [path for _, path in list_checkpoints(tmp_path)] == [made]


def test_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    (make(tmp_path, 1) / "old").touch()
    assert not (make(tmp_path, 1) / "old").exists()


def test_a_crash_while_one_is_replaced_leaves_nothing_that_looks_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, rename = make(tmp_path, 2), Path.rename

    def crash(path: Path, target: Path) -> Path:
        if path == partial_path(tmp_path, 2):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, 2)
    assert not made.exists()
    clean_partial(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "latest.partial"]


def test_a_file_that_no_rank_has_written_is_in_no_checkpoint(tmp_path: Path) -> None:
    partial = create_partial(tmp_path, 2)
    records = write(partial, 2)
    (partial / "zero_to_fp32.py").write_text("import os")
    with pytest.raises(OSError, match=r"no rank has written zero_to_fp32\.py"):
        finish_partial(partial, {"step": 2, "world_size": 2}, STATE, records, 9)


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_oldest_ones_are_removed(tmp_path: Path, keep: int) -> None:
    for step in (8, 9, 10, 11):
        make(tmp_path, step, keep)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [8, 9, 10, 11][-keep:]
    assert list(tmp_path.glob("*.partial")) == []


@pytest.mark.parametrize("keep", [1, 2])
def test_the_best_one_is_kept_until_another_is_better(tmp_path: Path, keep: int) -> None:
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
        make(tmp_path, step, keep, best=best)
    newest = [4, 5][-keep:]
    assert [step for step, _ in list_checkpoints(tmp_path)] == [2, *newest]
    assert best_step(tmp_path) == 2
    make(tmp_path, 6, keep, best=6)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [5, 6][-keep:]
    assert best_step(tmp_path) == 6


def test_a_best_one_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^[^\n]*: no complete checkpoint; train first$"):
        best_step(tmp_path)
    make(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"^[^\n]*: no validation was compared; set train"):
        best_step(tmp_path)
    make(tmp_path, 2, best=7)
    with pytest.raises(CheckpointError, match=r"^[^\n]*, of step 7, is gone; choose another one"):
        best_step(tmp_path)


def test_a_conversion_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    converted = universal_path(make(tmp_path, 1))
    converted.mkdir()
    assert converted.name == "step_1.universal"
    make(tmp_path, 2)
    assert not converted.exists()
    assert [step for step, _ in list_checkpoints(tmp_path)] == [1, 2]


def test_the_states_of_all_ranks_become_one() -> None:
    merged = DataState.merge(
        1, [({"b": STATE.positions["b"]}, {"b": "22"}), ({"a": FilePosition(0, 0)}, {"a": "11"})]
    )
    assert merged == STATE


@given(
    files=st.dictionaries(
        st.text(min_size=1), st.tuples(st.integers(0, 2**60), st.integers(0, 99), st.text())
    ),
    epoch=st.integers(0, 9),
)
def test_a_state_survives_json(files: dict[str, tuple[int, int, str]], epoch: int) -> None:
    state = DataState(
        epoch,
        {name: FilePosition(row, part) for name, (row, part, _) in files.items()},
        {name: fingerprint for name, (_, _, fingerprint) in files.items()},
    )
    assert DataState.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_one_that_was_passed_over_takes_no_place_of_the_newest(tmp_path: Path) -> None:
    make(tmp_path, 10)
    # It could not be read when the run resumed, and the run went on from step 10.
    further = make(tmp_path, 20)
    made = make(tmp_path, 15, keep=1)
    assert [path for _, path in list_checkpoints(tmp_path)] == [made, further]
    assert (tmp_path / "latest").read_text() == "step_15\n"
    make(tmp_path, 25, keep=1)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [25]


def test_what_is_in_the_place_of_a_folder(tmp_path: Path) -> None:
    kept = tmp_path / "elsewhere"
    kept.mkdir()
    (kept / "a").touch()
    folder = tmp_path / "checkpoints"
    make(folder, 1)
    partial_path(folder, 2).write_text("a file")
    partial_path(folder, 3).symlink_to(kept)
    universal_path(folder / "step_1").symlink_to(kept)
    (folder / "step_3").symlink_to(tmp_path / "not_there")
    (folder / "step_4").write_text("a file")
    (folder / "latest").unlink()
    (folder / "latest").mkdir()
    for step in (2, 3, 4):
        make(folder, step, keep=2)
    # Whoever made that folder has to look at it; the rest is tidied up all the same.
    left = ["latest", "latest.partial", "step_3", "step_4"]
    assert sorted(path.name for path in folder.iterdir()) == left
    assert (kept / "a").exists()
