"""All ranks of a run on this machine: the same program as under SLURM, started without it.

Each rank has its own process group, so that Ctrl-C reaches only the launcher, and so that a rank is
ended together with its data workers. The output of rank 0 is shown on the terminal; every rank has
a log file.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from llada_sft.cluster import journal
from llada_sft.cluster.attempt import supervisor
from llada_sft.cluster.attempt.verdict import Death
from llada_sft.cluster.launch.attended import exit_code_after, forwarded_signals
from llada_sft.cluster.launch.ports import free_port
from llada_sft.cluster.owner.claim import hold
from llada_sft.cluster.owner.ownership import VARIABLE, Ownership
from llada_sft.cluster.rank.shown import SHOWN
from llada_sft.config import Config
from llada_sft.run_dir import RunDir

RANK_COMMAND = (sys.executable, "-u", "-m", "llada_sft.cluster", "rank")
# The time between TERM and KILL for the remaining ranks: enough to report where they are.
GRACE_S = 10.0
POLL_S = 0.1


def run_local(run_dir: Path, config: Config, command: Sequence[str] = RANK_COMMAND) -> int:
    """Run all ranks until they end.

    Args:
        run_dir: A prepared run directory.
        config: The config in it.
        command: The program of a rank; the run directory is its argument.

    Returns:
        0 if all ranks finished; 2 for a mistake of the user's, which is printed; 128 + the signal
        that stopped the run; otherwise 1 (71 for a hang), and the end of the log of the rank that
        failed first is printed.

    Raises:
        LaunchError: Somebody else owns the run.
        SupersededError: Somebody else has taken the run over.
    """
    run = RunDir(run_dir)
    with hold(run, "training", config.run.owner_timeout_s) as ownership:
        return _run_local(run, config, command, ownership)


def _run_local(run: RunDir, config: Config, command: Sequence[str], ownership: Ownership) -> int:
    run.logs.mkdir(exist_ok=True)
    ranks = _Ranks(ownership)
    # This comes first: after a signal to the launcher no rank may keep running, and no attempt may
    # lack its `ended`.
    with forwarded_signals(ranks.send) as received:
        journal.append(run.journal, {"event": "launched"})
        supervisor.begin(run, None, config.world_size)
        deaths = [] if received else ranks.run(run, config, [*command, str(run.path)])
        ownership.require()
        verdict = supervisor.end_local(run, deaths, signalled=bool(received))
    failed = deaths[0].rank if deaths else None
    return exit_code_after(run, verdict, failed, received, "--local")


class _Ranks:
    """The processes of all ranks, ended together."""

    def __init__(self, ownership: Ownership) -> None:
        self._ownership = ownership
        ownership.on_lost = lambda: self.send(signal.SIGKILL)
        self.processes: list[subprocess.Popen[bytes]] = []
        self._sent: list[int] = []
        self._shown = threading.Thread()

    def run(self, run: RunDir, config: Config, command: list[str]) -> list[Death]:
        """Start all ranks, wait for them, and return those that failed."""
        self._start(run, config, command)
        return self._wait()

    def _start(self, run: RunDir, config: Config, command: list[str]) -> None:
        port = free_port()
        for rank in range(config.world_size):
            environment = _environment(run, config, rank, port)
            environment[VARIABLE] = self._ownership.word
            if rank == 0:
                environment[SHOWN] = "1"
            self.processes.append(_start(command, environment, run.rank_log(rank), rank))
        output = self.processes[0].stdout
        assert output is not None
        self._shown = threading.Thread(target=_show, args=(output, run.rank_log(0)))
        self._shown.start()
        # Signals that came while the ranks were being started reached only some of them.
        for number in tuple(self._sent):
            self.send(number)

    def send(self, number: int) -> None:
        self._sent.append(number)
        for process in self.processes:
            # The group outlives its leader as long as a data worker runs.
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                continue

    def _wait(self) -> list[Death]:
        """Wait for all ranks; if one fails, end the others, and return those that failed before."""
        failed: list[Death] = []
        while not failed and any(process.poll() is None for process in self.processes):
            time.sleep(POLL_S)
            failed = self._failed()
        failed = failed or self._failed()
        if failed:
            self._end()
        else:
            # A process that a hook started may outlive its rank, and keep the output open.
            self.send(signal.SIGKILL)
        self._shown.join()
        return failed

    def _failed(self) -> list[Death]:
        codes = [process.poll() for process in self.processes]
        # A forwarded signal ends a rank that does not handle it yet, and a second Ctrl-C kills all
        # ranks: such a rank did not fail first.
        killed = signal.SIGKILL in self._sent
        return [
            Death(rank, "", _how(code), first=not killed and -code not in self._sent)
            for rank, code in enumerate(codes)
            if code
        ]

    def _end(self) -> None:
        self.send(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline and any(
            process.poll() is None for process in self.processes
        ):
            time.sleep(POLL_S)
        self.send(signal.SIGKILL)
        for process in self.processes:
            process.wait()


def _how(code: int) -> str:
    """Return how a rank ended, in srun's words."""
    return f"Exited with exit code {code}" if code > 0 else signal.strsignal(-code) or str(code)


def _start(
    command: list[str], environment: dict[str, str], log: Path, rank: int
) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if rank == 0 else file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _environment(run: RunDir, config: Config, rank: int, port: int) -> dict[str, str]:
    # In an interactive SLURM job the ranks must not take themselves for ranks of that job.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    node_rank, local_rank = divmod(rank, config.slurm.ranks_per_node)
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(run.code), os.environ.get("PYTHONPATH")])),
        "PYTHONSAFEPATH": "1",
        "RANK": str(rank),
        "WORLD_SIZE": str(config.world_size),
        "LOCAL_RANK": str(local_rank),
        "NODE_RANK": str(node_rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _show(output: BinaryIO, log: Path) -> None:
    """Copy rank 0's output to the terminal and to its log, without a delay."""
    with output, log.open("ab", buffering=0) as file:
        while chunk := os.read(output.fileno(), 1 << 16):
            file.write(chunk)
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
