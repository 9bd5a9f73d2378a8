"""Nodes that may be broken: excluded from later attempts, while enough others remain."""

from collections.abc import Sequence

from llada_sft.cluster import journal, slurm
from llada_sft.cluster.attempt.verdict import Verdict
from llada_sft.cluster.journal import Entry
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir


def leave_out(run: RunDir, started: Entry, verdict: Verdict, needed: int) -> None:
    """Exclude the node of a verdict from the job, which was just requeued, and say so.

    Args:
        run: The run directory.
        started: The attempt's entry.
        verdict: It names the node.
        needed: Nodes that the job needs.
    """
    job_id = started.get("job_id", "")
    entry: Entry = {"attempt": started.get("attempt", 0), "job_id": job_id, "node": verdict.node}
    try:
        fields = slurm.job_fields(job_id)
        left = remaining(fields, verdict.node)
        if len(left) < needed:
            raise LaunchError(
                f"the job needs {needed} nodes, and without it partition"
                f" {fields.get('Partition', '?')} has {len(left)} in service"
            )
        slurm.exclude(job_id, verdict.node)
    except LaunchError as error:
        text = f"node {verdict.node} may be broken and is not excluded: {error}"
        journal.append(run.journal, {"event": "warning", **entry, "detail": text})
        print(text, flush=True)
        return
    journal.append(run.journal, {"event": "excluded", **entry, "detail": verdict.error})
    print(f"node {verdict.node} is excluded from the next attempts: {verdict.error}", flush=True)


def remaining(fields: dict[str, str], node: str) -> list[str]:
    """List the nodes that a job could still get without this one and those excluded before.

    Raises:
        LaunchError: SLURM does not answer.
    """
    excluded = {node, *slurm.hostnames(fields.get("ExcNodeList", ""))}
    usable = slurm.usable_nodes(fields.get("Partition", ""))
    return [one for one in usable if one not in excluded]


def excluded(entries: Sequence[Entry]) -> list[str]:
    """Return the nodes that are excluded from the job that was launched last, and why."""
    jobs = [e.get("job_id") for e in entries if e.get("event") in ("launched", "started")]
    found = [
        entry
        for entry in entries
        if entry.get("event") == "excluded" and jobs and entry.get("job_id") == jobs[-1]
    ]
    return list(
        dict.fromkeys(
            f"{entry.get('node')} ({entry['detail']})"
            if "detail" in entry
            else entry.get("node", "")
            for entry in found
        )
    )
