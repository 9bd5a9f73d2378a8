"""Whether rows begin again: by the checkpoint's key, or by the hook that an update put aside."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from llada_sft.config.sections.data import DataConfig
from llada_sft.data.examples.hook import examples_key
from llada_sft.data.steps.dataset import StepDataset
from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint.data_state import DataState
from llada_sft.training.checkpoint.half_done import restart_half_done_rows, trained_key
from tests.unit.training.ranks import on_ranks

STATE = DataState(0, {}, {}, "")


class Dataset:
    def __init__(self, half_done: int) -> None:
        self.half_done, self.asked = half_done, 0

    def encode_again(self) -> int:
        self.asked += 1
        return self.half_done


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    hook = tmp_path / "code/process_data.py"
    hook.parent.mkdir()
    hook.write_text("new")
    return DataConfig(train="a", hook=str(hook))


def begin(
    config: DataConfig, state: DataState | None, run: RunDir
) -> tuple[list[Dataset], list[Any]]:
    datasets, notes = [Dataset(2), Dataset(1)], []  # type: ignore[var-annotated]
    on_ranks(
        2,
        lambda rank, consensus: restart_half_done_rows(
            cast(StepDataset, datasets[rank]),
            config,
            state,
            run,
            consensus,
            notes.append if rank == 0 else None,
        ),
    )
    return datasets, notes


def test_the_same_examples_go_on(config: DataConfig, tmp_path: Path) -> None:
    same = replace(STATE, examples_key=examples_key(config))
    for state in (None, same, STATE):
        datasets, notes = begin(config, state, RunDir(tmp_path))
        assert ([one.asked for one in datasets], notes) == ([0, 0], [])


def test_others_begin_again_and_are_counted(
    config: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = replace(STATE, examples_key=examples_key(config.model_copy(update={"max_length": 8})))
    datasets, notes = begin(config, state, RunDir(tmp_path))
    assert [one.asked for one in datasets] == [1, 1]
    line = (
        "the hook, or how its examples are cut, changed since the checkpoint:"
        " 3 half-done rows start again"
    )
    assert capsys.readouterr().out == f"{line}\n"
    assert notes == [{"event": "changed", "detail": line}]


def test_a_checkpoint_of_an_older_version_was_trained_with_the_first_code_put_aside(
    config: DataConfig, tmp_path: Path
) -> None:
    for name, text in (("code.1", "old"), ("code.2", "new"), ("code.10", "newer")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "process_data.py").write_text(text)
    run = RunDir(tmp_path)
    assert [path.name for path in run.kept_code()] == ["code.1", "code.2", "code.10"]
    assert trained_key(STATE, config, run) != examples_key(config)
    (tmp_path / "code.1/process_data.py").write_text("new")
    assert trained_key(STATE, config, run) == examples_key(config)


def test_the_key_is_kept(config: DataConfig) -> None:
    state = replace(STATE, examples_key="a")
    assert DataState.from_json(state.to_json()) == state
    assert DataState.from_json({"epoch": 0, "files": {}}).examples_key == ""
    assert DataState.merge(0, [], "b").examples_key == "b"
