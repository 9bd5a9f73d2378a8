"""The checkpoint that all ranks take, and what becomes of those that they do not take."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import llada_sft.training.checkpoint.resume as resume_module
import llada_sft.training.checkpoint.universal as universal
from llada_sft.data.rows.position import FilePosition, Pending
from llada_sft.errors import CheckpointError, PeerFailedError, SupersededError
from llada_sft.training.checkpoint.data_state import DataState
from llada_sft.training.checkpoint.resume import Resume
from llada_sft.training.checkpoint.verify import Defect
from llada_sft.training.host import Host
from tests.unit.training.checkpoint_files import (
    MODEL,
    NETWORK,
    OPTIMIZER,
    as_of_older_version,
    model_state,
    optimizer_state,
    reseal,
    write_checkpoint,
)
from tests.unit.training.resuming import Seen, resume


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def steps(seen: Seen) -> set[int]:
    outcomes = seen.outcomes.values()
    assert all(isinstance(one, Resume) for one in outcomes), outcomes
    return {one.step for one in outcomes if isinstance(one, Resume)}


def error_of(seen: Seen) -> str:
    outcomes = list(seen.outcomes.values())
    assert all(isinstance(one, CheckpointError) for one in outcomes), outcomes
    assert len(set(map(str, outcomes))) == 1
    return str(outcomes[0])


def test_a_fresh_run(tmp_path: Path) -> None:
    seen = resume(tmp_path)
    assert seen.outcomes == dict.fromkeys(range(2), Resume(None, 0, None))
    assert seen.notes == []


def test_the_newest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "checkpoints"
    made = [write_checkpoint(folder, step) for step in (2, 4)]
    (folder / "step_6.partial").mkdir()
    seen = resume(tmp_path)
    assert steps(seen) == {4}
    assert {one.checkpoint for one in seen.outcomes.values() if isinstance(one, Resume)} == {
        made[1]
    }
    assert seen.notes == []
    assert names(folder) == ["latest", "step_2", "step_4"]
    assert capsys.readouterr().out == f"resuming from {made[1]}\n"


def test_a_best_checkpoint_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (2, 4):
        write_checkpoint(folder, step, best=2)

    def best_steps() -> set[int | None]:
        resumed = [one.validation for one in resume(tmp_path).outcomes.values()]  # type: ignore[union-attr]
        assert [state.last_step for state in resumed] == [4, 4]
        return {None if state.best is None else state.best.step for state in resumed}

    assert best_steps() == {2}
    shutil.rmtree(folder / "step_2")
    assert best_steps() == {None}


@pytest.mark.parametrize(
    "name", [OPTIMIZER.format(1), MODEL.format(0), "data_state.json", "checkpoint.json"]
)
def test_where_one_rank_finds_damage_all_take_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = tmp_path / "checkpoints"
    for step in (2, 4, 6):
        write_checkpoint(folder, step)
    spoil(folder / "step_6" / name)
    seen = resume(tmp_path)
    assert steps(seen) == {4}
    (note,) = seen.notes
    assert note["event"] == "damaged"
    line = note["detail"]
    assert line.startswith(f"{folder}/step_6: damaged: {name} is not ")
    assert line.endswith("; renamed to step_6.damaged; the one before is step_4")
    assert line in capsys.readouterr().out
    assert names(folder) == ["latest", "step_2", "step_4", "step_6.damaged"]
    assert (folder / "latest").read_text() == "step_4\n"
    # It is not examined again.
    assert resume(tmp_path).notes == []


# Before the clean-up, before a checkpoint is renamed, before `latest` changes.
@pytest.mark.parametrize(
    ("lost_at", "left"),
    [
        (1, ["latest", "step_2", "step_4", "step_6.partial"]),
        (2, ["latest", "step_2", "step_4"]),
        (3, ["latest", "step_2", "step_4.damaged"]),
    ],
)
def test_who_has_lost_the_run_changes_nothing_more(
    tmp_path: Path, lost_at: int, left: list[str]
) -> None:
    class LostError(Exception):
        pass

    asked: list[None] = []

    def require_owner() -> None:
        asked.append(None)
        if len(asked) == lost_at:
            raise LostError

    folder = tmp_path / "checkpoints"
    for step in (2, 4):
        write_checkpoint(folder, step)
    (folder / "step_6.partial").mkdir()
    spoil(folder / "step_4/latest")
    assert isinstance(resume(tmp_path, 1, require_owner=require_owner).outcomes[0], LostError)
    assert names(folder) == left
    assert (folder / "latest").read_text() == "step_4\n"


def test_damage_is_kept_when_the_same_step_is_damaged_again(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    write_checkpoint(folder, 2)
    for _ in range(2):
        spoil(write_checkpoint(folder, 4) / "latest")
        assert steps(resume(tmp_path)) == {2}
    assert names(folder) == ["latest", "step_2", "step_4.damaged", "step_4.damaged.2"]
    # It counts for nothing: not as one of those to keep, nor as one to remove.
    for step in (6, 8):
        write_checkpoint(folder, step, keep=1)
    assert names(folder) == ["latest", "step_4.damaged", "step_4.damaged.2", "step_8"]


def test_a_run_never_starts_again_by_itself(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    write_checkpoint(folder, 2)
    write_checkpoint(folder, 4, keep=1)
    spoil(folder / "step_4" / OPTIMIZER.format(0))
    first = error_of(resume(tmp_path)).splitlines()
    assert len(first) == 2
    assert first[0].startswith(f"{folder}/step_4: damaged: {OPTIMIZER.format(0)} is not what was")
    ending = (
        f"{folder}: no checkpoint can be used, and a run does not start again from step 0 by itself"
    )
    assert first[1] == (
        f"{ending}: put back a copy of one under its name step_N, start a new run,"
        f" or remove {folder} to train from step 0"
    )
    # Nor the next time.
    again = error_of(resume(tmp_path)).splitlines()
    assert again[0] == f"{folder}/step_4.damaged: was found damaged before"
    assert again[1].startswith(ending)
    # As the line says.
    (folder / "step_4.damaged").rename(folder / "step_4")
    spoil(folder / "step_4" / OPTIMIZER.format(0))
    assert steps(resume(tmp_path)) == {4}


@pytest.mark.parametrize("left", [[], ["checkpoint.json"]])
def test_what_has_only_the_name_of_one_does_not_start_a_run_again(
    tmp_path: Path, left: list[str]
) -> None:
    folder = tmp_path / "checkpoints"
    made = write_checkpoint(folder, 4)
    for path in made.rglob("*"):
        if path.is_file() and path.name not in left:
            path.unlink()
    line = error_of(resume(tmp_path)).splitlines()[0]
    assert "is gone" in line
    # What rank 0 calls gone is not said again by the others.
    assert "cannot be found" not in line


def test_code_is_refused_by_all_ranks(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    folder = tmp_path / "checkpoints"
    write_checkpoint(folder, 2)
    made = write_checkpoint(folder, 4)
    torch.save({"a": Hostile()}, made / OPTIMIZER.format(1))
    reseal(made)
    line = error_of(resume(tmp_path))
    assert line.startswith(f"{made}: {OPTIMIZER.format(1)} holds code (posix.system): not loaded")
    assert "\n" not in line
    assert not (tmp_path / "ran").exists()
    # Evidence stays where it is.
    assert made.exists()


def test_one_of_an_older_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = write_checkpoint(tmp_path / "checkpoints", 4)
    as_of_older_version(made)
    assert steps(resume(tmp_path)) == {4}
    assert capsys.readouterr().out.splitlines() == [
        f"{made}: of an older version, without checksums: only sizes are known",
        f"resuming from {made}",
    ]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
def test_a_file_of_another_network_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_size: int, name: str
) -> None:
    monkeypatch.setattr(resume_module, "Conversion", FakeConversion)
    folder = tmp_path / "checkpoints"
    write_checkpoint(folder, 2)
    made = write_checkpoint(folder, 4)
    state = {MODEL: model_state, OPTIMIZER: optimizer_state}[name]
    torch.save(state(2, NETWORK | {"ln.weight": (7,)}), made / name.format(1))
    reseal(made)
    assert steps(resume(tmp_path, world_size)) == {2}
    assert names(folder) == ["latest", "step_2", "step_4.damaged"]


# On some ranks there is no file to examine.
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_config_of_another_network_damages_nothing(tmp_path: Path, world_size: int) -> None:
    folder = tmp_path / "checkpoints"
    for step in (2, 4):
        write_checkpoint(folder, step)
    other = NETWORK | {"ln.weight": (7,)}
    lines = error_of(resume(tmp_path, world_size, network=other)).splitlines()
    assert [line.partition(": passed over: ")[0] for line in lines[:2]] == [
        f"{folder}/step_4",
        f"{folder}/step_2",
    ]
    assert "ln.weight is [31] there, [7] here" in lines[0]
    assert "give the run the network that they were trained with, start a new run" in lines[-1]
    assert names(folder) == ["latest", "step_2", "step_4"]
    assert steps(resume(tmp_path)) == {4}


class FakeConversion:
    """Stands for the process that converts."""

    def __init__(self, checkpoint: Path) -> None:
        self.polls, self.cancelled = 0, False
        self.result: Exception | None = None
        made.append(self)

    def ended(self, seconds: float) -> bool:
        self.polls += 1
        return self.polls == 5

    def error(self) -> Exception | None:
        return self.result

    total = 4_000_000_000

    def progress(self) -> int | None:
        return self.polls * 500_000_000

    def cancel(self) -> None:
        self.cancelled = True


made: list[FakeConversion] = []


@pytest.fixture
def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(resume_module, "Conversion", FakeConversion)
    made.clear()
    return write_checkpoint(tmp_path / "checkpoints", 4, world_size=3)


def test_other_ranks_wait_for_the_conversion_and_say_that_they_live(
    tmp_path: Path, converted: Path
) -> None:
    seen = resume(tmp_path)
    assert steps(seen) == {4}
    for one in seen.outcomes.values():
        assert isinstance(one, Resume)
        assert one.universal
        assert one.checkpoint == converted.with_name("step_4.universal")
    assert (len(made), made[0].polls, made[0].cancelled) == (1, 5, False)
    # Both ranks at each of five polls, besides what they examined.
    assert seen.pulses >= 2 * 5


def test_a_conversion_shows_how_far_it_is(
    tmp_path: Path,
    converted: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(universal, "_SHOW_S", 0.0)
    resume(tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if "about" in line]
    assert [re.sub(r"\d+ s$", "S", line) for line in lines] == [
        f"converting it: {moved} of about 4.0 GB read and written after S"
        for moved in (0.5, 1.0, 1.5, 2.0, 2.5)
    ]


@pytest.mark.parametrize(("stands", "pulses"), [(True, 1), (False, 5)])
def test_a_conversion_that_stands_still_is_no_sign_of_life(
    tmp_path: Path, converted: Path, monkeypatch: pytest.MonkeyPatch, stands: bool, pulses: int
) -> None:
    """The watchdog then ends it, as any hang; for what advances it waits as long as it takes."""
    before = resume(tmp_path).pulses - 2 * 5
    made.clear()
    if stands:
        monkeypatch.setattr(FakeConversion, "progress", lambda self: 7)
    assert resume(tmp_path).pulses - before == 2 * pulses


def test_a_system_that_does_not_say_what_is_moved(
    tmp_path: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeConversion, "progress", lambda self: None)
    assert steps(resume(tmp_path)) == {4}
    assert made[0].polls == 5


@pytest.mark.parametrize("told", [0, 1])
def test_told_to_stop_while_converting(tmp_path: Path, converted: Path, told: int) -> None:
    seen = resume(tmp_path, stop=lambda rank: rank == told and bool(made) and made[0].polls >= 2)
    for one in seen.outcomes.values():
        assert isinstance(one, Resume)
        assert (one.checkpoint, one.step, one.stopped) == (None, 4, True)
    assert made[0].cancelled
    assert made[0].polls < 5


def test_a_conversion_that_fails_ends_all_ranks(
    tmp_path: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = CheckpointError("step_4: no room")
    monkeypatch.setattr(FakeConversion, "error", lambda self: failure)
    seen = resume(tmp_path)
    assert seen.outcomes[0] is failure
    assert isinstance(seen.outcomes[1], PeerFailedError)
    line = f"{converted}: rank 0 could not convert it; see its line"
    assert str(seen.outcomes[1]) == line


def test_8_bit_states_are_of_as_many_ranks_as_wrote_them(tmp_path: Path, converted: Path) -> None:
    seen = resume(tmp_path, other_ranks=False)
    for outcome in seen.outcomes.values():
        assert isinstance(outcome, CheckpointError)
        assert str(outcome) == (
            f"{converted}: its 8-bit optimizer states are of 3 ranks, and cannot be resumed on 2:"
            " resume on as many, or export the run (llada-sft export RUN OUT) and give a new one"
            " model.path=OUT"
        )
    assert made == []
    assert steps(resume(tmp_path, 3, other_ranks=False)) == {4}


def test_all_files_are_examined_before_other_ranks_convert(tmp_path: Path, converted: Path) -> None:
    for rank in range(3):
        spoil(converted / OPTIMIZER.format(rank))
        # Two ranks examine what three have written.
        assert "is not what was written" in error_of(resume(tmp_path))
        aside = converted.with_name("step_4.damaged")
        aside.rename(converted)
        spoil(converted / OPTIMIZER.format(rank))
    assert made == []
    assert steps(resume(tmp_path)) == {4}
    assert json.loads((converted / "checkpoint.json").read_text())["world_size"] == 3


def test_other_ranks_begin_to_share_out_the_data_anew(tmp_path: Path) -> None:
    """What sources have given is the old ranks' own: it says nothing of the new ones' shares."""
    at = FilePosition(3, 1, (Pending(0, 7, 2, 1),), epoch=1, examples=5, tokens=70)
    data = DataState(1, {"a/0.jsonl": at}, {"a/0.jsonl": "1-1"})
    assert Resume(tmp_path, 4, data).positions == {"a/0.jsonl": at}
    anew = at._replace(examples=0, tokens=0)
    assert Resume(tmp_path, 4, data, universal=True).positions == {"a/0.jsonl": anew}
    assert Resume(None, 0, None).positions is None
    assert Resume(None, 0, None, universal=True).positions is None


def test_a_checkpoint_of_a_run_that_was_lost_keeps_its_name(tmp_path: Path) -> None:
    checkpoint = tmp_path / "step_4"
    checkpoint.mkdir()

    def lost() -> None:
        raise SupersededError("lost")

    finding = Defect("damaged", "a")
    with pytest.raises(SupersededError):
        resume_module._pass_over(checkpoint, [finding], None, "a", Host(require_owner=lost))
    assert names(tmp_path) == ["step_4"]


def test_what_cannot_be_reached_does_not_start_a_run_again(tmp_path: Path) -> None:
    # A checkpoint that was moved away and linked, whose disk is not mounted; and a file.
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step_4").symlink_to(tmp_path / "not_mounted")
    (folder / "step_2").write_text("a file")
    lines = error_of(resume(tmp_path)).splitlines()
    why = "is not a folder, or its disk is not there"
    assert lines[:2] == [f"{folder}/step_{step}: passed over: {why}" for step in (4, 2)]
    assert "does not start again from step 0" in lines[2]
    assert names(folder) == ["step_2", "step_4"]
    # Once its disk is there again, it is used.
    (folder / "step_2").unlink()
    write_checkpoint(tmp_path / "other", 4).rename(tmp_path / "not_mounted")
    assert steps(resume(tmp_path)) == {4}


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("not_mounted")])
def test_a_folder_that_cannot_be_read_is_not_one_without_checkpoints(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "checkpoints")
    line = error_of(resume(tmp_path))
    assert line.startswith(f"{tmp_path}/checkpoints: ")
    assert "a run does not start again from step 0 by itself" in line
    assert "\n" not in line
