"""Copies of a state in host memory, so that it can be written while the training goes on.

Whatever the training changes later is copied: the bytes of every storage, and every container
around them. torch.save writes the same file of the copy as of the state: tensors that share a
storage share its copy, and a view keeps its place in it.

The memory is taken once and reused from one checkpoint to the next: to touch fresh pages takes
longer than to copy into old ones. For tensors of a GPU it is page-locked, which a copy needs to run
at the full speed of the bus.
"""

import copy
import weakref
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

_State = TypeVar("_State")
# Page-locking takes its time for each piece: not worth it for less.
_LOCKED_BYTES = 1 << 20


class HostCopies:
    """Copies states; the memory of what was copied before `release` is reused after it.

    Attributes:
        num_bytes: Bytes of host memory that are kept.
    """

    def __init__(self) -> None:
        # By size; and those that hold a copy now.
        self._free: dict[int, list[Tensor]] = {}
        self._lent: list[Tensor] = []
        self.num_bytes = 0

    def copied(self, state: _State) -> _State:
        """Return a copy of nested containers and tensors, on the CPU.

        Raises:
            RuntimeError: There is not enough memory.
        """
        memo: dict[int, object] = {}
        storages: dict[int, Tensor] = {}
        on_gpu = False
        for tensor in tensors_of(state):
            if id(tensor) not in memo:
                memo[id(tensor)] = made = self._copied(tensor, storages)
                # torch.save writes the attributes of a tensor, too.
                vars(made).update(copy.deepcopy(vars(tensor), memo))
                on_gpu = on_gpu or tensor.is_cuda
        if on_gpu:
            # The copies were only put into the stream; the next step changes their sources.
            torch.cuda.current_stream().synchronize()
        # deepcopy takes what is in its memo as it is.
        return copy.deepcopy(state, memo)

    def release(self) -> None:
        """Let the memory be reused; what the last copies did not need is given back."""
        self._free = {}
        for buffer in self._lent:
            self._free.setdefault(buffer.nbytes, []).append(buffer)
        self.num_bytes = sum(buffer.nbytes for buffer in self._lent)
        self._lent = []

    def _copied(self, tensor: Tensor, storages: dict[int, Tensor]) -> Tensor:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        buffer = storages.get(place) if place else None
        if buffer is None:
            buffer = self._buffer(storage.nbytes(), tensor.is_cuda)
            every_byte = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            buffer.copy_(every_byte, non_blocking=True)
            storages[place] = buffer
        made = torch.empty(0, dtype=tensor.dtype).set_(
            buffer.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
        )
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(made, requires_grad=tensor.requires_grad)
        return made.requires_grad_(tensor.requires_grad)

    def _buffer(self, num_bytes: int, for_gpu: bool) -> Tensor:
        free = self._free.get(num_bytes)
        buffer = free.pop() if free else _new_buffer(num_bytes, for_gpu)
        self._lent.append(buffer)
        return buffer


def tensors_of(state: object) -> Iterator[Tensor]:
    """Yield the tensors in nested mappings, lists and tuples."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from tensors_of(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors_of(value)


def _new_buffer(num_bytes: int, for_gpu: bool) -> Tensor:
    # torch rounds page-locked memory up to a power of two: up to twice as much as is needed.
    # Registering ordinary memory does not.
    buffer = torch.empty(num_bytes, dtype=torch.uint8)
    if for_gpu and num_bytes >= _LOCKED_BYTES:
        place = buffer.data_ptr()
        cuda = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        # If it cannot be locked, copies are slower, and right all the same.
        if int(cuda.cudaHostRegister(place, num_bytes, 0)) == 0:
            weakref.finalize(buffer, cuda.cudaHostUnregister, place).atexit = False
    return buffer
