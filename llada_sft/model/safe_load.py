"""Reading torch files of a checkpoint without running code from them.

A torch file holds a pickle, and a pickle may call any function. torch's `weights_only` reads only
tensors and plain values. DeepSpeed passes `weights_only=False` in all its loads, so it is forced by
torch's own variable, for as long as DeepSpeed loads.
"""

import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_FORCE, _FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
# torch's message: "... unsupported GLOBAL posix.system whose module ..."
_GLOBAL = re.compile(r"GLOBAL (\S+)")


def allowed_types() -> list[Any]:
    """Return the types that DeepSpeed's optimizer files hold besides tensors and plain values."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    return [LossScaler, ZeroStageEnum]


def force_weights_only() -> None:
    """Read every torch file of this process, and of those that it forks, without running code."""
    os.environ.pop(_FORBID, None)
    os.environ[_FORCE] = "1"
    torch.serialization.add_safe_globals(allowed_types())


@contextmanager
def weights_only() -> Iterator[None]:
    """Read every torch file without running code from it, whatever `torch.load` is told."""
    before = {name: os.environ.get(name) for name in (_FORCE, _FORBID)}
    # One that is allowed already stays so: torch's own context would forbid it at its end.
    known = torch.serialization.get_safe_globals()
    missing = [one for one in allowed_types() if one not in known]
    os.environ.pop(_FORBID, None)
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(missing):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def load_data(path: Path, map_location: Any = None, mmap: bool | None = None) -> Any:
    """Read a torch file of tensors and plain values.

    Args:
        path: The file.
        map_location: As `torch.load` takes it.
        mmap: Read tensors only where they are used.

    Raises:
        pickle.UnpicklingError: The file holds anything else; nothing of it was run.
    """
    with weights_only():
        return torch.load(path, map_location=map_location, mmap=mmap, weights_only=True)


def what_is_held(error: pickle.UnpicklingError) -> str:
    """Return in a few words what `weights_only` refused."""
    found = _GLOBAL.search(str(error))
    return f"code ({found[1]})" if found else "more than tensors and plain values"
