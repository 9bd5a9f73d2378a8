"""A rank's device, and the process group of all ranks."""

import os
from datetime import timedelta
from typing import Literal

import deepspeed
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from llada_sft.errors import ConfigError
from llada_sft.placement import Placement


def choose_device(accelerator: Literal["auto", "cuda", "cpu"], local_rank: int) -> torch.device:
    """Return the device of a rank.

    Raises:
        ConfigError: CUDA was asked for and is not there.
    """
    num_devices = torch.cuda.device_count()
    if accelerator == "cpu" or (accelerator == "auto" and num_devices == 0):
        return torch.device("cpu")
    if num_devices == 0:
        raise ConfigError(
            "train.accelerator: 'cuda', but this machine has no CUDA device; "
            "use a GPU node, or train.accelerator=cpu"
        )
    # Where SLURM shows each task only its own GPU, that one is number 0.
    index = 0 if num_devices == 1 else local_rank
    if index >= num_devices:
        raise ConfigError(
            f"slurm.ranks_per_node: rank {local_rank} of this node has no GPU, "
            f"there are {num_devices}; use slurm.ranks_per_node={num_devices}"
        )
    return torch.device("cuda", index)


def device_ordinal(device: torch.device, placement: Placement) -> int:
    """Return the local rank for DeepSpeed, which uses it as the number of the device.

    If SLURM shows each task only its own GPU (`--gpus-per-task`), it is 0 on every rank.
    """
    return placement.local_rank if device.index is None else device.index


def init_ranks(placement: Placement, device: torch.device, timeout: timedelta) -> None:
    """Join the process group that DeepSpeed and Lightning then find.

    Args:
        placement: This rank.
        device: Where this rank computes.
        timeout: Timeout of each collective, also in process groups that are created later.
    """
    os.environ |= {
        "MASTER_ADDR": placement.master_addr,
        "MASTER_PORT": str(placement.master_port),
        "RANK": str(placement.rank),
        "LOCAL_RANK": str(device_ordinal(device, placement)),
        "WORLD_SIZE": str(placement.world_size),
    }
    _set_default_timeout(timeout)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Otherwise every rank compiles (with g++) a shared-memory collective that only inference uses.
    deepspeed.ops.__compatible_ops__ = {}
    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(backend, timeout=timeout, verbose=False)


def optimizer_threads(offload_optimizer: Literal["none", "cpu"], cpus_per_rank: int) -> int | None:
    """Return the CPU threads of the optimizer's step; None: as everywhere else.

    An optimizer on the CPU takes all cores of its rank: between the steps they are idle.

    Args:
        offload_optimizer: Where the optimizer's states are.
        cpus_per_rank: What SLURM gives each rank; on a local run there may be fewer cores.
    """
    if offload_optimizer == "none":
        return None
    return min(cpus_per_rank, len(os.sched_getaffinity(0)))


def _set_default_timeout(timeout: timedelta) -> None:
    """Make this the timeout of every process group.

    A group created without a timeout gets 30 minutes, or 10 with NCCL, whatever the first group
    has. DeepSpeed creates its groups without one, including the group that reduces all gradients.
    torch has no public way to set the default.
    """
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        setattr(distributed_c10d, name, timeout)
    # NCCL's own watchdog ends a process whose device does not answer; ours must report first.
    seconds = str(int(timeout.total_seconds()))
    os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", seconds)


def leave_ranks() -> None:
    """Leave the process group, so that its threads end before the interpreter does.

    A gloo thread that still runs while Python shuts down may abort the process: a rank that had
    finished would count as failed.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
