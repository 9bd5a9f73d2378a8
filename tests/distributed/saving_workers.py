"""What the ranks of the tests of failing checkpoints run."""

import errno
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

import llada_sft.training.callbacks.checkpoint_saver as saver_module
import llada_sft.training.checkpoint.folder as checkpoints
import llada_sft.training.checkpoint.resume as resume_module
import llada_sft.training.checkpoint.shard_writer as writing
import llada_sft.training.strategy as strategy_module
from llada_sft.config import load_config
from llada_sft.errors import LladaSftError
from llada_sft.run_dir import RunDir
from llada_sft.training.host import Host
from llada_sft.training.log.metrics_csv import MetricsCsv
from llada_sft.training.trainer import train
from tests.distributed.training_workers import placement


def attempt(
    folder: Path, config_file: str, overrides: list[str], stop: Callable[[], bool]
) -> dict[str, Any]:
    """Train once; say how it ended, and what went to the journal."""
    notes: list[Any] = []
    host = Host(stop_requested=stop, note=notes.append)
    try:
        outcome = train(load_config(config_file, overrides), RunDir(folder), placement(), host)
    except LladaSftError as error:
        outcome = f"{type(error).__name__}: {error}"  # type: ignore[assignment]
    warnings = [note["detail"] for note in notes if note["event"] == "warning"]
    return {"outcome": outcome, "warnings": warnings, "there": names(folder)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def on_a_disk_that_fills_up(
    folder: str, config_file: str, overrides: list[str], told_to_stop: bool = False
) -> dict[str, Any]:
    """Train; once there is a checkpoint, rank 0 fills the disk that the run is on."""
    run, filler = Path(folder), Path(folder).parent / "filler"

    def stop() -> bool:
        if placement().rank == 0 and any(run.glob("checkpoints/step_*/checkpoint.json")):
            if filler.exists():
                return told_to_stop
            free = shutil.disk_usage(run).free
            filler.write_bytes(b"x" * (free - 64 * 1024))
        return False

    return attempt(run, config_file, overrides, stop)


def simply(folder: str, config_file: str, overrides: list[str]) -> dict[str, Any]:
    """Train without trouble."""
    return attempt(Path(folder), config_file, overrides, lambda: False)


def resumed_each(folder: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """Train each of these runs on, to its last step; `mapped` reads its files as a GPU's rank."""
    outcomes = {}
    for name in names:
        with pytest.MonkeyPatch.context() as patch:
            if name == "mapped":
                patch.setattr(strategy_module, "_copies_loaded", lambda *given: True)
            outcomes[name] = _resumed(Path(folder) / name)
    return outcomes


def resumed_unexamined(folder: str, hostile_universal: str) -> list[str]:
    """Resume with files that nobody has examined; on one rank, also from a hostile conversion."""
    outcomes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume_module, "examine", lambda *given, **more: [])
        outcomes.append(str(_resumed(Path(folder))["outcome"]))
        if placement().world_size == 1:
            universal = partial(_hostile_universal, ran=Path(hostile_universal))
            patch.setattr(resume_module, "_convert", universal)
            outcomes.append(str(_resumed(Path(folder))["outcome"]))
    return outcomes


def _hostile_universal(checkpoint: Path, *given: Any, ran: Path) -> bool:
    """Stand for the conversion: what it has left was changed since."""

    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {ran}",)

    shards = checkpoints.universal_path(checkpoint) / checkpoints.DEEPSPEED_TAG
    (shards / "zero").mkdir(parents=True)
    shards.with_name("latest_universal").write_text(shards.name)
    for path in (checkpoint / shards.name).glob("*model_states.pt"):
        shutil.copy(path, shards)
    torch.save({"a": Hostile()}, shards / "zero/optimizer_state.pt")
    return True


def _resumed(run: Path) -> dict[str, Any]:
    notes: list[Any] = []
    config = load_config(RunDir(run).config)
    try:
        outcome: str = train(config, RunDir(run), placement(), Host(note=notes.append))
    except LladaSftError as error:
        outcome = f"{type(error).__name__}: {error}"
    return {
        "outcome": outcome,
        "damaged": [note["detail"] for note in notes if note["event"] == "damaged"],
        "there": names(run),
    }


def with_loggers_that_fail(folder: str, config_file: str, overrides: list[str]) -> dict[str, Any]:
    """Train; the second row of metrics and the third of TensorBoard find no room."""
    with pytest.MonkeyPatch.context() as patch:
        for logger, when in ((MetricsCsv, 2), (TensorBoardLogger, 3)):
            failing = _fails_once(logger.log_metrics, when)
            # Through the class, the call has the logger itself as its first argument.
            patch.setattr(logger, "log_metrics", lambda *given, call=failing: call(*given))
        return attempt(Path(folder), config_file, overrides, lambda: False)


def one_rank_cannot_write(
    folder: str, config_file: str, overrides: list[str]
) -> dict[str, dict[str, Any]]:
    """Train again and again; each time the second checkpoint fails on one rank in another place."""
    return {
        name: _train_with(fault, Path(folder) / name, config_file, overrides)
        for name, fault in _FAULTS.items()
    }


def _train_with(
    fault: Callable[[pytest.MonkeyPatch, int], None],
    folder: Path,
    config_file: str,
    overrides: list[str],
) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        fault(patch, placement().rank)
        return attempt(folder, config_file, overrides, lambda: False)


def _fails_once(call: Callable[..., Any], when: int) -> Callable[..., Any]:
    """Fail at the call of that number, from 1."""
    calls = 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == when:
            raise OSError(errno.EIO, "Input/output error")
        return call(*args, **kwargs)

    return failing


def _shard_of(rank: int, when: int) -> Callable[[pytest.MonkeyPatch, int], None]:
    def fault(patch: pytest.MonkeyPatch, this_rank: int) -> None:
        if this_rank == rank:
            patch.setattr(writing, "write_shard", _fails_once(writing.write_shard, when))

    return fault


def _latest(patch: pytest.MonkeyPatch, rank: int) -> None:
    # Rank 0 alone writes it, after DeepSpeed's barrier.
    failing = _fails_once(Path.write_text, 2)
    write = Path.write_text

    def write_text(path: Path, *args: Any, **kwargs: Any) -> int:
        is_deepspeeds = path.name == "latest" and path.parent.suffix == ".partial"
        return int((failing if is_deepspeeds else write)(path, *args, **kwargs))

    patch.setattr(Path, "write_text", write_text)


def _manifest(patch: pytest.MonkeyPatch, rank: int) -> None:
    patch.setattr(checkpoints, "_num_shards", _fails_once(checkpoints._num_shards, 2))


def _folder(patch: pytest.MonkeyPatch, rank: int) -> None:
    patch.setattr(saver_module, "create_partial", _fails_once(checkpoints.create_partial, 2))


# Each rank writes two shards to each checkpoint.
_FAULTS: dict[str, Callable[[pytest.MonkeyPatch, int], None]] = {
    "model_on_rank_1": _shard_of(1, 3),
    "optimizer_on_rank_1": _shard_of(1, 4),
    "model_on_rank_0": _shard_of(0, 3),
    "latest": _latest,
    "manifest": _manifest,
    "folder": _folder,
}
