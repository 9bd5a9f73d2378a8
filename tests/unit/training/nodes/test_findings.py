"""Facts of all ranks -> what differs, on which node, and who is at fault."""

from dataclasses import replace

import pytest

from llada_sft.training.nodes.facts import (
    DRIVER,
    GPU_MEMORY,
    GPUS,
    HOST_MEMORY,
    OPEN_FILES,
    SHARED_MEMORY,
    RankFacts,
)
from llada_sft.training.nodes.findings import NodeFinding, compare_facts

GOOD = {"torch": "2.13.0", "code of llada_sft": "1234abcd", GPUS: "8 x NVIDIA H100"}
TRAIN = "data.train /data/train"


def ranks(nodes: int, per_node: int = 1) -> list[RankFacts]:
    """Return the facts of ranks that are all alike."""
    return [
        RankFacts(rank, f"node{1 + rank // per_node}", rank % per_node, same=GOOD)
        for rank in range(nodes * per_node)
    ]


def with_same(facts: list[RankFacts], name: str, value: str, *changed: int) -> list[RankFacts]:
    return [
        replace(fact, same={**fact.same, name: value}) if fact.rank in changed else fact
        for fact in facts
    ]


def with_free(facts: list[RankFacts], name: str, usual: float, *few: int) -> list[RankFacts]:
    return [replace(f, free={name: usual / 10 if f.rank in few else usual}) for f in facts]


def with_clocks(facts: list[RankFacts], *clocks: float) -> list[RankFacts]:
    return [replace(fact, clock_s=clock) for fact, clock in zip(facts, clocks, strict=True)]


@pytest.mark.parametrize(("nodes", "per_node"), [(1, 1), (1, 2), (2, 1), (3, 1), (64, 8)])
def test_ranks_that_are_alike(nodes: int, per_node: int) -> None:
    assert compare_facts(ranks(nodes, per_node)) == []


def test_one_rank_without_facts() -> None:
    assert compare_facts([RankFacts(0, "node1")]) == []


@pytest.mark.parametrize(
    ("facts", "text", "nodes"),
    [
        pytest.param(
            with_same(ranks(8), "torch", "2.9.0", 2),
            "node3: torch 2.9.0, the other 7 nodes have 2.13.0", ("node3",),
            id="one of eight",
        ),
        pytest.param(
            with_same(ranks(3), GPUS, "7 x NVIDIA H100", 1),
            "node2: GPUs 7 x NVIDIA H100, the other 2 nodes have 8 x NVIDIA H100", ("node2",),
            id="one of three",
        ),
        pytest.param(
            with_same(ranks(64, 8), "torch", "2.9.0", *range(8, 16)),
            "node2: torch 2.9.0, the other 63 nodes have 2.13.0", ("node2",),
            id="512 ranks",
        ),
        pytest.param(
            with_same(ranks(64, 8), "torch", "2.9.0", *range(160)),
            "20 nodes (node1, node2, node3, node4, node5, node6, node7, node8, ...): torch 2.9.0,"
            " the other 44 nodes have 2.13.0", tuple(f"node{n + 1}" for n in range(20)),
            id="many of 512 ranks",
        ),
        pytest.param(
            with_same(ranks(2), "torch", "2.9.0", 1),
            "torch differs: node1: 2.13.0; node2: 2.9.0", (),
            id="one of two: nobody is in the minority",
        ),
        pytest.param(
            with_same(ranks(4), "torch", "2.9.0", 0, 2),
            "torch differs: node1 and node3: 2.9.0; node2 and node4: 2.13.0", (),
            id="two of four",
        ),
        pytest.param(
            with_same(ranks(1, 4), "torch", "2.9.0", 3),
            "node1 (rank 3): torch 2.9.0, the other 3 ranks have 2.13.0", (),
            id="one rank of the only node",
        ),
        pytest.param(
            with_same(ranks(3, 2), "torch", "2.9.0", 3),
            "node2 (rank 3): torch 2.9.0, the other 5 ranks have 2.13.0", ("node2",),
            id="one rank of a node",
        ),
    ],
)  # fmt: skip
def test_a_value_that_differs(facts: list[RankFacts], text: str, nodes: tuple[str, ...]) -> None:
    assert compare_facts(facts) == [NodeFinding(text, True, nodes)]


def test_three_values_each_have_a_line() -> None:
    facts = with_same(with_same(ranks(7), "torch", "2.9.0", 2), "torch", "2.10.0", 4, 5)
    at_fault = ("node3", "node5", "node6")
    assert compare_facts(facts) == [
        NodeFinding("node3: torch 2.9.0, 4 nodes have 2.13.0", True, at_fault),
        NodeFinding("node5 and node6: torch 2.10.0, 4 nodes have 2.13.0", True, at_fault),
    ]


def test_all_findings_come_at_once_errors_first() -> None:
    facts = with_same(ranks(3), DRIVER, "580.1", 0)
    facts = with_same(with_same(facts, DRIVER, "580.9", 1, 2), "torch", "2.9.0", 2)
    facts = with_same(facts, "code of llada_sft", "ffffffff", 1)
    texts = [(finding.text.partition(",")[0], finding.is_error) for finding in compare_facts(facts)]
    assert texts == [
        ("node3: torch 2.9.0", True),
        ("node2: code of llada_sft ffffffff", True),
        ("node1: NVIDIA driver 580.1", False),
    ]


def test_limits_are_only_warned_of() -> None:
    facts = with_same(with_same(ranks(3), OPEN_FILES, "4096", 0, 1, 2), OPEN_FILES, "1024", 1)
    (finding,) = compare_facts(facts)
    assert finding.text == "node2: open files 1024, the other 2 nodes have 4096"
    assert not finding.is_error


def test_facts_that_only_some_ranks_report() -> None:
    """The first rank of a node alone looks at folders; and a fact may be missing."""
    facts = with_same(ranks(3, 2), TRAIN, "4 files (aaaaaaaa)", 0, 2)
    assert compare_facts(facts) == []
    (finding,) = compare_facts(with_same(facts, TRAIN, "4 files (bbbbbbbb)", 4))
    assert finding.text == (
        f"node3: {TRAIN} 4 files (bbbbbbbb), the other 2 nodes have 4 files (aaaaaaaa)"
    )


def test_a_folder_that_one_node_does_not_see() -> None:
    facts = with_same(ranks(2), TRAIN, "4 files (aaaaaaaa)", 0)
    facts[1] = replace(facts[1], problems={TRAIN: "no such folder"})
    assert compare_facts(facts) == [
        NodeFinding(f"node2: {TRAIN}: no such folder", True, ("node2",))
    ]


def test_a_folder_that_most_nodes_do_not_see_is_a_matter_of_the_job() -> None:
    facts = with_same(ranks(3), TRAIN, "4 files (aaaaaaaa)", 0)
    facts = [facts[0], *(replace(fact, problems={TRAIN: "none"}) for fact in facts[1:])]
    assert compare_facts(facts) == [NodeFinding(f"node2 and node3: {TRAIN}: none", True)]


def test_a_folder_that_nobody_sees_is_reported_by_the_training() -> None:
    assert compare_facts([replace(fact, problems={TRAIN: "none"}) for fact in ranks(3)]) == []


def test_a_gpu_that_does_not_work() -> None:
    facts = ranks(2, 2)
    facts[3] = replace(facts[3], problems={GPUS: "CUDA error: ECC error"})
    assert compare_facts(facts) == [
        NodeFinding("node2 (rank 3): GPUs: CUDA error: ECC error", True, ("node2",))
    ]
    alone = [replace(facts[3], rank=0)]
    assert compare_facts(alone) == [
        NodeFinding("node2: GPUs: CUDA error: ECC error", True, ("node2",))
    ]


def test_two_ranks_with_one_gpu() -> None:
    facts = [replace(f, gpu=f"GPU-{f.rank // 3}") for f in ranks(1, 4)]
    assert compare_facts(facts)[0].text == "node1: ranks 0, 1, 2 have the same GPU (GPU-0)"


@pytest.mark.parametrize(
    ("clocks", "expected"),
    [
        ((0.0, 3.0, -2.0), []),
        ((0.0, 600.2, 1.0), [("node2: its clock is 599 s ahead of the others'", True, ("node2",))]),
        ((0.0, 1.0, -600.0), [("node3: its clock is 600 s behind the others'", True, ("node3",))]),
        ((0.0, 601.0, 601.0), [("node1: its clock is 601 s behind the others'", True, ("node1",))]),
        ((0.0, 20.0, 0.0), [("node2: its clock is 20 s ahead of the others'", False, ("node2",))]),
        ((0.0, 600.0), [("node2: its clock is 600 s ahead of that of node1", True, ())]),
        ((0.0, -600.0), [("node1: its clock is 600 s ahead of that of node2", True, ())]),
    ],
)  # fmt: skip
def test_clocks(
    clocks: tuple[float, ...], expected: list[tuple[str, bool, tuple[str, ...]]]
) -> None:
    assert compare_facts(with_clocks(ranks(len(clocks)), *clocks)) == [
        NodeFinding(*e) for e in expected
    ]


@pytest.mark.parametrize(
    ("name", "usual", "text"),
    [
        ("TMPDIR", 5e9, "node3: TMPDIR: 0.50 GB are free, under 1 GB"),
        ("the run directory", 5e9, "node3: the run directory: 0.50 GB are free, under 1 GB"),
        (SHARED_MEMORY, 0.5e9, "node3: /dev/shm: 0.05 GB are free, under 0.064 GB"),
        (HOST_MEMORY, 64e9, "node3: host memory: 6.40 GB are free, the median is 64.0 GB"),
        (GPU_MEMORY, 80e9, "node3: GPU memory: 8.00 GB are free, the median is 80.0 GB"),
    ],
)
def test_less_room_is_a_warning(name: str, usual: float, text: str) -> None:
    assert compare_facts(with_free(ranks(4), name, usual, 2)) == [NodeFinding(text, False)]


def test_texts_of_other_machines_are_one_printable_line() -> None:
    hostile = "2.9\n\x1b[31mnode1: fine\r" + "x" * 1000
    facts = with_same(ranks(3), "torch", hostile, 1)
    facts[1] = replace(facts[1], node="a\nb")
    (finding,) = compare_facts(facts)
    assert finding.text.isprintable()
    assert finding.text.startswith("a?b: torch 2.9??[31mnode1: fine?xxx")
    assert len(finding.text) < 250
