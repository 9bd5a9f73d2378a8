"""What a shard may be: a local file or a remote object; plain, gzip or zstd.

    local: Path          remote: RemoteFile (any fsspec URL; file:// is local)
    .jsonl (or any other name): plain text      .jsonl.gz: gzip      .jsonl.zst: zstd

`open_text` is the one place that opens a local file of any kind. A name and a content that do not
fit, and compressed data that ends early, are errors: nothing is ever silently short.
Nothing heavy is imported before it is needed: login nodes list shards too.
"""

import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from llada_sft.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
# Some programs start a file with it; it is not a part of the first record.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# An info of fsspec names the version of an object by whichever of these its service has.
_VERSION_KEYS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "created")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """The object at a URL; `version` differs from that of an earlier object at the same URL."""

    url: str
    size: int
    version: str

    def __str__(self) -> str:
        return self.url

    @property
    def parent(self) -> str:
        return self.url.rpartition("/")[0]


Shard = Path | RemoteFile


def is_remote(path: str) -> bool:
    if "://" not in path:
        return False
    from llada_sft.config.values import is_url

    return is_url(path) and not path.startswith("file://")


def local_path(path: str) -> str:
    """Strip what a file:// URL has before its path."""
    return path.removeprefix("file://")


def shard_name(root: Path | str, shard: Shard) -> str:
    """Return a shard's name relative to the dataset's folder, the same wherever that folder is."""
    if isinstance(shard, Path):
        return str(shard.relative_to(root))
    return shard.url.removeprefix(f"{root}/")


def is_compressed(path: Path) -> bool:
    return path.suffix in (".gz", ".zst")


@contextmanager
def open_text(path: Path, shown: str | None = None) -> Iterator[IO[bytes]]:
    """Open a local file of any kind and read its text from start to end.

    Args:
        path: The file.
        shown: What messages call it.

    Raises:
        DataError: Also from the block that reads: the file cannot be read, its name and its content
            do not fit, or its compressed data is truncated or corrupt.
    """
    shown = shown or str(path)
    corrupt: tuple[type[Exception], ...] = (EOFError, *_decompression_errors(path))
    try:
        with path.open("rb") as raw:
            first = raw.read(4)
            raw.seek(0)
            _check_kind(path, first, shown)
            with _decompressed(path, raw, empty=not first) as text:
                yield text
    except corrupt as error:
        raise _corrupt(path, shown, error) from None
    except OSError as error:
        # gzip's own complaints are OSErrors without a number.
        if error.errno is None:
            raise _corrupt(path, shown, error) from None
        raise DataError(f"{shown}: cannot be read: {error.strerror}") from None


def _check_kind(path: Path, first: bytes, shown: str) -> None:
    gzip, zstd = first.startswith(_GZIP), first == _ZSTD
    # A zstd file may start with a frame to skip, as pzstd writes it.
    zstd = zstd or first[1:] == b"\x2a\x4d\x18"
    expected = {".gz": gzip, ".zst": zstd}.get(path.suffix, not (gzip or zstd))
    if first and not expected:
        actual = "gzip data" if gzip else "zstd data" if zstd else "not compressed"
        suffix = ".gz" if gzip else ".zst" if zstd else ".jsonl"
        raise DataError(f"{shown}: is {actual}, which its name does not say; name it {suffix}")


def _decompressed(path: Path, raw: IO[bytes], empty: bool) -> Any:
    if not is_compressed(path) or empty:
        return raw
    if path.suffix == ".gz":
        from isal import igzip

        return igzip.open(raw, "rb")  # type: ignore[no-untyped-call]
    zstd = _zstd()
    # Files of `zstd --long=31` too.
    options = {zstd.DecompressionParameter.window_log_max: 31}
    return zstd.ZstdFile(raw, options=options)


def _decompression_errors(path: Path) -> tuple[type[Exception], ...]:
    if path.suffix == ".gz":
        from isal import isal_zlib

        # Its stubs call the class an instance.
        return zlib.error, cast("type[Exception]", isal_zlib.error)
    return (_zstd().ZstdError,) if path.suffix == ".zst" else ()


def _zstd() -> Any:
    # Not python-zstandard: it reads a truncated file without an error.
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _corrupt(path: Path, shown: str, error: Exception) -> DataError:
    what = " ".join(str(error).split())
    return DataError(f"{shown}: truncated or corrupt {path.suffix}: {what}; copy it again")


def list_remote(url: str, root: str) -> list[RemoteFile]:
    """List the shards of a URL: a folder's, a glob's, or the one object that it names.

    Args:
        url: As the config has it.
        root: The URL of the folder that shards are named relative to.

    Raises:
        DataError: The service says no, or there are none.
    """
    with _remote(url, "cannot be listed") as (fs, path):
        fs.invalidate_cache()
        _, root_path = _filesystem(root)
        is_glob = any(character in url for character in "*?[") and not fs.exists(path)
        if is_glob:
            infos = list(fs.glob(path, detail=True).values())
        elif url.endswith(SUFFIXES):
            infos = [fs.info(path)]
        else:
            infos = [i for i in fs.ls(path, detail=True) if _is_shard_name(i["name"])]
    for info in infos:
        if info["type"] != "file":
            raise DataError(f"{url}: {info['name']} is a folder, not a shard; move it away")
    if not infos:
        raise DataError(f"{url}: no {', '.join(SUFFIXES)} objects there")
    names = sorted((_relative(info["name"], root_path), info) for info in infos)
    return [RemoteFile(f"{root}/{name}", info["size"], _version(info)) for name, info in names]


def fetch(shard: RemoteFile, target: Path) -> None:
    """Download a remote object.

    Raises:
        DataError: The service says no, or fewer bytes came than the object has.
    """
    with _remote(shard.url, "cannot be fetched") as (fs, path):
        fs.get_file(path, str(target))
    if (size := target.stat().st_size) != shard.size:
        raise DataError(
            f"{shard.url}: cannot be fetched: {size} of {shard.size} bytes came; start again"
        )


def _is_shard_name(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.endswith(SUFFIXES) and not name.startswith(".")


def _relative(name: str, root_path: str) -> str:
    return name.lstrip("/").removeprefix(root_path.strip("/")).lstrip("/")


def _version(info: dict[str, Any]) -> str:
    return " ".join(str(info[key]) for key in _VERSION_KEYS if key in info)


def _filesystem(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(url)
    return fs, path


@contextmanager
def _remote(url: str, what: str) -> Iterator[tuple[Any, str]]:
    try:
        yield _filesystem(url)
    except ImportError as error:
        raise DataError(f"{url}: {error}; for s3: pip install 'llada-sft[s3]'") from None
    except Exception as error:  # each service has errors of its own kind
        detail = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{url}: {what}: {detail}") from None
