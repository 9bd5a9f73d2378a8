"""Who exchanges data with whom, and who is slow."""

import math

import pytest

from llada_sft.training.nodes.facts import RankFacts
from llada_sft.training.nodes.findings import NodeFinding
from llada_sft.training.nodes.links import (
    Exchange,
    LinkPhase,
    judge_links,
    link_speeds,
    plan_phases,
)


def facts(nodes: int, per_node: int = 1) -> list[RankFacts]:
    return [RankFacts(r, f"node{1 + r // per_node}") for r in range(nodes * per_node)]


def names(nodes: int, per_node: int = 1) -> list[str]:
    return [fact.node for fact in facts(nodes, per_node)]


def between(
    nodes: int, per_node: int = 1, slow: tuple[int, ...] = (), speed: float | None = 0.1
) -> list[Exchange]:
    """Return what a ring of nodes measures in which all links of some ranks are slow."""
    return [
        Exchange(rank, partner, "between", speed if {rank, partner} & {*slow} else 10.0)
        for phase in plan_phases(names(nodes, per_node), within=False)
        for rank, partner in phase.partners.items()
    ]


def test_one_node_has_nobody_to_exchange_with() -> None:
    assert plan_phases(names(1, 8), within=False) == []
    assert plan_phases(["node1"], within=True) == []


def test_two_nodes_are_one_phase() -> None:
    assert plan_phases(names(2, 2), within=False) == [
        LinkPhase("between", {0: 2, 1: 3, 2: 0, 3: 1})
    ]


@pytest.mark.parametrize("nodes", [3, 4, 5, 64])
@pytest.mark.parametrize("per_node", [1, 2, 3])
def test_each_rank_meets_both_neighbours_and_one_at_a_time(nodes: int, per_node: int) -> None:
    phases = plan_phases(names(nodes, per_node), within=True)
    assert len(phases) <= 6
    met: dict[tuple[str, int], set[int]] = {}
    for phase in phases:
        for rank, partner in phase.partners.items():
            assert phase.partners[partner] == rank != partner
            same = rank // per_node == partner // per_node
            assert same == (phase.kind == "within")
            met.setdefault((phase.kind, rank), set()).add(partner)
    of_node = {"within": min(per_node - 1, 2), "between": 2}
    assert {len(partners) for (kind, _), partners in met.items() if kind == "between"} == {2}
    assert all(len(partners) == of_node[kind] for (kind, _), partners in met.items())


def test_nodes_with_different_numbers_of_ranks() -> None:
    phases = plan_phases(["a", "a", "b"], within=False)
    assert phases == [LinkPhase("between", {0: 2, 2: 0})]


@pytest.mark.parametrize("nodes", [3, 4, 5, 64])
def test_the_slow_node_is_named_and_its_neighbours_are_not(nodes: int) -> None:
    (finding,) = judge_links(between(nodes, slow=(1,)), facts(nodes))
    text = "node2: 0.1 GB/s to other nodes, the median is 10 GB/s"
    assert finding == NodeFinding(text, True, ("node2",))


def test_one_slow_rank_of_a_node() -> None:
    (finding,) = judge_links(between(4, 2, slow=(5,)), facts(4, 2))
    text = "node3 (rank 5): 0.1 GB/s to other nodes, the median is 10 GB/s"
    assert finding == NodeFinding(text, True, ("node3",))


def test_a_slow_link_between_two_good_nodes_is_a_warning() -> None:
    exchanges = [
        one._replace(gb_per_s=0.1) if {one.rank, one.partner} == {1, 2} else one
        for one in between(5)
    ]
    assert judge_links(exchanges, facts(5)) == [
        NodeFinding("node2 (rank 1) and node3 (rank 2): the link has 0.1 GB/s", False)
    ]


def test_what_is_fast_enough_is_not_slow() -> None:
    assert judge_links(between(3, slow=(1,)), facts(3), enough=0.02) == []
    assert len(judge_links(between(3, slow=(1,), speed=0.01), facts(3), enough=0.02)) == 1


@pytest.mark.parametrize(("speed", "count"), [(0.1, 0), (0.001, 1)])
def test_two_nodes_cannot_be_compared(speed: float, count: int) -> None:
    found = judge_links(between(2, slow=(1,), speed=speed), facts(2), math.inf)
    text = "node1 (rank 0) and node2 (rank 1): the link has 0.001 GB/s"
    assert found == [NodeFinding(text, False)] * count


def test_a_node_that_exchanges_nothing() -> None:
    assert judge_links(between(5, slow=(3,), speed=None), facts(5)) == [
        NodeFinding("node4: exchanges no data with any other rank", True, ("node4",))
    ]


def test_a_dead_link_of_two_nodes_has_nobody_at_fault() -> None:
    assert judge_links(between(2, slow=(1,), speed=None), facts(2)) == [
        NodeFinding("node1 (rank 0) and node2 (rank 1): the link does not work", True)
    ]


def test_a_slow_gpu_within_a_node() -> None:
    phases = plan_phases(names(1, 8), within=True)
    exchanges = [
        Exchange(rank, partner, "within", 5.0 if 3 in (rank, partner) else 200.0)
        for phase in phases
        for rank, partner in phase.partners.items()
    ]
    assert judge_links(exchanges, facts(1, 8)) == [
        NodeFinding(
            "node1 (rank 3): 5 GB/s within its node, the median is 200 GB/s", True, ("node1",)
        )
    ]


def test_the_numbers_of_the_journal() -> None:
    assert link_speeds(between(3, slow=(1,)), facts(3)) == {
        "between_gb_per_s": 0.1,
        "between_least_gb_per_s": 0.1,
        "between_least_node": "node1",
    }
    assert link_speeds([], facts(1)) == {}
