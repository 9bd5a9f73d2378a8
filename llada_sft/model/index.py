"""Where each tensor of a model directory is: the headers of its safetensors files.

A safetensors file is an 8-byte little-endian length, a JSON header of that length, and the bytes
of the tensors. Knowing the offsets, a rank reads the bytes of its own slice and nothing else,
which the safetensors library cannot do for a slice that does not follow the rows. Without torch:
preflight reads the headers, too.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from llada_sft.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
# safetensors' names of the dtypes that weights may have, and their bytes.
_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_SAMPLED_BYTES = 4096
# Of what is wrong with tensors. An 8B has hundreds of them, a network with experts thousands.
_MOST_SHOWN = 30
# What JSON of another structure raises when it is read.
_NOT_THIS_FORMAT = (ValueError, KeyError, AttributeError, TypeError, RecursionError)


@dataclass(frozen=True)
class TensorSlot:
    """One tensor in a file.

    Attributes:
        file: The safetensors file.
        dtype: Its dtype in the file, by safetensors' name: F64, F32, F16 or BF16.
        shape: Its shape.
        offset: First byte, counted from the start of the file.
        num_bytes: Length of its data.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return _DTYPE_BYTES[self.dtype]


def read_index(model_dir: Path) -> dict[str, TensorSlot]:
    """Return every tensor of a model directory by its name.

    Raises:
        CheckpointError: No weights, or files that are missing, damaged, truncated or contradict
            each other; all of them at once.
    """
    slots: dict[str, TensorSlot] = {}
    problems: list[str] = []
    for file in _weight_files(model_dir):
        try:
            tensors = _read_header(file)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        problems += [
            f"{file}: {name}: also in {slots[name].file.name}"
            for name in sorted(tensors.keys() & slots)
        ]
        slots |= tensors
    if problems:
        raise CheckpointError("\n".join(_first(problems, model_dir)))
    return slots


def check_tensors(
    expected: Mapping[str, tuple[int, ...]], actual: Mapping[str, TensorSlot], model_dir: Path
) -> None:
    """Compare a directory's tensors with the network's parameters.

    Args:
        expected: Shape of each parameter.
        actual: What `read_index` returned.
        model_dir: Named in the messages.

    Raises:
        CheckpointError: Names missing, unexpected and misshapen tensors, one per line; of very many
            the first ones.
    """
    if problems := [f"{model_dir}: {problem}" for problem in _mismatches(expected, actual)]:
        raise CheckpointError("\n".join(_first(problems, model_dir)))


def fingerprint(slots: Mapping[str, TensorSlot]) -> str:
    """Return what identifies the weights of a model directory, wherever it lies.

    It is a hash of each tensor's name, dtype and shape, and of its first and last 4 KiB: a network
    that was trained differs in all of its tensors, and 8B parameters are not read twice.

    Args:
        slots: What `read_index` returned.

    Raises:
        CheckpointError: A file cannot be read.
    """
    hasher = xxh3_128()
    # By name: the same weights in other shards are the same.
    for name, slot in sorted(slots.items()):
        hasher.update(json.dumps([name, slot.dtype, slot.shape]).encode())
        try:
            with slot.file.open("rb", buffering=0) as stream:
                for start in (0, max(0, slot.num_bytes - _SAMPLED_BYTES)):
                    stream.seek(slot.offset + start)
                    hasher.update(stream.read(min(_SAMPLED_BYTES, slot.num_bytes)))
        except OSError as error:
            raise CheckpointError(f"{slot.file}: cannot be read: {error.strerror}") from None
    return hasher.hexdigest()


def require_unused(out_dir: Path) -> None:
    """Check that a model directory can be made.

    Raises:
        CheckpointError: It is there and not empty, or there is a file where a folder has to be; or
            it is the present folder, which nothing can take the place of.
    """
    if out_dir.name in ("", ".."):
        raise CheckpointError(f"{out_dir}: has no name of its own; name a folder to make")
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise CheckpointError(f"{out_dir}: exists and is not empty; choose another directory")
    there = next(parent for parent in out_dir.absolute().parents if parent.exists())
    if not there.is_dir():
        raise CheckpointError(f"{out_dir}: {there} is a file; choose another directory")


def _first(problems: list[str], model_dir: Path) -> list[str]:
    """Return the first problems: a directory of another network has one for each of its tensors."""
    more = len(problems) - _MOST_SHOWN
    if more <= 1:
        return problems
    return [*problems[:_MOST_SHOWN], f"{model_dir}: {more:,} more tensors like these"]


def _mismatches(
    expected: Mapping[str, tuple[int, ...]], actual: Mapping[str, TensorSlot]
) -> Iterator[str]:
    for name, shape in expected.items():
        if name not in actual:
            yield f"{name}: missing; config.json asks for shape {list(shape)}"
        elif actual[name].shape != shape:
            yield (
                f"{name}: config.json asks for shape {list(shape)}, "
                f"got {list(actual[name].shape)} in {actual[name].file.name}"
            )
    # A matrix without rows, as LLaDA2 has of no shared experts, holds nothing.
    there = (name for name, slot in actual.items() if slot.num_bytes)
    for name in sorted(set(there) - expected.keys()):
        yield f"{name}: unexpected, in {actual[name].file.name}; the network has no such parameter"


def _weight_files(model_dir: Path) -> list[Path]:
    index = model_dir / INDEX_NAME
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
            return [model_dir / name for name in names]
        except OSError as error:
            raise CheckpointError(f"{index}: cannot be read: {error.strerror}") from None
        except _NOT_THIS_FORMAT:
            raise CheckpointError(f"{index}: not a safetensors index; download it again") from None
    if files := sorted(model_dir.glob("*.safetensors")):
        return files
    raise CheckpointError(f"{model_dir}: no *.safetensors files; other formats are not read")


def _read_header(file: Path) -> dict[str, TensorSlot]:
    if not file.is_file():
        raise CheckpointError(f"{file}: missing, though {INDEX_NAME} names it; download it")
    try:
        return _read_slots(file)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None


def _read_slots(file: Path) -> dict[str, TensorSlot]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if 8 + length > size:
            raise CheckpointError(
                f"{file}: truncated: {size} bytes do not hold its header; download it again"
            )
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            slots = {name: _slot(file, name, entry, 8 + length) for name, entry in header.items()}
        except _NOT_THIS_FORMAT:
            raise CheckpointError(f"{file}: not a safetensors file; download it again") from None
    end = max((slot.offset + slot.num_bytes for slot in slots.values()), default=0)
    if end > size:
        raise CheckpointError(
            f"{file}: truncated: the header asks for {end} bytes, got {size}; download it again"
        )
    return slots


def _slot(file: Path, name: str, entry: dict[str, Any], data_start: int) -> TensorSlot:
    dtype = entry["dtype"]
    if dtype not in _DTYPE_BYTES:
        raise CheckpointError(
            f"{file}: {name}: dtype must be one of {', '.join(_DTYPE_BYTES)}, got {dtype}"
        )
    begin, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    if begin < 0 or end - begin != math.prod(shape) * _DTYPE_BYTES[dtype]:
        raise ValueError("offsets contradict the shape")
    return TensorSlot(file, dtype, shape, data_start + begin, end - begin)
