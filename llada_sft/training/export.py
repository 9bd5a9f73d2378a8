"""From a run directory to a model directory: `llada-sft export`."""

from pathlib import Path

import torch

from llada_sft.config import load_config
from llada_sft.errors import CheckpointError
from llada_sft.model.export import export_checkpoint, zero3_tensors
from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoints import list_checkpoints
from llada_sft.training.network import resolve_network

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
        CheckpointError: There is no such checkpoint, or `out` is in use.
    """
    run = RunDir(run_dir)
    config = load_config(run.config)
    checkpoint = _choose(run, step)
    export_checkpoint(
        zero3_tensors(checkpoint),
        resolve_network(config.model),
        Path(config.model.path),
        out,
        _DTYPES[dtype or config.train.precision],
    )
    return checkpoint


def _choose(run: RunDir, step: int | None) -> Path:
    checkpoints = dict(list_checkpoints(run.checkpoints))
    if not checkpoints:
        raise CheckpointError(f"{run.checkpoints}: no complete checkpoint; train first")
    if step is None:
        return checkpoints[max(checkpoints)]
    if step not in checkpoints:
        steps = ", ".join(map(str, sorted(checkpoints)))
        raise CheckpointError(f"{run.checkpoints}: no checkpoint of step {step}; there are {steps}")
    return checkpoints[step]
