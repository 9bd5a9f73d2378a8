"""Checkpoint in: from safetensors files into a network, whole or partitioned by ZeRO-3.

1. `config.json` is read and refused where it asks for another network (`configuration`).
2. The headers of the files say where each tensor is (`index`).
3. The network is built without values; under `deepspeed.zero.Init` it is born partitioned, so that
   no rank ever holds more than its slices and one whole parameter.
4. Names and shapes are compared, all differences at once.
5. Each rank reads the bytes of its own slices, through one small buffer: all ranks together read
   the checkpoint once.

No code of the model directory is run, and no weight is left at a value that nobody chose.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llada_sft.errors import CheckpointError
from llada_sft.model.configuration import NetworkConfig, read_config
from llada_sft.model.index import TensorSlot, check_tensors, read_index
from llada_sft.model.initialization import initialize
from llada_sft.model.network import Network
from llada_sft.model.partition import OwnedSlice, full_shape, owned_slice

BUFFER_BYTES = 16 << 20
# First values of each slice that are looked at: a training that diverges leaves NaN in all weights,
# and to look at all of them would take longer than to read them.
_NUM_CHECKED = 1024
_TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True)
class LoadReport:
    """What loading cost this rank.

    Attributes:
        num_tensors: Tensors in the files.
        bytes_read: Bytes of tensor data read from the files.
    """

    num_tensors: int
    bytes_read: int


def load_model(
    path: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Network:
    """Load a whole network into this process, in evaluation mode.

    Args:
        path: A directory in Hugging Face's layout: an official checkpoint or one of our exports.
        dtype: Of the weights; the files may have another.
        device: Where to put them.

    Raises:
        CheckpointError: The directory is not such a checkpoint; every reason at once.
    """
    model_dir = Path(path)
    config = read_config(model_dir)
    config.dtype = dtype
    with torch.device("meta"):
        model = Network(config)
    model.to(dtype).to_empty(device=device)
    load_weights(model, model_dir)
    model.eval()
    return model


def build_model(
    source: Path | NetworkConfig, seed: int = 0, config: NetworkConfig | None = None
) -> Network:
    """Build a network for training; inside `deepspeed.zero.Init` it is born partitioned.

    Args:
        source: A model directory, or a config for random weights.
        seed: Of the random weights.
        config: Of a directory's network; None: the one that is there.

    Raises:
        CheckpointError: The directory is not such a checkpoint; the same on every rank.
    """
    if isinstance(source, NetworkConfig):
        model = Network(source)
        initialize(model, seed)
        return model
    model = Network(read_config(source) if config is None else config)
    load_weights(model, source)
    return model


@torch.no_grad()
def load_weights(model: Network, model_dir: Path) -> LoadReport:
    """Fill every parameter, or this rank's slice of it, and every buffer from a model directory.

    Raises:
        CheckpointError: Tensors are missing, unexpected or misshapen, and the network is untouched;
            or one has values that are not finite.
    """
    slots = read_index(model_dir)
    network = model.architecture
    stacked = network.is_stacked(slots)
    check_tensors(network.tensor_shapes(stacked), slots, model_dir)
    buffer = bytearray(BUFFER_BYTES)
    bytes_read = 0
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        parts = network.official_tensors(name, full_shape(tensor))
        slots_of = [slots[name]] if stacked else [slots[official] for official, _ in parts]
        owned = owned_slice(tensor)
        bytes_read += _read_parts(slots_of, owned, buffer)
        if not bool(owned.values[:_NUM_CHECKED].isfinite().all()):
            raise CheckpointError(
                f"{slots_of[0].file}: {name}: must be finite numbers, got NaN or infinity: it was"
                " written by a training that diverged, or is damaged; take another checkpoint"
            )
    return LoadReport(num_tensors=len(slots), bytes_read=bytes_read)


def _read_parts(parts: Sequence[TensorSlot], owned: OwnedSlice, buffer: bytearray) -> int:
    """Read this process's part of tensors that follow one another; return the bytes read."""
    bytes_read, first = 0, 0
    for slot in parts:
        after = first + math.prod(slot.shape)
        start, end = max(owned.start, first), min(owned.start + len(owned.values), after)
        if start < end:
            values = owned.values[start - owned.start : end - owned.start]
            bytes_read += _read_elements(slot, start - first, values, buffer)
        first = after
    return bytes_read


def _read_elements(slot: TensorSlot, start: int, values: Tensor, buffer: bytearray) -> int:
    """Read elements [start, start + n) of a tensor into `values`, converting their dtype.

    Args:
        slot: Where the tensor is.
        start: First element, in the flattened tensor.
        values: [n] floating, on any device.
        buffer: Scratch memory; the file is read in pieces of its size.

    Returns:
        Bytes read.
    """
    itemsize = slot.itemsize
    per_piece = len(buffer) // itemsize
    with slot.file.open("rb", buffering=0) as file:
        for low in range(0, len(values), per_piece):
            count = min(per_piece, len(values) - low)
            piece = memoryview(buffer)[: count * itemsize]
            _read_fully(file.fileno(), piece, slot.offset + (start + low) * itemsize, slot.file)
            values[low : low + count].copy_(
                torch.frombuffer(piece, dtype=_TORCH_DTYPES[slot.dtype])
            )
    return len(values) * itemsize


def _read_fully(descriptor: int, piece: memoryview, offset: int, file: Path) -> None:
    """Fill `piece` from `offset`; one read returns at most 2 GB, and less over a network."""
    done = 0
    while done < len(piece):
        count = os.preadv(descriptor, [piece[done:]], offset + done)
        if count == 0:
            raise CheckpointError(f"{file}: ends at byte {offset + done} while being read")
        done += count
