"""Which loggers a rank has, and which notices of libraries its log has not."""

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest

from llada_sft.config import load_config
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.training.host import Host
from llada_sft.training.log import loggers
from llada_sft.training.log.library_warnings import quiet_libraries

ROOT = Path(__file__).parents[4]


def names(tmp_path: Path, rank: int, host: Host, *overrides: str) -> list[str]:
    config = load_config(ROOT / "config/demo.yaml", overrides)
    placement = Placement(rank, 2, rank, 0, "127.0.0.1", 1)
    built = loggers.build_loggers(config, RunDir(tmp_path), placement, 0, ["loss"], host)
    return [type(one).__name__ for one in built]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ["MetricsCsv", "TensorBoardLog"]),
        (["log.csv=false"], ["TensorBoardLog"]),
        (["log.tensorboard=false"], ["MetricsCsv"]),
        (["log.csv=false", "log.tensorboard=false"], []),
    ],
)
def test_a_config_chooses(tmp_path: Path, overrides: list[str], expected: list[str]) -> None:
    assert names(tmp_path, 1, Host(), *overrides) == expected


def test_wandb_gets_rows_of_rank_0_and_its_warnings_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Any] = []

    class Fake:
        def __init__(self, *given: Any) -> None:
            made.append(given)

    monkeypatch.setattr(loggers, "WandbLog", Fake)
    notes: list[Any] = []
    host, only = Host(note=notes.append), ["log.csv=false", "log.tensorboard=false"]
    assert names(tmp_path, 0, host, *only, "log.wandb_project=p") == ["Fake"]
    assert names(tmp_path, 1, host, *only, "log.wandb_project=p") == []
    ((project, run, name, warn),) = made
    assert (project, run.path, name) == ("p", tmp_path, "demo")
    warn("no answer")
    assert capsys.readouterr().out == "no answer\n"
    assert notes == [{"event": "warning", "detail": "no answer"}]


def test_notices_of_libraries_are_silent_and_warnings_about_the_run_are_not() -> None:
    level = logging.getLogger("lightning.pytorch").level
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_libraries()
        warnings.warn("`torch.distributed.all_gather` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("The `srun` command is available", UserWarning, stacklevel=1)
        warnings.warn("loss is NaN", UserWarning, stacklevel=1)
    assert [str(one.message) for one in caught] == ["loss is NaN"]
    assert logging.getLogger("lightning.pytorch").getEffectiveLevel() == logging.WARNING
    logging.getLogger("lightning.pytorch").setLevel(level)
