"""Ranks in a real apptainer, on a real SLURM; skipped where there is none.

Debian bookworm has none: .ci/with-slurm-of sid pytest tests/slurm/test_apptainer.py
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from conftest import Launched
from processes import wait_until

from llada_sft.cluster import journal

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
TIMEOUT_S = 240
# What a rank and its libraries call besides Python.
PROGRAMS = ("bash", "env", "ldconfig", "sh", "uname")
FOLDERS = ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr/bin", "var/tmp")
# Commas, colons, quotes and backslashes are refused in a mount.
HOSTILE_NAME = "a b  # $HOME $(touch pwned) `touch pwned` ; & (x) * ä日本"
HOSTILE_VALUE = HOSTILE_NAME + " \"d\" \\ \\n , :\t--x\n'end'"
# In place of Python: keeps what arrived.
PYTHON = """\
#!/bin/bash
printf '%s\\0' "$PWD" "$HOSTILE" "$@" > "{folder}/arrived.$SLURM_PROCID"
exec {python} "$@"
"""
# As on most clusters: a signal reaches the task alone, which is apptainer. With linuxproc and pgid
# it would reach the process that has mounted the image, too, which then ends.
SETTINGS = "ProctrackType=proctrack/cgroup\n"


@pytest.fixture(scope="module")
def cluster(slurm_installed: None, image: Path) -> Iterator[Cluster]:
    """Yield a cluster of its own."""
    with Cluster("images", settings=SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build an image with a shell and the libraries of this Python, but without Python itself."""
    if shutil.which("apptainer") is None:
        pytest.skip("apptainer is not installed: .ci/with-slurm-of sid has it")
    root = tmp_path_factory.mktemp("image")
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    for name in PROGRAMS:
        program = shutil.which(name)
        assert program, name
        shutil.copy(program, root / "usr/bin")
        shutil.copy(program, root / "bin")
    for library in libraries():
        copy = root / library.relative_to("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, copy)
    for name in ("passwd", "group", "hosts", "nsswitch.conf"):
        shutil.copy(f"/etc/{name}", root / "etc")
    sif = root.parent / f"image 'x' {HOSTILE_NAME}.sif"
    build = ["apptainer", "build", "--userns", str(sif), str(root)]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return sif


def libraries() -> set[Path]:
    """List the system's libraries of the programs, of Python and of torch."""
    files = [shutil.which(name) for name in PROGRAMS]
    for folder in (sys.base_prefix, sys.prefix):
        files += map(str, Path(folder, "lib").glob("**/*.so*"))
    files.append(sys.executable)
    printed = subprocess.run(
        ["ldd", *filter(None, files)], capture_output=True, text=True, check=False
    ).stdout
    found = set(re.findall(r"^\t(?:\S+ => )?(/\S+) \(0x", printed, re.MULTILINE))
    return {Path(name) for name in found if name.startswith(("/lib", "/usr/lib"))}


@pytest.fixture
def settings(image: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """Return a folder of hostile name, and what a config needs to train in the container."""
    folder = tmp_path / HOSTILE_NAME
    folder.mkdir()
    python = folder / f"python {HOSTILE_NAME}"
    python.write_text(PYTHON.format(folder="${BASH_SOURCE%/*}", python=sys.executable))
    python.chmod(0o755)
    setup = tmp_path / "setup.sh"
    # Root needs no user namespace, but for all capabilities, which a machine may not give.
    exports = {"HOSTILE": HOSTILE_VALUE, "APPTAINER_USERNS": "1"}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in exports.items()]
    setup.write_text("".join(lines))
    mounts = [".", sys.prefix, sys.base_prefix, str(folder)]
    container = {
        "kind": "apptainer",
        "image": str(image),
        "mounts": mounts,
        "workdir": str(folder),
        "python": str(python),
    }
    return folder, [
        "slurm.ranks_per_node=1",
        f"slurm.setup={setup}",
        f"slurm.container={json.dumps(container, ensure_ascii=False)}",
    ]


def test_what_arrives_in_the_container(
    cluster: Cluster, launched: Launched, settings: tuple[Path, list[str]]
) -> None:
    folder, overrides = settings
    run, job = launched("in_an_image", 3, *overrides)
    cluster.wait_job(job, ["COMPLETED"], TIMEOUT_S)
    for rank in range(2):
        words = (folder / f"arrived.{rank}").read_text().split("\0")
        assert words[:2] == [str(folder), HOSTILE_VALUE]
        assert words[2:] == ["-u", "-m", "llada_sft.cluster", "rank", str(run.path), ""]
    ended = [entry for entry in journal.read(run.journal) if entry["event"] == "ended"]
    assert [entry["cause"] for entry in ended] == ["finished"]
    for place in (folder.parent, run.path.parents[1]):
        assert not list(place.rglob("pwned"))


def test_a_run_in_a_container_is_told_to_stop(
    cluster: Cluster, launched: Launched, settings: tuple[Path, list[str]]
) -> None:
    """apptainer itself outlives the signal, the ranks save, and the batch script requeues."""
    run, job = launched("contained", 100_000, *settings[1], "train.epochs=100000")

    def trains() -> bool:
        log = next(iter(run.slurm.glob("*_0_log.out")), None)
        return log is not None and re.search(r"^step \d+/", log.read_text(), re.M) is not None

    assert wait_until(trains, TIMEOUT_S)
    cluster.run(["scancel", "--signal=USR2", job])
    cluster.wait_job(job, ["PENDING", "RUNNING"], TIMEOUT_S, restarts=1)
    ended = [entry for entry in journal.read(run.journal) if entry["event"] == "ended"]
    assert [(entry["cause"], entry["exit_code"]) for entry in ended] == [
        ("told to stop", 1),
        ("told to stop", 0),
    ]
    assert "scontrol not found on this machine" in ended[0]["error"]
    cluster.run(["scancel", job])
