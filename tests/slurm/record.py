"""Write down what the SLURM of this machine prints where the package reads it.

    python tests/slurm/record.py                            # that of this machine
    .ci/with-slurm-of sid python tests/slurm/record.py      # that of a Debian suite

The answers go to tests/unit/cluster/recorded/VERSION.json, which test_recorded_versions.py reads:
each with the situation, the command, its exit code and what it printed. Paths of the cluster and
the name of this machine are replaced.
"""

import json
import os
import re
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import Cluster
from processes import wait_until

FOLDER = Path(__file__).parents[1] / "unit/cluster/recorded"
SETTINGS = """\
EnforcePartLimits=ALL
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos
"""
PARTITIONS = (
    "short Nodes=ALL MaxTime=10",
    "one Nodes=ALL MaxNodes=1 MaxMemPerNode=1000 MaxCPUsPerNode=2",
    "ours Nodes=node[1-2] AllowAccounts=ours AllowQos=small",
    "shut Nodes=ALL State=INACTIVE",
)
# Root is not held to limits, so this user asks whether a job may start.
USER = "daemon"
ACCOUNTS = (
    "add account ours",
    f"add user {USER} account=tests",
    "add qos small set MaxWall=10 MaxTRESPerJob=gres/gpu=1 Flags=DenyOnLimit",
    f"modify user {USER} set qos+=small",
)
JOB_TABLE = ("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%S|%N|%r")
REFUSED = {
    "time": ("--partition=short", "--time=60"),
    "nodes": ("--partition=one", "--nodes=2"),
    "more nodes than there are": ("--nodes=9",),
    "CPUs": ("--nodes=1", "--ntasks-per-node=9"),
    "memory": ("--mem=9G",),
    "memory of the partition": ("--partition=one", "--mem=2G"),
    "GPUs": ("--gpus-per-node=9",),
    "partition": ("--partition=nowhere",),
    "inactive partition": ("--partition=shut",),
    "account": ("--account=theirs",),
    "account of the partition": ("--partition=ours", "--account=tests"),
    "qos": ("--qos=nothing",),
    "wall time of the qos": ("--qos=small", "--time=60"),
    "GPUs of the qos": ("--qos=small", "--time=5", "--gpus-per-node=2"),
    "feature": ("--constraint=h100",),
    "reservation": ("--reservation=none",),
    "node name": ("--nodelist=node9",),
    "dependency": ("--dependency=afterok:999999",),
    "license": ("--licenses=matlab",),
    "nothing": ("--nodes=2", "--time=5"),
}
# Rank 3 of four ends in some way while the others wait.
ENDS = {
    "kill": "kill -9 $$",
    "exit": "exit 3",
    "segmentation": "kill -SEGV $$",
}
STEP = "[ $SLURM_PROCID = 3 ] && sleep 2 && {end}; sleep 60"
SRUN = ("srun", "--ntasks-per-node=2", "--kill-on-bad-exit=1", "--cpus-per-task=1")
NOT_STARTED = {
    "more CPUs than the job has": ("--cpus-per-task=9", "true"),
    "more nodes than the job has": ("--nodes=4", "true"),
    "more memory than the job has": ("--mem=64G", "true"),
    "more GPUs than the job has": ("--gpus-per-node=8", "true"),
    "an option that is not known": ("--nonsense", "true"),
    "a program that is not there": ("/nowhere/python",),
}
Answers = dict[str, dict[str, Any]]


class Recorder:
    """Asks a cluster, and keeps the answers.

    Args:
        cluster: The cluster.
        folder: Where scripts and logs are written; all users may read it.
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.answers: Answers = {}

    def ask(self, situation: str, *command: str, user: str | None = None) -> None:
        """Keep the answer to a command."""
        done = subprocess.run(
            command,
            env={**self.cluster.env, "SLURM_TIME_FORMAT": "%s"},
            cwd=self.folder,
            user=user,
            group=user,
            extra_groups=[] if user else None,
            capture_output=True,
            text=True,
        )
        self.keep(situation, shlex.join(command), done.returncode, done.stdout, done.stderr)

    def keep(self, situation: str, command: str, code: int, out: str, errors: str) -> None:
        """Keep an answer."""
        assert situation not in self.answers, situation
        self.answers[situation] = {
            "command": self._clean(command),
            "exit_code": code,
            "stdout": self._clean(out).splitlines(),
            "stderr": self._clean(errors).splitlines(),
        }

    def _clean(self, text: str) -> str:
        host = re.escape(socket.gethostname().split(".")[0])
        for folder, name in ((self.cluster.state_dir, "/slurm"), (self.folder, "/home")):
            text = text.replace(str(folder), name)
        return re.sub(rf"\b{host}\b", "login", text)

    def submit(self, name: str, script: str, *options: str) -> str:
        """Submit a script and return the job's number."""
        file = self.folder / "job.sh"
        file.write_text(f"#!/bin/bash\n{script}\n")
        args = ["sbatch", "--parsable", f"--job-name={name}", f"--output={self.folder}/%j.log"]
        return self.cluster.run([*args, *options, str(file)], cwd=self.folder).strip()

    def wait(self, job: str, state: str) -> None:
        """Wait until a job is in a state; squeue shows no text of a user's."""
        state_of = ("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}")
        _wait(lambda: self.cluster.run(state_of).strip() == state)

    def show(self, situation: str, job: str) -> None:
        """Keep what SLURM says of a job."""
        self.ask(situation, "scontrol", "--oneliner", "show", "job", job)


def _wait(done: Callable[[], bool]) -> None:
    if not wait_until(done, 120):
        raise TimeoutError("SLURM did not come to the state that is to be recorded")


def record_jobs(recorder: Recorder) -> None:
    """Record jobs in the states that a run can be in."""
    cluster, submit, show = recorder.cluster, recorder.submit, recorder.show
    waits = ("--begin=now+3600", "--nodes=2")
    show("job: begins later", submit("later", "true", *waits, "--comment=JobState=FAILED"))
    show("job: held", submit("hold", "true", "--hold"))
    bad = submit("x JobState=FAILED Restarts=9", "exit 3")
    recorder.wait(bad, "FAILED")
    show("job: failed", bad)
    show("job: depends on one that failed", submit("after", "true", f"--dependency=afterok:{bad}"))
    good = submit("good", "true", "--nodes=2", "--gpus-per-node=2", "--ntasks-per-node=2")
    recorder.wait(good, "COMPLETED")
    show("job: completed", good)
    array = submit("array", "true", "--array=3-9%2", "--begin=now+3600")
    show("job: array", array)
    runs = submit("runs", "sleep 600", "--nodes=2", "--requeue", "--signal=USR2@60", "--time=60")
    recorder.wait(runs, "RUNNING")
    show("job: running", runs)
    nodes = cluster.job(runs)["NodeList"]
    recorder.ask("nodes of a job", "scontrol", "show", "hostnames", nodes)
    cluster.run(["scontrol", "requeue", runs])
    _wait(lambda: cluster.job(runs)["Restarts"] == "1")
    show("job: requeued", runs)
    cluster.run(["scancel", runs])
    held = submit("held", "sleep 600", "--requeue")
    recorder.wait(held, "RUNNING")
    cluster.run(["scontrol", "requeuehold", held])
    _wait(lambda: cluster.job(held)["Restarts"] == "1")
    show("job: requeued and held", held)
    cluster.run(["scancel", held])
    ends = submit("ends", "trap '' TERM; sleep 600", "--nodes=1")
    recorder.wait(ends, "RUNNING")
    time.sleep(1)  # Until bash ignores TERM.
    cluster.run(["scancel", "--full", ends])
    time.sleep(1)
    show("job: is being cancelled", ends)
    recorder.wait(ends, "CANCELLED")
    show("job: cancelled", ends)
    record_preemption(recorder)
    every = ",".join([bad, good, array, runs, ends])
    recorder.ask("job table", *JOB_TABLE, f"--jobs={every}")
    show("job: not known", "999999")
    recorder.ask("job table: not known", *JOB_TABLE, "--jobs=999999")


def record_preemption(recorder: Recorder) -> None:
    """Record a job that is preempted, and the same after its grace time."""
    cluster = recorder.cluster
    all_nodes = ("--nodes=4", "--exclusive")
    low = recorder.submit("low", "trap '' USR2; while :; do sleep 1; done", *all_nodes)
    recorder.wait(low, "RUNNING")
    high = recorder.submit("high", "sleep 30", "--partition=high", *all_nodes)
    _wait(lambda: cluster.job(low).get("PreemptTime", "None") != "None")
    recorder.show("job: preempted", low)
    _wait(lambda: cluster.job(low)["Restarts"] == "1")
    recorder.show("job: requeued after its grace time", low)
    cluster.run(["scancel", low, high])
    recorder.wait(high, "CANCELLED")


def record_limit(recorder: Recorder) -> None:
    """Record a job that ran into its time limit."""
    job = recorder.submit("limit", "sleep 600", "--time=1")
    recorder.wait(job, "TIMEOUT")
    recorder.show("job: at its time limit", job)


def record_nodes(recorder: Recorder) -> None:
    """Record nodes in several states, the partitions and the configuration."""
    cluster = recorder.cluster
    update = ("scontrol", "update")
    busy = recorder.submit("busy", "sleep 600", "--nodelist=node1")
    whole = recorder.submit("whole", "sleep 600", "--nodelist=node2", "--exclusive")
    for job in (busy, whole):
        recorder.wait(job, "RUNNING")
    cluster.run([*update, "nodename=node3", "state=drain", "reason=memory [slot 3]"])
    reservation = "starttime=now duration=60 flags=maint users=root nodes=node4"
    cluster.run(["scontrol", "create", "reservation", *reservation.split()])
    _wait(lambda: "maint" in cluster.run(["sinfo", "--noheader", "--Node", "--format=%T"]))
    columns = "--format=%N|%c|%m|%T|%G"
    sinfo = ("sinfo", "--noheader", "--Node")
    recorder.ask("nodes: of a partition", *sinfo, "--partition=low", columns)
    recorder.ask("nodes: states", *sinfo, "--partition=low", "--format=%N %T")
    cluster.run([*update, "nodename=node1", "state=down", "reason=test"])
    recorder.ask("nodes: of a job", *sinfo, "--nodes=node[1-2]", "--format=%N %T")
    recorder.ask("partitions", "scontrol", "--oneliner", "show", "partition")
    recorder.ask("configuration", "scontrol", "show", "config")
    recorder.ask("nodes of two kinds", "scontrol", "show", "hostnames", "node[1-3],gpu7,a-[08-10]")
    cluster.run([*update, "nodename=node1", "state=resume"])
    cluster.run(["scancel", busy, whole])
    # A line for each reservation, its name first.
    name = cluster.run(["scontrol", "--oneliner", "show", "reservation"]).split()[0]
    cluster.run(["scontrol", "delete", name])
    cluster.run([*update, "nodename=node3", "state=resume"])
    states = ("sinfo", "--noheader", "--Node", "--partition=low", "--format=%T")
    _wait(lambda: set(cluster.run(states).split()) == {"idle"})


def record_refusals(recorder: Recorder) -> None:
    """Record what `sbatch --test-only` says."""
    script = recorder.folder / "job.sh"
    script.write_text("#!/bin/bash\ntrue\n")
    for what, options in REFUSED.items():
        command = ("sbatch", "--test-only", *options, str(script))
        recorder.ask(f"refusal: {what}", *command, user=USER)


def record_srun(recorder: Recorder) -> None:
    """Record what srun prints of ranks that end, and why it starts none."""
    cases = [
        *((f"ranks: {what}", ("bash", "-c", STEP.format(end=end))) for what, end in ENDS.items()),
        *((f"not started: {what}", words) for what, words in NOT_STARTED.items()),
    ]
    for situation, command in cases:
        words = shlex.join([*SRUN, *command])
        script = f"timeout 20 {words} 2> errors\necho $? > code"
        options = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2")
        job = recorder.submit("step", script, *options)
        recorder.wait(job, "COMPLETED")
        errors = (recorder.folder / "errors").read_text()
        recorder.keep(situation, words, int((recorder.folder / "code").read_text()), "", errors)


def main() -> None:
    """Record everything; a few minutes."""
    running = Cluster("record", "accounting", SETTINGS)
    with tempfile.TemporaryDirectory() as name, running as cluster:
        folder = Path(name)
        folder.chmod(0o755)
        for change in ACCOUNTS:
            cluster.run(["sacctmgr", "--immediate", *change.split()])
        for partition in PARTITIONS:
            cluster.run(["scontrol", "create", *f"PartitionName={partition}".split()])
        recorder = Recorder(cluster, folder)
        for part in (record_refusals, record_nodes, record_srun, record_limit, record_jobs):
            part(recorder)
        version = cluster.run(["scontrol", "--version"]).split()[-1]
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(recorder.answers, indent=1, ensure_ascii=False)
    (FOLDER / f"{version}.json").write_text(f"{text}\n", encoding="utf-8")
    print(f"{len(recorder.answers)} answers of SLURM {version}")


if __name__ == "__main__":
    os.umask(0o022)
    main()
