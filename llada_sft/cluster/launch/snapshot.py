"""Keeps what was launched with the run: code, versions, git's state. Secrets never reach a file."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import llada_sft
from llada_sft.cluster.launch.origin import Origin
from llada_sft.run_dir import RunDir
from llada_sft.versions import package_versions

PACKAGES = ("torch", "lightning", "deepspeed", "transformers", "submitit", "llada-sft")
_SECRET_NAME = re.compile(r"TOKEN|KEY|PASSWORD|PASSWD|SECRET|CREDENTIAL", re.IGNORECASE)
# Shorter values are flags and numbers, which would be redacted everywhere.
_MIN_SECRET_LENGTH = 8


def take_snapshot(
    run: RunDir, hook: str, setup: str | None, launched_from: Path, origin: Origin | None = None
) -> None:
    """Copy the package, the hook and the setup script, and record versions and git's state.

    Args:
        run: The run whose code/ is filled.
        hook: The hook to copy.
        setup: The setup script to copy, if any.
        launched_from: The folder whose git state is recorded.
        origin: The origin to record for both, if it is not `hook` and `setup`.
    """
    package = Path(llada_sft.__file__).parent
    for source in sorted(package.rglob("*.py")):
        # Only the content is copied: the user's umask determines the modes.
        copy = run.code / package.name / source.relative_to(package)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    shutil.copyfile(hook, run.hook)
    if setup is not None:
        shutil.copyfile(setup, run.setup)
    places = asdict(origin or Origin(hook, setup))
    run.origin.write_text(json.dumps(places, indent=2) + "\n", encoding="utf-8")
    run.versions.write_text(
        json.dumps(package_versions(PACKAGES), indent=2) + "\n", encoding="utf-8"
    )
    for name, text in git_state(launched_from).items():
        (run.code / name).write_text(redact(text), encoding="utf-8")


def code_version(run: RunDir) -> dict[str, str | None]:
    """Return the version and the commit of a run's code; None for each that is not known."""
    try:
        known = json.loads(run.versions.read_text(encoding="utf-8"))
        version = known.get("llada-sft")
    except (OSError, ValueError, AttributeError):
        version = None
    try:
        commit = (run.code / "commit.txt").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = None
    return {"version": version, "commit": commit}


def git_state(folder: Path) -> dict[str, str]:
    """Return commit, diff and untracked files by file name; empty outside a git repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    return {
        "commit.txt": commit,
        "diff.patch": _git(folder, "diff", "HEAD") or "",
        "untracked.txt": _git(folder, "ls-files", "--others", "--exclude-standard") or "",
    }


def checkout_of_the_package(otherwise: Path) -> Path:
    """Return the git checkout of the running package; `otherwise` if the package is installed."""
    package = Path(llada_sft.__file__).parent
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return otherwise
    return Path((_git(package, "rev-parse", "--show-toplevel") or str(otherwise)).strip())


def redact(text: str) -> str:
    """Redact the values of environment variables whose names indicate a secret."""
    secrets = [
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= _MIN_SECRET_LENGTH
    ]
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=60,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
