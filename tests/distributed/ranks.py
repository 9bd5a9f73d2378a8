"""Run one function on several gloo ranks of this machine, with a timeout: a hang is a failure.

    results = run_on_ranks("tests.distributed.workers:loaded_slices", 2, 60, model_dir=str(path))

Each rank is a fresh process with the variables of torchrun, on the CPU by default. The function
takes the keyword arguments (JSON) and returns something JSON can hold; the results come back in the
order of ranks.
"""

import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "arguments.json").write_text(json.dumps([function_path, kwargs]))
        port = _free_port()
        processes = [
            _start(folder, rank, world_size, port, accelerator) for rank in range(world_size)
        ]
        try:
            failed = _wait(processes, timeout_s)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if failed is not None:
            pytest.fail(f"{failed}\n{_logs(folder, world_size)}", pytrace=False)
        return [json.loads(_result(folder, rank).read_text()) for rank in range(world_size)]


def _start(
    folder: Path, rank: int, world_size: int, port: int, accelerator: str
) -> subprocess.Popen[bytes]:
    environment = os.environ | {
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
    with _log(folder, rank).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.ranks", str(folder)],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _wait(processes: list[subprocess.Popen[bytes]], timeout_s: float) -> str | None:
    """Return why the ranks failed, as soon as one has; None when all are done."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code:
                return f"rank {rank} exited with code {code}"
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.05)
    return f"ranks still running after {timeout_s:g} s: a hang"


def _logs(folder: Path, world_size: int) -> str:
    texts = [_log(folder, rank).read_text(errors="replace")[-4000:] for rank in range(world_size)]
    return "\n".join(f"--- rank {rank}\n{text}" for rank, text in enumerate(texts))


def _log(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank}.log"


def _result(folder: Path, rank: int) -> Path:
    return folder / f"result_{rank}.json"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _main(folder: Path) -> None:
    function_path, kwargs = json.loads((folder / "arguments.json").read_text())
    module, function = function_path.split(":")
    value = getattr(importlib.import_module(module), function)(**kwargs)
    _result(folder, int(os.environ["RANK"])).write_text(json.dumps(value))
    # Threads of gloo that are left running while Python shuts down may abort the process.
    from llada_sft.training.ranks import leave_ranks

    leave_ranks()


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
