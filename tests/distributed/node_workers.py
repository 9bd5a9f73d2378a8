"""What the ranks of test_nodes.py run: the preflight alone, each rank on a node of its own.

The last rank is the one with the fault. Folders are hidden by real mounts in a mount namespace of
its own, and a slow link is a network namespace with a limited rate. GPUs, versions and clocks are
stubbed readings.
"""

import ctypes
import importlib.metadata
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import llada_sft
from llada_sft.cluster.peers import is_of_peer
from llada_sft.config import load_config
from llada_sft.errors import LladaSftError, NodeError, PeerFailedError
from llada_sft.model.layers.block import Block
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.training.host import Host
from llada_sft.training.nodes import preflight as preflight_module
from llada_sft.training.nodes.meeting import Meeting
from llada_sft.training.nodes.preflight import Preflight
from llada_sft.training.ranks import init_ranks
from llada_sft.training.trainer import train
from tests.distributed.training_workers import placement

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18


def _called(code: int) -> None:
    if code:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _mount(source: str, target: str, kind: str | None, flags: int) -> None:
    _called(
        _LIBC.mount(source.encode(), target.encode(), kind.encode() if kind else None, flags, None)
    )


def _other_mounts() -> None:
    """Enter a mount namespace whose mounts nobody else sees."""
    _called(_LIBC.unshare(_CLONE_NEWNS))
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)


def _hide(folder: Path) -> None:
    _other_mounts()
    _mount("none", str(folder), "tmpfs", 0)


def _other_code(folder: Path) -> None:
    """Let the package have another file."""
    _other_mounts()
    file = Path(llada_sft.__file__).parent / "keys.py"
    changed = folder.parent / "keys.py"
    changed.write_text(f"{file.read_text()}# Another version.\n")
    _mount(str(changed), str(file), None, _MS_BIND)


def with_gpus(patch: pytest.MonkeyPatch, count: int) -> None:
    """Let torch report GPUs, each node its own."""
    node = os.environ["SLURMD_NODENAME"]
    properties = SimpleNamespace(name="NVIDIA H100", uuid=f"GPU-{node}")
    patch.setattr(torch.cuda, "device_count", lambda: count)
    patch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    patch.setattr(torch.cuda, "mem_get_info", lambda index: (80 * 10**9, 80 * 10**9))


def _other_torch(patch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    patch.setattr(
        importlib.metadata, "version", lambda name: "2.9.0" if name == "torch" else version(name)
    )


def _other_clock(patch: pytest.MonkeyPatch, ahead_s: float) -> None:
    now = time.time
    patch.setattr(time, "time", lambda: now() + ahead_s)


def _slow_disk(patch: pytest.MonkeyPatch) -> None:
    """Let the data folder not answer, as a mount does whose server is gone."""
    from llada_sft.training.nodes import facts

    patch.setattr(facts, "list_files", lambda path: time.sleep(60))


def _silent(patch: pytest.MonkeyPatch) -> None:
    gather = preflight_module.gather_facts

    def late(*arguments: Any) -> Any:
        time.sleep(8)
        return gather(*arguments)

    patch.setattr(preflight_module, "gather_facts", late)


FAULTS: dict[str, Callable[[pytest.MonkeyPatch, Path], None]] = {
    "none": lambda patch, folder: None,
    "versions": lambda patch, folder: _other_torch(patch),
    "gpus": lambda patch, folder: with_gpus(patch, 7),
    "no gpus": lambda patch, folder: with_gpus(patch, 0),
    "clock": lambda patch, folder: _other_clock(patch, -600),
    "disk": lambda patch, folder: _slow_disk(patch),
    # These two stay.
    "code": lambda patch, folder: _other_code(folder),
    "folder": lambda patch, folder: _hide(folder),
    "silent": lambda patch, folder: _silent(patch),
}


def compared(data: str, overrides: list[str], ports: list[int], faults: list[str]) -> list[Any]:
    """Compare the nodes once for each fault; return what this rank reports each time."""
    rank = int(os.environ["RANK"])
    reported: list[Any] = []
    # Rank 0 has the store: it must stay until the others have read what they need.
    kept: list[Preflight] = []
    for port, fault in zip(ports[:-1], faults, strict=True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURMD_NODENAME", f"node{rank + 1}")
            if "gpus" in fault:
                with_gpus(patch, 8)
            if rank == int(os.environ["WORLD_SIZE"]) - 1:
                FAULTS[fault](patch, Path(data))
            accelerator = "auto" if "gpus" in fault else "cpu"
            config = [*overrides, f"train.accelerator={accelerator}"]
            preflight, notes = _preflight(port, config, Path(data).parent / "run", "127.0.0.1")
            kept.append(preflight)
            reported.append(_compared(preflight, notes))
    end = Meeting(placement_of_node("127.0.0.1", ports[-1]), timedelta(seconds=60))
    if rank == 0:
        end.wait_for_leaving(60)
    else:
        end.leave()
    return reported


def placement_of_node(address: str, port: int) -> Placement:
    """Return the place of the only rank of a node."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return Placement(rank, world_size, 0, rank, address, port)


def _preflight(
    port: int, overrides: list[str], run: Path, address: str
) -> tuple[Preflight, list[Any]]:
    notes: list[Any] = []
    config = load_config("config/demo.yaml", overrides)
    host = Host(note=notes.append)
    return Preflight(config, RunDir(run), placement_of_node(address, port), host), notes


def _reported(error: LladaSftError | None, notes: list[Any]) -> dict[str, Any]:
    node = error.node if isinstance(error, NodeError) else None
    return {"error": type(error).__name__, "text": str(error), "node": node, "notes": notes}


def _compared(preflight: Preflight, notes: list[Any]) -> dict[str, Any]:
    try:
        preflight.compare_nodes()
    except LladaSftError as error:
        return _reported(error, notes)
    except RuntimeError as error:
        # Rank 0 has not waited for this rank: a job would have ended it.
        assert is_of_peer(error)
        return _reported(PeerFailedError(), notes)
    return _reported(None, notes)


def linked(namespaces: list[str], overrides: list[str], run: str, port: int) -> dict[str, Any]:
    """Measure the links between ranks, each in a network namespace of its own."""
    rank = int(os.environ["RANK"])
    with Path(f"/run/netns/{namespaces[rank]}").open() as namespace:
        _called(_LIBC.setns(namespace.fileno(), _CLONE_NEWNET))
    os.environ |= {"SLURMD_NODENAME": f"node{rank + 1}", "GLOO_SOCKET_IFNAME": "eth0"}
    preflight, notes = _preflight(port, overrides, Path(run), "10.213.7.1")
    try:
        preflight.compare_nodes()
        init_ranks(
            placement_of_node("10.213.7.1", port), torch.device("cpu"), timedelta(seconds=60)
        )
        preflight.measure_links(torch.device("cpu"))
    except LladaSftError as error:
        return _reported(error, notes)
    return _reported(None, notes)


def trained(run: str, overrides: list[str], slow_rank: int) -> list[Any]:
    """Train with one rank whose blocks take longer; return what rank 0 noted."""
    rank = int(os.environ["RANK"])
    notes: list[Any] = []
    os.environ["SLURMD_NODENAME"] = f"node{rank + 1}"
    with pytest.MonkeyPatch.context() as patch:
        if rank == slow_rank:
            forward = Block.forward

            def late(*arguments: Any) -> Any:
                time.sleep(0.03)
                return forward(*arguments)

            patch.setattr(Block, "forward", late)
        config = load_config("config/demo.yaml", overrides)
        train(config, RunDir(Path(run)), placement(), Host(note=notes.append))
    return notes
