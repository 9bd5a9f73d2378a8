"""The time of blocks is counted in steps of the training, once the weights are gathered."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from llada_sft.training.nodes import own_time as own_time_module
from llada_sft.training.nodes.own_time import OwnTime


class Clock:
    """A clock that only blocks and hooks of this test advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 5.0
        monkeypatch.setattr(own_time_module.time, "perf_counter", lambda: self.now)

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Block(nn.Module):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._clock.advance(0.25)
        return x * self.weight


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def block(clock: Clock) -> Block:
    """Return a block with hooks as ZeRO-3 has them: they take time, and wait for others."""
    block = Block(clock)
    block.register_forward_pre_hook(lambda *_: clock.advance(10.0))
    block.register_forward_hook(lambda *_: clock.advance(20.0))
    return block


@pytest.fixture
def measured(block: Block) -> OwnTime:
    own_time = OwnTime()
    own_time.watch([block])
    return own_time


def test_only_blocks_count_and_not_the_hooks_before_and_after(
    block: Block, measured: OwnTime
) -> None:
    assert measured.last_us == 0
    measured.begin_step()
    block(block(torch.ones(3)))
    measured.end_step()
    assert measured.last_us == 500_000


def test_a_step_starts_at_nothing_and_evaluation_does_not_count(
    block: Block, measured: OwnTime
) -> None:
    for calls in (1, 3):
        block(torch.ones(3))
        measured.begin_step()
        for _ in range(calls):
            block(torch.ones(3))
        measured.end_step()
        assert measured.last_us == calls * 250_000


@pytest.mark.parametrize(("stops_early", "us"), [(True, 250_000), (False, 500_000)])
def test_a_recomputation_counts_if_it_computes_the_whole_block(
    block: Block, measured: OwnTime, stops_early: bool, us: int
) -> None:
    measured.begin_step()
    with set_checkpoint_early_stop(stops_early):
        checkpoint(block, torch.ones(3), use_reentrant=False).sum().backward()
    measured.end_step()
    assert measured.last_us == us
