"""checkpoint.json: what a checkpoint is, and the size and the checksum of each of its files.

    {"step": …, "world_size": …, "versions": …, "skipped_steps": …, "levels": …, "schedule": …,
     "adapters": …, "validation": …,
     "files": {name: size}, "checksums": {name: xxh3_128},
     "checksum": of checkpoint.json itself, with zeros in place of this checksum}

Versions before checksums wrote neither `checksums` nor `checksum`; their checkpoints are accepted.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xxhash import xxh3_128_hexdigest

from llada_sft.training.checkpoint.checksums import FileRecord, record_of_file

MANIFEST = "checkpoint.json"
_BLANK = "0" * 32
# Always at the end of the file.
_SEAL = re.compile(rb'"checksum": "([0-9a-f]{32})"\n\}\Z')
_OLDER_KEYS = frozenset({"step", "world_size", "versions", "files"})


class ManifestError(ValueError):
    """checkpoint.json is not what was written; the text says why."""


def sealed(content: Mapping[str, Any], records: Mapping[str, FileRecord]) -> str:
    """Return the text of checkpoint.json.

    Args:
        content: Step, number of ranks, versions, and the other keys above.
        records: Of every file of the checkpoint, by its path within the checkpoint.
    """
    whole = {
        **content,
        "files": {name: records[name].size for name in sorted(records)},
        "checksums": {name: records[name].checksum for name in sorted(records)},
        "checksum": _BLANK,
    }
    blank = json.dumps(whole, indent=1)
    seal = xxh3_128_hexdigest(blank.encode())
    return f'{blank.removesuffix(_BLANK + chr(34) + chr(10) + "}")}{seal}"\n}}'


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Read checkpoint.json, and verify its own checksum.

    Raises:
        OSError: It cannot be read.
        ManifestError: It is not what was written.
    """
    raw = (checkpoint / MANIFEST).read_bytes()
    try:
        content: dict[str, Any] = json.loads(raw)
    except (ValueError, RecursionError):
        raise ManifestError(_not_json(raw)) from None
    if not _is_checkpoints(content):
        raise ManifestError("is not a checkpoint's")
    seal = _SEAL.search(raw)
    if seal is None:
        if not content.keys() <= _OLDER_KEYS:
            raise ManifestError("is not what was written: its own checksum is missing")
    elif xxh3_128_hexdigest(raw[: seal.start(1)] + _BLANK.encode() + b'"\n}') != seal[1].decode():
        raise ManifestError("is not what was written: its own checksum differs")
    return content


def _is_checkpoints(content: object) -> bool:
    if not isinstance(content, dict) or not isinstance(files := content.get("files"), dict):
        return False
    numbers = [content.get("step"), content.get("world_size"), *files.values()]
    return all(type(number) is int and number >= 0 for number in numbers) and numbers[1] != 0


def records_of(content: Mapping[str, Any]) -> dict[str, tuple[int, str | None]]:
    """Return size and checksum of every file; None for the checksums of an older version."""
    checksums = content.get("checksums", {})
    return {name: (size, checksums.get(name)) for name, size in content["files"].items()}


def first_difference(checkpoint: Path) -> str:
    """Compare all files of a checkpoint with what was written; without torch.

    Returns:
        In one line, the first file that differs; empty if there is none.
    """
    try:
        for name, (size, checksum) in records_of(read_manifest(checkpoint)).items():
            path = checkpoint / name
            same = path.stat().st_size == size
            if not same or (checksum and record_of_file(path)[0].checksum != checksum):
                return f"{path}: is not what was written"
    except ManifestError as error:
        return f"{checkpoint / MANIFEST}: {error}"
    except OSError as error:
        return f"{error.filename or checkpoint}: cannot be read: {error.strerror}"
    return ""


def _not_json(raw: bytes) -> str:
    if not raw:
        return "is empty"
    return "holds nothing but zeros" if not raw.strip(b"\0") else "is not JSON: torn or changed"
