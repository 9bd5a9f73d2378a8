"""What `make demo` shows at its end."""

import sys
from pathlib import Path

import pytest

from llada_sft.demo.__main__ import loss_curve, waiting_line
from llada_sft.run_dir import RunDir
from llada_sft.training.consensus import Report
from llada_sft.training.log.log_interval import Interval
from llada_sft.training.log.metrics_csv import MetricsCsv


def test_the_share_of_time_that_was_waited_for_data_is_shown(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    logger = MetricsCsv(run.metrics, 0)
    for step, share in ((10, 0.004), (20, 0.006)):
        logger.log_metrics({"tokens": 500, "tokens_per_s": 100.0, "data_wait": share}, step)
    assert waiting_line(run) == "steps waited for data 0.5 % of the time"


def test_what_a_step_logs_is_what_the_demo_shows(tmp_path: Path) -> None:
    interval = Interval()
    interval.add(Report(tokens=500))
    # Waiting since ever: more than all the time that has passed.
    interval.add(Report(tokens=500, wait_us=10**9))
    run = RunDir(tmp_path)
    MetricsCsv(run.metrics, 0).log_metrics(interval.close(world_size=1), 2)
    assert waiting_line(run) == "steps waited for data 100.0 % of the time"


def test_the_loss_curve_is_drawn(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    logger = MetricsCsv(run.metrics, 0)
    for step in (1, 2):
        logger.log_metrics({"loss": 1.0 / step}, step)
    picture = tmp_path / "out/loss.png"
    assert loss_curve(run, picture) == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_demo_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "llada_sft.demo.plot", raising=False)
    line = loss_curve(RunDir(tmp_path), tmp_path / "loss.png")
    assert line == "needs matplotlib:  pip install 'llada-sft[plot]'"
