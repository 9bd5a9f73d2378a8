"""Who is waited for, told from what the ranks of a hung attempt wrote."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from llada_sft.cluster.rank import stacks
from llada_sft.cluster.rank.stacks import RankState, waited_for
from llada_sft.run_dir import RunDir


def state(
    rank: int, place: str = "a.py:1 f", in_collective: bool = True, step: int = 7
) -> RankState:
    return RankState(rank, f"node{rank}", place, "step", step, 30.0, in_collective)


# Its watchdog could not run; and nothing at all.
LOCKED = RankState(2, "node2", "b.py:3 match")
SILENT = RankState(2, "node2")


@pytest.mark.parametrize(
    ("states", "named"),
    [
        pytest.param(
            [state(0), state(1, in_collective=False), state(2)], [1], id="outside a collective"
        ),
        pytest.param(
            [state(0, in_collective=False), state(1, in_collective=False, step=6), state(2)],
            [1],
            id="behind",
        ),
        pytest.param(
            [state(0, in_collective=False), state(1, in_collective=False), state(2)],
            [0, 1],
            id="two of them",
        ),
        pytest.param([state(0), state(1), SILENT], [2], id="stopped"),
        # It may only have been quicker than the others to find the hang.
        pytest.param(
            [state(0), state(1, in_collective=False), SILENT], [1], id="outside, one silent"
        ),
        pytest.param([state(0), state(1), LOCKED], [2], id="Python's lock"),
        pytest.param(
            [state(0, in_collective=False), state(1), LOCKED], [0, 2], id="outside, and the lock"
        ),
        pytest.param([RankState(0), state(1), LOCKED], [2], id="the lock, one silent"),
        pytest.param([state(0), state(1, step=6), state(2)], [1], id="all wait, one is behind"),
        pytest.param([state(0), state(1), state(2)], [], id="all wait for one another"),
        pytest.param([state(0, in_collective=False)], [0], id="alone"),
        pytest.param([state(0)], [], id="alone in a collective"),
    ],
)
def test_the_rank_that_is_waited_for(states: list[RankState], named: list[int]) -> None:
    assert [one.rank for one in waited_for(states)] == named


def test_failure_reports(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    states = [state(0), state(1, "hook.py:12 process_data", in_collective=False), state(3)]
    waiting, named, other = stacks.failure_reports(run, 3, states, 30.0)
    assert waiting.error == (
        "no step for 30 s in phase step: waiting for rank 1 (node1), which is in"
        " hook.py:12 process_data; see stacks/attempt_3_rank_*.txt"
    )
    assert named.error == (
        "no step for 30 s in phase step: it is in hook.py:12 process_data; and the other ranks"
        " wait for it; see stacks/attempt_3_rank_*.txt"
    )
    assert [one.consequence for one in (waiting, named, other)] == [True, False, True]
    assert {one.cause for one in (waiting, named, other)} == {"hang"}
    assert (named.rank, named.node, named.step) == (1, "node1", 7)


@pytest.mark.parametrize(
    ("silent", "words"),
    [
        (SILENT, "wrote no stack: stopped, or its node is gone"),
        (LOCKED, "is in b.py:3 match, in C code that holds Python's lock"),
    ],
)
def test_failure_report_of_a_rank_that_wrote_none(
    tmp_path: Path, silent: RankState, words: str
) -> None:
    waiting, _, named = stacks.failure_reports(
        RunDir(tmp_path), 1, [state(0), state(1), silent], 31.0
    )
    see = "see stacks/attempt_1_rank_*.txt"
    assert waiting.error == (
        f"no step for 30 s in phase step: waiting for rank 2 (node2), which {words}; {see}"
    )
    assert named.error == f"no step for 31 s: it {words}; and the other ranks wait for it; {see}"
    assert (named.step, named.consequence, waiting.consequence) == (None, False, True)


def test_failure_reports_where_all_wait(tmp_path: Path) -> None:
    first, second = stacks.failure_reports(RunDir(tmp_path), 1, [state(0), state(1)], 30.0)
    assert first.error == second.error
    assert first.error == (
        "no step for 30 s in phase step: all ranks wait for one another: look at their devices and"
        " at the network; see stacks/attempt_1_rank_*.txt"
    )
    assert not first.consequence


def test_of_many_ranks_the_first_are_named(tmp_path: Path) -> None:
    gone = [RankState(rank) for rank in range(1, 9)]
    waiting = stacks.failure_reports(RunDir(tmp_path), 1, [state(0), *gone], 30.0)[0]
    assert waiting.error.count("wrote no stack") == 4
    assert "rank 4, which wrote no stack: stopped, or its node is gone; and 4 more; see" in (
        waiting.error
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.stacks.mkdir()
    whole = state(0, "hook.py:12 process_data")
    timer = (
        "Timeout (0:00:03)!\n"
        'Thread 0x01 (most recent call first):\n  File "/a/watchdog.py", line 1 in wait\n\n'
        'Thread 0x02 (most recent call first):\n  File "/b/b.py", line 3 in match\n'
        '  File "/b/main.py", line 9 in <module>\n'
    )
    texts = [
        stacks.title(0, 5, "node0") + stacks.header(whole) + "stacks",
        stacks.title(1, 5, "") + timer,
        stacks.title(2, 5, "node2"),
        "",
    ]
    for rank, text in enumerate(texts):
        run.rank_stacks(4, rank).write_text(text)
    run.rank_stacks(3, 4).write_text(texts[0])
    assert stacks.read_all(run, 4, 5) == [
        whole,
        RankState(1, "", "b.py:3 match"),
        RankState(2, "node2"),
        RankState(3),
        RankState(4),
    ]


@pytest.mark.parametrize(
    "told",
    [
        "",
        "null",
        "[]",
        '{"phase": "step", "step": "7"}',
        '{"phase": 3}',
        '{"phase": "step", "seconds": null}',
        '{"phase": "step", "unknown": 1}',
        '{"phase": "step", "step": 7, "sec',
    ],
)
def test_a_file_that_is_damaged_is_a_rank_that_wrote_none(tmp_path: Path, told: str) -> None:
    run = RunDir(tmp_path)
    run.stacks.mkdir()
    run.rank_stacks(1, 0).write_text(f"{stacks.title(0, 1, 'node0')}{told}\n")
    assert stacks.read_all(run, 1, 1) == [RankState(0, "node0")]


def test_a_call_is_heard_in_its_attempt_alone(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.stacks.mkdir()
    for attempt in (1, 2):
        for rank in (0, 1):
            stacks.prepare_call(run, attempt, rank)
            assert run.hang_call(attempt).read_bytes() == b""
    # That of the first attempt, which was killed, is gone.
    assert [path.name for path in run.stacks.iterdir()] == ["attempt_2_call.txt"]
    assert not stacks.is_called(run, 2)
    stacks.call(run, 2, 1)
    stacks.call(run, 2, 0)
    assert (stacks.is_called(run, 2), stacks.is_called(run, 1)) == (True, False)
    assert run.hang_call(2).read_text() == "rank 1 found a hang\nrank 0 found a hang\n"
    # It is kept, as the stacks are; and is not heard in an attempt that has the same number.
    stacks.prepare_call(run, 3, 0)
    assert run.hang_call(2).exists()
    stacks.prepare_call(run, 2, 1)
    assert stacks.is_called(run, 2)
    stacks.prepare_call(run, 2, 0)
    assert not stacks.is_called(run, 2)


def test_what_a_killed_attempt_left_is_removed(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.stacks.mkdir()
    hung = stacks.title(0, 2, "") + stacks.header(state(0)) + "stacks"
    run.rank_stacks(1, 0).write_text(hung)
    run.rank_stacks(2, 0).write_text(stacks.title(0, 2, ""))
    run.rank_stacks(2, 1).write_text(stacks.title(1, 2, ""))
    stacks.clear_unused(run, 0)
    assert sorted(path.name for path in run.stacks.iterdir()) == [
        "attempt_1_rank_0.txt",
        "attempt_2_rank_1.txt",
    ]


def frame_in(*modules: str) -> FrameType:
    """Make a frame of a function in the last of these modules, called from those before."""
    found: list[FrameType] = []
    call: Callable[[], object] = lambda: found.append(sys._getframe(1))  # noqa: E731
    for module in reversed(modules):
        names: dict[str, Any] = {"__name__": module, "call": call}
        exec("def function(): call()", names)
        call = names["function"]
    call()
    return found[0]


@pytest.mark.parametrize(
    ("modules", "waits"),
    [
        (["llada_sft.training.consensus", "torch.distributed.distributed_c10d"], True),
        (["torch.distributed.distributed_c10d", "torch._tensor"], True),
        # As seen: gloo's and NCCL's handles are waited for there.
        (["torch.nn.modules.module", "deepspeed.utils.nvtx"], True),
        (["deepspeed.runtime.engine", "torch.serialization"], False),
        (["llada_sft.data.examples.encode", "llada_sft_hook"], False),
    ],
)
def test_where_a_rank_waits_for_others(modules: list[str], waits: bool) -> None:
    assert stacks.in_collective([frame_in("threading"), frame_in(*modules)]) is waits
