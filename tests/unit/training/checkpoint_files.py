"""A small checkpoint of files like DeepSpeed's, written without it; and ways to damage it."""

import random
from collections import OrderedDict
from collections.abc import Callable, Mapping
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from llada_sft.data.rows.position import FilePosition
from llada_sft.training.checkpoint.checksums import FileRecord
from llada_sft.training.checkpoint.data_state import DataState
from llada_sft.training.checkpoint.folder import create_partial, finish_partial
from llada_sft.training.checkpoint.shard_writer import ShardWriter
from llada_sft.training.validation.best import Lowest, ValidationState

NETWORK = {"wte.weight": (20, 32), "block.q.weight": (32, 33), "ln.weight": (31,)}
STATE = DataState(1, {"a.jsonl": FilePosition(3, 2)}, {"a.jsonl": "11"})
MODEL = "checkpoint/zero_pp_rank_{}_mp_rank_00_model_states.pt"
WHOLE_MODEL = "checkpoint/mp_rank_00_model_states.pt"
OPTIMIZER = "checkpoint/zero_pp_rank_{}_mp_rank_00_optim_states.pt"


def write_checkpoint(
    folder: Path,
    step: int,
    world_size: int = 2,
    keep: int = 9,
    network: Mapping[str, tuple[int, ...]] = NETWORK,
    stage: int = 3,
    best: int | None = None,
    **more: Any,
) -> Path:
    """Write a checkpoint of random weights; `more` goes into the first rank's optimizer file."""
    partial, writer = create_partial(folder, step), ShardWriter()
    writer.makedirs(str(partial / "checkpoint"))
    for rank in range(world_size):
        if stage == 3 or rank == 0:
            name = MODEL.format(rank) if stage == 3 else WHOLE_MODEL
            writer.save(model_state(world_size, network), str(partial / name))
        state = optimizer_state(world_size, network, stage) | (more if rank == 0 else {})
        writer.save(state, str(partial / OPTIMIZER.format(rank)))
    writer.save_text("checkpoint", partial / "latest")
    assert writer.error is None
    lowest = None if best is None else Lowest("validation_loss", 1.0, best)
    manifest = {
        "step": step,
        "world_size": world_size,
        "versions": {"llada-sft": "0.1.0"},
        "validation": ValidationState(step, best=lowest).to_json(),
    }
    return finish_partial(partial, manifest, STATE, writer.records(partial), keep)


def model_state(world_size: int, network: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    shapes = OrderedDict((f"network.{name}", torch.Size(shape)) for name, shape in network.items())
    return {
        "dp_world_size": world_size,
        "param_shapes": [shapes],
        "module": {},
        "buffer_names": [],
        "shared_params": {},
        "loops": {"global_step": 4},
    }


def optimizer_state(
    world_size: int, network: Mapping[str, tuple[int, ...]], stage: int = 3
) -> dict[str, Any]:
    held = sum(ceil(prod(shape) / world_size) for shape in network.values())
    if stage < 3:
        groups = {
            "zero_stage": ZeroStageEnum(stage),
            "partition_count": [world_size, world_size],
            "single_partition_of_fp32_groups": [torch.randn(held), torch.randn(3)],
            "param_slice_mappings": [OrderedDict({"wte.weight": fragment_address(held, 0)})],
        }
        return {"optimizer_state_dict": groups}
    return {
        "optimizer_state_dict": {
            "zero_stage": ZeroStageEnum.weights,
            "loss_scaler": LossScaler(1.0),
            "partition_count": world_size,
            "fp32_flat_groups": [torch.randn(held)],
            "optimizer_state_dict": {"state": {0: {"exp_avg": torch.randn(held)}}},
        }
    }


def as_of_older_version(checkpoint: Path) -> None:
    """Leave in checkpoint.json what versions before checksums wrote there."""
    import json

    path = checkpoint / "checkpoint.json"
    content = json.loads(path.read_text())
    known = ("step", "world_size", "versions", "files")
    content = {name: content[name] for name in known}
    path.write_text(json.dumps(content, indent=1))


def reseal(checkpoint: Path) -> None:
    """Make the manifest right for whatever the files hold now, as somebody hostile would."""
    import json

    from llada_sft.training.checkpoint.manifest import sealed

    path = checkpoint / "checkpoint.json"
    content = json.loads(path.read_text())
    records = {name: FileRecord.of((checkpoint / name).read_bytes()) for name in content["files"]}
    kept = {k: v for k, v in content.items() if k not in ("files", "checksums", "checksum")}
    path.write_text(sealed(kept, records))


def flip_bit(path: Path, draw: random.Random) -> str:
    content = bytearray(path.read_bytes())
    bit = draw.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return f"bit {bit} of {path.name} flipped"


def truncate(path: Path, draw: random.Random) -> str:
    size = draw.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.truncate(size)
    return f"{path.name} cut to {size} bytes"


def zero_block(path: Path, draw: random.Random) -> str:
    """Put zeros in the place of some bytes that are not all zero already."""
    content = bytearray(path.read_bytes())
    first = draw.choice([i for i, byte in enumerate(content) if byte])
    last = min(len(content), first + draw.choice([1, 512, 4096, len(content)]))
    content[first:last] = bytes(last - first)
    path.write_bytes(content)
    return f"bytes {first} to {last} of {path.name} zeroed"


def remove(path: Path, draw: random.Random) -> str:
    path.unlink()
    return f"{path.name} removed"


DAMAGES: list[Callable[[Path, random.Random], str]] = [flip_bit, truncate, zero_block, remove]


def damage(checkpoint: Path, draw: random.Random) -> str:
    """Damage one file in one way, and say what was done."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return draw.choice(DAMAGES)(draw.choice(files), draw)
