"""`make demo`: data, training on two ranks of ZeRO-3, export, answers before and after, a report.

Each step is the command that a user would type; they are printed as they run.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from llada_sft.config import load_config
from llada_sft.config.schema import Config
from llada_sft.demo.data import write_demo
from llada_sft.demo.evaluation import exact_match
from llada_sft.model.loading import load_model
from llada_sft.model.network import Network
from llada_sft.run_dir import RunDir
from llada_sft.training.build_network import build_network, resolve_network
from llada_sft.training.log.metrics_csv import data_wait, read_metrics

CONFIG = Path("config/demo.yaml")


def untrained_model(config: Config) -> Network:
    """Build the network as it is when training starts."""
    network = resolve_network(config.model)
    model = build_network(config.model, network, config.run.seed)
    model.eval()
    return model


def loss_curve(run: RunDir, picture: Path) -> str:
    """Draw the losses of a run; return where the picture is, or what it needs."""
    try:
        from llada_sft.demo.plot import plot_loss
    except ModuleNotFoundError:
        return "needs matplotlib:  pip install 'llada-sft[plot]'"
    return str(plot_loss(run.metrics, picture))


def waiting_line(run: RunDir) -> str:
    """Return how much of the training time was spent waiting for data."""
    return f"steps waited for data {100 * data_wait(read_metrics(run.metrics)):.1f} % of the time"


def run(*command: str) -> None:
    """Print a command and run it; the demo ends where it fails."""
    print(f"\n$ {' '.join(command)}", flush=True)
    code = subprocess.run([sys.executable, *command[1:]]).returncode
    if code:
        sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m llada_sft.demo", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder of model and picture"
    )
    out: Path = parser.parse_args().out
    if not CONFIG.is_file():
        parser.error(f"{CONFIG}: not found: run  llada-sft init .  in this folder first")
    config = load_config(CONFIG)
    run_dir = RunDir(Path(config.run.root) / config.run.name)
    model_dir = out / "model"
    for old in (run_dir.path, model_dir):
        shutil.rmtree(old, ignore_errors=True)
    write_demo(Path("demo"))
    before, _ = exact_match(untrained_model(config), config)

    start = time.monotonic()
    run("python", "launch.py", "--config", str(CONFIG), "--local",
        "validation.answers=4", "validation.answer_length=6")  # fmt: skip
    seconds = time.monotonic() - start
    run("python", "-m", "llada_sft", "export", str(run_dir.path), str(model_dir))
    prompt, *_ = (rows := exact_match(load_model(model_dir), config))[1][0]
    run("python", "-m", "llada_sft", "sample", str(model_dir), "--prompt", prompt,
        "--steps", "6", "--gen-length", "6", "--block-length", "6")  # fmt: skip

    run("python", "-m", "llada_sft", "report", str(run_dir.path))

    picture = loss_curve(run_dir, out / "loss.png")
    print("\nheld-out prompts:")
    for prompt, expected, text in rows[1][:5]:
        print(f"  {prompt:14} expected {expected:6} got {text}")
    print(f"\ntraining took {seconds:.0f} s")
    print(waiting_line(run_dir))
    print(
        f"exact match on {len(rows[1])} held-out prompts: {before:.1%} before, {rows[0]:.1%} after"
    )
    print(f"loss curve: {picture}")
    print(f"model:      {model_dir}")
    print(f"report:     {run_dir.report.absolute()}  (open it in a browser)")


if __name__ == "__main__":
    main()
