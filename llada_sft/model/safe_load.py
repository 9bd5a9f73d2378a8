"""Reads torch files of a checkpoint without running code from them.

A torch file holds a pickle, and a pickle may call any function. torch's `weights_only` reads only
tensors and plain values. DeepSpeed passes `weights_only=False` in all its loads, so `weights_only`
is forced by torch's own environment variable while DeepSpeed loads.
"""

import os
import pickle
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_FORCE, _FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
# torch's message: "... unsupported GLOBAL posix.system whose module ..."
_GLOBAL = re.compile(r"GLOBAL (\S+)")


def allowed_types() -> list[Any]:
    """Return what DeepSpeed's optimizer files hold besides tensors and plain values.

    Returns:
        What `torch.serialization.add_safe_globals` takes: types, and a function with the name that
        it has in a file.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    # Which part of a group is a parameter's, two numbers: in files of stages 1 and 2.
    return [LossScaler, ZeroStageEnum, fragment_address, (_zero_stage, "builtins.getattr")]


def _zero_stage(*arguments: Any) -> Any:
    """Return the stage that the arguments of `getattr` name, and nothing else.

    Python 3.11.0 to 3.11.3 pickles a member of an enum as a call of `getattr`. A file that calls
    `getattr` is given this function instead.

    Raises:
        pickle.UnpicklingError: The file asks for something else.
    """
    from deepspeed.runtime.zero.config import ZeroStageEnum

    if len(arguments) == 2:
        kind, name = arguments
        if kind is ZeroStageEnum and type(name) is str and name in ZeroStageEnum.__members__:
            return ZeroStageEnum[name]
    raise pickle.UnpicklingError("unsupported GLOBAL getattr")


def force_weights_only() -> None:
    """Read every torch file of this process, and of those that it forks, without running code."""
    os.environ.pop(_FORBID, None)
    os.environ[_FORCE] = "1"
    torch.serialization.add_safe_globals(allowed_types())


class _Forced:
    """Counts the readers: torch's variable and its list of types belong to the whole process."""

    def __init__(self) -> None:
        self._lock, self._readers = threading.Lock(), 0
        self._before: dict[str, str | None] = {}
        self._added: list[Any] = []

    def begin(self) -> None:
        with self._lock:
            self._readers += 1
            if self._readers > 1:
                return
            self._before = {name: os.environ.get(name) for name in (_FORCE, _FORBID)}
            known = torch.serialization.get_safe_globals()
            self._added = [kind for kind in allowed_types() if kind not in known]
            os.environ.pop(_FORBID, None)
            os.environ[_FORCE] = "1"
            torch.serialization.add_safe_globals(self._added)

    def end(self) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers:
                return
            kept = [
                kind for kind in torch.serialization.get_safe_globals() if kind not in self._added
            ]
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(kept)
            for name, value in self._before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


_forced = _Forced()


@contextmanager
def weights_only() -> Iterator[None]:
    """Read every torch file without running code from it, whatever `torch.load` is told.

    It may be nested, and entered by several threads.
    """
    _forced.begin()
    try:
        yield
    finally:
        _forced.end()


def load_data(path: Path, map_location: Any = None, mmap: bool | None = None) -> Any:
    """Read a torch file of tensors and plain values.

    Args:
        path: The file.
        map_location: As `torch.load` takes it.
        mmap: Read tensors only when they are used.

    Raises:
        pickle.UnpicklingError: The file holds anything else; nothing of it was run.
    """
    with weights_only():
        return torch.load(path, map_location=map_location, mmap=mmap, weights_only=True)


def what_is_held(error: pickle.UnpicklingError) -> str:
    """Describe in a few words what `weights_only` refused."""
    match = _GLOBAL.search(str(error))
    return f"code ({match[1]})" if match else "more than tensors and plain values"
