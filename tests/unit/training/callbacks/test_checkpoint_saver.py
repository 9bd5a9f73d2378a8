"""When a checkpoint is saved, and what follows: at a stop, at the last step, after a failure."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llada_sft.config.sections.train import TrainConfig
from llada_sft.config.sections.validation import EarlyStopConfig
from llada_sft.errors import PeerFailedError, SaveError
from llada_sft.run_dir import RunDir
from llada_sft.training.callbacks.checkpoint_saver import CheckpointSaver
from llada_sft.training.validation.best import BestSoFar

FULL = OSError(errno.ENOSPC, "No space left on device")
Errors = list[OSError | None]


class Writer:
    """A rank's writer whose thread is at work until `is_over`."""

    def __init__(self) -> None:
        self.is_over, self.progress, self.seconds = False, 0, 2.5
        self.num_bytes = 12_300_000_000

    def ended(self, seconds: float = 0.0) -> bool:
        self.is_over = self.is_over or seconds > 0
        return self.is_over


class Saver(CheckpointSaver):
    """Writes nothing: the write of each rank went as `errors` says."""

    errors: Errors = [None, None]  # noqa: RUF012

    def _begin(
        self, trainer: Any, step: int, batch: Any, last: bool, background: bool
    ) -> tuple[Any, Errors]:
        self.begun = [*getattr(self, "begun", []), (step, background)]
        total = batch.pace.total_steps
        begun = SimpleNamespace(
            step=step, last=last, background=background, writer=Writer(), total_steps=total
        )
        return begun, [None, None]

    def _finish(self, trainer: Any, begun: Any) -> tuple[Errors, int]:
        return self.errors, 10


class Journal:
    """Remembers what the journal would be told."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int]] = []

    def step_ended(self) -> None: ...

    def stop_agreed(self, step: int) -> None:
        self.said.append(("signal", step))

    def checkpoint_begun(self) -> None:
        self.said.append(("begun", 0))

    def checkpoint_saved(
        self, step: int, num_bytes: int, total_steps: int | None = None, write_s: float = 0.0
    ) -> None:
        assert (total_steps, write_s) in ((30, 0.0), (30, 2.5))
        self.said.append(("checkpoint", step))

    def checkpoint_failed(self, step: int, line: str) -> None:
        self.said.append(("warning", step))


def gather(item: Any) -> list[Any]:
    """What two ranks say that are alike; the line of a failed checkpoint is rank 0's."""
    return [item or "it cannot be written", item if isinstance(item, tuple) else ""]


def make_saver(
    tmp_path: Path, errors: Errors | None = None, best: BestSoFar | None = None, **train: Any
) -> tuple[Saver, Journal]:
    journal: Any = Journal()
    feed: Any = SimpleNamespace(stop_agreed=False, writes_ended=0)
    consensus: Any = SimpleNamespace(gather=gather)
    config = TrainConfig.model_validate({"checkpoint_every_steps": 10, **train})
    run = RunDir(tmp_path)
    run.checkpoints.mkdir(exist_ok=True)
    saver = Saver(run, config, consensus, feed, {}, journal, best=best)
    saver.errors = errors or [None, None]
    return saver, journal


def make_trainer(step: int, **more: Any) -> Any:
    there = {"is_last_batch": False, "max_steps": -1, "is_global_zero": True, "global_rank": 0}
    ends = {"should_stop": False}
    return SimpleNamespace(global_step=step, world_size=2, **{**there, **ends, **more})


def end_step(saver: Saver, trainer: Any, positions: dict[str, int] | None = None) -> None:
    pace = SimpleNamespace(total_steps=30)
    batch: Any = SimpleNamespace(pace=pace, positions=positions or {})
    module: Any = None
    saver.on_train_batch_end(trainer, module, None, batch, 0)


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
    saver, journal = make_saver(
        tmp_path, errors, on_failed_save=on_failed_save, async_checkpoints=False
    )
    saver._feed.stop_agreed = stop
    ranks = {"is_global_zero": rank == 0, "global_rank": rank}
    trainer = make_trainer(step, is_last_batch=last_batch, max_steps=max_steps, **ranks)
    end_step(saver, trainer)
    return saver, trainer, journal.said


def test_positions_are_those_of_all_batches_together(tmp_path: Path) -> None:
    saver, trainer, _ = end_of_step(tmp_path, 7)
    for positions in ({"a": 1, "b": 2}, {"b": 3}, {}):
        end_step(saver, trainer, positions)
    assert saver._positions == {"a": 1, "b": 3}


def test_a_stop_saves_and_ends_the_run(tmp_path: Path) -> None:
    saver, trainer, said = end_of_step(tmp_path, 7, stop=True)
    assert saver.stopped and trainer.should_stop
    # Noted before the save, for which the time may not be enough.
    assert said == [("signal", 7), ("checkpoint", 7)]


@pytest.mark.parametrize("last", [{"last_batch": True}, {"max_steps": 7}])
@pytest.mark.parametrize("stop", [True, False])
def test_a_stop_at_the_very_last_step_is_the_end(
    tmp_path: Path, last: dict[str, Any], stop: bool
) -> None:
    saver, trainer, said = end_of_step(tmp_path, 7, stop=stop, **last)
    assert not saver.stopped and not trainer.should_stop
    assert said == [("checkpoint", 7)]


@pytest.mark.parametrize(("step", "saves"), [(9, False), (10, True), (11, False), (20, True)])
def test_every_n_steps(tmp_path: Path, step: int, saves: bool) -> None:
    saver, trainer, said = end_of_step(tmp_path, step, max_steps=30)
    assert said == ([("checkpoint", step)] if saves else [])
    assert not saver.stopped and not trainer.should_stop


def test_a_failed_save_ends_the_run_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match=r"free space and start the run again$"):
        end_of_step(tmp_path, 10, errors=[FULL, None])
    broken = OSError(errno.EIO, "Input/output error")
    with pytest.raises(SaveError, match=r"; start the run again when that is fixed$"):
        end_of_step(tmp_path, 10, errors=[broken, None])
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


def test_the_host_memory_is_told_once_by_one_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for zero in (True, False):
        saver, _ = make_saver(tmp_path)
        for step in (10, 20):
            end_step(saver, make_trainer(step, is_global_zero=zero))
    line = "checkpoints are copied: 12.3 GB of host memory for each rank\n"
    assert capsys.readouterr().out == line


def test_a_checkpoint_is_complete_where_all_ranks_have_reported_its_writing(tmp_path: Path) -> None:
    saver, journal = make_saver(tmp_path)
    end_step(saver, make_trainer(10))
    assert (saver.begun, journal.said) == ([(10, True)], [("begun", 0)])
    begun: Any = saver._begun
    assert saver.writes_ended == 0
    begun.writer.is_over = True
    assert saver.writes_ended == 1
    # The other rank is still at it.
    saver._feed.writes_ended = 1
    end_step(saver, make_trainer(11))
    assert journal.said == [("begun", 0)]
    saver._feed.writes_ended = 2
    end_step(saver, make_trainer(12))
    assert journal.said == [("begun", 0), ("checkpoint", 10)]
    end_step(saver, make_trainer(13))
    assert journal.said == [("begun", 0), ("checkpoint", 10)]
    assert saver.writes_ended == 1


@pytest.mark.parametrize(
    ("trainer", "stop", "then"),
    [
        (make_trainer(20), False, [("begun", 0)]),
        (make_trainer(13, max_steps=13), False, [("checkpoint", 13)]),
        (make_trainer(13), True, [("checkpoint", 13)]),
    ],
)
def test_a_save_waits_for_the_one_before(
    tmp_path: Path, trainer: Any, stop: bool, then: list[tuple[str, int]]
) -> None:
    saver, journal = make_saver(tmp_path)
    end_step(saver, make_trainer(10))
    saver._feed.stop_agreed = stop
    end_step(saver, trainer)
    signal = [("signal", 13)] if stop else []
    assert journal.said == [("begun", 0), *signal, ("checkpoint", 10), *then]
    assert saver.begun[1] == (trainer.global_step, then == [("begun", 0)])


def test_the_end_of_the_training_and_a_mistake_wait_for_what_was_begun(tmp_path: Path) -> None:
    module: Any = None
    saver, journal = make_saver(tmp_path)
    end_step(saver, make_trainer(10))
    # Only a mistake ends all ranks at the same step: after a crash no rank may wait for another.
    saver.on_exception(make_trainer(11), module, RuntimeError())
    assert journal.said == [("begun", 0)]
    saver.on_exception(make_trainer(11), module, PeerFailedError("x"))
    assert journal.said == [("begun", 0), ("checkpoint", 10)]
    end_step(saver, make_trainer(20))
    saver.on_train_end(make_trainer(21), module)
    assert journal.said[2:] == [("begun", 0), ("checkpoint", 20)]


def test_a_write_that_failed_ends_the_run_later_or_is_a_warning(tmp_path: Path) -> None:
    saver, journal = make_saver(tmp_path, errors=[FULL, None])
    end_step(saver, make_trainer(10))
    saver._feed.writes_ended = 2
    with pytest.raises(SaveError, match=r"free space and start the run again$"):
        end_step(saver, make_trainer(11))
    assert saver._begun is None
    saver, journal = make_saver(tmp_path, errors=[FULL, None], on_failed_save="go_on")
    end_step(saver, make_trainer(10))
    saver._feed.writes_ended = 2
    end_step(saver, make_trainer(11))
    assert journal.said == [("begun", 0), ("warning", 10)]


def test_a_mistake_is_not_replaced_by_a_failed_write(tmp_path: Path) -> None:
    module: Any = None
    saver, journal = make_saver(tmp_path, errors=[FULL, None])
    end_step(saver, make_trainer(10))
    saver.on_exception(make_trainer(11), module, SaveError("x"))
    assert journal.said == [("begun", 0), ("warning", 10)]


def test_only_bytes_that_are_written_count_as_progress(tmp_path: Path) -> None:
    """Or a disk that hangs would never be found."""
    saver, _ = make_saver(tmp_path)
    pulses: list[str] = []
    saver._pulse = lambda phase, step: pulses.append(phase)
    states = iter([(False, 5), (False, 5), (False, 5), (False, 9), (True, 9)])
    writer: Any = SimpleNamespace(ended=lambda seconds: False, progress=0)
    consensus: Any = SimpleNamespace(gather=lambda item: [next(states)])
    saver._consensus = consensus
    saver._wait(writer, 7)
    assert pulses == ["checkpoint"] * 2


def test_the_best_step_has_a_checkpoint(tmp_path: Path) -> None:
    best = BestSoFar(keep_best="validation_loss")
    saver, journal = make_saver(tmp_path, best=best, async_checkpoints=False)
    for step, loss in ((3, 2.0), (6, 1.5), (9, 1.7)):
        best.validated(step, {"validation_loss": loss})
        end_step(saver, make_trainer(step))
    assert journal.said == [("checkpoint", 3), ("checkpoint", 6)]


def test_the_best_step_whose_checkpoint_failed_is_forgotten(tmp_path: Path) -> None:
    best = BestSoFar(keep_best="validation_loss")
    options = {"async_checkpoints": False, "on_failed_save": "go_on"}
    saver, _ = make_saver(tmp_path, best=best, **options)
    best.validated(3, {"validation_loss": 2.0})
    end_step(saver, make_trainer(3))
    saver.errors = [FULL, None]
    best.validated(6, {"validation_loss": 1.5})
    end_step(saver, make_trainer(6))
    assert best.is_best(3)


def test_an_early_stop_saves_and_is_no_stop_by_a_signal(tmp_path: Path) -> None:
    best = BestSoFar(early_stop=EarlyStopConfig(metric="validation_loss", patience=1))
    saver, journal = make_saver(tmp_path, best=best, async_checkpoints=True)
    saver._feed.stop_agreed = True
    trainer = make_trainer(7)
    for loss in (1.0, 1.0):
        best.validated(7, {"validation_loss": loss})
    end_step(saver, trainer)
    # Waited for, as every last checkpoint.
    assert saver.begun == [(7, False)]
    assert journal.said == [("checkpoint", 7)]
    assert trainer.should_stop and not saver.stopped
