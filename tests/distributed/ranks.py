"""Run one function on several gloo ranks of this machine, with a timeout: a hang is a failure.

    results = run_on_ranks("tests.distributed.workers:loaded_slices", 2, 60, model_dir=str(path))

Each rank is a process with the variables of torchrun, on the CPU by default. The function takes the
keyword arguments and returns something JSON can hold; the results come back in the order of ranks.

To import torch, DeepSpeed and Lightning takes ten seconds of a core. On the CPU, ranks are forked
from a server that has imported them and done nothing else: it has no thread, no process group and
no random number drawn, so what it forks is as good as new. (test_local_run.py starts ranks as users
do.) DeepSpeed looks for CUDA when it is imported, and so each rank of a GPU is a fresh process.
"""

import atexit
import importlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from llada_sft.cluster.launch.ports import free_port

ROOT = Path(__file__).parents[2]
_PRELOADED = [
    "tests.distributed.training_workers",
    "tests.distributed.loading_workers",
    "llada_sft.data.records",
    # DeepSpeed imports it where an engine is made, and torch's compiler with it: four seconds.
    "deepspeed.runtime.zero.muon.muon_optimizer",
]
_POLL_S = 0.05


def run_on_ranks(
    function_path: str,
    world_size: int,
    timeout_s: float,
    accelerator: str = "cpu",
    **kwargs: Any,
) -> list[Any]:
    """Call `module:function` on every rank.

    Args:
        function_path: "package.module:function", importable from the repository's root.
        world_size: Number of ranks.
        timeout_s: All ranks are killed after this, and the test fails.
        accelerator: DeepSpeed's name of the device: "cpu" or "cuda".
        **kwargs: JSON values for the function.
    """
    with started_ranks(function_path, world_size, accelerator, **kwargs) as ranks:
        failed = ranks.wait(timeout_s)
        if failed is not None:
            pytest.fail(f"{failed}\n{ranks.logs()}", pytrace=False)
        return ranks.results()


@dataclass(frozen=True)
class Ranks:
    """The processes of all ranks, and the folder with what they say."""

    processes: list[BaseProcess]
    folder: Path

    def wait(self, timeout_s: float) -> str | None:
        """Return why the ranks failed, as soon as one has; None when all are done."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            codes = [process.exitcode for process in self.processes]
            for rank, code in enumerate(codes):
                if code:
                    return f"rank {rank} exited with code {code}"
            if all(code == 0 for code in codes):
                return None
            time.sleep(_POLL_S)
        return f"ranks still running after {timeout_s:g} s: a hang"

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def logs(self) -> str:
        """Return the end of what each rank said."""
        ends = [text[-4000:] for text in self.whole_logs()]
        return "\n".join(f"--- rank {rank}\n{text}" for rank, text in enumerate(ends))

    def whole_logs(self) -> list[str]:
        ranks = range(len(self.processes))
        return [_log(self.folder, rank).read_text(errors="replace") for rank in ranks]

    def results(self) -> list[Any]:
        ranks = range(len(self.processes))
        return [json.loads(_result(self.folder, rank).read_text()) for rank in ranks]


@contextmanager
def started_ranks(
    function_path: str, world_size: int, accelerator: str = "cpu", **kwargs: Any
) -> Iterator[Ranks]:
    """Start all ranks; those that are left are killed at the end."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        ranks = Ranks([], Path(name))
        try:
            for rank in range(world_size):
                environment = _environment(rank, world_size, port, accelerator)
                call = (ranks.folder, environment, function_path, kwargs)
                ranks.processes.append(_start(call, environment))
            yield ranks
        finally:
            ranks.kill()


def _environment(rank: int, world_size: int, port: int, accelerator: str) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": accelerator,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


def _start(call: tuple[Any, ...], environment: dict[str, str]) -> BaseProcess:
    forked = environment["DS_ACCELERATOR"] == "cpu"
    context = multiprocessing.get_context("forkserver" if forked else "spawn")
    if forked:
        context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_main, args=call)
    # The server starts with the first rank and reads these as it imports.
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DS_ACCELERATOR", "OMP_NUM_THREADS", "PYTHONPATH"):
            patch.setenv(name, environment[name])
        process.start()
    return process


def _log(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank}.log"


def _result(folder: Path, rank: int) -> Path:
    return folder / f"result_{rank}.json"


def _main(
    folder: Path, environment: dict[str, str], function_path: str, kwargs: dict[str, Any]
) -> None:
    """Be one rank, from its first line to its last."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    rank = int(environment["RANK"])
    log = os.open(_log(folder, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(log, number)
    if multiprocessing.get_start_method() == "forkserver":
        # A lock that a thread of the server held would be held here for ever.
        threads = list(Path(f"/proc/{os.getppid()}/task").iterdir())
        assert len(threads) == 1, "the server has threads"
    try:
        module, function = function_path.split(":")
        value = getattr(importlib.import_module(module), function)(**kwargs)
        _result(folder, rank).write_text(json.dumps(value))
        # Threads of gloo that are left running while Python shuts down may abort the process.
        from llada_sft.training.ranks import leave_ranks

        leave_ranks()
    finally:
        # A forked process leaves these out, and data workers would be waited for, for ever.
        atexit._run_exitfuncs()
