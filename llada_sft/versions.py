"""Versions of Python and of packages, without importing these."""

import platform
from collections.abc import Iterable
from importlib import metadata

from llada_sft import __version__


def package_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Return the version of Python and of each package; None if a package is not installed.

    A checkout of this project that is on the path, but not installed, has the version of its code.
    """
    return {"python": platform.python_version()} | {name: _version(name) for name in names}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return __version__ if package == "llada-sft" else None
