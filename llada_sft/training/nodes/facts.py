"""What a rank knows of its node before anything is built.

What is asked of a file system or a driver has a limit: a mount that hangs is a fact, too. The first
rank of a node alone looks at folders, which are the same for all of its ranks.
"""

import hashlib
import os
import re
import resource
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import llada_sft
from llada_sft.config.schema import Config
from llada_sft.data.shards import list_files
from llada_sft.data.storage.files import is_remote
from llada_sft.errors import LladaSftError
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.versions import package_versions

_PACKAGES = ("torch", "deepspeed", "lightning", "transformers", "numpy")
# They decide which kernels `auto` takes; most nodes have none of them.
_KERNELS = ("triton", "liger-kernel", "flash-attn", "bitsandbytes")
# Names of facts; `findings.py` knows what a difference in one of them means.
GPUS, DRIVER, OPEN_FILES, LOCKED_MEMORY = "GPUs", "NVIDIA driver", "open files", "locked memory"
HOST_MEMORY, GPU_MEMORY, SHARED_MEMORY = "host memory", "GPU memory", "/dev/shm"
_LIMITS = {OPEN_FILES: resource.RLIMIT_NOFILE, LOCKED_MEMORY: resource.RLIMIT_MEMLOCK}
_DRIVER_VERSION = re.compile(r"Kernel Module\D*? (\d+(?:\.\d+)+)")
_HASH_DIGITS = 8


@dataclass(frozen=True)
class RankFacts:
    """What one rank reports.

    Attributes:
        rank: Which one.
        node: Its node, by SLURM's name where there is one.
        local_rank: Its number on the node.
        same: By name, what should be the same on all ranks that report it.
        free: By name, free bytes of memory and disks.
        problems: By name, what the rank could not find or use.
        gpu: The UUID of its GPU; empty without one.
        clock_s: How far its clock is ahead of rank 0's, in seconds; rank 0 fills it in.
    """

    rank: int
    node: str
    local_rank: int = 0
    same: Mapping[str, str] = field(default_factory=dict)
    free: Mapping[str, float] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    gpu: str = ""
    clock_s: float = 0.0

    @staticmethod
    def parse(values: Any) -> "RankFacts":
        """Make facts of the values that `dataclasses.asdict` gave another rank."""
        return RankFacts(**values)


def node_name() -> str:
    """Return this node's name: SLURM's, or else the host's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def gather_facts(config: Config, run: RunDir, placement: Placement, limit_s: float) -> RankFacts:
    """Find out what this rank reports.

    Args:
        config: The whole config.
        run: The run directory.
        placement: This rank.
        limit_s: Seconds that a file system or a driver has for its answer.
    """
    facts = _Gathered()
    facts.same |= {name: version or "none" for name, version in _versions().items()}
    facts.same |= {name: _limit(kind) for name, kind in _LIMITS.items()}
    facts.ask(HOST_MEMORY, lambda: facts.free.update({HOST_MEMORY: _available_memory()}))
    if config.train.accelerator != "cpu":
        facts.ask(GPUS, lambda: _add_gpu(facts, placement.local_rank))
    if placement.local_rank == 0:
        _add_files(facts, config, run)
    facts.wait(limit_s)
    # Copies: a question that is abandoned may still be answered.
    return RankFacts(
        rank=placement.rank,
        node=node_name(),
        local_rank=placement.local_rank,
        same=facts.same.copy(),
        free=facts.free.copy(),
        problems=facts.problems.copy(),
        gpu=facts.gpu,
    )


class _Gathered:
    """Facts so far, and questions that are asked at the same time."""

    def __init__(self) -> None:
        self.same: dict[str, str] = {}
        self.free: dict[str, float] = {}
        self.problems: dict[str, str] = {}
        self.gpu = ""
        self._answered: dict[str, threading.Event] = {}

    def ask(self, name: str, question: Callable[[], object]) -> None:
        """Run what adds a fact, in a thread of its own; an error is a problem."""
        answered = self._answered[name] = threading.Event()

        def run() -> None:
            try:
                question()
            except (OSError, ValueError, RuntimeError, LladaSftError) as error:
                self.problems[name] = str(error).partition("\n")[0]
            finally:
                answered.set()

        threading.Thread(target=run, name=f"facts: {name}", daemon=True).start()

    def wait(self, limit_s: float) -> None:
        """Wait for all answers; to give none within the limit is a problem.

        A file system that hangs cannot be interrupted: its thread is abandoned.
        """
        deadline = time.monotonic() + limit_s
        for name, answered in self._answered.items():
            if not answered.wait(max(0.0, deadline - time.monotonic())):
                self.problems[name] = f"no answer within {limit_s:g} s"


def _versions() -> dict[str, str | None]:
    versions = package_versions(_PACKAGES + _KERNELS)
    if torch.version.cuda is not None:
        versions["CUDA"] = torch.version.cuda
        versions["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return versions


def _limit(kind: int) -> str:
    soft, _ = resource.getrlimit(kind)
    return "unlimited" if soft == resource.RLIM_INFINITY else str(soft)


def _available_memory() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return float(kilobytes) * 1024


def _add_gpu(facts: _Gathered, local_rank: int) -> None:
    count = torch.cuda.device_count()
    if count == 0:
        facts.same[GPUS] = "none"
        return
    # As `ranks.choose_device` does; a rank that has no GPU of its own reports the last one.
    index = min(local_rank, count - 1)
    properties = torch.cuda.get_device_properties(index)
    if local_rank < count or count == 1:
        facts.free[GPU_MEMORY] = float(torch.cuda.mem_get_info(index)[0])
        # Parts of one GPU (MIG) may all have its UUID.
        facts.gpu = "" if "MIG" in properties.name else str(properties.uuid)
    facts.same[GPUS] = f"{count} x {properties.name}"
    version = Path("/proc/driver/nvidia/version")
    if version.exists() and (found := _DRIVER_VERSION.search(version.read_text())):
        facts.same[DRIVER] = found[1]


def _add_files(facts: _Gathered, config: Config, run: RunDir) -> None:
    """Add what the first rank of a node finds on its file systems."""
    package = Path(llada_sft.__file__).parent

    def note(name: str, value: Callable[[], str]) -> None:
        facts.ask(name, lambda: facts.same.update({name: value()}))

    note("code of llada_sft", lambda: _hash_of(sorted(package.rglob("*.py"))))
    for name, file in (("config.yaml", run.config), ("the hook", run.hook)):
        note(name, lambda file=file: _hash_of([file]))  # type: ignore[misc]
    for name, path in _data_paths(config).items():
        note(name, lambda path=path: _listing(list_files(path)))  # type: ignore[misc]
    note(f"model.path {config.model.path}", lambda: _listing(_files_of_model(config.model.path)))
    disks = {"the run directory": str(run.path), "TMPDIR": tempfile.gettempdir()}
    for name, path in {**disks, SHARED_MEMORY: SHARED_MEMORY}.items():
        facts.ask(
            name,
            lambda name=name, path=path: facts.free.update(  # type: ignore[misc]
                {name: float(shutil.disk_usage(path).free)}
            ),
        )


def _data_paths(config: Config) -> dict[str, str]:
    """Return the local paths that rows are read from, by what messages call them."""
    paths = [("data.train", path) for path in config.data.train_paths]
    paths += [("data.validation", path) for path in config.data.validation_sets.values()]
    return {f"{name} {path}": path for name, path in paths if not is_remote(path)}


def _files_of_model(folder: str) -> list[Path]:
    return [path for path in Path(folder).iterdir() if path.suffix in (".json", ".safetensors")]


def _listing(files: Iterable[Path]) -> str:
    """Return how many files there are, with a hash of their names."""
    names = sorted(os.fsencode(file.name) for file in files)
    digest = hashlib.blake2b(b"\0".join(names)).hexdigest()
    return f"{len(names)} files ({digest[:_HASH_DIGITS]})"


def _hash_of(files: list[Path]) -> str:
    """Return a hash of the contents of files; one that does not exist counts as empty."""
    digest = hashlib.blake2b()
    for file in files:
        content = file.read_bytes() if file.exists() else b""
        digest.update(f"{file.name} {len(content)}\n".encode(errors="surrogateescape") + content)
    return digest.hexdigest()[:_HASH_DIGITS]
