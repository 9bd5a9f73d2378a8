"""Whether SLURM could ever start a job, asked on the login node before the job is submitted.

sbatch accepts much that then waits for ever: a time limit above the partition's, an account that
may not use it, a dependency on a job that has failed. What it refuses, it refuses in few words:
"Requested node configuration is not available". So the partition and its nodes are compared with
the config first (partitions.py), and `sbatch --test-only` is asked last.

`sbatch --test-only` only looks at nodes that are in service: it refuses a job whose nodes are
drained for an hour in the same words as one that no node can run (seen with 22.05.8), while sbatch
takes both. Where nodes are out of service, its refusal is therefore a warning.

A cluster that does not answer, or answers in another way, stops nothing here: sbatch decides.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence

from llada_sft.cluster import slurm
from llada_sft.cluster.batch import sbatch_environment
from llada_sft.cluster.batch.directives import sbatch_text
from llada_sft.cluster.preflight import partitions
from llada_sft.cluster.preflight.partitions import Partition
from llada_sft.config import Config
from llada_sft.errors import ConfigError, LaunchError
from llada_sft.run_dir import RunDir

# What `sbatch --test-only` says, and the key that it is about.
_KEYS = (
    ("account or", "slurm.account"),
    ("feature", "slurm.constraint"),
    ("partition", "slurm.partition"),
    ("reservation", "slurm.extra.reservation"),
    ("node name", "slurm.extra.nodelist"),
    ("wall", "slurm.time_min"),
    ("qos", "slurm.qos"),
    ("account", "slurm.account"),
    ("time limit", "slurm.time_min"),
    ("license", "slurm.extra.licenses"),
    ("wckey", "slurm.extra.wckey"),
    ("dependency", "slurm.extra.dependency"),
    ("node count", "slurm.nodes"),
    ("memory required", "slurm.mem_gb_per_node"),
)
# What it says where nodes are missing, for now or for ever.
_OF_NODES = re.compile(r"node configuration is not available|down, drained|nodes? (are|is) busy")
# What SLURM's library and a site's own checks print before the reason.
_ERROR = re.compile(r"(?:sbatch|allocation failure|error): *")
_FAILED = ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")


def require(config: Config, run: RunDir) -> list[str]:
    """Check that a job can start some day.

    Returns:
        One line for each thing that it waits for now.

    Raises:
        ConfigError: It has one line for each reason why it never will.
    """
    known = partitions.list_partitions(config)
    problems = [*partitions.problems_of(config, known), *_of_dependency(config)]
    waits = [
        f"slurm.partition: {partition.name} is DOWN: the job waits until it is UP again"
        for partition in known
        if partition.fields.get("State") == "DOWN"
    ]
    if not problems and (refusal := _asked(config, run)):
        away = list(_out_of_service(known)) if _OF_NODES.search(refusal.lower()) else []
        waits += [f"slurm.partition: {line}: the job waits for them" for line in away]
        problems = [] if away else [explain(refusal, _to_choose_from(refusal))]
    if problems:
        raise ConfigError("\n".join(problems))
    return [f"warning          {line}" for line in waits]


def _out_of_service(known: Sequence[Partition]) -> Iterator[str]:
    """Yield a line for each partition that has nodes which start no job now."""
    for partition in known:
        states = Counter(node.state for node in partition.nodes if not node.starts_jobs)
        if states:
            listed = ", ".join(f"{number} {state}" for state, number in states.items())
            yield (
                f"{sum(states.values())} of {len(partition.nodes)} nodes of partition"
                f" {partition.name} are out of service ({listed})"
            )


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


def _asked(config: Config, run: RunDir) -> str:
    """Return what `sbatch --test-only` has against the job; empty if nothing."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh", encoding="utf-8") as script:
        script.write(sbatch_text(config, run))
        script.flush()
        try:
            with sbatch_environment.for_sbatch(config):
                slurm.run_tool("sbatch", "--test-only", script.name)
        except LaunchError as error:
            return refusal_of(str(error).partition(f"{script.name}: ")[2])
    return ""


def refusal_of(answer: str) -> str:
    """Return the reason in an answer of `sbatch --test-only`; empty if it is not about this job.

    What a site's own check (job_submit plugin), or a limit of a QOS, adds to the reason is kept:
    "sbatch: error: QOSMaxGRESPerUser allocation failure: Job violates accounting/QOS policy".
    """
    if "allocation failure: " not in answer:
        return ""
    before, _, reason = answer.rpartition("allocation failure: ")
    parts = [part.strip() for part in (*_ERROR.split(before), reason)]
    return ": ".join(part for part in parts if part)


def _to_choose_from(refusal: str) -> list[str]:
    """Return the partitions of the cluster if a refusal says that there is no such partition."""
    return partitions.list_names() if "invalid partition" in refusal.lower() else []


def explain(refusal: str, choices: Sequence[str] = ()) -> str:
    """Return a line with the key that a refusal of sbatch is about, as far as its words say.

    Args:
        refusal: The words.
        choices: Values that the key may have, if they are known.
    """
    lower = refusal.lower()
    where = next((key for word, key in _KEYS if word in lower), None)
    if where is None:
        return (
            f"slurm: sbatch --test-only: {refusal}: the job would not start; compare it with"
            "  scontrol show partition  and  sinfo -N -l"
        )
    do = f"choose one of {', '.join(choices)}" if choices else "correct it"
    return f"{where}: sbatch --test-only: {refusal}; {do}"
