"""Checkpoint out: from a network, or a ZeRO-3 training checkpoint, to the official layout.

The result is a directory in Hugging Face's layout (safetensors shards with an index, config.json
by the official keys, the tokenizer's files) that `load_model` and the official code both read. It
appears all at once or not at all: everything is written to `OUT.partial`, read back and compared,
and only then renamed.
"""

import contextlib
import copy
import functools
import json
import pickle
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from llada_sft.errors import CheckpointError
from llada_sft.model import safe_load
from llada_sft.model.configuration import NetworkConfig
from llada_sft.model.index import INDEX_NAME, check_tensors, read_index, require_unused
from llada_sft.model.network import Network
from llada_sft.model.settings import read_generation_config

# The LightningModule's attribute that holds the network.
CHECKPOINT_PREFIX = "network."
# What goes along with the weights, where the source directory has it.
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "*.py",
)


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is put together only when its shard is written.

    Attributes:
        shape: Its shape.
        read: Returns it, floating, on the CPU or elsewhere.
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def network_tensors(model: Network) -> dict[str, LazyTensor]:
    """Return the parameters and buffers of a whole network in this process."""
    return {
        name: LazyTensor(tuple(tensor.shape), tensor.detach)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def zero3_tensors(checkpoint_dir: Path, tag: str = "checkpoint") -> dict[str, LazyTensor]:
    """Return the fp32 master weights of a training checkpoint, gathered from all ranks' shards.

    Args:
        checkpoint_dir: The directory that Lightning wrote, with DeepSpeed's shards in `tag`.
        tag: DeepSpeed's name for the shards' directory.

    Raises:
        CheckpointError: There are no shards, or a file holds more than tensors and plain values.
    """
    # Here, not above: importing DeepSpeed takes seconds, and only this function needs it.
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    if not (checkpoint_dir / tag).is_dir():
        raise CheckpointError(f"{checkpoint_dir}: not a training checkpoint: no directory {tag!r}")
    # DeepSpeed prints its progress; stdout belongs to the command that called us.
    try:
        with contextlib.redirect_stdout(sys.stderr), safe_load.weights_only():
            state = get_fp32_state_dict_from_zero_checkpoint(checkpoint_dir, tag, lazy_mode=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{checkpoint_dir}: holds {safe_load.what_is_held(error)}; "
            "nothing of it was run: export a checkpoint that this training wrote"
        ) from None
    return {
        name.removeprefix(CHECKPOINT_PREFIX): LazyTensor(tuple(value.shape), value.contiguous)
        for name, value in state.items()
    }


def averaged(checkpoints: Sequence[Mapping[str, LazyTensor]]) -> dict[str, LazyTensor]:
    """Return the mean of each tensor over checkpoints, taken in fp32 when it is read."""

    def mean(name: str) -> Tensor:
        total = checkpoints[0][name].read().float().clone()
        for tensors in checkpoints[1:]:
            total += tensors[name].read().float()
        return total / len(checkpoints)

    return {
        name: LazyTensor(tensor.shape, functools.partial(mean, name))
        for name, tensor in checkpoints[0].items()
    }


def export_checkpoint(
    tensors: Mapping[str, LazyTensor],
    config: NetworkConfig,
    tokenizer_dir: Path,
    out_dir: Path,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_size: int | str = "5GB",
    stacked: bool = False,
) -> None:
    """Write a model directory; one shard at a time is in memory.

    Args:
        tensors: The network's parameters by their names.
        config: Of the network; its `suppress_tokens` are written into generation_config.json.
        tokenizer_dir: A model directory whose tokenizer, chat template and code files are copied.
        out_dir: Must not exist, or be empty.
        dtype: Of the written weights.
        max_shard_size: Bytes, or text as "5GB".
        stacked: Whether the experts of a layer are one tensor for each of their matrices.

    Raises:
        CheckpointError: `out_dir` is in use or cannot be written, or the tensors are not those of
            `config`.
        ConfigError: `stacked`, and nobody else reads such files of this member of the family.
    """
    config = config.of_layout(stacked)
    with new_model_dir(out_dir) as partial:
        parts = stacked_parts(tensors, config) if stacked else official_parts(tensors, config)
        _write_weights(parts, config.architecture.buffer_shapes(), partial, dtype, max_shard_size)
        _write_config(config, partial, dtype)
        apply_umask(partial, "config.json")
        _copy_files(tokenizer_dir, partial)
        _write_suppressed(config, partial)
        _verify(config, partial, stacked)


@contextlib.contextmanager
def new_model_dir(out_dir: Path) -> Iterator[Path]:
    """Yield a folder next to `out_dir`, which takes its place once all is written.

    Raises:
        CheckpointError: `out_dir` is in use, or cannot be written.
    """
    require_unused(out_dir)
    partial = out_dir.with_name(f"{out_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by an export that was interrupted
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(out_dir)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)  # the disk may be full
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        where = getattr(error, "filename", None) or partial
        raise CheckpointError(
            f"{out_dir}: not written: {where}: {reason}; choose another directory"
        ) from None


def official_parts(
    tensors: Mapping[str, LazyTensor], config: NetworkConfig
) -> dict[str, LazyTensor]:
    """Return the tensors of a model directory: what is stacked in training is taken apart.

    Args:
        tensors: Of a network or a training checkpoint, or of a model directory of any layout.
        config: Of the network.
    """
    parts: dict[str, LazyTensor] = {}
    last = _LastStack()
    for name, whole in tensors.items():
        official = config.architecture.official_tensors(name, whole.shape)
        if len(official[0][1]) == len(whole.shape):
            parts[official[0][0]] = whole
            continue
        for number, (part, shape) in enumerate(official):
            parts[part] = LazyTensor(shape, functools.partial(last.read, whole, number))
    return parts


def stacked_parts(
    tensors: Mapping[str, LazyTensor], config: NetworkConfig
) -> dict[str, LazyTensor]:
    """Return the tensors of a model directory whose experts of a layer are stacked.

    Args:
        tensors: As in `official_parts`.
        config: Of the network.
    """
    parts = dict(tensors)
    for name, shape in config.architecture.parameter_shapes().items():
        official = [part for part, _ in config.architecture.official_tensors(name, shape)]
        if name not in parts and all(part in parts for part in official):
            experts = [parts.pop(part) for part in official]
            parts[name] = LazyTensor(shape, functools.partial(_stack, experts))
    return parts


def _stack(experts: Sequence[LazyTensor]) -> Tensor:
    return torch.stack([expert.read() for expert in experts])


class _LastStack:
    """Keeps the stack that was read last: its parts are written one after another."""

    def __init__(self) -> None:
        self._whole: LazyTensor | None = None
        self._values = torch.empty(0)

    def read(self, whole: LazyTensor, number: int) -> Tensor:
        """Return one part of a stack."""
        if self._whole is not whole:
            self._whole, self._values = None, torch.empty(0)  # before the next one is read
            self._whole, self._values = whole, whole.read()
        return self._values[number]


def _write_weights(
    tensors: Mapping[str, LazyTensor],
    buffers: Collection[str],
    out_dir: Path,
    dtype: torch.dtype,
    max_shard_size: int | str,
) -> None:
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: torch.Size(tensor.shape).numel() * dtype.itemsize,
        get_storage_id=lambda _: None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for file, names in split.filename_to_tensors.items():
        # Buffers keep what they are: the bias of a router decides between near scores.
        kinds = {name: None if name in buffers else dtype for name in names}
        shard = {
            name: tensors[name].read().to("cpu", kind).contiguous() for name, kind in kinds.items()
        }
        save_file(shard, out_dir / file, metadata={"format": "pt"})
        del shard  # before the next one is gathered
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (out_dir / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_config(config: NetworkConfig, out_dir: Path, dtype: torch.dtype) -> None:
    exported = copy.deepcopy(config)
    exported.dtype = dtype
    (out_dir / "config.json").write_text(exported.to_json_string())


def apply_umask(out_dir: Path, like: str) -> None:
    """Give the weights the mode of another file of the folder."""
    # safetensors makes its files readable for the user alone, whatever the umask says.
    for file in out_dir.glob("*.safetensors"):
        shutil.copymode(out_dir / like, file)


def _copy_files(source_dir: Path, out_dir: Path) -> None:
    for pattern in _COPIED:
        for file in sorted(source_dir.glob(pattern)):
            shutil.copyfile(file, out_dir / file.name)


def _write_suppressed(config: NetworkConfig, out_dir: Path) -> None:
    """Write what samplers must not write into the copied `generation_config.json`, or a new one."""
    if not config.suppress_tokens:
        return
    values = read_generation_config(out_dir) | {"suppress_tokens": list(config.suppress_tokens)}
    (out_dir / "generation_config.json").write_text(json.dumps(values, indent=2) + "\n")


def _verify(config: NetworkConfig, out_dir: Path, stacked: bool) -> None:
    """Read back what was written; a checkpoint of another network is noticed here."""
    check_tensors(config.architecture.tensor_shapes(stacked), read_index(out_dir), out_dir)
