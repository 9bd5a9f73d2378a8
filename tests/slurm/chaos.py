"""A run that one fault after another befalls, beside one that is left alone.

    python tests/slurm/chaos.py --faults 12 --seed 0 [--profile accounting]

The demo's network trains with ZeRO-3 on two nodes of the test cluster, with two ranks on each. Each
attempt makes some steps, then a fault befalls it (faults.py); the last one runs to the end.
Meanwhile the same config trains on this machine without SLURM. At the end all ranks' weights and
optimizer states of both are equal bit for bit, and of every attempt holds what `verdict.py` asks
for: else exit code 1, with what does not.
"""

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import faults
from cluster import FINAL_STATES, PROFILES, Cluster, ClusterError, wanted_profile
from faults import Fault, Planned, Starter, Target
from processes import wait_until
from project import ROOT, new_project
from verdict import Attempt, judge, lost_steps
from weights import differences

from llada_sft.cluster import journal
from llada_sft.run_dir import RunDir

HOOK = Path(__file__).with_name("chaos_hook.py")
CHECKPOINT_EVERY = 6
# What the run may go on while a fault takes its effect (chaos_hook.py slows it).
SPARE_STEPS = 5
SPARE_STEPS_SLOW = {Fault.TIME_LIMIT: 35, Fault.SECOND_STARTER: 20}
# For one attempt, on a machine that has other things to do.
TIMEOUT_S = 900
LOCAL_TIMEOUT_S = 1800


@dataclass(frozen=True)
class Outcome:
    """What a chaos run was, and what does not hold of it."""

    attempts: Sequence[Attempt]
    problems: Sequence[str]

    def table(self) -> str:
        """Describe all attempts, a line each."""
        rows = [
            "attempt  fault                   at step  cause            resumed at  lost  seconds"
        ]
        for number, attempt in enumerate(self.attempts, start=1):
            following = self.attempts[number] if number < len(self.attempts) else None
            name = attempt.planned.fault.value if attempt.planned else "-"
            lost = str(lost_steps(attempt, following)) if following else "-"
            resumed = str(following.first - 1) if following else "-"
            rows.append(
                f"{number:>7}  {name:<22}  {attempt.last:>7}  {', '.join(attempt.causes):<15}"
                f"  {resumed:>10}  {lost:>4}  {attempt.seconds:>7.1f}"
            )
        return "\n".join(rows)


class ChaosRun:
    """One run under chaos.

    Args:
        cluster: Where it trains.
        project: The folder to launch from.
        plan: One fault for each attempt but the last.
        ranks_per_node: How many ranks a node has.
    """

    def __init__(
        self, cluster: Cluster, project: Path, plan: Sequence[Planned], ranks_per_node: int = 2
    ) -> None:
        self.cluster, self.project, self.plan = cluster, project, plan
        self._ranks_per_node = ranks_per_node
        self.max_steps = sum(one.after + SPARE_STEPS for one in plan)
        self.max_steps += sum(SPARE_STEPS_SLOW.get(one.fault, 0) for one in plan)
        self.max_steps += CHECKPOINT_EVERY
        self._problems: list[str] = []
        self.notes = project / "chaos"
        self.run = RunDir(project / "runs" / "chaos")
        self.calm = RunDir(project / "runs" / "calm")

    def execute(self) -> Outcome:
        """Train both, and judge.

        Raises:
            ClusterError: The job did not go on as far as the next fault.
        """
        self.notes.mkdir()
        plan = [{"fault": one.fault, "after": one.after, "rank": one.rank} for one in self.plan]
        (self.notes / "plan.json").write_text(json.dumps(plan))
        with self._calm_run() as calm:
            job = self._launch()
            try:
                times = self._faults(Target(self.cluster, job, self.run, self._starters()))
                restarts = self.cluster.wait_job(job, ["COMPLETED"], TIMEOUT_S)["Restarts"]
            finally:
                subprocess.run(["scancel", job], env=self.cluster.env, check=False)
            times.append(time.monotonic())
            calm_code = calm.wait(LOCAL_TIMEOUT_S)
        attempts = self._attempts(times)
        problems = self._problems + judge(attempts, int(restarts), self.max_steps, CHECKPOINT_EVERY)
        if calm_code:
            problems.append(f"the run without faults failed: exit code {calm_code}")
        last = f"step_{self.max_steps}"
        problems += differences(self.run.checkpoints / last, self.calm.checkpoints / last)
        return Outcome(attempts, problems)

    def trace(self) -> str:
        """Give what tells most about a run that did not go on."""
        files = [self.run.journal, self.project / "calm.out", *self.run.slurm.glob("*.out")]
        parts = [f"==> {file} <==\n{file.read_text()[-3000:]}" for file in files if file.exists()]
        return "\n".join(parts)

    def _command(self, name: str, *options: str) -> list[str]:
        return [
            *(sys.executable, "launch.py", "--config=config/demo.yaml", "--nodes=2", *options),
            *(f"run.name={name}", f"train.max_steps={self.max_steps}", "train.epochs=100"),
            *("train.micro_batch_size=4", f"slurm.ranks_per_node={self._ranks_per_node}"),
            f"train.checkpoint_every_steps={CHECKPOINT_EVERY}",
            *("data.prefetch_steps=0", f"data.hook={HOOK}", "data.validation=null"),
            # The hook is for ranks: it changes the training of the process that loads it.
            "data.try_rows=0",
            *("log.every_n_steps=1", "log.tensorboard=false"),
            *("slurm.node_failure_restarts=1000", f"slurm.time_min={faults.TIME_LIMIT_MIN}"),
            # Faults come faster than any cluster's preemptions.
            *(f"slurm.signal_lead_s={faults.SIGNAL_LEAD_S}", "slurm.min_steps_per_attempt=0"),
            # A start is slow where several tests run.
            *("train.hang_timeout_s=60", "train.hang_grace_s=900"),
        ]

    @contextmanager
    def _calm_run(self) -> Iterator[subprocess.Popen[bytes]]:
        """Train without faults, in the time that the other run leaves."""
        # Idle cores are enough: SLURM waits much.
        command = ["nice", "-n", "15", *self._command("calm", "--local")]
        with (self.project / "calm.out").open("wb") as output:
            process = subprocess.Popen(
                command, cwd=self.project, stdout=output, stderr=output, env=self.cluster.env
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()

    def _starters(self) -> list[Starter]:
        """List what may start this run a second time while its job trains."""
        template = ["sbatch", "--parsable", "--partition=low", "--nodes=1", "--output=second.out"]
        _, _, config, _, *overrides = self._command("chaos")
        return [
            Starter(self._command("chaos"), self.project),
            Starter(self._command("chaos", "--local"), self.project),
            Starter(
                [*template, "slurm/train.sbatch", config.partition("=")[2], *overrides],
                self.project,
                submits=True,
            ),
            Starter([sys.executable, "-m", "llada_sft", "resume", str(self.run.path)], ROOT),
        ]

    def _launch(self) -> str:
        command = self._command("chaos")
        env = {"LLADA_SFT_CHAOS": str(self.notes)}
        output = self.cluster.run(
            ["env", *(f"{k}={v}" for k, v in env.items()), *command], self.project
        )
        found = re.search(r"^job +(\d+)$", output, re.MULTILINE)
        if not found:
            raise ClusterError(f"not launched: {output}")
        return found[1]

    def _faults(self, target: Target) -> list[float]:
        """Let each fault befall its attempt; give the times at which the attempts began."""
        times = []
        for number, planned in enumerate(self.plan):
            self._wait_for_steps(target, number, 1)
            times.append(time.monotonic())
            self._wait_for_steps(target, number, planned.after)
            if planned.fault not in faults.IN_RANK and (problem := faults.inject(target, planned)):
                self._problems.append(f"attempt {number + 1} ({planned.fault}): {problem}")
            self._wait_for_requeue(target, number)
            faults.mend(target)
        self._wait_for_steps(target, len(self.plan), 1)
        times.append(time.monotonic())
        return times

    def _steps(self, number: int) -> list[int]:
        file = self.notes / f"attempt_{number}_rank_0.steps"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def _wait_for_steps(self, target: Target, number: int, count: int) -> None:
        def made() -> bool:
            return len(self._steps(number)) >= count

        self._wait(target, made, f"made no {count} steps", number)

    def _wait(self, target: Target, done: Callable[[], bool], problem: str, number: int) -> None:
        def over() -> bool:
            faults.wake_rested(target)
            return done() or target.cluster.job(target.job)["JobState"] in FINAL_STATES

        wait_until(over, TIMEOUT_S)
        if not done():
            job = target.cluster.job(target.job)
            raise ClusterError(f"attempt {number + 1} {problem}: {job}\n{self.trace()}")

    def _wait_for_requeue(self, target: Target, number: int) -> None:
        def requeued() -> bool:
            return int(target.cluster.job(target.job)["Restarts"]) > number

        self._wait(target, requeued, "was not requeued", number)

    def _attempts(self, times: Sequence[float]) -> list[Attempt]:
        """Put together what the ranks, the log and the journal say of each attempt."""
        entries = journal.read(self.run.journal)
        ended = [entry for entry in entries if entry["event"] == "ended"]
        saved = [entry for entry in entries if entry["event"] == "checkpoint"]
        damaged = [entry.get("attempt") for entry in entries if entry["event"] == "damaged"]
        plan: list[Planned | None] = [*self.plan, None]
        return [
            Attempt(
                planned,
                first=self._steps(number)[0],
                last=self._steps(number)[-1],
                loaded=self._loaded(number),
                causes=[e["cause"] for e in ended if e["attempt"] == number + 1],
                damaged=damaged.count(number + 1),
                seconds=times[number + 1] - times[number],
                saved=max((e["step"] for e in saved if e["attempt"] <= number + 1), default=0),
            )
            for number, planned in enumerate(plan)
        ]

    def _loaded(self, number: int) -> list[str]:
        """Name what the ranks of an attempt loaded, each name once."""
        files = self.notes.glob(f"attempt_{number}_rank_*.loaded")
        return sorted({file.read_text() for file in files})


def main() -> int:
    """Run what the command line asks for, and say how it went."""
    # Also then the cluster is stopped.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    parser = argparse.ArgumentParser(description="Random faults on a run of the test cluster.")
    parser.add_argument("--faults", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", choices=PROFILES, default=wanted_profile())
    names = [fault.value for fault in Fault]
    parser.add_argument("--only", choices=names, action="append", help="this fault, and such")
    options = parser.parse_args()
    generator = random.Random(options.seed)
    among = [Fault(one) for one in options.only or names]
    chosen = faults.choose_faults(options.faults, generator, among)
    plan = faults.make_plan(chosen, CHECKPOINT_EVERY, generator)
    print(f"{options.faults} faults, seed {options.seed}, profile {options.profile}", flush=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        Cluster(f"chaos-{options.profile}", options.profile) as cluster,
    ):
        outcome = ChaosRun(cluster, new_project(Path(folder)), plan).execute()
    print(outcome.table(), *outcome.problems, sep="\n")
    print("not as it should be" if outcome.problems else "as it should be")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
