"""Pairs of ranks exchange data, all pairs at once: a slow node or link is named.

A ring of the nodes, and on GPUs another one of the ranks of each node, is divided into phases in
which each rank has at most one partner. No pair waits for another one, so a slow node does not make
the others look slow, as it would in an all-reduce. The process group of all ranks is used as it is:
another communicator of NCCL's would cost memory and seconds.

A rank is as fast as the faster of its two links: the neighbours of a slow one have another.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from llada_sft.training.nodes.facts import RankFacts
from llada_sft.training.nodes.findings import NodeFinding, named, nodes_of

Kind = Literal["within", "between"]
_WHERE: Mapping[Kind, str] = {"within": "within its node", "between": "to other nodes"}
# One direction of an exchange; gloo over a network is slower.
_GPU_BYTES, _CPU_BYTES = 64 << 20, 1 << 20
_REPEATS = 3
# A rank or a link is slow below this part of the median ...
_SLOW_PART = 1 / 3
# ... unless, on CPUs, it is faster than this: where they are busy, numbers vary.
_CPU_FAST_ENOUGH_GB_PER_S = 0.02
# Fewer nodes, or numbers of one node, are not compared; slower than this is worth a warning then.
_LEAST_COMPARED, _LEAST_GB_PER_S = 3, 0.01


class Exchange(NamedTuple):
    """What one rank measured with a partner; `gb_per_s` is None if it did not end in time."""

    rank: int
    partner: int
    kind: Kind
    gb_per_s: float | None


class LinkPhase(NamedTuple):
    """Pairs of ranks that exchange data at the same time, each rank with its partner."""

    kind: Kind
    partners: Mapping[int, int]


def plan_phases(nodes: Sequence[str], within: bool) -> list[LinkPhase]:
    """Return who exchanges data with whom.

    Args:
        nodes: The node of each rank.
        within: Whether the ranks of a node exchange data with each other, too.
    """
    of_node: dict[str, list[int]] = defaultdict(list)
    for rank, node in enumerate(nodes):
        of_node[node].append(rank)
    most = max(map(len, of_node.values()))
    rings: dict[Kind, list[list[int]]] = {
        "within": list(of_node.values()) if within else [],
        "between": [[own[i] for own in of_node.values() if i < len(own)] for i in range(most)],
    }
    phases: list[LinkPhase] = []
    for kind, members in rings.items():
        divided = [_phases_of_ring(ring) for ring in members]
        for number in range(max(map(len, divided), default=0)):
            pairs = [pair for ring in divided if number < len(ring) for pair in ring[number]]
            phases.append(LinkPhase(kind, dict(pairs) | {b: a for a, b in pairs}))
    return phases


def _phases_of_ring(ring: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Divide the links of a ring so that no member has two links in a phase."""
    links = list(zip(ring, [*ring[1:], *ring[:1]], strict=True))
    if len(ring) < 3:
        return [links[:1]] if len(ring) == 2 else []
    odd = len(ring) % 2
    last = [links[-1:]] if odd else []
    whole = links[:-1] if odd else links
    return [whole[0::2], whole[1::2], *last]


def measure(
    phases: Sequence[LinkPhase], rank: int, device: torch.device, limit_s: float
) -> list[Exchange]:
    """Exchange data with this rank's partners; every rank must call this.

    Args:
        phases: What `plan_phases` returns.
        rank: This rank.
        device: Where this rank computes.
        limit_s: Seconds for all phases together.
    """
    num_bytes = _GPU_BYTES if device.type == "cuda" else _CPU_BYTES
    sent = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    received = torch.empty_like(sent)
    found: list[Exchange] = []
    if phases and device.type == "cuda":
        # NCCL connects all ranks in the first call, which all must make.
        dist.all_reduce(sent[:1])
    for phase in phases:
        if (partner := phase.partners.get(rank)) is not None:
            limit = limit_s / len(phases)
            seconds = _best_seconds(partner, sent, received, limit)
            speed = None if seconds is None else num_bytes / seconds / 1e9
            found.append(Exchange(rank, partner, phase.kind, speed))
    return found


def _best_seconds(partner: int, sent: Tensor, received: Tensor, limit_s: float) -> float | None:
    deadline = time.monotonic() + limit_s
    # The first, of one byte, waits for the partner and connects to it.
    sizes = [1, *[len(sent)] * _REPEATS]
    seconds: list[float] = []
    for size in sizes:
        start = time.monotonic()
        if not _exchanged(partner, sent[:size], received[:size], deadline):
            return None
        seconds.append(time.monotonic() - start)
    return min(seconds[1:])


def _exchanged(partner: int, sent: Tensor, received: Tensor, deadline: float) -> bool:
    """Exchange tensors with a partner; return whether it ended in time."""
    operations = [
        dist.P2POp(dist.isend, sent, partner),
        dist.P2POp(dist.irecv, received, partner),
    ]
    works = dist.batch_isend_irecv(operations)
    # NCCL's `wait` only lets the stream wait.
    while sent.is_cuda and not all(work.is_completed() for work in works):
        if time.monotonic() > deadline:
            return False
        # Not a pause: 64 MB take a fraction of a millisecond over NVLink.
        time.sleep(0)
    try:
        for work in works:
            work.wait(timedelta(seconds=max(0.001, deadline - time.monotonic())))
    except RuntimeError:
        # gloo: in time or not, this partner does not answer.
        return False
    return True


def fast_enough(device: torch.device) -> float:
    """Return the speed, in GB/s, from which a link counts as good whatever the others have."""
    return math.inf if device.type == "cuda" else _CPU_FAST_ENOUGH_GB_PER_S


def judge_links(
    exchanges: Sequence[Exchange], facts: Sequence[RankFacts], enough: float = math.inf
) -> list[NodeFinding]:
    """Name the ranks that are slow or do not answer, and the links, where both ends are fine.

    Args:
        exchanges: Of all ranks.
        facts: Of all ranks, in their order.
        enough: What `fast_enough` returns.
    """
    found: list[NodeFinding] = []
    for kind in _WHERE:
        own = [one for one in exchanges if one.kind == kind]
        nodes = nodes_of(facts[rank] for rank in sorted({one.rank for one in own}))
        if dead := _dead(own, facts):
            found += dead
        elif len(nodes if kind == "between" else own) < _LEAST_COMPARED:
            found += _slow_for_anyone(own, facts)
        else:
            found += _slow(own, kind, facts, enough)
    return found


def link_speeds(exchanges: Sequence[Exchange], facts: Sequence[RankFacts]) -> dict[str, Any]:
    """Return the numbers for the journal: the median, and the slowest link with its node."""
    numbers: dict[str, Any] = {}
    for kind in _WHERE:
        own = [(one.gb_per_s, one.rank) for one in exchanges if one.kind == kind and one.gb_per_s]
        if own:
            least, rank = min(own)
            numbers[f"{kind}_gb_per_s"] = round(median(speed for speed, _ in own), 3)
            numbers[f"{kind}_least_gb_per_s"] = round(least, 3)
            numbers[f"{kind}_least_node"] = facts[rank].node
    return numbers


def _dead(own: Sequence[Exchange], facts: Sequence[RankFacts]) -> list[NodeFinding]:
    failed = [one for one in own if one.gb_per_s is None]
    if not failed:
        return []
    answered = {one.rank for one in own if one.gb_per_s is not None}
    silent = [facts[rank] for rank in sorted({one.rank for one in failed} - answered)]
    if silent and len(nodes_of(silent)) * 2 < len(nodes_of(facts)):
        text = f"{named(silent, facts)}: exchanges no data with any other rank"
        return [NodeFinding(text, True, nodes_of(silent))]
    links = _links(failed)
    return [NodeFinding(f"{_ends(link, facts)}: the link does not work", True) for link in links]


def _slow(
    own: Sequence[Exchange], kind: Kind, facts: Sequence[RankFacts], enough: float
) -> list[NodeFinding]:
    best: dict[int, float] = defaultdict(float)
    for one in own:
        best[one.rank] = max(best[one.rank], one.gb_per_s or 0.0)
    usual = median(best.values())
    limit = min(usual * _SLOW_PART, enough)
    slow = [facts[rank] for rank in sorted(best) if best[rank] < limit]
    found = [_of_slow(slow, best, kind, usual, facts)] if slow else []
    ranks = {fact.rank for fact in slow}
    others = _links(one for one in own if not {one.rank, one.partner} & ranks)
    return found + [_of_link(link, speed, facts) for link, speed in others.items() if speed < limit]


def _of_slow(
    slow: Sequence[RankFacts],
    best: Mapping[int, float],
    kind: Kind,
    usual: float,
    facts: Sequence[RankFacts],
) -> NodeFinding:
    least = min(best[fact.rank] for fact in slow)
    text = f"{named(slow, facts)}: {_shown(least)} {_WHERE[kind]}, the median is {_shown(usual)}"
    # The only node of a job is at fault for a slow GPU.
    nodes = nodes_of(slow)
    return NodeFinding(text, True, nodes if 2 * len(nodes) <= max(2, len(nodes_of(facts))) else ())


def _slow_for_anyone(own: Sequence[Exchange], facts: Sequence[RankFacts]) -> list[NodeFinding]:
    """Warn of links that are slow for any network: there is nothing to compare them with."""
    links = _links(one for one in own if (one.gb_per_s or 0.0) < _LEAST_GB_PER_S)
    return [_of_link(link, speed, facts) for link, speed in links.items()]


def _of_link(link: tuple[int, int], speed: float, facts: Sequence[RankFacts]) -> NodeFinding:
    return NodeFinding(f"{_ends(link, facts)}: the link has {_shown(speed)}", False)


def _links(exchanges: Iterable[Exchange]) -> dict[tuple[int, int], float]:
    """Return the pairs of ranks, each once, with the lower of their two numbers."""
    links: dict[tuple[int, int], float] = {}
    for one in exchanges:
        pair = (min(one.rank, one.partner), max(one.rank, one.partner))
        links[pair] = min(links.get(pair, float("inf")), one.gb_per_s or 0.0)
    return links


def _ends(link: tuple[int, int], facts: Sequence[RankFacts]) -> str:
    return " and ".join(f"{facts[rank].node} (rank {rank})" for rank in link)


def _shown(gb_per_s: float) -> str:
    return f"{gb_per_s:.3g} GB/s"
