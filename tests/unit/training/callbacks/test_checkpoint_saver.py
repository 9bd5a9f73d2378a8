"""When a checkpoint is saved, and what follows: at a stop, at the last step, after a failure."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llada_sft.config.schema import TrainConfig
from llada_sft.errors import PeerFailedError, SaveError
from llada_sft.run_dir import RunDir
from llada_sft.training.callbacks.checkpoint_saver import CheckpointSaver

FULL = OSError(errno.ENOSPC, "No space left on device")
Errors = list[OSError | None]


class Saver(CheckpointSaver):
    """Writes nothing: the write of each rank went as `errors` says."""

    errors: Errors = [None, None]  # noqa: RUF012

    def _write(self, trainer: Any, step: int, batch: Any) -> tuple[Errors, int]:
        self.written = [*getattr(self, "written", []), step]
        return self.errors, 10


class Journal:
    """Remembers what the journal would be told."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int]] = []

    def step_ended(self) -> None: ...

    def stop_agreed(self, step: int) -> None:
        self.said.append(("signal", step))

    def checkpoint_saved(self, step: int, num_bytes: int, total_steps: int | None = None) -> None:
        assert total_steps == 30
        self.said.append(("checkpoint", step))

    def checkpoint_failed(self, step: int, line: str) -> None:
        self.said.append(("warning", step))


def end_of_step(
    tmp_path: Path,
    step: int,
    stop: bool = False,
    last_batch: bool = False,
    max_steps: int = -1,
    errors: Errors | None = None,
    on_failed_save: str = "stop",
    rank: int = 0,
) -> tuple[Saver, Any, list[tuple[str, int]]]:
    journal: Any = Journal()
    feed: Any = SimpleNamespace(stop_agreed=stop)
    consensus: Any = SimpleNamespace(gather=lambda item: [item or "it cannot be written", ""])
    config = TrainConfig.model_validate(
        {"checkpoint_every_steps": 10, "on_failed_save": on_failed_save}
    )
    run = RunDir(tmp_path)
    run.checkpoints.mkdir(exist_ok=True)
    saver = Saver(run, config, consensus, feed, {}, journal)
    saver.errors = errors or [None, None]
    trainer: Any = SimpleNamespace(
        global_step=step,
        is_last_batch=last_batch,
        max_steps=max_steps,
        is_global_zero=rank == 0,
        global_rank=rank,
        limit_val_batches=1.0,
        should_stop=False,
    )
    batch: Any = SimpleNamespace(pace=SimpleNamespace(total_steps=30), positions={})
    module: Any = None
    saver.on_train_batch_end(trainer, module, None, batch, 0)
    return saver, trainer, journal.said


def test_positions_are_those_of_all_batches_together(tmp_path: Path) -> None:
    saver, trainer, _ = end_of_step(tmp_path, 7)
    module: Any = None
    for positions in ({"a": 1, "b": 2}, {"b": 3}, {}):
        batch: Any = SimpleNamespace(pace=None, positions=positions)
        saver.on_train_batch_end(trainer, module, None, batch, 0)
    assert saver._positions == {"a": 1, "b": 3}


def test_a_stop_saves_and_ends_the_run_without_a_validation(tmp_path: Path) -> None:
    saver, trainer, said = end_of_step(tmp_path, 7, stop=True)
    assert saver.stopped and trainer.should_stop and trainer.limit_val_batches == 0
    # Noted before the save, for which the time may not be enough.
    assert said == [("signal", 7), ("checkpoint", 7)]


@pytest.mark.parametrize("last", [{"last_batch": True}, {"max_steps": 7}])
@pytest.mark.parametrize("stop", [True, False])
def test_a_stop_at_the_very_last_step_is_the_end(
    tmp_path: Path, last: dict[str, Any], stop: bool
) -> None:
    saver, trainer, said = end_of_step(tmp_path, 7, stop=stop, **last)
    assert not saver.stopped and not trainer.should_stop and trainer.limit_val_batches == 1.0
    assert said == [("checkpoint", 7)]


@pytest.mark.parametrize(("step", "saves"), [(9, False), (10, True), (11, False), (20, True)])
def test_every_n_steps(tmp_path: Path, step: int, saves: bool) -> None:
    saver, trainer, said = end_of_step(tmp_path, step, max_steps=30)
    assert said == ([("checkpoint", step)] if saves else [])
    assert not saver.stopped and not trainer.should_stop


def test_a_failed_save_ends_the_run_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match=r"free space and start the run again$"):
        end_of_step(tmp_path, 10, errors=[FULL, None])
    with pytest.raises(PeerFailedError, match="step 10: another rank could not write"):
        end_of_step(tmp_path, 10, errors=[FULL, None], rank=1)
    with pytest.raises(SaveError, match="it cannot be written"):
        end_of_step(tmp_path, 10, errors=[None, FULL], rank=1)


def test_a_failed_save_is_a_warning_where_that_is_allowed_but_not_at_the_end(
    tmp_path: Path,
) -> None:
    saver, trainer, said = end_of_step(tmp_path, 10, errors=[FULL], on_failed_save="go_on")
    assert said == [("warning", 10)] and not saver.stopped and not trainer.should_stop
    with pytest.raises(SaveError):
        end_of_step(tmp_path, 10, errors=[FULL], on_failed_save="go_on", max_steps=10)


def test_a_failed_save_does_not_keep_a_run_from_stopping(tmp_path: Path) -> None:
    saver, trainer, said = end_of_step(tmp_path, 7, stop=True, errors=[FULL])
    assert said == [("signal", 7), ("warning", 7)]
    assert saver.stopped and trainer.should_stop
