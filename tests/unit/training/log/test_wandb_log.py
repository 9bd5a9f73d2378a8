"""Weights & Biases: whatever it does, the training goes on; one id for all attempts of a run."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llada_sft.run_dir import RunDir
from llada_sft.training.log import wandb_log
from llada_sft.training.log.wandb_log import WandbLog, stored_id

Row = dict[str, Any]


class FakeWandb:
    """Stands in for the module: what it is asked for, and what it does then, by mode."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {"online": [], "offline": []}
        self.inits: list[Row] = []
        self.finished: list[str] = []
        self.at_init: Callable[[str], None] = lambda mode: None
        self.at_log: Callable[[str, Row], None] = lambda mode, row: None
        self.at_finish: Callable[[str], None] = lambda mode: None

    def Settings(self, **settings: Any) -> Row:
        return settings

    def teardown(self, exit_code: int) -> None:
        self.inits.clear()

    def init(self, **arguments: Any) -> SimpleNamespace:
        mode = arguments["mode"]
        self.inits.append(arguments)
        self.at_init(mode)

        def log(row: Row) -> None:
            self.at_log(mode, row)
            self.rows[mode].append(row)

        def finish() -> None:
            self.at_finish(mode)
            self.finished.append(mode)

        return SimpleNamespace(
            log=log, finish=finish, define_metric=lambda *_, **__: None, url="https://w/r"
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb_log, "STUCK_S", 0.2)
    monkeypatch.setattr(wandb_log, "FINISH_S", 5)


@pytest.fixture
def block() -> Iterator[threading.Event]:
    """Something to wait for that never comes while the test runs."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def log(tmp_path: Path, warnings: list[str]) -> WandbLog:
    return WandbLog("project", RunDir(tmp_path), "name", warnings.append)


def log_until_a_warning(log: WandbLog, warnings: list[str], number: int = 1) -> list[int]:
    """Log steps until there are so many warnings; return the steps."""
    steps: list[int] = []
    while len(warnings) < number:
        steps.append(len(steps) + 1)
        log.log_metrics({"loss": 5.0}, steps[-1])
    return steps


def fail(*_: object) -> None:
    raise ConnectionError("no route to  host\nwith key KEY12345678")


OFFLINE = "training continues, with an offline run in {0}/logs/wandb: to send it later"


def test_metrics_are_sent(log: WandbLog, fake: FakeWandb, warnings: list[str]) -> None:
    for step in (1, 2):
        log.log_metrics({"loss": 5.0}, step)
    log.finalize("success")
    assert fake.rows["online"] == [{"loss": 5.0, "step": 1}, {"loss": 5.0, "step": 2}]
    assert (fake.finished, warnings) == (["online"], [])
    (arguments,) = fake.inits
    assert (arguments["project"], arguments["name"], arguments["resume"]) == (
        "project",
        "name",
        "allow",
    )


def test_nothing_is_started_before_the_first_metric(log: WandbLog, fake: FakeWandb) -> None:
    log.finalize("success")
    assert fake.inits == []


def test_an_init_that_raises_is_one_warning_and_an_offline_run(
    log: WandbLog,
    fake: FakeWandb,
    warnings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "KEY12345678")
    fake.at_init = lambda mode: fail() if mode == "online" else None
    steps = log_until_a_warning(log, warnings)
    log.log_metrics({"loss": 5.0}, len(steps) + 1)
    log.finalize("success")
    assert [row["step"] for row in fake.rows["offline"]] == [*steps, len(steps) + 1]
    (warning,) = warnings
    assert warning.startswith(
        "W&B cannot be reached (ConnectionError: no route to host with key ***);"
    )
    assert OFFLINE.format(tmp_path) in warning
    assert fake.inits[-1]["id"] == log._run.wandb_id.read_text().strip()


def test_an_init_that_hangs_delays_nothing(
    log: WandbLog, fake: FakeWandb, warnings: list[str], block: threading.Event
) -> None:
    fake.at_init = lambda mode: block.wait() and None if mode == "online" else None
    steps = log_until_a_warning(log, warnings)
    log.finalize("success")
    (warning,) = warnings
    assert warning.startswith("W&B cannot be reached (no answer in 0 s); training continues")
    assert [row["step"] for row in fake.rows["offline"]] == steps
    assert fake.finished == ["offline"]


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_rows_that_are_not_taken_go_offline(
    log: WandbLog, fake: FakeWandb, warnings: list[str], block: threading.Event, how: str
) -> None:
    def at_log(mode: str, row: Row) -> None:
        if mode == "online" and row["step"] == 2:
            fail() if how == "raises" else block.wait()

    fake.at_log = at_log
    steps = log_until_a_warning(log, warnings)
    log.finalize("success")
    assert [row["step"] for row in fake.rows["online"]] == [1]
    assert [row["step"] for row in fake.rows["offline"]] == steps[1:]
    assert len(warnings) == 1


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_an_end_that_fails_is_a_warning(
    log: WandbLog,
    fake: FakeWandb,
    warnings: list[str],
    block: threading.Event,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wandb_log, "FINISH_S", 0.5)
    fake.at_finish = lambda mode: fail() if how == "raises" else block.wait() and None
    log.log_metrics({"loss": 5.0}, 1)
    log.finalize("success")
    assert warnings[0].startswith("W&B cannot be reached (")
    assert len(warnings) == 2
    assert warnings[1].startswith("W&B is off (")


def test_where_offline_fails_too_it_is_off(
    log: WandbLog, fake: FakeWandb, warnings: list[str]
) -> None:
    fake.at_init = fail
    log_until_a_warning(log, warnings, 2)
    log.log_metrics({"loss": 5.0}, 99)
    log.finalize("success")
    assert [warning.split(" (")[0] for warning in warnings] == [
        "W&B cannot be reached",
        "W&B is off",
    ]
    assert [arguments["mode"] for arguments in fake.inits] == ["offline"]


def test_without_the_package_it_is_off(
    log: WandbLog, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    log.log_metrics({"loss": 5.0}, 1)
    log.finalize("success")
    (warning,) = warnings
    assert warning.startswith("W&B is off (ModuleNotFoundError: ")


def test_the_id_is_the_same_for_all_attempts_and_another_for_each_run(tmp_path: Path) -> None:
    one, other = RunDir(tmp_path / "one"), RunDir(tmp_path / "other")
    for run in (one, other):
        run.path.mkdir()
    first = stored_id(one, "name")
    assert first.startswith("name-")
    assert stored_id(one, "name") == first == one.wandb_id.read_text().strip()
    assert stored_id(other, "name") != first
    # An empty file is what a full disk leaves.
    one.wandb_id.write_text("")
    assert stored_id(one, "name").startswith("name-")


def test_a_run_from_before_ids_were_stored_keeps_its_curve(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    (run.logs / "wandb").mkdir(parents=True)
    assert stored_id(run, "name") == "name"


SCRIPT = """
import sys
from pathlib import Path
from llada_sft.run_dir import RunDir
from llada_sft.training.log import wandb_log
wandb_log.INIT_S = 2
log = wandb_log.WandbLog("project", RunDir(Path(sys.argv[1])), "name", print)
for step in (1, 2):
    log.log_metrics({"loss": 5.0}, step)
log.finalize("success")
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_the_real_package_without_a_network(tmp_path: Path, mode: str) -> None:
    """With what is true of it: its settings, its service process, its files, no secret in them."""
    environment = {
        **os.environ,
        "WANDB_MODE": mode,
        "WANDB_API_KEY": "SECRET" * 7,
        # A port that nobody listens at.
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    warnings = done.stdout.splitlines()
    assert [line.split(" (")[0] for line in warnings] == (
        ["W&B cannot be reached"] if mode == "online" else []
    )
    (folder,) = (tmp_path / "logs/wandb").glob("offline-run-*")
    run_id = (tmp_path / "wandb_id.txt").read_text().strip()
    assert folder.name.endswith(run_id)
    assert (folder / f"run-{run_id}.wandb").stat().st_size > 0
    contents = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"SECRET" in content for content in contents)
