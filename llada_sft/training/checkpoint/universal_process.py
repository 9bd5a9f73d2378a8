"""The process that converts a checkpoint: DeepSpeed's converter, without running code from a file.

    python -m llada_sft.training.checkpoint.universal_process CHECKPOINT_FOLDER OUT_FOLDER WORKERS

The process forks workers; a rank must not fork, because it has threads of CUDA and gloo. The rank
that starts the process blocks the job's signals for it, and the process ends with that rank. An
error is one line of JSON on stdout; everything that DeepSpeed prints is dropped.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import pickle
import signal
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from llada_sft.model.safe_load import force_weights_only, what_is_held
from llada_sft.training.checkpoint.shard_writer import write_error

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Convert; on an error, describe it on stdout."""
    source, out, workers = sys.argv[1:]
    stdout = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(null, number)
    _end_with_parent()
    # Workers end with this process, and inherit the types that may be read.
    os.register_at_fork(after_in_child=_end_with_parent)
    multiprocessing.set_start_method("fork")
    try:
        _convert(source, out, int(workers))
    except Exception as error:
        os.write(stdout, json.dumps(_described(error)).encode())
        raise SystemExit(1) from None


def _convert(source: str, out: str, workers: int) -> None:
    from deepspeed.checkpoint import ds_to_universal

    force_weights_only()
    # torch's own file does not say why it cannot be written.
    ds_to_universal._save_checkpoint = _save
    ds_to_universal.main(
        argparse.Namespace(
            input_folder=source,
            output_folder=out,
            num_extract_workers=workers,
            num_merge_workers=workers,
            keep_temp_folder=False,
            strict=True,
            # At stages 1 and 2 the converter asks for a version of its own that nobody writes.
            inject_missing_state=True,
        )
    )


def _save(path: str, state: Any) -> None:
    import torch

    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("wb") as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        # Without its cause, which cannot be sent from a worker to this process.
        raise (write_error(error) or error) from None


def _described(error: Exception) -> dict[str, Any]:
    if isinstance(error, BrokenProcessPool):
        return {"killed": "one of its processes was killed"}
    if isinstance(error, pickle.UnpicklingError):
        return {"code": what_is_held(error)}
    if failed_write := write_error(error):
        return {"errno": failed_write.errno, "text": failed_write.strerror}
    return {"other": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
