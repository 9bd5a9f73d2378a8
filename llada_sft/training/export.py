"""From a run directory to a model directory: `llada-sft export`."""

from pathlib import Path

import torch

from llada_sft.config import load_config
from llada_sft.errors import CheckpointError
from llada_sft.model.export import export_checkpoint, zero3_tensors
from llada_sft.run_dir import RunDir
from llada_sft.training.build_network import resolve_network
from llada_sft.training.checkpoint.folder import chosen_step, list_named, list_set_aside
from llada_sft.training.checkpoint.verify import Shapes, Share, examine, summary

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def export_run(run_dir: Path, out: Path, dtype: str | None, step: int | None) -> Path:
    """Write a checkpoint of a run in Hugging Face's layout.

    Args:
        run_dir: The run.
        out: The directory to write; must not exist, or be empty.
        dtype: `bf16` or `fp32`; None takes the training's precision.
        step: Which checkpoint; None takes the newest.

    Returns:
        The checkpoint that was exported.

    Raises:
        CheckpointError: There is no such checkpoint, it is damaged, or `out` is in use.
    """
    run = RunDir(run_dir)
    config = load_config(run.config)
    network = resolve_network(config.model)
    checkpoint = _choose(run, step, network.architecture.parameter_shapes())
    export_checkpoint(
        zero3_tensors(checkpoint),
        network,
        Path(config.model.path),
        out,
        _DTYPES[dtype or config.train.precision],
    )
    return checkpoint


def _choose(run: RunDir, step: int | None, network: Shapes) -> Path:
    """Return the checkpoint that was asked for, once it is verified.

    Raises:
        CheckpointError: It is damaged. The message names another one, which is never exported
            instead.
    """
    named = dict(list_named(run.checkpoints))
    damaged = dict(list_set_aside(run.checkpoints))
    chosen = chosen_step(run.checkpoints, step)
    if chosen in named:
        line = _problem(named[chosen], network)
        if not line:
            return named[chosen]
    else:
        line = f"{damaged[chosen]}: was found damaged when the run resumed"
    others = [other for other in sorted(named, reverse=True) if other != chosen]
    good = next((other for other in others if not _problem(named[other], network)), None)
    do = "there is no other" if good is None else f"export another one with  --step {good}"
    raise CheckpointError(f"{line}: not exported; {do}")


def _problem(checkpoint: Path, network: Shapes) -> str:
    """Examine all files of a checkpoint; return one line about what is wrong, or nothing."""
    findings = examine(checkpoint, Share(0, 1), network)
    return f"{checkpoint}: {summary(findings)}" if findings else ""
