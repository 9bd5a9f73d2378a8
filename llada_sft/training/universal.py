"""Resume on another number of ranks, by DeepSpeed's universal checkpoint, without a command.

1. Rank 0 converts the checkpoint into `step_N.universal/`: one folder per parameter, whole fp32
   weights and optimizer moments instead of the slices of so many ranks.
2. Each rank loads the slices that it keeps now (`Zero3Strategy`, told to load a universal one).
3. The folder goes with the next checkpoint that is finished, or at the next start.

DeepSpeed gives every rank rank 0's state of the loop, which is the same on all ranks here, and
leaves the optimizer wrong in two ways, which `OptimizerRepair` undoes.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from llada_sft.errors import CheckpointError
from llada_sft.training.checkpoints import DEEPSPEED_TAG, universal_path

_MAX_WORKERS = 8


def convert(checkpoint: Path) -> Path:
    """Write the universal form of a checkpoint beside it; rank 0 only.

    DeepSpeed's converter runs in a process of its own: it forks workers, which a process that
    holds CUDA and gloo must not.

    Returns:
        The folder to load from.

    Raises:
        CheckpointError: The conversion failed; the checkpoint is untouched.
    """
    folder = universal_path(checkpoint)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    workers = str(min(_MAX_WORKERS, os.cpu_count() or 1))
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    folders = ["--input_folder", str(checkpoint / DEEPSPEED_TAG)]
    folders += ["--output_folder", str(folder / DEEPSPEED_TAG)]
    parallel = ["--num_extract_workers", workers, "--num_merge_workers", workers]
    done = subprocess.run(
        [*command, *folders, *parallel],
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(
            f"{checkpoint}: cannot be converted for another number of ranks: {last}; "
            "resume with as many ranks as wrote it"
        )
    return folder


class OptimizerRepair:
    """Undoes what loading a universal checkpoint does to an optimizer besides its moments.

    DeepSpeed gives every parameter group the settings of the first (norms would begin to decay),
    and one and the same tensor as the step count of every state (each step would count once for
    every state, and Adam's bias correction would be off).

    Args:
        optimizer: torch's optimizer inside DeepSpeed's, before loading.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._settings: list[dict[str, Any]] = [
            {key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]

    def apply(self) -> None:
        """Give each group its own settings back, and each state a step count of its own."""
        for group, settings in zip(self._optimizer.param_groups, self._settings, strict=True):
            group.update(settings)
        for state in self._optimizer.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].clone()
