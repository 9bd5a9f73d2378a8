"""Writes a rank's shards so that a full disk on one rank leaves no other rank waiting.

DeepSpeed's `save_checkpoint` writes first and runs collectives afterwards: it gathers parameters,
and has a barrier. A rank that raises while it writes would never reach them, and the others would
wait for it there. So nothing raises while DeepSpeed saves: the first error is kept in
`ShardWriter.error`, nothing more is written, and `callbacks/checkpoint_saver.py` reads the error
when DeepSpeed is done.

In the background, the state of a shard is copied at the call (`host_copies.py`), and one thread
writes the copies in their order. What is known of the save (`error`, `written`) is complete once
it has ended.

The checksum of a file is taken from the bytes that torch writes, so that no file is read again.

torch.save leaves its bytes in the page cache. Each rank syncs its own files (fsync); a file system
that writes late also reports only then that it is full.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

from llada_sft import atomic
from llada_sft.model.safe_load import load_data
from llada_sft.training.checkpoint.checksums import FileRecord, HashingFile
from llada_sft.training.checkpoint.host_copies import HostCopies, tensors_of

# Names in the errors of torch's zip writer after a short write; they do not always give the cause.
_CUT_SHORT = ("inline_container.cc", "PytorchStreamWriter")


class ShardWriter(TorchCheckpointEngine):  # type: ignore[misc]
    """DeepSpeed's reader and writer of torch files; keeps the first error of a save for later.

    Args:
        maps_files: Whether what is loaded is mapped, not read. It has just been read for its
            checksum, so that it is in the page cache: it is neither read again nor copied. Only
            for tensors that are soon copied to a GPU: they would keep the file open.

    Attributes:
        error: Why this rank's shards could not be written; None if they were.
        num_bytes: Bytes of this rank's tensors, written or not.
        progress: Bytes that were written so far.
        seconds: How long the writing took so far.
        written: Size and checksum of each file that was written.
    """

    def __init__(self, maps_files: bool = False) -> None:
        super().__init__()
        self._maps_files = maps_files
        self._copies, self._background = HostCopies(), False
        self._thread: ThreadPoolExecutor | None = None
        self._writes: list[Future[None]] = []
        self.begin()

    def begin(self, background: bool = False) -> None:
        """Forget the checkpoint before, which has ended.

        Args:
            background: Whether `save` copies what it is given, and returns before it is written.
        """
        assert self.ended(), "the checkpoint before is still being written"
        self._copies.release()
        self._background, self._writes = background, []
        if background and self._thread is None:
            self._thread = ThreadPoolExecutor(1, "checkpoint-writer")
        self.error: OSError | None = None
        self.num_bytes = self.progress = 0
        self.seconds = 0.0
        self.written: dict[Path, FileRecord] = {}

    def ended(self, seconds: float = 0.0) -> bool:
        """Wait at most this long for the writing; return whether it is over, failed or not.

        Raises:
            Exception: The writing has ended by a defect that is not the disk's.
        """
        done, still = wait(self._writes, seconds, FIRST_EXCEPTION)
        for write in done:
            write.result()
        return not still

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        with self._kept():
            os.makedirs(path, exist_ok=exist_ok)  # noqa: PTH103 (DeepSpeed's own signature)

    def save(self, state_dict: Mapping[str, Any], path: str) -> None:
        self.num_bytes += tensor_bytes(state_dict)
        if self._background and self.error is None:
            state_dict = self._copies.copied(state_dict)
        self._do(lambda: write_shard(state_dict, Path(path), self._advanced), Path(path))

    def save_text(self, text: str, path: Path) -> None:
        """Write a small file next to the shards."""

        def write() -> FileRecord:
            path.write_text(text)
            return FileRecord.of(text.encode())

        self._do(write, path)

    def load(self, path: str, map_location: Any = None) -> Any:
        return load_data(Path(path), map_location, mmap=self._maps_files)

    def records(self, checkpoint: Path) -> dict[str, FileRecord]:
        """Return size and checksum of what was written, by the path within the checkpoint."""
        return {str(path.relative_to(checkpoint)): record for path, record in self.written.items()}

    def _do(self, write: Callable[[], FileRecord], path: Path) -> None:
        """Write a file now, or after those before it."""

        def run() -> None:
            began = time.monotonic()
            with self._kept():
                if self.error is None:
                    self.written[path] = write()
            self.seconds += time.monotonic() - began

        if self._background and self._thread is not None:
            self._writes.append(self._thread.submit(run))
        else:
            run()

    def _advanced(self, num_bytes: int) -> None:
        self.progress += num_bytes

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            failed_write = write_error(error)
            if failed_write is None:
                raise
            self.error = self.error or failed_write


def write_shard(
    state: object, path: Path, advanced: Callable[[int], None] = lambda num_bytes: None
) -> FileRecord:
    """Write a torch file, wait until it is on the disk, and return its size and checksum.

    Args:
        state: What torch.save takes.
        path: The file.
        advanced: Called with the number of bytes of each piece that was written.
    """
    # A file of Python's: torch's own does not say why it cannot be written.
    with path.open("wb") as file, ThreadPoolExecutor(1) as hasher:
        hashing = HashingFile(file, hasher, advanced)
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
    """Count the bytes of all tensors in nested mappings, lists and tuples."""
    return sum(tensor.nbytes for tensor in tensors_of(state))
