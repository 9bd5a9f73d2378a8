"""Resumes on another number of ranks, through DeepSpeed's universal checkpoint, without a command.

1. Rank 0 converts the checkpoint into `step_N.universal/`: one folder per parameter, whole fp32
   weights and optimizer moments instead of one slice for each rank.
2. Each rank loads the slices that it keeps now (`Zero3Strategy` with `load_universal`).
3. The folder is removed with the next finished checkpoint, or at the next start.

DeepSpeed loads rank 0's loop state on every rank: here that state is the same on all ranks.
DeepSpeed leaves the optimizer with wrong settings, which `OptimizerRepair` corrects.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import llada_sft
from llada_sft.errors import CheckpointError, SaveError
from llada_sft.training.checkpoint.folder import DEEPSPEED_TAG, remove, room_for, universal_path

_MAX_WORKERS = 8
# How often rank 0 prints how far the conversion is.
_SHOW_S = 30.0
# SLURM sends these signals to every process of the step; only the ranks may act on them.
_OF_THE_JOB = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}


class Conversion:
    """The conversion of a checkpoint in a separate process; rank 0 only.

    Args:
        checkpoint: The checkpoint, which is not changed; the universal form is written next to it.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint, self._folder = checkpoint, universal_path(checkpoint)
        remove(self._folder)
        package = str(Path(llada_sft.__file__).parents[1])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        workers = str(min(_MAX_WORKERS, len(os.sched_getaffinity(0))))
        folders = [str(folder / DEEPSPEED_TAG) for folder in (checkpoint, self._folder)]
        # The process inherits what is blocked, and never unblocks it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_JOB)
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "llada_sft.training.checkpoint.universal_process",
                    *folders,
                    workers,
                ],
                env=os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": os.pathsep.join(paths)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._over = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self, seconds: float) -> bool:
        """Wait at most this long for the process to end; return whether it has ended."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def progress(self) -> int | None:
        """Count the bytes that the process and its workers have read and written so far.

        Returns:
            None if the system does not say. It may go down where a worker ends.
        """
        counts = list(filter(None, map(_bytes_moved, _processes_of(self._process.pid))))
        return sum(counts) if counts else None

    @property
    def total(self) -> int:
        """About the bytes that the whole conversion reads and writes.

        Each state of the optimizer is read, written as slices, read again, and written as whole
        tensors; the rest is copied.
        """
        sizes = [(path.name, path.stat().st_size) for path in self._shards()]
        return sum(size * (4 if "_optim_" in name else 2) for name, size in sizes)

    def cancel(self) -> None:
        """Kill the process and its workers and remove what they wrote, unless the process ended."""
        if self._over:
            return
        self._over = True
        # The process may have ended by itself.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)

    def error(self) -> Exception | None:
        """Return why the process failed, once it has ended; then what it wrote is removed.

        Returns:
            SaveError if the disk is full, CheckpointError if the checkpoint cannot be used,
            RuntimeError if the process was killed; None if all went well.
        """
        self._over = True
        report, stderr = self._process.communicate()
        code = self._process.returncode
        if code == 0:
            return None
        # Removed first: the message says how much space is free without it.
        shutil.rmtree(self._folder, ignore_errors=True)
        return self._failure(code, report, stderr.decode(errors="replace"))

    def _failure(self, code: int, report: bytes, stderr: str) -> Exception:
        where = f"{self._checkpoint}: cannot be converted for another number of ranks"
        cause = json.loads(report) if report else {}
        if code < 0:
            cause["killed"] = f"the process was killed by {signal.Signals(-code).name}"
        if "killed" in cause:
            return RuntimeError(f"{where}: {cause['killed']} (out of memory?)")
        if cause.get("errno") in (errno.ENOSPC, errno.EDQUOT):
            full = OSError(cause["errno"], cause["text"])
            needed = room_for(self._checkpoint.parent, full, self._num_bytes())
            return SaveError(
                f"{where}: {cause['text']}{needed}: the checkpoint is intact; "
                "free space and start the run again, or resume with as many ranks as wrote it"
            )
        if "code" in cause:
            return CheckpointError(
                f"{where}: holds {cause['code']}; nothing of it was run: "
                "use a checkpoint that this training wrote"
            )
        last = (stderr.strip().splitlines() or ["no message"])[-1]
        why = cause.get("text") or cause.get("other") or last
        return CheckpointError(f"{where}: {why}; resume with as many ranks as wrote it")

    def _num_bytes(self) -> int:
        """Count what is written: slices, whole tensors, one rank's state, and the rest copied."""
        files = [(path.name, path.stat().st_size) for path in self._shards()]
        optimizer = [size for name, size in files if name.endswith("_optim_states.pt")]
        return sum(size for _, size in files) + sum(optimizer) + max(optimizer, default=0)

    def _shards(self) -> list[Path]:
        return sorted((self._checkpoint / DEEPSPEED_TAG).glob("*_states.pt"))


class ShownProgress:
    """Says now and then how far a conversion is; rank 0 alone has one.

    Args:
        conversion: None on other ranks.
    """

    def __init__(self, conversion: Conversion | None) -> None:
        self._conversion, self._began = conversion, time.monotonic()
        self._last, self._most = self._began, 0

    def progress(self) -> int | None:
        """Return what the conversion has moved, and print it if that is due."""
        if self._conversion is None:
            return None
        moved = self._conversion.progress()
        self._most = max(self._most, moved or 0)
        now = time.monotonic()
        if moved is not None and now - self._last >= _SHOW_S:
            self._last = now
            total = max(self._conversion.total, self._most)
            print(
                f"converting it: {self._most / 1e9:.1f} of about {total / 1e9:.1f} GB read and"
                f" written after {now - self._began:.0f} s",
                flush=True,
            )
        return moved


def _processes_of(group: int) -> Iterator[int]:
    """Yield the processes of a group."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        # It may have ended meanwhile.
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[2]) == group:
                yield int(stat.parent.name)


def _bytes_moved(process: int) -> int | None:
    """Return the bytes that a process, and its children that have ended, read and wrote."""
    try:
        lines = Path(f"/proc/{process}/io").read_text().splitlines()
    except OSError:
        return None
    counts = dict(line.split(": ") for line in lines)
    return int(counts["rchar"]) + int(counts["wchar"])


class OptimizerRepair:
    """Restores an optimizer's settings from the config after loading, and separates step counts.

    On the same number of ranks, torch's `load_state_dict` replaces the settings of the parameter
    groups (betas, eps, weight_decay) by the saved ones: changes of the config for a resume
    would be ignored.
    From a universal checkpoint, DeepSpeed gives every group the settings of the first (norms would
    start to decay), and gives all states the same tensor as step count (each step would count once
    for every state, and Adam's bias correction would be wrong).
    Step counts of a universal checkpoint, or of an optimizer that was not fused, are loaded on the
    CPU; the fused one needs them where the weights are.

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
        """Restore each group's own settings, and give each state its own step count."""
        for group, settings in zip(self._optimizer.param_groups, self._settings, strict=True):
            group.update(settings)
        fused = {
            id(p)
            for group in self._optimizer.param_groups
            if group.get("fused")
            for p in group["params"]
        }
        for parameter, state in self._optimizer.state.items():
            if isinstance(state.get("step"), torch.Tensor):
                device = parameter.device if id(parameter) in fused else state["step"].device
                state["step"] = state["step"].to(device, copy=True)
