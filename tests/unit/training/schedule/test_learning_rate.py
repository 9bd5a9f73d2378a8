"""The learning rate at every corner, by hand."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llada_sft.config.sections.optim import OptimConfig
from llada_sft.training.schedule.learning_rate import Point, learning_rate, rate_of


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


@given(
    total_steps=st.integers(1, 200),
    warmup_steps=st.integers(0, 50),
    decay_fraction=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "warmup_constant_decay"]),
)
def test_step_by_step_is_the_same_as_all_at_once(
    total_steps: int, warmup_steps: int, decay_fraction: float, schedule: str
) -> None:
    """Where the number of steps is known, the steps that are left lead to the same rates."""
    config = OptimConfig(
        lr=1.0,
        final_lr=0.1,
        warmup_steps=warmup_steps,
        decay_fraction=decay_fraction,
        schedule=schedule,  # type: ignore[arg-type]
    )
    point, found = Point(0, total_steps), []
    for step in range(total_steps):
        point = point.after_step(config, step, total_steps - step)
        found.append(rate_of(config, step, point.descent))
    expected = [learning_rate(config, step, total_steps) for step in range(total_steps)]
    assert found == pytest.approx(expected)
    assert point.position == point.total == total_steps


@given(
    left=st.lists(st.integers(1, 100), min_size=1, max_size=60),
    warmup_steps=st.integers(0, 20),
    decay_fraction=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "warmup_constant_decay"]),
)
def test_whatever_is_left_the_rate_falls_to_its_end(
    left: list[int], warmup_steps: int, decay_fraction: float, schedule: str
) -> None:
    """Steps left that are estimated at random; the last one is known to be the last."""
    config = OptimConfig(
        lr=1.0,
        final_lr=0.1,
        warmup_steps=warmup_steps,
        decay_fraction=decay_fraction,
        schedule=schedule,  # type: ignore[arg-type]
    )
    point, found = Point(0, left[0]), []
    steps = [*(one + 1 for one in left[:-1]), 1]
    for step, steps_left in enumerate(steps):
        before = point
        point = point.after_step(config, step, steps_left)
        assert before.position < point.position <= point.total + 1e-9
        assert before.descent <= point.descent <= 1
        found.append(rate_of(config, step, point.descent))
    falling = found[warmup_steps:]
    assert falling == sorted(falling, reverse=True)
    if falling and (schedule == "cosine" or decay_fraction * left[0] >= 1):
        assert falling[-1] == 0.1


def test_rows_that_end_before_the_fall_was_to_begin() -> None:
    config = OptimConfig(lr=1.0, final_lr=0.1, warmup_steps=2, decay_fraction=0.1)
    half = Point(50, 100)
    assert half.after_step(config, 50, 50).descent == 0
    assert half.after_step(config, 50, 1) == Point(100, 100, 1.0)
    # But where the rate is not to fall at all it stays.
    constant = OptimConfig(lr=1.0, final_lr=0.1, warmup_steps=2, decay_fraction=0.0)
    assert half.after_step(constant, 50, 1).descent == 0


def test_a_fall_that_has_begun_goes_on_in_steps_of_another_batch() -> None:
    config = OptimConfig(lr=1.0, final_lr=0.1, warmup_steps=2, decay_fraction=0.1)
    # In these steps it would begin at 28.
    point = Point(27.6, 30.6, 0.4)
    assert point.after_step(config, 20, 3).descent == pytest.approx(0.6)
    assert Point(27.6, 30.6, 0.0).after_step(config, 20, 3).descent == 0
