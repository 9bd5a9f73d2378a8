"""Random starters of one run, killed at random moments: one of them trains, and nothing is lost.

    python -m tests.unit.cluster.owner.many_starters --cases 200 [--first 0]

A case is a number, which keys all that is random in it. Its starters are processes: `launch.py
--local`, `llada-sft resume --local`, and jobs, which call `begin` and `end` as a batch script does.
All is real but SLURM, of which a stub of scontrol says whether a job's processes are there, and the
ranks: a rank "trains" by writing a line to a log of the case, and makes checkpoints of one file. In
between, launchers, jobs and ranks are killed (SIGKILL). At the end one more launch must finish it.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import NoReturn

import launch as launch_py
from llada_sft import cli
from llada_sft.cluster import journal
from llada_sft.cluster.attempt import supervisor
from llada_sft.cluster.attempt.evidence import BatchJob
from llada_sft.cluster.launch import local
from llada_sft.entry import exit_code
from llada_sft.run_dir import RunDir
from tests.unit.cluster.conftest import write_project

STEPS = 5
TIMEOUT_S = 120
# One rank: where it is killed, who started it must see that.
OVERRIDES = ["slurm.nodes=1", "slurm.ranks_per_node=1", "slurm.setup=null"]
RANK = """
import os, sys, time
from pathlib import Path
from llada_sft.cluster import history
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.owner import ownership
from llada_sft.cluster.rank.journal_writer import RankJournal
from llada_sft.errors import SupersededError
from llada_sft.run_dir import RunDir

log, steps, step_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
run = RunDir(Path(sys.argv[4]))
try:
    owned = ownership.of_rank(run, 0, os.environ)
except SupersededError as error:
    sys.exit(str(error) and 2)
assert owned is not None
log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
noted = RankJournal(run.journal, {"attempt": history.read(run.journal).current_number})
done = max([int(path.name[5:]) for path in run.checkpoints.glob("step_?")], default=0)
noted.note({"event": "resumed", "step": done})
for step in range(done + 1, steps + 1):
    os.write(log, f"{os.getpid()} {step}\\n".encode())
    time.sleep(step_s)
    owned.leave_if_lost()
    partial = run.checkpoints / f"step_{step}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "by").write_text(str(os.getpid()))
    owned.leave_if_lost()
    partial.rename(run.checkpoints / f"step_{step}")
    noted.note({"event": "checkpoint", "step": step})
noted.ended(Cause.FINISHED)
"""
# A job is there as long as one of its processes is.
SCONTROL = """#!/bin/sh
for id; do :; done
pid=$(cat {folder}/job_$id 2>/dev/null) && kill -s 0 -- "-$pid" 2>/dev/null &&
    {{ echo "JobId=$id JobState=RUNNING Restarts=0 NodeList=node1"; exit 0; }}
echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1
"""


@dataclass
class Starter:
    """A process that wants to train the run.

    Attributes:
        kind: launch, resume or job.
        pid: Its process, which leads a group of its own.
        output: What it printed.
        code: How it ended; None while it runs.
    """

    kind: str
    pid: int
    output: Path
    code: int | None = None


def play(number: int) -> int:
    """Play a case to its end.

    Returns:
        How many starters and ranks were killed.

    Raises:
        AssertionError: Two have trained at a time, or what is left does not fit.
    """
    prefix = f"starters_{number}_"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "project").mkdir()
        write_project(folder / "project")
        (folder / "scontrol").write_text(SCONTROL.format(folder=folder))
        (folder / "scontrol").chmod(0o755)
        case = _Case(folder, random.Random(number))
        try:
            return case.play()
        except AssertionError as error:
            raise AssertionError(f"case {number}: {error}\n{case.told()}") from error
        finally:
            case.end_all()


class _Case:
    def __init__(self, folder: Path, random_: random.Random) -> None:
        self._folder, self._random = folder, random_
        self._run = RunDir(folder / "project/runs/a")
        self._log = folder / "trained"
        self._starters: list[Starter] = []

    def play(self) -> int:
        killed = 0
        if self._random.random() < 0.7:
            # A run that is there already; else two build it at once.
            self._start("prepare")
            self._wait()
        first, second = self._kind(), self._kind()
        self._start(first)
        time.sleep(self._random.choice((0.0, self._random.uniform(0, 1.0))))
        self._start(second)
        for _ in range(self._random.choice((0, 1, 1, 2, 3))):
            time.sleep(self._random.uniform(0, 1.0))
            killed += self._kill()
        self._wait()
        self._start("launch")
        self._wait()
        self._check()
        return killed

    def told(self) -> str:
        """Say what there is to see of a case that failed."""
        files = [self._log, self._run.journal, *(one.output for one in self._starters)]
        return "\n".join(f"== {one.name}\n{one.read_text()}" for one in files if one.exists())

    def end_all(self) -> None:
        for starter in self._starters:
            with suppress(ProcessLookupError):
                os.killpg(starter.pid, signal.SIGKILL)

    def _kind(self) -> str:
        return self._random.choice(("launch", "launch", "resume", "job", "job"))

    def _start(self, kind: str) -> None:
        number = len(self._starters)
        output = self._folder / f"starter_{number}_{kind}"
        step_s = self._random.choice((0.0, 0.02, 0.1))
        if not (pid := os.fork()):
            _become(self._folder, output, self._act(kind, 1 + number, step_s))
        # Here, too: it may be killed before it has done that itself.
        with suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)
        self._starters.append(Starter(kind, pid, output))

    def _act(self, kind: str, number: int, step_s: float) -> Callable[[], int]:
        rank = [sys.executable, "-c", RANK, str(self._log), str(STEPS), str(step_s)]
        local.run_local.__defaults__ = (rank,)
        if kind == "job":
            return lambda: _job(self._folder, self._run, str(number), rank)
        words = ["resume", "runs/a", "--local"]
        if kind != "resume":
            words = [
                "--config",
                "a.yaml",
                *OVERRIDES,
                f"--{kind if kind == 'prepare' else 'local'}",
            ]

        def act() -> int:
            sys.argv = ["launch.py", *words]
            return cli.main() if kind == "resume" else launch_py.main()

        return act

    def _kill(self) -> int:
        """Kill a starter, or only a rank of one; a job loses all its processes."""
        alive = [one for one in self._starters if self._poll(one) is None]
        if not alive:
            return 0
        victim = self._random.choice(alive)
        if victim.kind == "job":
            os.killpg(victim.pid, signal.SIGKILL)
            return 1
        children = Path(f"/proc/{victim.pid}/task/{victim.pid}/children").read_text().split()
        pid = int(children[0]) if children and self._random.random() < 0.3 else victim.pid
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return 1

    def _poll(self, starter: Starter) -> int | None:
        if starter.code is None:
            pid, status = os.waitpid(starter.pid, os.WNOHANG)
            starter.code = os.waitstatus_to_exitcode(status) if pid else None
        return starter.code

    def _wait(self) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while any(self._poll(one) is None or _is_there(one) for one in self._starters):
            assert time.monotonic() < deadline, "a starter does not end"
            time.sleep(0.01)

    def _check(self) -> None:
        last = self._starters[-1]
        assert last.code == 0, f"nobody could finish the run: {last.code}"
        for one in self._starters[:-1]:
            assert one.code in (0, 1, 2, -signal.SIGKILL), f"{one.output.name}: {one.code}"
            if one.code == 2:
                _check_refusal(one)
        lines = [tuple(map(int, line.split())) for line in self._log.read_text().splitlines()]
        stretches = [pid for pid, _ in groupby(pid for pid, _ in lines)]
        assert len(stretches) == len(set(stretches)), "two have trained at a time"
        assert lines[0][1] == 1
        for (_, before), (_, after) in pairwise(lines):
            # A step is made again if its checkpoint was not there.
            assert after in (before, before + 1), "steps were lost, or left out"
        for step in range(1, STEPS + 1):
            by = int((self._run.checkpoints / f"step_{step}/by").read_text())
            assert by == [pid for pid, made in lines if made == step][-1], "a step was overwritten"
        _check_journal(journal.read(self._run.journal))


def _is_there(starter: Starter) -> bool:
    """Whether a process of a job is left, which its own end has not waited for."""
    if starter.kind != "job":
        return False
    try:
        os.killpg(starter.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _become(folder: Path, output: Path, act: Callable[[], int]) -> NoReturn:
    """Be a starter: with its own process group, output and exit code."""
    os.setpgid(0, 0)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    os.chdir(folder / "project")
    code = 3
    try:
        code = exit_code(act)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _job(folder: Path, run: RunDir, job_id: str, rank: list[str]) -> int:
    """Do what a batch script does."""
    beside = folder / f"{job_id}.partial"
    beside.write_text(str(os.getpgrp()))
    beside.rename(folder / f"job_{job_id}")
    if not run.config.exists():
        return 0
    job = BatchJob(job_id, 0, "node1", 1)
    if code := supervisor.begin(run, job, 1):
        return code
    environment = {**os.environ, "SLURM_JOB_ID": job_id, "PYTHONPATH": str(run.code)}
    code = subprocess.run([*rank, str(run.path)], env=environment, check=False).returncode
    return supervisor.end(run, job, abs(code))


def _check_refusal(starter: Starter) -> None:
    lines = starter.output.read_text().splitlines()
    words = ("is trained by", "is being launched by", "is being prepared by", "was taken over by")
    told = [line for line in lines if any(word in line for word in words)]
    if starter.kind == "resume" and not told:
        told = [line for line in lines if "not a run directory" in line]
    assert len(told) == 1, f"{starter.output.name} was refused, and not in one line"


def _check_journal(entries: list[journal.Entry]) -> None:
    starts = [number for number, entry in enumerate(entries) if entry.get("event") == "started"]
    attempts = [entries[first:end] for first, end in zip(starts, [*starts[1:], None], strict=True)]
    numbers = [attempt[0].get("attempt") for attempt in attempts]
    assert numbers == list(range(1, len(attempts) + 1)), "attempts are not counted"
    steps = [entry["step"] for entry in entries if entry.get("event") == "checkpoint"]
    assert steps == sorted(set(steps)), "a checkpoint is noted twice, or out of order"
    for attempt in attempts:
        own = [entry for entry in attempt if "attempt" in entry]
        assert {entry["attempt"] for entry in own} == {attempt[0]["attempt"]}, "attempts are mixed"
        ended = [entry for entry in attempt if entry.get("event") == "ended"]
        assert len(ended) == 1, "an attempt has not ended, or more than once"
    assert [one.get("cause") for one in ended] == ["finished"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    begin, killed = time.monotonic(), 0
    for number in range(options.first, options.first + options.cases):
        killed += play(number)
    print(f"{options.cases} cases, {killed} kills, {time.monotonic() - begin:.0f} s: all well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
