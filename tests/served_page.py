"""A page that a command serves until it is interrupted: `llada-sft report RUN --serve`."""

import os
import signal
import subprocess
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.doc_commands import environment_of


def read_served_page(
    command: str, folder: Path, environment: Mapping[str, str] = os.environ
) -> str:
    """Run a command as a user types it, read the page at the address that it prints, and end it."""
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=folder,
        env=environment_of(environment),
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        try:
            address = server.stdout.readline().strip()
            with urllib.request.urlopen(address, timeout=30) as answer:
                page = str(answer.read().decode())
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) == 0
    return page
