"""What is worked out once and kept outside the data's folder: indexes, texts, fetched objects.

    index/      the line index of each shard, with size and times of the file it was made from
    text/       the text of each compressed shard, so that any row is one seek away
    fetched/    remote objects as they are stored

Everything is written next to its place and renamed: ranks may do the same at once, and a crash
leaves only a `.partial`. Everything may be deleted while no job runs, and is then made again.

Any user may create a folder with the name of the default one, and fill it with rows. So nothing is
read from the default folder or written to it before it is known to be ours alone.
"""

import os
import stat
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llada_sft import atomic
from llada_sft.data.storage.files import RemoteFile, Shard, fetch, is_compressed, open_text
from llada_sft.data.storage.line_index import LineIndex, fingerprint_of, index_lines
from llada_sft.errors import DataError
from llada_sft.keys import digest

_FORMAT = 3
# A file that was changed so lately may change again without another time on it.
_SETTLED_NS = 2 * 10**9
_COPY_BYTES = 1 << 20
# Up to this size, a plain file is scanned sooner than its index is read.
SMALL_BYTES = 1 << 18


def default_folder() -> Path:
    """Return the cache of a config that names none: on most clusters, on the node's own disk."""
    return Path(tempfile.gettempdir()) / f"llada_sft-{os.geteuid()}"


class Cache:
    """A cache folder.

    Args:
        folder: `data.cache_dir`; None is `default_folder()`.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = default_folder() if folder is None else Path(folder)
        self._shared_place = folder is None

    def prepare(self, shard: Shard) -> tuple[LineIndex, Path]:
        """Make the rows of a shard ready to be read at random.

        Returns:
            Its line index, and the local plain file that the index is of.

        Raises:
            DataError: The shard cannot be read or fetched, or the cache cannot be written, or is
                not ours alone.
        """
        self._require_own()
        path = self._fetched(shard) if isinstance(shard, RemoteFile) else shard
        shown = str(shard)
        times = self._times(path, shown)
        if times[0] <= SMALL_BYTES and not is_compressed(path):
            return index_lines(path, shown), path
        stored = self._load(path, times)
        if stored is not None:
            index, text_size = stored
            text = self._text_path(path, index.fingerprint)
            if text == path or _size(text) == text_size:
                return index, text
        # A text of another size than when it was indexed was damaged since.
        index, text = self._make(path, shown, anew=stored is not None)
        # Files in the cache itself are never changed in place.
        settled = time.time_ns() - times[1] > _SETTLED_NS or path.is_relative_to(self.folder)
        if settled:
            self._store(path, times, index, _size(text))
        return index, text

    def _make(self, path: Path, shown: str, anew: bool) -> tuple[LineIndex, Path]:
        if not is_compressed(path):
            return index_lines(path, shown), path
        fingerprint = fingerprint_of(path, shown)
        text = self._text_path(path, fingerprint)
        if anew or _size(text) is None:
            self._write(text, lambda partial: _decompress(path, partial, shown))
        # The text may be anything, but here it is plain: its name says so.
        return index_lines(text, shown)._replace(fingerprint=fingerprint), text

    def _fetched(self, shard: RemoteFile) -> Path:
        name = _key(shard.url, shard.size, shard.version)
        target = self.folder / "fetched" / (name + Path(shard.url).suffix)
        if _size(target) != shard.size:
            self._write(target, lambda partial: _fetch(shard, partial))
        return target

    def _text_path(self, path: Path, fingerprint: str) -> Path:
        if not is_compressed(path):
            return path
        return self.folder / "text" / (_key(path, fingerprint) + ".jsonl")

    def _index_path(self, path: Path) -> Path:
        return self.folder / "index" / (_key(path) + ".npz")

    @staticmethod
    def _times(path: Path, shown: str) -> tuple[int, int, int]:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{shown}: cannot be read: {error.strerror}") from None
        # The time of the last change notices what copied a file over with its old times.
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def _load(self, path: Path, times: tuple[int, int, int]) -> tuple[LineIndex, int] | None:
        try:
            with self._index_path(path).open("rb") as file, np.load(file) as stored:
                *made_from, text_size = stored["made_from"].tolist()
                if made_from != [_FORMAT, *times]:
                    return None
                fingerprint = str(stored["fingerprint"])
                lines = (stored["starts"], stored["sizes"], stored["lines"])
                return LineIndex(*lines, int(stored["size"]), fingerprint), text_size
        # Whatever a crash or a full disk may leave of it.
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error):
            return None

    def _store(
        self, path: Path, times: tuple[int, int, int], index: LineIndex, text_size: int | None
    ) -> None:
        def save(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez(
                    file,
                    made_from=np.array([_FORMAT, *times, text_size or 0], np.int64),
                    fingerprint=np.array(index.fingerprint),
                    size=np.array(index.size),
                    starts=index.starts,
                    sizes=index.sizes,
                    lines=index.lines,
                )

        self._write(self._index_path(path), save)

    def _write(self, target: Path, make: Callable[[Path], None]) -> None:
        """Let `make` write a file, and move it into place once it is whole.

        Raises:
            DataError: The cache cannot be written, or what `make` raises.
        """
        partial = None
        try:
            self._make_folder(target.parent)
            handle, name = tempfile.mkstemp(".partial", target.stem, target.parent)
            os.close(handle)
            partial = Path(name)
            make(partial)
            partial.replace(target)
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot be used as cache: {error.strerror};"
                " set data.cache_dir to a folder with room that can be written"
            ) from None
        finally:
            if partial is not None:
                partial.unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Another user may have made it first.
        self._require_own()
        folder.mkdir(exist_ok=True)

    def _require_own(self) -> None:
        """Check that nobody else can have put anything into the default folder.

        A folder of `data.cache_dir` is the user's own choice: a group may share it.

        Raises:
            DataError: Somebody else may have filled it.
        """
        if not self._shared_place:
            return
        try:
            # lstat: the target of a link may change at any time.
            status = self.folder.lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be used as cache: {error.strerror}") from None
        if problem := _foreign(status):
            raise DataError(f"{self.folder}: {problem}; remove it, or set data.cache_dir")


def _foreign(status: os.stat_result) -> str:
    """Return why a folder may hold files of another user; empty if it cannot."""
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link, which another user may have made"
    if not stat.S_ISDIR(status.st_mode):
        return "is not a folder"
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"other users can write to it (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""


def _fetch(shard: RemoteFile, target: Path) -> None:
    fetch(shard, target)
    atomic.sync(target)


def _decompress(path: Path, target: Path, shown: str) -> None:
    with target.open("wb") as out:
        full: OSError | None = None
        with open_text(path, shown) as text:
            while full is None and (chunk := text.read(_COPY_BYTES)):
                try:
                    out.write(chunk)
                except OSError as error:
                    # To open_text, this would be the shard's fault.
                    full = error
        if full is not None:
            raise full
        atomic.sync_file(out)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _key(*parts: object) -> str:
    text = "\x1f".join(map(str, parts)).encode()
    return digest(text, 16).hex()
