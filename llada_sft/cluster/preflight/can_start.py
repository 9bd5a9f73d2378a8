"""Whether SLURM could ever start a job, asked on the login node before the job is submitted.

sbatch accepts much that then waits for ever: a time limit above the partition's, an account that
may not use it, a dependency on a job that has failed. What it refuses, it refuses in few words:
"Requested node configuration is not available". So the partition and its nodes are compared with
the config first, and `sbatch --test-only` is asked last.

A cluster that does not answer, or answers in another way, stops nothing here: sbatch decides.
"""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from llada_sft.cluster import slurm
from llada_sft.cluster.batch import options, sbatch_environment, submit
from llada_sft.config import Config
from llada_sft.errors import ConfigError, LaunchError
from llada_sft.run_dir import RunDir

# What `sbatch --test-only` says, and the key that it is about.
_KEYS = (
    ("feature", "slurm.constraint"),
    ("partition", "slurm.partition"),
    ("reservation", "slurm.extra.reservation"),
    ("node name", "slurm.extra.nodelist"),
    ("account", "slurm.account"),
    ("qos", "slurm.qos"),
    ("time limit", "slurm.time_min"),
    ("license", "slurm.extra.licenses"),
    ("wckey", "slurm.extra.wckey"),
)
_FAILED = ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")


def require(config: Config, run: RunDir) -> None:
    """Check that a job can start some day.

    Raises:
        ConfigError: It has one line for each reason why it never will.
    """
    if problems := [*_of_partitions(config), *_of_dependency(config)] or list(_asked(config, run)):
        raise ConfigError("\n".join(problems))


def warnings(config: Config) -> list[str]:
    """Return a line for each partition that starts no job now, but may later."""
    return [
        f"warning          slurm.partition: {name} is DOWN: the job waits until it is UP again"
        for name, fields in _partitions(config)
        if fields.get("State") == "DOWN"
    ]


def _partitions(config: Config) -> list[tuple[str, Mapping[str, str]]]:
    """Return what SLURM says of the partitions that the job may run in; those that it knows."""
    try:
        text = slurm.run_tool("scontrol", "--oneliner", "show", "partition")
    except LaunchError:
        return []
    lines = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in text.splitlines()]
    known = {fields.get("PartitionName", ""): fields for fields in lines}
    asked = config.slurm.partition or os.environ.get("SBATCH_PARTITION")
    names = (
        asked.split(",")
        if asked
        else [name for name, fields in known.items() if fields.get("Default") == "YES"]
    )
    return [(name, known[name]) for name in names if name in known]


def _of_partitions(config: Config) -> list[str]:
    """Give the reasons against each partition; none if one of them can start the job."""
    reasons: list[str] = []
    for name, fields in _partitions(config):
        found = [*_limits(config, name, fields), *_nodes(config, name)]
        if not found:
            return []
        reasons += found
    return reasons


def _limits(config: Config, name: str, fields: Mapping[str, str]) -> Iterator[str]:
    """Compare a job with the limits of a partition."""
    asked = config.slurm
    longest = _minutes(fields.get("MaxTime", ""))
    if longest is not None and asked.time_min > longest:
        yield (
            f"slurm.time_min: {asked.time_min} min is above partition {name}'s {longest} min: the"
            " job will never start; lower it (a run resumes by itself), or take another partition"
        )
    nodes, most = asked.node_range[0], fields.get("MaxNodes", "")
    if most.isdigit() and nodes > int(most):
        yield (
            f"slurm.nodes: {nodes} nodes are above partition {name}'s {most}: the job will never"
            " start; lower it, or take another partition"
        )
    there = fields.get("TotalNodes", "")
    if there.isdigit() and nodes > int(there):
        yield f"slurm.nodes: partition {name} has {there} nodes, got {nodes}; lower it"
    cpus, limit = asked.ranks_per_node * asked.cpus_per_rank, fields.get("MaxCPUsPerNode", "")
    if limit.isdigit() and cpus > int(limit):
        yield (
            f"slurm.cpus_per_rank: {_cpus(config)} CPUs of a node are above partition {name}'s"
            f" {limit}; lower it"
        )
    for key, word in (("account", "Accounts"), ("qos", "Qos")):
        yield from _may_use(key, getattr(asked, key), name, fields, word)


def _may_use(
    key: str, value: str | None, name: str, fields: Mapping[str, str], word: str
) -> Iterator[str]:
    """Check an account or a quality of service against those that a partition takes."""
    allowed = fields.get(f"Allow{word}", "ALL")
    denied = fields.get(f"Deny{word}", "").split(",")
    if value is None:
        return
    if allowed not in ("ALL", "(null)") and value not in allowed.split(","):
        yield f"slurm.{key}: partition {name} takes {allowed} alone, got {value}"
    elif value in denied:
        yield f"slurm.{key}: partition {name} does not take {value}; take another one"


def _nodes(config: Config, partition: str) -> Iterator[str]:
    """Compare what is asked of a node with the largest one."""
    format_ = "--format=%c|%m|%G"
    try:
        text = slurm.run_tool("sinfo", "--noheader", "--Node", f"--partition={partition}", format_)
    except LaunchError:
        return
    rows = [line.strip().split("|") for line in text.splitlines()]
    rows = [row for row in rows if len(row) == 3 and row[0].rstrip("+").isdigit()]
    if not rows:
        return
    asked, where = config.slurm, f"the nodes of partition {partition} have at most"
    cpus = max(int(row[0].rstrip("+")) for row in rows)
    if asked.ranks_per_node * asked.cpus_per_rank > cpus:
        yield f"slurm.cpus_per_rank: {where} {cpus} CPUs, got {_cpus(config)}; lower it"
    memory = max(int(row[1].rstrip("+")) for row in rows)
    if asked.mem_gb_per_node is not None and 1024 * asked.mem_gb_per_node > memory:
        yield (
            f"slurm.mem_gb_per_node: {where} {memory / 1024:.1f} GB,"
            f" got {asked.mem_gb_per_node}; lower it"
        )
    gpus, wanted = max(_gpus(row[2]) for row in rows), options.gpus_per_node(config)
    if wanted > gpus:
        key = "ranks_per_node" if asked.gpus_per_node is None else "gpus_per_node"
        yield f"slurm.{key}: {where} {gpus} GPUs, got {wanted}; lower it"


def _cpus(config: Config) -> str:
    asked = config.slurm
    product = asked.ranks_per_node * asked.cpus_per_rank
    return f"{asked.ranks_per_node} ranks × {asked.cpus_per_rank} = {product}"


def _gpus(gres: str) -> int:
    """Count the GPUs in a node's list of resources: "gpu:a100:8(S:0-1),nvme:1" has 8."""
    found = re.findall(r"(?:^|,)gpu(?::[^:,()]+)??(?::(\d+))?(?=[(,]|$)", gres)
    return sum(int(number or 1) for number in found)


def _of_dependency(config: Config) -> Iterator[str]:
    """Check that the jobs that are waited for exist, and can still end well."""
    given = str(config.slurm.extra.get("dependency", ""))
    for part in re.split(r"[,?]", given):
        kind, *jobs = part.split(":")
        for job in jobs:
            number = job.partition("+")[0]
            if not number.isdigit() or kind in ("singleton",):
                continue
            try:
                fields = slurm.job_fields(number)
            except LaunchError:
                return
            state = fields.get("JobState", "")
            where = f"slurm.extra.dependency: {kind}:{number}"
            if not fields:
                yield f"{where}: SLURM has no job {number}: this one would wait for ever; remove it"
            elif kind == "afterok" and state.startswith(_FAILED):
                yield f"{where}: job {number} is {state}: this one would wait for ever; remove it"


def _asked(config: Config, run: RunDir) -> Iterator[str]:
    """Give what `sbatch --test-only` has against the job."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh", encoding="utf-8") as script:
        script.write(submit.sbatch_text(config, run))
        script.flush()
        try:
            with sbatch_environment.for_sbatch(config):
                slurm.run_tool("sbatch", "--test-only", script.name)
        except LaunchError as error:
            reason = str(error).rpartition("allocation failure: ")[2]
            if reason == str(error):
                # Not an answer about this job.
                return
            yield _explained(reason)


def _explained(reason: str) -> str:
    lower = reason.lower()
    where = next((key for word, key in _KEYS if word in lower), None)
    if where is None:
        return (
            f"slurm: sbatch --test-only: {reason}: the job would not start; compare it with"
            "  scontrol show partition  and  sinfo -N -l"
        )
    return f"{where}: sbatch --test-only: {reason}; correct it"


def _minutes(limit: str) -> int | None:
    """Return the minutes of a time limit of SLURM's: "1-02:03:04", "00:10:00"; None: no limit."""
    found: Sequence[str] | None = re.findall(r"^(?:(\d+)-)?(\d+):(\d+):(\d+)$", limit)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found[0])
    return 24 * 60 * days + 60 * hours + minutes + (seconds > 0)
