"""Runs a run's setup.sh, and finds out what it changes for the ranks.

It is a user's file, and may do anything: set options and traps, define functions named like
commands, change the folder, close its output, or exit. So it is sourced by a bash of its own, which
then reports its exported variables, resource limits and umask. Nothing else passes on. The batch
script loads these in the process that becomes srun, and nowhere else: `end` runs with the
environment that the job was given.
"""

import json
import os
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

# Run by the bash that has sourced the file. Not `env -0`, which a function may have replaced.
_REPORT = """\
import json, os, resource, sys
limits = [resource.getrlimit(number) for number in json.loads(sys.argv[3])]
report = {"status": int(sys.argv[2]), "limits": limits, "umask": os.umask(0)}
with open("/proc/self/environ", "rb") as environ, open(sys.argv[1], "wb") as file:
    file.write(json.dumps(report).encode() + b"\\n" + environ.read())
"""
# Options of bash's `ulimit`, and its units: in bytes, or 1 for a count.
_LIMITS = {
    resource.RLIMIT_CORE: ("c", 1024),
    resource.RLIMIT_DATA: ("d", 1024),
    resource.RLIMIT_FSIZE: ("f", 1024),
    resource.RLIMIT_MEMLOCK: ("l", 1024),
    resource.RLIMIT_NOFILE: ("n", 1),
    resource.RLIMIT_STACK: ("s", 1024),
    resource.RLIMIT_CPU: ("t", 1),
    resource.RLIMIT_NPROC: ("u", 1),
    resource.RLIMIT_AS: ("v", 1024),
}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Bash's own, and those that cannot be assigned.
_OF_BASH = {"_", "SHLVL", "PWD", "OLDPWD", "SHELLOPTS", "BASHOPTS", "UID", "EUID", "PPID"}
# Variables of the batch script, which the file neither sees nor changes.
_OURS = {"MASTER_ADDR", "MASTER_PORT", "PYTHONSAFEPATH"}
SHOWN_LINES = 5


@dataclass(frozen=True)
class Surroundings:
    """What a process passes on to the processes that it starts.

    Attributes:
        limits: Soft and hard, in the order of `_LIMITS`.
    """

    variables: Mapping[str, str]
    limits: list[tuple[int, int]]
    umask: int


def run_setup(run: RunDir, log: Path) -> str:
    """Source setup.sh in a bash of its own, and return what it changes, as lines for a bash.

    Args:
        run: The run directory.
        log: The file for its output, which is printed, too.

    Raises:
        LaunchError: The file is missing, or exited; the message has the last lines of its output.
    """
    if not _is_wanted(run):
        return ""
    if not run.setup.exists():
        raise LaunchError(
            f"{run.setup}: no such file, but slurm.setup is set; launch the same config again,"
            " which copies the file, or set slurm.setup=null"
        )
    before = _surroundings(run)
    try:
        report, code = _source(run.setup, before.variables, log)
        output = _show(log)
    except OSError as error:
        raise LaunchError(f"{log}: cannot be written: {error.strerror}") from None
    head, _, environ = report.partition(b"\n")
    if not head:
        raise LaunchError(_failure(run, code, output))
    said = json.loads(head)
    if said["status"] and "syntax error" in output:
        raise LaunchError(_failure(run, said["status"], output))
    if said["status"]:
        print(f"{run.setup}: its last command gave exit code {said['status']}", file=sys.stderr)
    after = Surroundings(_parse(environ), [tuple(pair) for pair in said["limits"]], said["umask"])
    return "".join(f"{line}\n" for line in _changes(run, before, after))


def _is_wanted(run: RunDir) -> bool:
    from llada_sft.config import load_config
    from llada_sft.errors import ConfigError

    try:
        return load_config(run.config).slurm.setup is not None
    except ConfigError:
        # The ranks report it.
        return False


def _surroundings(run: RunDir) -> Surroundings:
    """Describe this process as it was before the batch script put the run's code first."""
    variables = {name: value for name, value in os.environ.items() if name not in _OURS}
    if path := _without_code(run, variables.pop("PYTHONPATH", "")):
        variables["PYTHONPATH"] = path
    umask = os.umask(0)
    os.umask(umask)
    return Surroundings(variables, [resource.getrlimit(number) for number in _LIMITS], umask)


def _source(setup: Path, variables: Mapping[str, str], log: Path) -> tuple[bytes, int]:
    """Source the file; return bash's report (empty if the file exited), and its exit code."""
    # In memory: variables may be secrets. Opened by its path: the file may close what it inherits.
    memory = os.memfd_create("setup")
    report = f"/proc/{os.getpid()}/fd/{memory}"
    python = [sys.executable, "-I", "-S", "-c", _REPORT, report]
    limits = shlex.quote(json.dumps([int(number) for number in _LIMITS]))
    # One line: it is parsed before an alias can be defined. Not in a condition, which would switch
    # off `set -e` in the file.
    script = f'{{ source {shlex.quote(str(setup))}; {shlex.join(python)} "$?" {limits}; }}'
    with log.open("wb") as output, os.fdopen(memory, "rb") as file:
        done = subprocess.run(
            ["bash", "-c", script],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return file.read(), done.returncode


def _show(log: Path) -> str:
    """Print the output of the file and return it; remove an empty log."""
    text = log.read_text(encoding="utf-8", errors="replace")
    if not text:
        log.unlink()
    print(text, end="", file=sys.stderr, flush=True)
    return text


def _failure(run: RunDir, code: int, output: str) -> str:
    from llada_sft.cluster.launch.snapshot import redact

    lines = [line.strip() for line in output.splitlines() if line.strip()]
    said = redact(" | ".join(lines[-SHOWN_LINES:])) or "without output"
    how = f"exit code {code}" if code >= 0 else f"signal {-code}"
    return (
        f"{run.setup}: ended the shell that sourced it, with {how}: {said};"
        " fix the file of slurm.setup and launch the same config again"
    )


def _parse(environ: bytes) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in os.fsdecode(environ).split("\0") if "=" in pair)
    return {name: value for name, _, value in pairs}


def _changes(run: RunDir, before: Surroundings, after: Surroundings) -> Iterator[str]:
    # Limits first: a variable can change how bash counts them (POSIXLY_CORRECT).
    if after.umask != before.umask:
        yield f"umask {after.umask:04o}"
    for (letter, unit), old, new in zip(_LIMITS.values(), before.limits, after.limits, strict=True):
        if new != old:
            soft, hard = ("unlimited" if limit < 0 else str(limit // unit) for limit in new)
            yield f"ulimit -SH -{letter} {hard} && ulimit -S -{letter} {soft}"
    names = {name for name in {*before.variables, *after.variables} if _NAME.fullmatch(name)}
    for name in sorted(names - _OF_BASH - _OURS - {"PYTHONPATH"}):
        value = after.variables.get(name)
        if value is None:
            yield f"unset -v {name}"
        elif value != before.variables.get(name):
            yield f"export {name}={shlex.quote(value)}"
    path = _without_code(run, after.variables.get("PYTHONPATH", ""))
    yield f"export PYTHONPATH={shlex.quote(':'.join(filter(None, [str(run.code), path])))}"


def _without_code(run: RunDir, path: str) -> str:
    return ":".join(part for part in path.split(":") if part and part != str(run.code))
