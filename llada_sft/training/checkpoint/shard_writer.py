"""Writes a rank's shards so that a full disk on one rank leaves no other rank waiting.

DeepSpeed's `save_checkpoint` writes first and runs collectives afterwards: it gathers parameters,
and has a barrier. A rank that raises while it writes would never reach them, and the others would
wait for it there. So nothing raises while DeepSpeed saves: the first error is kept in
`ShardWriter.error`, nothing more is written, and `callbacks/checkpoint_saver.py` reads the error
when DeepSpeed is done.

The checksum of a file is taken from the bytes that torch writes, so that no file is read again.

torch.save leaves its bytes in the page cache. Each rank syncs its own files (fsync); a file system
that writes late also reports only then that it is full.
"""

import errno
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

from llada_sft import atomic
from llada_sft.model.safe_load import load_data
from llada_sft.training.checkpoint.checksums import FileRecord, HashingFile

# Names in the errors of torch's zip writer after a short write; they do not always give the cause.
_CUT_SHORT = ("inline_container.cc", "PytorchStreamWriter")


class ShardWriter(TorchCheckpointEngine):  # type: ignore[misc]
    """DeepSpeed's reader and writer of torch files; keeps the first error of a save for later.

    Attributes:
        error: Why this rank's shards could not be written; None if they were.
        num_bytes: Bytes of this rank's tensors, written or not.
        written: Size and checksum of each file that was written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        """Forget the checkpoint before."""
        self.error: OSError | None = None
        self.num_bytes = 0
        self.written: dict[Path, FileRecord] = {}

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        with self._kept():
            os.makedirs(path, exist_ok=exist_ok)  # noqa: PTH103 (DeepSpeed's own signature)

    def save(self, state_dict: Mapping[str, Any], path: str) -> None:
        self.num_bytes += tensor_bytes(state_dict)
        with self._kept():
            if self.error is None:
                self.written[Path(path)] = write_shard(state_dict, Path(path))

    def save_text(self, text: str, path: Path) -> None:
        """Write a small file next to the shards."""
        with self._kept():
            if self.error is None:
                path.write_text(text)
                self.written[path] = FileRecord.of(text.encode())

    def load(self, path: str, map_location: Any = None) -> Any:
        return load_data(Path(path), map_location)

    def records(self, checkpoint: Path) -> dict[str, FileRecord]:
        """Return size and checksum of what was written, by the path within the checkpoint."""
        return {str(path.relative_to(checkpoint)): record for path, record in self.written.items()}

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            failed_write = write_error(error)
            if failed_write is None:
                raise
            self.error = self.error or failed_write


def write_shard(state: object, path: Path) -> FileRecord:
    """Write a torch file, wait until it is on the disk, and return its size and checksum."""
    # A file of Python's: torch's own does not say why it cannot be written.
    with path.open("wb") as file, ThreadPoolExecutor(1) as hasher:
        hashing = HashingFile(file, hasher)
        torch.save(state, cast(IO[bytes], hashing))
        atomic.sync_file(file)
    return hashing.record


def write_error(error: BaseException) -> OSError | None:
    """Return the failed write that caused an exception; None if it has another cause.

    Returns:
        A bare OSError, which can be sent to other ranks.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return OSError(cause.errno, cause.strerror or str(cause))
        cause = cause.__cause__ or cause.__context__
    if any(words in str(error) for words in _CUT_SHORT):
        return OSError(errno.EIO, "the file was cut short")
    return None


def tensor_bytes(state: object) -> int:
    """Count the bytes of all tensors in nested dicts, lists and tuples."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(map(tensor_bytes, state.values()))
    if isinstance(state, list | tuple):
        return sum(map(tensor_bytes, state))
    return 0
