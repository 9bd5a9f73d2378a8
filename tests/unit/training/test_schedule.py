"""The learning rate at every corner, by hand."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llada_sft.config.schema import OptimConfig
from llada_sft.training.schedule import learning_rate


def rates(steps: list[int], total_steps: int, **optim: Any) -> list[float]:
    config = OptimConfig(**({"lr": 1.0, "final_lr": 0.1, "warmup_steps": 4} | optim))
    return [learning_rate(config, step, total_steps) for step in steps]


@pytest.mark.parametrize(
    ("optim", "total_steps", "expected"),
    [
        # Warm-up: the first step is not made with a rate of zero, and step 4 is the first in full.
        ({}, 40, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0, 4: 1.0}),
        # Constant until the last tenth; then linear, and `final_lr` at the last step and after.
        ({}, 40, {35: 1.0, 36: 0.775, 37: 0.55, 38: 0.325, 39: 0.1, 40: 0.1, 400: 0.1}),
        ({"warmup_steps": 0}, 20, {0: 1.0, 17: 1.0, 18: 0.55, 19: 0.1}),
        # No decay, but past the end.
        ({"decay_fraction": 0.0}, 40, {4: 1.0, 39: 1.0, 40: 0.1}),
        # Decay from the end of the warm-up on.
        ({"decay_fraction": 1.0}, 10, {3: 1.0, 4: 0.85, 6: 0.55, 9: 0.1}),
        ({"decay_fraction": 1.0, "warmup_steps": 0}, 10, {0: 0.91, 9: 0.1}),
        # Fewer steps than the warm-up: it goes on, and past it the rate is final.
        ({"warmup_steps": 10}, 5, {0: 0.1, 4: 0.5, 9: 1.0, 10: 0.1}),
        # Half a cosine over 8 steps: 1/4, 1/2, 3/4 and all of the way down.
        (
            {"schedule": "cosine"},
            12,
            {
                0: 0.25,
                3: 1.0,
                5: 0.1 + 0.9 * (0.5 + 0.5 * 0.5**0.5),
                7: 0.55,
                9: 0.1 + 0.9 * (0.5 - 0.5 * 0.5**0.5),
                11: 0.1,
                12: 0.1,
                99: 0.1,
            },
        ),
        ({"schedule": "cosine", "warmup_steps": 10}, 5, {0: 0.1, 4: 0.5, 10: 0.1}),
    ],
)
def test_by_hand(optim: dict[str, Any], total_steps: int, expected: dict[int, float]) -> None:
    found = rates(list(expected), total_steps, **optim)
    assert found == pytest.approx(list(expected.values()))


@given(
    total_steps=st.integers(1, 200),
    warmup_steps=st.integers(0, 50),
    decay_fraction=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "warmup_constant_decay"]),
)
def test_up_then_down_and_never_out_of_bounds(
    total_steps: int, warmup_steps: int, decay_fraction: float, schedule: str
) -> None:
    found = rates(
        list(range(total_steps + 2)),
        total_steps,
        warmup_steps=warmup_steps,
        decay_fraction=decay_fraction,
        schedule=schedule,
    )
    assert all(0 < rate <= 1 + 1e-12 for rate in found)
    rising, falling = found[:warmup_steps], found[warmup_steps:]
    assert rising == sorted(rising)
    assert all(a >= b - 1e-12 for a, b in pairwise(falling))
    assert all(rate >= 0.1 - 1e-12 for rate in falling)
