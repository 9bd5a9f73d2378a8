"""Checkpoints of a real training, each damaged at random: found, not loaded, not exported.

    python -m tests.distributed.random_damage --cases 300 [--first 0]

A case is a number, which keys where and how the newest checkpoint is damaged: a bit flipped, a file
cut, a block zeroed, a file removed. Two ranks (threads) then look for the checkpoint to resume
from, and must take the one before; an export of the damaged one must refuse.
"""

import argparse
import contextlib
import io
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

from llada_sft.config import load_config
from llada_sft.config.reader import dump_config
from llada_sft.demo.data import write_demo
from llada_sft.errors import CheckpointError
from llada_sft.run_dir import RunDir
from llada_sft.training.build_network import resolve_network
from llada_sft.training.checkpoint.resume import Resume
from llada_sft.training.export import export_run
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_training import CONFIG, with_data, write_shards
from tests.unit.training.checkpoint_files import damage
from tests.unit.training.resuming import resume

WORKERS = "tests.distributed.saving_workers"
_WAYS = ("flipped", "cut", "zeroed", "removed")


def train(folder: Path) -> RunDir:
    """Train six steps on two ranks, and go back to step 4; there is a checkpoint of step 2 too."""
    write_demo(folder / "demo")
    overrides = [
        *with_data(folder / "demo", write_shards(folder / "shards", [24, 24])),
        "train.max_steps=6",
        "train.keep_checkpoints=3",
        "train.checkpoint_every_steps=2",
        "train.validate_every_steps=100",
        "train.validation_max_rows=2",
    ]
    run = RunDir(folder / "run")
    arguments = {"config_file": CONFIG, "overrides": overrides}
    run_on_ranks(f"{WORKERS}:simply", 2, 280, folder=str(run.path), **arguments)
    shutil.rmtree(run.checkpoints / "step_6")
    (run.checkpoints / "latest").write_text("step_4\n")
    run.config.write_text(dump_config(load_config(CONFIG, overrides)))
    return run


def play(whole: RunDir, number: int, folder: Path) -> str:
    """Damage a copy, and say what was done.

    Raises:
        AssertionError: It was loaded, or exported.
    """
    run = RunDir(Path(shutil.copytree(whole.path, folder / f"case_{number}")))
    what = damage(run.checkpoints / "step_4", random.Random(number))
    try:
        export_run(run.path, run.path / "out", None, None)
        raise AssertionError(f"{what}: exported")
    except CheckpointError as error:
        assert "--step 2" in str(error), f"{what}: {error}"
    assert not (run.path / "out").exists(), f"{what}: exported in part"
    network = resolve_network(load_config(run.config).model).architecture.parameter_shapes()
    with contextlib.redirect_stdout(io.StringIO()):
        seen = resume(run.path, network=network)
    for outcome in seen.outcomes.values():
        assert isinstance(outcome, Resume), f"{what}: {outcome!r}"
        assert outcome.step == 2, f"{what}: loaded"
    (note,) = seen.notes
    assert note["event"] == "damaged", f"{what}: {note}"
    assert (run.checkpoints / "step_4.damaged").is_dir(), f"{what}: not set aside"
    shutil.rmtree(run.path)
    return what


def main() -> None:
    """Play the cases that are asked for, and say how many were found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    began, done = time.monotonic(), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        whole = train(Path(name))
        for number in range(arguments.first, arguments.first + arguments.cases):
            try:
                what = play(whole, number, Path(name))
            except AssertionError as error:
                raise SystemExit(f"case {number}: {error}") from error
            done[next(word for word in _WAYS if word in what)] += 1
    seconds = time.monotonic() - began
    print(", ".join(f"{count} {way}" for way, count in sorted(done.items())))
    print(
        f"{arguments.cases} of {arguments.cases} found in {seconds:.0f} s: none loaded or exported"
    )


if __name__ == "__main__":
    main()
