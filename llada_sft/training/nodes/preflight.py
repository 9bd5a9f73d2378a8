"""The check of a start: the ranks compare their nodes, then measure the links between them.

Every rank sends its facts to rank 0, which compares them, and all learn whether they may train. A
rank that is silent for `train.preflight_timeout_s` once all have started is named with its node.
An error of nodes ends the attempt as a node failure does: the job can run again without them. Any
other error is a mistake: a person must make the nodes alike.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta

import torch
import torch.distributed as dist

from llada_sft.config.schema import Config
from llada_sft.errors import LaunchError, NodeError, PeerFailedError
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.training.host import Host
from llada_sft.training.nodes import links
from llada_sft.training.nodes.facts import RankFacts, gather_facts, node_name
from llada_sft.training.nodes.findings import NodeFinding, compare_facts, nodes_of, one_line
from llada_sft.training.nodes.links import Exchange
from llada_sft.training.nodes.meeting import Meeting, SilentError

# How long rank 0, which has the store, waits for the others to leave before it ends.
_LEAVING_S = 2.0
# More silent ranks than these are counted, not named.
_MOST_SILENT = 8


class Preflight:
    """The comparison of the nodes, on one rank; every rank must make the same calls.

    Args:
        config: The whole config.
        run: The run directory.
        placement: This rank.
        host: Keeps the journal.

    Attributes:
        nodes: The node of each rank; empty where nothing was compared.
    """

    def __init__(self, config: Config, run: RunDir, placement: Placement, host: Host) -> None:
        self._config, self._run, self._placement, self._host = config, run, placement, host
        self._limit_s = float(config.train.preflight_timeout_s)
        self._meeting: Meeting | None = None
        self._facts: list[RankFacts] = []
        self._seconds = 0.0
        self.nodes: Sequence[str] = ()

    def compare_nodes(self) -> None:
        """Compare the nodes, before a device is chosen and a process group is made.

        Raises:
            NodeError: A node is not as the others, or does not answer (on rank 0).
            LaunchError: The nodes differ, and nobody is in the minority (on rank 0).
            PeerFailedError: Rank 0 has found an error.
        """
        # Ranks that have met before are those of a test.
        if self._config.train.preflight == "off" or dist.is_initialized():
            return
        start = time.monotonic()
        self._meeting = Meeting(
            self._placement, timedelta(seconds=self._config.collective_timeout_s)
        )
        self._meeting.answer("here", node_name())
        # Half of the limit: a file system that hangs is to be named before the rank is.
        facts = gather_facts(self._config, self._run, self._placement, self._limit_s / 2)
        self._meeting.answer("facts", asdict(facts))
        if self._placement.rank == 0:
            self._judge(self._meeting)
        else:
            self._hear(self._meeting)
        self._seconds = time.monotonic() - start

    def measure_links(self, device: torch.device) -> None:
        """Measure the links between the ranks, once there is a process group.

        Raises:
            NodeError: A node is slow, or exchanges no data (on rank 0).
            LaunchError: A link does not work, and neither end is known to be at fault (on rank 0).
        """
        if self._meeting is None:
            return
        start = time.monotonic()
        phases = links.plan_phases(self.nodes, within=device.type == "cuda")
        own = links.measure(phases, self._placement.rank, device, self._limit_s)
        self._meeting.answer("links", own)
        if self._placement.rank == 0:
            enough = links.fast_enough(device)
            self._judge_links(self._meeting, time.monotonic() - start, enough)

    def _judge(self, meeting: Meeting) -> None:
        """Compare the facts of all ranks, on rank 0, and announce whether they may train."""
        meeting.wait_for_start("here", lambda line: print(line, flush=True))
        try:
            facts = [RankFacts.parse(values) for values in meeting.answers("facts", self._limit_s)]
            meeting.announce("clock", time.time())
            meeting.answer("reading", (0.0, time.time()))
            self._facts = [
                replace(fact, clock_s=_clock_s(*reading))
                for fact, reading in zip(
                    facts, meeting.answers("reading", self._limit_s), strict=True
                )
            ]
            self.nodes = [fact.node for fact in self._facts]
            self._end_or_warn(compare_facts(self._facts))
        except (SilentError, LaunchError, NodeError) as error:
            for name in ("clock", "verdict"):
                meeting.announce(name, None)
            meeting.wait_for_leaving(_LEAVING_S)
            if isinstance(error, SilentError):
                raise self._silent(meeting, error, "to say what its node is like") from None
            raise
        meeting.announce("verdict", self.nodes)

    def _hear(self, meeting: Meeting) -> None:
        """Let rank 0 read this rank's clock, and learn from it whether all may train."""
        try:
            sent = meeting.hear("clock")
            if sent is not None:
                meeting.answer("reading", (time.time() - sent, time.time()))
                nodes = meeting.hear("verdict", 2 * self._limit_s)
        except SilentError as error:
            raise self._silent(meeting, error, "to say whether the nodes are alike") from None
        if sent is None or nodes is None:
            meeting.leave()
            raise PeerFailedError("the nodes differ, or a rank does not answer; see rank 0's line")
        self.nodes = nodes

    def _silent(self, meeting: Meeting, error: SilentError, what: str) -> NodeError:
        """Return the error that names ranks which do not answer."""
        names = [str(meeting.value("here", rank) or "?") for rank in error.ranks[:_MOST_SILENT]]
        lines = [
            f"rank {rank} ({one_line(name)}): was asked {what}, no answer within"
            f" {self._limit_s:g} s (train.preflight_timeout_s)"
            for rank, name in zip(error.ranks, names, strict=False)
        ]
        if more := len(error.ranks) - len(names):
            lines.append(f"and {_counted(more, 'rank')} more")
        return NodeError("\n".join(lines), names[0], error.ranks[0])

    def _judge_links(self, meeting: Meeting, seconds: float, enough: float) -> None:
        try:
            answers = list(meeting.answers("links", 2 * self._limit_s))
        except SilentError as error:
            raise self._silent(meeting, error, "to measure its links") from None
        exchanges = [Exchange(*one) for own in answers for one in own]
        self._end_or_warn(links.judge_links(exchanges, self._facts, enough))
        speeds = links.link_speeds(exchanges, self._facts)
        detail = f"{_counted(len(nodes_of(self._facts)), 'node')}, "
        detail += f"{_counted(len(self.nodes), 'rank')}: compared in {self._seconds:.2f} s"
        detail += _in_words(speeds, seconds)
        print(detail, flush=True)
        entry = {"event": "preflight", "detail": detail, "seconds": round(self._seconds, 3)}
        self._host.note({**entry, "speeds": speeds})

    def _end_or_warn(self, findings: Sequence[NodeFinding]) -> None:
        """Warn, on rank 0, of what is no error, and raise what is.

        Raises:
            NodeError: All errors are those of a minority of the nodes.
            LaunchError: Another error.
        """
        warns_only = self._config.train.preflight == "warn"
        errors = [] if warns_only else [finding for finding in findings if finding.is_error]
        for finding in findings:
            if finding not in errors:
                print(f"warning: {finding.text}", file=sys.stderr, flush=True)
                self._host.note({"event": "warning", "detail": finding.text})
        if not errors:
            return
        text = "\n".join(finding.text for finding in errors)
        at_fault = list(dict.fromkeys(node for finding in errors for node in finding.nodes))
        most = max(1, len(nodes_of(self._facts)) // 2)
        if all(finding.nodes for finding in errors) and len(at_fault) <= most:
            raise NodeError(text, at_fault[0], self.nodes.index(at_fault[0]))
        raise LaunchError(
            f"{text}\nmake the nodes alike, or run without some of them (slurm.exclude);"
            " train.preflight=warn starts in spite of this"
        )


def _clock_s(read_s: float, sent_at: float) -> float:
    """Return how far a rank's clock is ahead of this one.

    Both ways of a message take time: a clock that read rank 0's message `read_s` seconds after it
    was sent is at most so far ahead, and one whose message of `sent_at` is read here now is at
    least as far ahead as that; the middle is taken.
    """
    return (read_s + sent_at - time.time()) / 2


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"


def _in_words(speeds: dict[str, object], seconds: float) -> str:
    parts = [
        f"{speeds[f'{kind}_gb_per_s']} GB/s {words} (the least {speeds[f'{kind}_least_gb_per_s']}"
        f" GB/s, {speeds[f'{kind}_least_node']})"
        for kind, words in (("within", "within a node"), ("between", "between nodes"))
        if f"{kind}_gb_per_s" in speeds
    ]
    return f"; links in {seconds:.2f} s: {', '.join(parts)}" if parts else ""
