"""Nodes that may be broken: excluded from later attempts, while enough others remain."""

from llada_sft.cluster import journal, slurm
from llada_sft.cluster.attempt.verdict import Verdict
from llada_sft.cluster.history import Attempt, History
from llada_sft.cluster.journal import Entry
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir


def leave_out(run: RunDir, attempt: Attempt, verdict: Verdict, needed: int) -> None:
    """Exclude the node of a verdict from the job, which was just requeued, and say so.

    Args:
        run: The run directory.
        attempt: The attempt that the verdict is on.
        verdict: It names the node.
        needed: Nodes that the job needs.
    """
    job_id = attempt.job_id or ""
    entry: Entry = {**attempt.key, "node": verdict.node}
    try:
        fields = slurm.job_fields(job_id)
        others = remaining(fields, verdict.node)
        if len(others) < needed:
            raise LaunchError(
                f"the job needs {needed} nodes, and without it partition"
                f" {fields.get('Partition', '?')} has {len(others)} in service"
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
    return [other for other in usable if other not in excluded]


def excluded(history: History) -> list[str]:
    """Return the nodes that are excluded from the job that was launched last, and why."""
    return list(
        dict.fromkeys(
            f"{entry.get('node')} ({entry['detail']})"
            if "detail" in entry
            else entry.get("node", "")
            for entry in history.excluded()
        )
    )
