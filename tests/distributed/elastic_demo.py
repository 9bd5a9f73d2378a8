"""The demo on 4, then 2, then 3 ranks, as a user types it: it learns what 2 ranks learn.

    python -m tests.distributed.elastic_demo

trains the demo twice, with 60 rows per step whatever the number of ranks: on 2 ranks without
interruption; and on 4 ranks, told to stop after a third of the steps, resumed on 2, told to stop,
and resumed on 3. Both models then answer the held-out prompts. The exit code is 1 where they differ
by more than two points. It takes seven minutes of a core: test_training.py has what can be said of
changing ranks in less.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llada_sft.config import load_config
from llada_sft.demo.data import write_demo
from llada_sft.demo.evaluation import exact_match
from llada_sft.model.loading import load_model
from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint.folder import newest_checkpoint
from llada_sft.training.checkpoint.manifest import read_manifest
from llada_sft.training.export import export_run

ROOT = Path(__file__).parents[2]
NUM_STEPS = 400
# Of one optimizer step; 4, 2 and 3 ranks can share them evenly.
NUM_EXAMPLES = 60
MOST_APART = 0.02
OVERRIDES = (
    f"train.max_steps={NUM_STEPS}",
    # Two checkpoints before the last step, at which the number of ranks changes.
    f"train.checkpoint_every_steps={NUM_STEPS // 3}",
    # No processes beside the ranks, of which there are more than cores.
    "data.prefetch_steps=0",
)


def ranks(number: int) -> list[str]:
    return [f"slurm.ranks_per_node={number}", f"train.micro_batch_size={NUM_EXAMPLES // number}"]


def launch(folder: Path, name: str, number: int) -> subprocess.Popen[str]:
    config = ["--config", str(ROOT / "config/demo.yaml"), "--local", f"run.name={name}"]
    return _start(folder, str(ROOT / "launch.py"), *config, *OVERRIDES, *ranks(number))


def resume(folder: Path, name: str, number: int) -> subprocess.Popen[str]:
    run = str(folder / "runs" / name)
    return _start(folder, "-m", "llada_sft", "resume", run, "--local", *ranks(number))


def _start(folder: Path, *command: str) -> subprocess.Popen[str]:
    print(f"\n$ python {' '.join(command)}", flush=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, text=True)


def stop_after(step: int, run: RunDir, launcher: subprocess.Popen[str]) -> None:
    """Tell a run to save and stop once the checkpoint of a step is there."""
    latest = run.checkpoints / "latest"
    while not (latest.exists() and latest.read_text() == f"step_{step}\n"):
        assert launcher.poll() is None, "the run ended before it was stopped"
        time.sleep(0.1)
    launcher.send_signal(signal.SIGTERM)
    finish(launcher, 128 + signal.SIGTERM)


def finish(launcher: subprocess.Popen[str], code: int = 0) -> None:
    ended = launcher.wait()
    assert ended == code, f"exit code {ended}"


def assert_written_by(number: int, run: RunDir) -> None:
    newest = newest_checkpoint(run.checkpoints)
    assert newest is not None
    assert read_manifest(newest)["world_size"] == number


def score(run: RunDir, out: Path) -> float:
    export_run(run.path, out, None, None)
    return exact_match(load_model(out), load_config(run.config))[0]


def train_on_changing_ranks(folder: Path) -> RunDir:
    run, third = RunDir(folder / "runs/changing"), NUM_STEPS // 3
    stop_after(third, run, launch(folder, "changing", 4))
    assert_written_by(4, run)
    stop_after(2 * third, run, resume(folder, "changing", 2))
    assert_written_by(2, run)
    finish(resume(folder, "changing", 3))
    assert_written_by(3, run)
    return run


def train_on_two_ranks(folder: Path) -> RunDir:
    finish(launch(folder, "whole", 2))
    return RunDir(folder / "runs/whole")


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("slurm", "utils"):
            (folder / part).symlink_to(ROOT / part)
        write_demo(folder / "demo")
        changing = score(train_on_changing_ranks(folder), folder / "changing")
        whole = score(train_on_two_ranks(folder), folder / "whole")
    print(f"\nexact match on the held-out prompts: {whole:.2%} on 2 ranks without interruption,")
    print(
        f"{changing:.2%} on 4, then 2, then 3 ranks: {100 * abs(whole - changing):.2f} points apart"
    )
    return int(abs(whole - changing) > MOST_APART)


if __name__ == "__main__":
    sys.exit(main())
