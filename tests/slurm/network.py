"""Ports and host names for the daemons of a test cluster."""

import random
from collections.abc import Sequence
from pathlib import Path

from llada_sft.cluster.launch.ports import is_free

# Below the ephemeral ports: no outgoing connection takes one between the probe and the bind.
PORT_RANGE = range(20_000, 29_000)


def find_free_ports(count: int) -> int:
    """Return the first of `count` consecutive free ports; random, so that two starts differ."""
    for _ in range(100):
        first = random.randrange(PORT_RANGE.start, PORT_RANGE.stop - count)
        if all(is_free(port) for port in range(first, first + count)):
            return first
    raise OSError(f"no {count} consecutive free ports in {PORT_RANGE}")


def add_host_names(names: Sequence[str], file: Path = Path("/etc/hosts")) -> None:
    """Make the names mean this machine, where the file does not know them."""
    text = file.read_text()
    known = {word for line in text.splitlines() for word in line.partition("#")[0].split()[1:]}
    if unknown := [name for name in names if name not in known]:
        # Appended in place: in a container the file is a mount and cannot be replaced.
        with file.open("a") as hosts:
            newline = "" if text.endswith("\n") else "\n"
            hosts.write(f"{newline}127.0.0.1 {' '.join(unknown)} # SLURM test cluster\n")
