"""All ranks of a run in the present allocation (`--here`): started with srun, watched as --local.

The allocation is the user's, not the run's: the launcher owns the run, as with --local, so nothing
is requeued, `llada-sft cancel` does not end the allocation, and the journal knows no job. Around
the ranks is what a batch script does: setup.sh, a port on the first node, and srun.

srun passes USR2 on to the ranks, and answers TERM by killing them: so Ctrl-C reaches the ranks as
USR2, and a second Ctrl-C reaches srun as TERM.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from llada_sft.cluster import history, journal, slurm
from llada_sft.cluster.attempt import supervisor
from llada_sft.cluster.attempt.evidence import SrunEnd
from llada_sft.cluster.attempt.verdict import Death
from llada_sft.cluster.batch import container
from llada_sft.cluster.launch.allocation import Allocation, without_steps
from llada_sft.cluster.launch.attended import exit_code_after, forwarded_signals
from llada_sft.cluster.owner.claim import hold
from llada_sft.cluster.owner.ownership import VARIABLE, Ownership
from llada_sft.cluster.rank.shown import SHOWN
from llada_sft.cluster.watch import status
from llada_sft.config import Config
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

POLL_S = 0.2
# A signal that reaches srun before its ranks run is lost: it is repeated.
REPEAT_S = 2.0
PORT_TIMEOUT_S = 120
_ENDED_BY_USR2 = "User defined signal 2"
# The kernel sends TERM to srun when its launcher is gone, however that ended (PR_SET_PDEATHSIG).
_ENDS_WITH_LAUNCHER = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
# The shell that becomes srun, after it has read what setup.sh exports from its standard input.
_WITH_SETUP = 'eval "$(cat)" && exec "$@" < /dev/null'
_START = [sys.executable, "-I", "-c", _ENDS_WITH_LAUNCHER, "bash", "-c", _WITH_SETUP, "bash"]


def run_in_allocation(run_dir: Path, config: Config) -> int:
    """Run all ranks until they end.

    Args:
        run_dir: A prepared run directory.
        config: The config in it.

    Returns:
        As `attended.exit_code_after`.

    Raises:
        ConfigError: The ranks do not fit into the allocation.
        LaunchError: There is no allocation, or somebody else owns the run.
        SupersededError: Somebody else has taken the run over.
    """
    allocation = Allocation.of(os.environ)
    allocation.require(config)
    run = RunDir(run_dir)
    if not (run.code / "llada_sft/cluster/launch" / Path(__file__).name).exists():
        raise LaunchError(
            f"{run.path}: was launched by an older llada_sft, whose ranks --here cannot start:"
            f"  {run.shell_command('resume', '--here', '--update-code')}"
        )
    with hold(run, "training", config.run.owner_timeout_s) as ownership:
        return _run_here(run, config, allocation, ownership)


def _run_here(run: RunDir, config: Config, allocation: Allocation, ownership: Ownership) -> int:
    run.logs.mkdir(exist_ok=True)
    environment = _environment(run, ownership, allocation)
    step = _Step(run, ownership)
    with forwarded_signals(step.send) as received:
        journal.append(run.journal, {"event": "launched"})
        nodes = min(allocation.num_nodes, max(config.slurm.node_range))
        world_size = nodes * config.slurm.ranks_per_node
        supervisor.begin(run, None, world_size, allocation.nodes)
        attempt = history.read(run.journal).current_number
        name = f"here_{allocation.job_id}"
        code, exports = supervisor.set_up(run, run.setup_log(name, attempt))
        if code:
            print(*status.failure_lines(run), sep="\n", file=sys.stderr)
            return code
        command = srun_command(run, config, allocation, nodes)
        end = SrunEnd(0, (), (), "")
        if not received:
            end = step.run(command, exports, environment, run.srun_log(name, attempt))
        ownership.require()
        deaths = [_without_blame(death) if received else death for death in end.deaths]
        verdict = supervisor.end_local(run, deaths, signalled=bool(received), srun=end)
    first = deaths[0].rank if deaths else 0
    return exit_code_after(run, verdict, first if end.exit_code else None, received, "--here")


def srun_command(run: RunDir, config: Config, allocation: Allocation, nodes: int) -> list[str]:
    """Return the srun command of the ranks; every option is given, so that no variable sets it."""
    ranks = config.slurm.ranks_per_node
    gpus = [] if allocation.gpus is None else [f"--gpus-per-node={allocation.gpus}"]
    return [
        *_srun(allocation, nodes),
        f"--ntasks={nodes * ranks}",
        f"--ntasks-per-node={ranks}",
        f"--cpus-per-task={config.slurm.cpus_per_rank}",
        "--kill-on-bad-exit=1",
        "--unbuffered",
        "--open-mode=append",
        f"--output={run.logs}/rank_%t.log",
        *gpus,
        *container.srun_words(config, run),
        *container.rank_words(config, run, sys.executable),
        *("-u", "-m", "llada_sft.cluster", "rank", str(run.path)),
    ]


def _srun(allocation: Allocation, nodes: int) -> list[str]:
    """Return the start of an srun command on the first nodes of an allocation.

    The shell may itself be a step (`srun --pty bash`) that holds all the CPUs: hence --overlap.
    """
    first = ",".join(slurm.hostnames(allocation.nodes)[:nodes])
    job = f"--jobid={allocation.job_id}"
    return ["srun", job, "--overlap", f"--nodes={nodes}", f"--nodelist={first}", "--export=ALL"]


class _Step:
    """The srun of the ranks."""

    def __init__(self, run: RunDir, ownership: Ownership) -> None:
        self._run = run
        ownership.on_lost = lambda: self.send(signal.SIGKILL)
        self._srun: subprocess.Popen[bytes] | None = None
        self._sent: list[int] = []

    def send(self, number: int) -> None:
        """Send a signal to all ranks: TERM, USR2 or KILL."""
        self._sent.append(number)
        if self._srun and self._srun.poll() is None:
            self._srun.send_signal(signal.SIGTERM if number == signal.SIGKILL else signal.SIGUSR2)

    def run(
        self, command: list[str], exports: str, environment: Mapping[str, str], log: Path
    ) -> SrunEnd:
        """Run srun, show the output of rank 0, and return how srun ended."""
        over = threading.Event()
        shown = threading.Thread(target=_show, args=(self._run.rank_log(0), over))
        with log.open("ab") as messages:
            self._srun = subprocess.Popen(
                [*_START, *command],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=messages,
                stderr=messages,
                start_new_session=True,
            )
        assert self._srun.stdin is not None
        # A signal may have ended it already.
        with suppress(BrokenPipeError), self._srun.stdin as stdin:
            stdin.write(os.fsencode(exports))
        shown.start()
        code = self._wait()
        over.set()
        shown.join()
        text = log.read_text(encoding="utf-8", errors="replace")
        print(text, end="", file=sys.stderr, flush=True)
        return SrunEnd.of(code, text)

    def _wait(self) -> int:
        assert self._srun is not None
        while True:
            try:
                code = self._srun.wait(REPEAT_S)
            except subprocess.TimeoutExpired:
                if self._sent and signal.SIGKILL not in self._sent:
                    self._srun.send_signal(signal.SIGUSR2)
            else:
                return code if code >= 0 else 128 - code


def _environment(run: RunDir, ownership: Ownership, allocation: Allocation) -> dict[str, str]:
    """Return the environment of srun and the ranks."""
    path = os.pathsep.join(filter(None, [str(run.code), os.environ.get("PYTHONPATH")]))
    environment = {
        **without_steps(os.environ),
        "PYTHONPATH": path,
        "PYTHONSAFEPATH": "1",
        VARIABLE: ownership.word,
        SHOWN: "1",
        "MASTER_ADDR": slurm.hostnames(allocation.nodes)[0],
    }
    return {**environment, "MASTER_PORT": _free_port(allocation, environment)}


def _free_port(allocation: Allocation, environment: Mapping[str, str]) -> str:
    """Ask the first node for a port; the shell of the launcher may be on another machine.

    Raises:
        LaunchError: The node does not answer.
    """
    command = [*_srun(allocation, 1), "--ntasks=1", sys.executable, "-m", "llada_sft.cluster"]
    try:
        done = subprocess.run(
            [*command, "port"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PORT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"srun: no process could be started in allocation {allocation.job_id} in"
            f" {PORT_TIMEOUT_S} s: are its nodes busy with another step (squeue --steps)?"
        ) from None
    if done.returncode:
        why = " ".join(done.stderr.split())
        raise LaunchError(f"allocation {allocation.job_id}: no port on its first node: {why}")
    return done.stdout.strip()


def _without_blame(death: Death) -> Death:
    """Return the death of a rank; USR2, which asks it to stop, ends one that cannot save yet."""
    if _ENDED_BY_USR2 not in death.how:
        return death
    return Death(death.rank, death.node, death.how, first=False)


def _show(log: Path, over: threading.Event) -> None:
    """Print what is added to a log until `over`."""
    position = log.stat().st_size if log.exists() else 0
    is_last = False
    while not is_last:
        is_last = over.wait(POLL_S)
        if log.exists():
            with log.open("rb") as file:
                file.seek(position)
                sys.stdout.buffer.write(file.read())
                sys.stdout.flush()
                position = file.tell()
