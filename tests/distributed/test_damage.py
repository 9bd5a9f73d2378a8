"""Damaged and hostile checkpoints, and conversions that end early, with real files and ranks."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llada_sft.errors import CheckpointError, SaveError
from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint.folder import DEEPSPEED_TAG, universal_path
from llada_sft.training.checkpoint.universal import Conversion
from tests.distributed.random_damage import play, train
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_saving import small_disk
from tests.distributed.training_workers import losses
from tests.unit.training.checkpoint_files import MODEL, OPTIMIZER, as_of_older_version, reseal

__all__ = ["small_disk"]
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
WORKERS = "tests.distributed.saving_workers"
TIMEOUT_S = 280
CONVERT = """
import sys
from pathlib import Path
from llada_sft.training.checkpoint.universal import Conversion

conversion = Conversion(Path(sys.argv[1]))
print(conversion.pid, flush=True)
conversion.ended(120)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train(tmp_path_factory.mktemp("trained"))


def hostile(ran: Path) -> Any:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {ran}",)

    return Hostile()


def add_hostile(path: Path, ran: Path) -> None:
    """Put code next to what a file holds, and make its checksum right."""
    state = torch.load(path, weights_only=False)
    torch.save({**state, "more": hostile(ran)}, path)
    reseal(path.parents[1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_ranks_resume_from_what_is_whole(trained: RunDir, tmp_path: Path) -> None:
    """Each case is a copy of the run; two ranks train on from it, one case after the other."""
    ran = tmp_path / "ran"
    last = {name: f"checkpoints/step_4/{name.format(1)}" for name in (MODEL, OPTIMIZER)}
    cases: dict[str, Callable[[Path], object]] = {
        "whole": lambda run: None,
        "mapped": lambda run: None,
        "damaged": lambda run: flip(run / last[OPTIMIZER]),
        "older": lambda run: as_of_older_version(run / "checkpoints/step_4"),
        "hostile_model": lambda run: add_hostile(run / last[MODEL], ran),
        "hostile_optimizer": lambda run: add_hostile(run / last[OPTIMIZER], ran),
        "only_one": lambda run: (
            shutil.rmtree(run / "checkpoints/step_2"),
            flip(run / last[OPTIMIZER]),
        ),
    }
    for name, spoil in cases.items():
        spoil(Path(shutil.copytree(trained.path, tmp_path / name)))
    ranks = run_on_ranks(
        f"{WORKERS}:resumed_each", 2, TIMEOUT_S, folder=str(tmp_path), names=list(cases)
    )
    seen = ranks[0]
    for name in ("whole", "mapped", "older", "damaged"):
        assert seen[name]["outcome"] == ranks[1][name]["outcome"] == "finished", seen[name]
    assert seen["whole"]["damaged"] == seen["older"]["damaged"] == []
    (line,) = seen["damaged"]["damaged"]
    checkpoint = tmp_path / "damaged/checkpoints/step_4"
    assert line.startswith(f"{checkpoint}: damaged: {OPTIMIZER.format(1)} is not what was written")
    assert "step_4.damaged" in seen["damaged"]["there"]
    # The same way on, from further back.
    assert losses(tmp_path / "damaged") == losses(tmp_path / "whole") == losses(trained.path)
    assert losses(tmp_path / "mapped") == losses(trained.path)
    assert len(losses(trained.path)) == 6
    for name in ("hostile_model", "hostile_optimizer"):
        for rank in ranks:
            assert "holds code (posix.system): not loaded" in rank[name]["outcome"]
            assert rank[name]["outcome"].startswith("CheckpointError: ")
    assert "does not start again from step 0" in seen["only_one"]["outcome"]
    assert not ran.exists()


@pytest.mark.parametrize("world_size", [2, 1])
def test_loading_itself_runs_no_code(trained: RunDir, tmp_path: Path, world_size: int) -> None:
    """Nobody has examined the files before; on one rank, of what was converted."""
    ran = tmp_path / "ran"
    run = Path(shutil.copytree(trained.path, tmp_path / "run"))
    for rank in range(2):
        add_hostile(run / "checkpoints/step_4" / OPTIMIZER.format(rank), ran)
    ranks = run_on_ranks(
        f"{WORKERS}:resumed_unexamined", world_size, TIMEOUT_S,
        folder=str(run), hostile_universal=str(ran),
    )  # fmt: skip
    for rank in ranks:
        for outcome in rank:
            assert outcome.startswith("CheckpointError: "), outcome
            assert "holds code (posix.system); nothing of it was run" in outcome
            assert "\n" not in outcome
    assert len(ranks[0]) == (1 if world_size == 2 else 2)
    assert not ran.exists()


def wait(conversion: Conversion) -> None:
    deadline = time.monotonic() + 120
    while not conversion.ended(1.0):
        assert time.monotonic() < deadline


def test_a_conversion_takes_no_notice_of_the_jobs_signals(trained: RunDir, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(trained.checkpoints / "step_4", tmp_path / "step_4"))
    conversion = Conversion(checkpoint)
    # As SLURM does it: to every process of the step.
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        os.killpg(conversion.pid, number)
    wait(conversion)
    assert conversion.error() is None
    made = universal_path(checkpoint) / DEEPSPEED_TAG
    assert (made / "zero/optimizer_state.pt").exists()
    # What is over stays.
    conversion.cancel()
    assert made.exists()


@pytest.mark.parametrize("when", ["at_once", "while_it_writes"])
def test_a_conversion_that_is_cancelled_leaves_nothing(
    trained: RunDir, tmp_path: Path, when: str
) -> None:
    checkpoint = Path(shutil.copytree(trained.checkpoints / "step_4", tmp_path / "step_4"))
    conversion = Conversion(checkpoint)
    written = universal_path(checkpoint) / DEEPSPEED_TAG / "tmp"
    while when == "while_it_writes" and not written.exists():
        assert not conversion.ended(0.01)
    assert living(conversion.pid)
    conversion.cancel()
    assert [path.name for path in tmp_path.iterdir()] == ["step_4"]
    assert living(conversion.pid) == []


def test_a_conversion_that_is_killed(trained: RunDir, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(trained.checkpoints / "step_4", tmp_path / "step_4"))
    conversion = Conversion(checkpoint)
    os.kill(conversion.pid, signal.SIGKILL)
    wait(conversion)
    error = conversion.error()
    assert isinstance(error, RuntimeError)
    assert str(error) == (
        f"{checkpoint}: cannot be converted for another number of ranks:"
        " the process was killed by SIGKILL (out of memory?)"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["step_4"]


def test_a_conversion_ends_with_the_rank_that_began_it(trained: RunDir, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(trained.checkpoints / "step_4", tmp_path / "step_4"))
    rank = subprocess.Popen(
        [sys.executable, "-c", CONVERT, str(checkpoint)], stdout=subprocess.PIPE, text=True
    )
    assert rank.stdout is not None
    group = int(rank.stdout.readline())
    written = universal_path(checkpoint) / DEEPSPEED_TAG / "tmp"
    deadline = time.monotonic() + 120
    while not written.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert living(group)
    rank.kill()
    rank.communicate()
    while living(group):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_conversion_on_a_full_disk(trained: RunDir, small_disk: Path) -> None:
    folder = small_disk / "checkpoints"
    folder.mkdir()
    checkpoint = Path(shutil.copytree(trained.checkpoints / "step_4", folder / "step_4"))
    free = shutil.disk_usage(folder).free
    (small_disk / "filler").write_bytes(b"x" * (free - 300 * 1024))
    conversion = Conversion(checkpoint)
    wait(conversion)
    error = conversion.error()
    assert isinstance(error, SaveError)
    assert str(error) == (
        f"{checkpoint}: cannot be converted for another number of ranks: No space left on device;"
        " 0.6 MB needed, 0.3 MB free: the checkpoint is intact; free space and start the run again,"
        " or resume with as many ranks as wrote it"
    )
    assert [path.name for path in folder.iterdir()] == ["step_4"]


def test_a_conversion_runs_no_code(trained: RunDir, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(trained.checkpoints / "step_4", tmp_path / "step_4"))
    # One that only a worker of the converter reads.
    add_hostile(checkpoint / OPTIMIZER.format(1), tmp_path / "ran")
    conversion = Conversion(checkpoint)
    wait(conversion)
    error = conversion.error()
    assert isinstance(error, CheckpointError)
    assert "holds code (posix.system); nothing of it was run" in str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["step_4"]


def test_a_few_random_damages(trained: RunDir, tmp_path: Path) -> None:
    for number in range(4):
        play(trained, number, tmp_path)


def living(group: int) -> list[int]:
    """The processes of a group that have not ended; some may not have been reaped yet."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of_group) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found
