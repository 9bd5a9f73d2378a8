"""The partitions that a job may run in and their nodes, compared with what the job asks for.

A cluster that does not answer, or answers in another way, stops nothing here: sbatch decides.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llada_sft.cluster import slurm
from llada_sft.cluster.batch import options
from llada_sft.config import Config
from llada_sft.errors import LaunchError

_NODE_FORMAT = "--format=%N|%c|%m|%T|%G"
# States that end by themselves: a reservation or a maintenance that is over.
_LENT = ("maint", "resv", "reserved")
# Commas inside parentheses belong to an entry: "gpu:a100:8(S:0,1),nvme:1".
_BETWEEN_RESOURCES = re.compile(r",(?![^(]*\))")
_NUMBER = re.compile(r"(\d+)([KMG]?)$", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Node:
    """A node as `sinfo` lists it.

    Attributes:
        name: Its name.
        cpus: Its CPUs.
        memory_mb: Its memory in MB.
        gpus: Its GPUs.
        state: Its state, with the character that `sinfo` may add: "idle*".
    """

    name: str
    cpus: int
    memory_mb: int
    gpus: int
    state: str

    @property
    def starts_jobs(self) -> bool:
        """Whether SLURM may start a job on it now; it may be busy with another one."""
        answers = slurm.is_in_service(self.state) and not self.state.endswith("*")
        return answers and not self.state.lower().startswith(_LENT)


@dataclass(frozen=True)
class Partition:
    """A partition as `scontrol show partition` and `sinfo` describe it.

    Attributes:
        name: Its name.
        fields: What `scontrol` says.
        nodes: Its nodes; none if `sinfo` does not answer.
    """

    name: str
    fields: Mapping[str, str]
    nodes: tuple[Node, ...]


def list_names() -> list[str]:
    """List the partitions of the cluster; none if SLURM does not answer."""
    return sorted(_all_partitions())


def list_partitions(config: Config) -> list[Partition]:
    """List the partitions that the job may run in; those that SLURM knows."""
    known = _all_partitions()
    asked = config.slurm.partition or os.environ.get("SBATCH_PARTITION")
    names = (
        asked.split(",")
        if asked
        else [name for name, fields in known.items() if fields.get("Default") == "YES"]
    )
    return [Partition(name, known[name], _nodes_of(name)) for name in names if name in known]


def _all_partitions() -> dict[str, dict[str, str]]:
    """Return what SLURM says of each partition, by its name; nothing if it does not answer."""
    try:
        text = slurm.run_tool("scontrol", "--oneliner", "show", "partition")
    except LaunchError:
        return {}
    lines = [slurm.parse_fields(line) for line in text.splitlines()]
    return {fields["PartitionName"]: fields for fields in lines if "PartitionName" in fields}


def _nodes_of(partition: str) -> tuple[Node, ...]:
    try:
        text = slurm.run_tool(
            "sinfo", "--noheader", "--Node", f"--partition={partition}", _NODE_FORMAT
        )
    except LaunchError:
        return ()
    return tuple(node for line in text.splitlines() if (node := parse_node(line)))


def parse_node(line: str) -> Node | None:
    """Read a line of `sinfo --format=%N|%c|%m|%T|%G`; None if it is something else.

    `sinfo` adds a plus sign to a number that differs between the nodes of a line.
    """
    columns = line.strip().split("|", 4)
    if len(columns) < 5:
        return None
    name, cpus, memory, state, resources = columns
    cpus, memory = cpus.rstrip("+"), memory.rstrip("+")
    if not (cpus.isdigit() and memory.isdigit()):
        return None
    return Node(name, int(cpus), int(memory), count_gpus(resources), state)


def count_gpus(resources: str) -> int:
    """Count the GPUs in a node's generic resources: "gpu:a100:8(S:0-1),nvme:1" has 8."""
    total = 0
    for entry in _BETWEEN_RESOURCES.split(resources):
        kind, *more = entry.partition("(")[0].strip().split(":")
        if kind.lower() != "gpu":
            continue
        found = _NUMBER.match(more[-1]) if more else None
        total += int(found[1]) * _UNITS[found[2].upper()] if found else 1
    return total


def problems_of(config: Config, partitions: list[Partition]) -> list[str]:
    """Return the reasons against each partition; none if one of them can start the job."""
    reasons: list[str] = []
    for partition in partitions:
        found = [*_limits(config, partition), *_nodes(config, partition)]
        if not found:
            return []
        reasons += found
    return reasons


def _limits(config: Config, partition: Partition) -> Iterator[str]:
    """Compare a job with the limits of a partition."""
    asked, name, fields = config.slurm, partition.name, partition.fields
    longest = minutes_of(fields.get("MaxTime", ""))
    if longest is not None and asked.time_min > longest:
        yield (
            f"slurm.time_min: {asked.time_min} min is above partition {name}'s {longest} min: the"
            " job will never start; lower it (a run resumes by itself), or take another partition"
        )
    yield from _numbers_of_nodes(config, partition)
    cpus, limit = asked.ranks_per_node * asked.cpus_per_rank, fields.get("MaxCPUsPerNode", "")
    if limit.isdigit() and cpus > int(limit):
        yield (
            f"slurm.cpus_per_rank: {_cpus(config)} CPUs of a node are above partition {name}'s"
            f" {limit}; lower it"
        )
    memory, limit = asked.mem_gb_per_node, fields.get("MaxMemPerNode", "")
    if memory is not None and limit.isdigit() and 1024 * memory > int(limit):
        yield (
            f"slurm.mem_gb_per_node: {memory} GB are above partition {name}'s"
            f" {int(limit) / 1024:.1f} GB: the job will never start; lower it"
        )
    for key, word in (("account", "Accounts"), ("qos", "Qos")):
        yield from _may_use(key, getattr(asked, key), partition, word)


def _numbers_of_nodes(config: Config, partition: Partition) -> Iterator[str]:
    name, fields = partition.name, partition.fields
    fewest, most = config.slurm.node_range[0], config.slurm.node_range[-1]
    limit = fields.get("MaxNodes", "")
    if limit.isdigit() and fewest > int(limit):
        yield (
            f"slurm.nodes: {fewest} nodes are above partition {name}'s {limit}: the job will never"
            " start; lower it, or take another partition"
        )
    limit = fields.get("MinNodes", "")
    if limit.isdigit() and most < int(limit):
        yield (
            f"slurm.nodes: {most} nodes are below the {limit} that partition {name} asks for: the"
            " job will never start; raise it, or take another partition"
        )
    there = fields.get("TotalNodes", "")
    if there.isdigit() and fewest > int(there):
        yield f"slurm.nodes: partition {name} has {there} nodes, got {fewest}; lower it"


def _may_use(key: str, value: str | None, partition: Partition, word: str) -> Iterator[str]:
    """Check an account or a quality of service against those that a partition takes."""
    allowed = partition.fields.get(f"Allow{word}", "ALL")
    denied = partition.fields.get(f"Deny{word}", "").split(",")
    if value is None:
        return
    if allowed not in ("ALL", "(null)") and value not in allowed.split(","):
        yield f"slurm.{key}: partition {partition.name} takes {allowed} alone, got {value}"
    elif value in denied:
        yield f"slurm.{key}: partition {partition.name} does not take {value}; take another one"


def _nodes(config: Config, partition: Partition) -> Iterator[str]:
    """Compare what is asked of a node with the largest one."""
    nodes = partition.nodes
    if not nodes:
        return
    asked, where = config.slurm, f"the nodes of partition {partition.name} have at most"
    cpus = max(node.cpus for node in nodes)
    if asked.ranks_per_node * asked.cpus_per_rank > cpus:
        yield f"slurm.cpus_per_rank: {where} {cpus} CPUs, got {_cpus(config)}; lower it"
    memory = max(node.memory_mb for node in nodes)
    if asked.mem_gb_per_node is not None and 1024 * asked.mem_gb_per_node > memory:
        yield (
            f"slurm.mem_gb_per_node: {where} {memory / 1024:.1f} GB,"
            f" got {asked.mem_gb_per_node}; lower it"
        )
    gpus, wanted = max(node.gpus for node in nodes), options.gpus_per_node(config)
    if wanted > gpus:
        key = "ranks_per_node" if asked.gpus_per_node is None else "gpus_per_node"
        yield f"slurm.{key}: {where} {gpus} GPUs, got {wanted}; lower it"


def _cpus(config: Config) -> str:
    asked = config.slurm
    product = asked.ranks_per_node * asked.cpus_per_rank
    return f"{asked.ranks_per_node} ranks × {asked.cpus_per_rank} = {product}"


def minutes_of(limit: str) -> int | None:
    """Return the minutes of a time limit of SLURM's: "1-02:03:04", "00:10:00"; None: no limit."""
    found = re.match(r"(?:(\d+)-)?(\d+):(\d+):(\d+)$", limit)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return 24 * 60 * days + 60 * hours + minutes + (seconds > 0)
