"""Chooses the port at which the ranks meet, outside the kernel's ephemeral range.

Rank 0 binds this port a few seconds after it is chosen. It must not be in the kernel's ephemeral
range: otherwise srun may take it in between, rank 0 fails to bind, and the other ranks connect to
srun, which then hangs (four minutes observed) instead of killing them.
"""

import random
import socket
from collections.abc import Sequence
from pathlib import Path

from llada_sft.errors import LaunchError

# The file with the first and the last port of the range.
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_EPHEMERAL = (32_768, 60_999)
# Well-known services, which may start later, use the ports below.
_PORTS = range(10_000, 65_536)


def free_port(ephemeral: Path = _EPHEMERAL) -> int:
    """Choose a free port of this machine at random.

    Args:
        ephemeral: The file in which the kernel shows its ephemeral range.

    Raises:
        LaunchError: No port is free.
    """
    ports = _not_ephemeral(ephemeral)
    for port in random.sample(ports, len(ports)):
        if is_free(port):
            return port
    raise LaunchError("no free TCP port for the ranks to meet at; end what holds them all")


def is_free(port: int) -> bool:
    """Return whether a TCP port can be bound on all addresses."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _not_ephemeral(file: Path) -> Sequence[int]:
    try:
        first, last = map(int, file.read_text().split())
    except (OSError, ValueError):
        first, last = _USUAL_EPHEMERAL
    # If the range covers all ports, an ephemeral port must do.
    return [port for port in _PORTS if not first <= port <= last] or _PORTS
