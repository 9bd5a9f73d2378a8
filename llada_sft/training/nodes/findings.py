"""What the facts of all ranks say: what differs, on which nodes, and whether that ends the job.

Most ranks are right: the value that more than half of them report is what the others should have.
Where there is no such value nobody is at fault, and all values are named with their nodes.

    an error of nodes    less than half of the nodes differ: the job can run without them
    an error of the job  nobody is in the minority, or too many are: a person must decide
    a warning            less room, another driver, other limits of the operating system
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, median_low

from llada_sft.training.nodes.facts import (
    DRIVER,
    GPU_MEMORY,
    GPUS,
    HOST_MEMORY,
    LOCKED_MEMORY,
    OPEN_FILES,
    SHARED_MEMORY,
    RankFacts,
)

# A difference in one of these does not end a job.
_ONLY_WARNED_OF = frozenset({DRIVER, OPEN_FILES, LOCKED_MEMORY})
# Clocks: certificates and the order of the journal depend on them.
CLOCK_ERROR_S, CLOCK_WARNING_S = 300.0, 10.0
_GB = 1e9
_LEAST_FREE = {"the run directory": _GB, "TMPDIR": _GB, SHARED_MEMORY: 0.064 * _GB}
# Parts of the ranks' median, below which less memory is worth a warning.
_LEAST_OF_MEDIAN = {HOST_MEMORY: 0.5, GPU_MEMORY: 0.9}
# More names than these are counted.
_MOST_NAMED = 8
_MOST_CHARACTERS = 120


@dataclass(frozen=True)
class NodeFinding:
    """Something that a person should know of the nodes.

    Attributes:
        text: One line.
        is_error: It ends the job.
        nodes: The nodes at fault, without which the job can run; empty where nobody is.
    """

    text: str
    is_error: bool
    nodes: tuple[str, ...] = ()


def compare_facts(facts: Sequence[RankFacts]) -> list[NodeFinding]:
    """Return what differs between the ranks, errors first."""
    found = [
        *_differences(facts),
        *_problems(facts),
        *_shared_gpus(facts),
        *_clocks(facts),
        *_little_room(facts),
        *_little_memory(facts),
    ]
    return sorted(found, key=lambda finding: not finding.is_error)


def one_line(text: str) -> str:
    """Return text of another machine in one line of printable characters."""
    line = "".join(c if c.isprintable() else "?" for c in text)
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}..."


def named(some: Iterable[RankFacts], of: Iterable[RankFacts]) -> str:
    """Return ranks by their nodes: "node3", or "node3 (rank 25)" if others of it are not meant.

    Args:
        some: The ranks.
        of: All that could have been meant.
    """
    ranks, all_ranks = _by_node(some), _by_node(of)
    names = [
        one_line(node) + ("" if len(own) == len(all_ranks[node]) else f" ({_ranks(own)})")
        for node, own in ranks.items()
    ]
    if len(names) > _MOST_NAMED:
        return f"{len(names)} nodes ({', '.join(names[:_MOST_NAMED])}, ...)"
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def nodes_of(facts: Iterable[RankFacts]) -> tuple[str, ...]:
    """Return the nodes of ranks, each once, in the order of the ranks."""
    return tuple(_by_node(facts))


def _by_node(facts: Iterable[RankFacts]) -> dict[str, list[int]]:
    ranks: dict[str, list[int]] = defaultdict(list)
    for fact in facts:
        ranks[fact.node].append(fact.rank)
    return dict(ranks)


def _ranks(ranks: Sequence[int]) -> str:
    numbers = ", ".join(map(str, ranks[:_MOST_NAMED])) + (", ..." if ranks[_MOST_NAMED:] else "")
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {numbers}"


def _at_fault(some: Sequence[RankFacts], of: Sequence[RankFacts]) -> tuple[str, ...]:
    """Return the nodes of some ranks, if they are less than half of all nodes; else none."""
    nodes = nodes_of(some)
    return nodes if 2 * len(nodes) < len(nodes_of(of)) else ()


def _differences(facts: Sequence[RankFacts]) -> list[NodeFinding]:
    found: list[NodeFinding] = []
    for name in dict.fromkeys(name for fact in facts for name in fact.same):
        reporting = [fact for fact in facts if name in fact.same]
        by_value: dict[str, list[RankFacts]] = defaultdict(list)
        for fact in reporting:
            by_value[fact.same[name]].append(fact)
        if len(by_value) > 1:
            found += _of_values(name, by_value, reporting)
    return found


def _of_values(
    name: str, by_value: Mapping[str, list[RankFacts]], reporting: Sequence[RankFacts]
) -> list[NodeFinding]:
    """Name who differs in a fact that has several values."""
    is_error = name not in _ONLY_WARNED_OF
    most = max(by_value, key=lambda value: len(by_value[value]))
    if 2 * len(by_value[most]) <= len(reporting):
        parts = [f"{named(own, reporting)}: {one_line(value)}" for value, own in by_value.items()]
        return [NodeFinding(f"{one_line(name)} differs: {'; '.join(parts)}", is_error)]
    right = by_value[most]
    return [
        NodeFinding(
            f"{named(own, reporting)}: {one_line(name)} {one_line(value)},"
            f" {_others(right, reporting, own)} {one_line(most)}",
            is_error,
            _at_fault([one for one in reporting if one.same[name] != most], reporting),
        )
        for value, own in by_value.items()
        if value != most
    ]


def _others(
    right: Sequence[RankFacts], reporting: Sequence[RankFacts], own: Sequence[RankFacts]
) -> str:
    """Return "the other 7 nodes have", or in ranks where a node has both."""
    by_nodes = not set(nodes_of(right)) & set(nodes_of(own))
    count = len(nodes_of(right)) if by_nodes else len(right)
    rest = len(right) + len(own) == len(reporting)
    unit = ("node" if by_nodes else "rank") + ("" if count == 1 else "s")
    number = "" if rest and count == 1 else f"{count} "
    return f"{'the other ' if rest else ''}{number}{unit} {'has' if count == 1 else 'have'}"


def _problems(facts: Sequence[RankFacts]) -> list[NodeFinding]:
    """Name what some nodes cannot find or use, and others can.

    What is missing everywhere is a mistake in the config, which the training itself reports. A GPU
    is never missing by mistake.
    """
    found: list[NodeFinding] = []
    for name in dict.fromkeys(name for fact in facts for name in fact.problems):
        reporting = [fact for fact in facts if name in {*fact.problems, *fact.same, *fact.free}]
        by_text: dict[str, list[RankFacts]] = defaultdict(list)
        for fact in reporting:
            if name in fact.problems:
                by_text[fact.problems[name]].append(fact)
        failed = [fact for own in by_text.values() for fact in own]
        if len(failed) == len(reporting) and name != GPUS:
            continue
        nodes = nodes_of(failed)
        # Somebody sees it, or it is a GPU: half of the nodes can be at fault, or the only one.
        at_fault = nodes if 2 * len(nodes) <= max(2, len(nodes_of(reporting))) else ()
        for text, own in by_text.items():
            line = f"{named(own, reporting)}: {one_line(name)}: {one_line(text)}"
            found.append(NodeFinding(line, True, at_fault))
    return found


def _shared_gpus(facts: Sequence[RankFacts]) -> list[NodeFinding]:
    by_gpu: dict[str, list[RankFacts]] = defaultdict(list)
    for fact in facts:
        if fact.gpu:
            by_gpu[fact.gpu].append(fact)
    return [
        NodeFinding(
            f"{one_line(own[0].node)}: {_ranks([one.rank for one in own])} have the same GPU"
            f" ({one_line(gpu)})",
            True,
        )
        for gpu, own in by_gpu.items()
        if len(own) > 1
    ]


def _clocks(facts: Sequence[RankFacts]) -> list[NodeFinding]:
    """Compare the clock of each node's first rank."""
    first = list({fact.node: fact for fact in reversed(facts)}.values())[::-1]
    right_s = median_low(fact.clock_s for fact in first)
    found: list[NodeFinding] = []
    for fact in first:
        ahead_s = fact.clock_s - right_s
        if abs(ahead_s) < CLOCK_WARNING_S:
            continue
        direction = "ahead of" if ahead_s > 0 else "behind"
        wrong = [one for one in first if abs(one.clock_s - right_s) >= CLOCK_WARNING_S]
        text = f"{one_line(fact.node)}: its clock is {abs(ahead_s):.0f} s {direction} the others'"
        if 2 * len(wrong) >= len(first):
            text = f"{one_line(fact.node)}: its clock is {abs(ahead_s):.0f} s {direction} that of"
            text += f" {one_line(next(one.node for one in first if one.clock_s == right_s))}"
        found.append(NodeFinding(text, abs(ahead_s) >= CLOCK_ERROR_S, _at_fault(wrong, first)))
    return found


def _little_room(facts: Sequence[RankFacts]) -> list[NodeFinding]:
    found: list[NodeFinding] = []
    for name, least in _LEAST_FREE.items():
        reporting = [fact for fact in facts if name in fact.free]
        little = [fact for fact in reporting if fact.free[name] < least]
        found += _less(name, little, reporting, f"under {least / _GB:g} GB")
    return found


def _little_memory(facts: Sequence[RankFacts]) -> list[NodeFinding]:
    found: list[NodeFinding] = []
    for name, part in _LEAST_OF_MEDIAN.items():
        reporting = [fact for fact in facts if name in fact.free]
        if not reporting:
            continue
        usual = median(fact.free[name] for fact in reporting)
        little = [fact for fact in reporting if fact.free[name] < part * usual]
        found += _less(name, little, reporting, f"the median is {usual / _GB:.1f} GB")
    return found


def _less(
    name: str, little: Sequence[RankFacts], reporting: Sequence[RankFacts], than: str
) -> list[NodeFinding]:
    if not little:
        return []
    least = min(fact.free[name] for fact in little) / _GB
    return [
        NodeFinding(f"{named(little, reporting)}: {name}: {least:.2f} GB are free, {than}", False)
    ]
