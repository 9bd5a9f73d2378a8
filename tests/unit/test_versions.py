"""Versions are found where packages are installed, and where the code is only on the path."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from llada_sft import __version__
from llada_sft.versions import package_versions

ROOT = Path(__file__).parents[2]


def test_installed_packages() -> None:
    versions = package_versions(["torch", "no-such-package"])
    assert list(versions) == ["python", "torch", "no-such-package"]
    assert versions["torch"] == metadata.version("torch")
    assert versions["no-such-package"] is None


def test_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert package_versions(["llada-sft", "torch"]).items() >= {
        ("llada-sft", __version__),
        ("torch", None),
    }


@pytest.mark.parametrize("command", [["launch.py"], ["-m", "llada_sft"]])
def test_a_command_says_its_version(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *command, "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"llada-sft {__version__}\n")
