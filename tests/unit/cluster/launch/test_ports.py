"""Where the ranks meet."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llada_sft.cluster.launch import ports
from llada_sft.cluster.launch.ports import free_port, is_free
from llada_sft.errors import LaunchError


def ephemeral(folder: Path, text: str) -> Path:
    file = folder / "ip_local_port_range"
    file.write_text(text)
    return file


def test_the_kernel_gives_it_to_nobody() -> None:
    # What ephemeral means on this machine: 1,000 that the kernel gave.
    given = []
    for _ in range(1000):
        with socket.socket() as one:
            one.bind(("", 0))
            given.append(one.getsockname()[1])
    chosen = [free_port() for _ in range(100)]
    assert all(not min(given) <= port <= max(given) for port in chosen)
    # Jobs that start at the same time on one node do not meet each other.
    assert len(set(chosen)) > 50


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("32768\t60999\n", [*range(10_000, 32_768), *range(61_000, 65_536)]),
        ("1024 65000\n", range(65_001, 65_536)),
        ("15000 65535\n", range(10_000, 15_000)),
        ("1024 65535\n", range(10_000, 65_536)),
        ("", [*range(10_000, 32_768), *range(61_000, 65_536)]),
    ],
)
def test_whatever_the_kernel_gives(tmp_path: Path, text: str, allowed: range | list[int]) -> None:
    file = ephemeral(tmp_path, text)
    assert {free_port(file) for _ in range(20)} <= set(allowed)


def test_one_that_is_taken_is_passed_over(tmp_path: Path) -> None:
    first = next(port for port in range(20_000, 30_000) if is_free(port) and is_free(port + 1))
    # All but two.
    with pytest.MonkeyPatch.context() as patch, socket.socket() as service:
        patch.setattr(ports, "_PORTS", range(first, first + 2))
        service.bind(("127.0.0.1", first))
        service.listen()
        assert {free_port() for _ in range(20)} == {first + 1}
        with socket.socket() as other:
            other.bind(("", first + 1))
            with pytest.raises(LaunchError, match="no free TCP port for the ranks to meet at"):
                free_port()


def test_a_batch_script_gets_it_printed() -> None:
    command = [sys.executable, "-m", "llada_sft.cluster", "port"]
    assert int(subprocess.check_output(command)) in range(10_000, 65_536)
