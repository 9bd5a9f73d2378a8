"""The best validation so far: which one it is, when it ends the run, and what a resume knows."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llada_sft.config.sections.validation import EarlyStopConfig
from llada_sft.training.validation.best import BestSoFar, Lowest, ValidationState

METRIC = "validation_loss"


def follow(values: list[float], best: BestSoFar, first: int = 1) -> list[int]:
    """Return the steps that are best when they are validated, until the run ends."""
    found = []
    for step, value in enumerate(values, start=first):
        best.validated(step, {METRIC: value, "validation/bound": -value})
        found += [step] if best.is_best(step) else []
        if best.stop_reason:
            break
    return found


def both(patience: int = 2, state: ValidationState | None = None) -> BestSoFar:
    early = EarlyStopConfig(metric=METRIC, patience=patience)
    return BestSoFar(METRIC, early, state or ValidationState())


def test_lower_is_better_and_what_is_not_finite_is_not() -> None:
    best = both(patience=9)
    assert follow([3.0, 2.0, 2.0, math.nan, 2.5, 1.0, math.inf], best) == [1, 2, 6]
    assert best.state == ValidationState(
        7, best=Lowest(METRIC, 1.0, 6), lowest=Lowest(METRIC, 1.0, 6), misses=1
    )


def test_the_end_comes_after_so_many_misses_in_a_row() -> None:
    best = both(patience=2)
    follow([3.0, 4.0, 2.0, 5.0, 2.0, 1.0], best)
    assert best.state.last_step == 5
    assert best.stop_reason == ("validation_loss was not below 2.0000 (step 3) in 2 validations")


def test_a_number_that_never_was_finite_ends_a_run_too() -> None:
    best = both(patience=2)
    follow([math.nan, math.nan], best)
    assert best.stop_reason == "validation_loss was never finite in 2 validations"


@given(st.lists(st.floats(0, 9, width=16), min_size=2, max_size=12), st.data())
def test_a_resume_decides_as_a_run_that_was_not_interrupted(
    values: list[float], data: st.DataObject
) -> None:
    whole = both()
    expected = follow(values, whole)
    cut = data.draw(st.integers(1, len(values) - 1))
    first = both()
    found = follow(values[:cut], first)
    if not first.stop_reason:
        kept = json.loads(json.dumps(first.state.to_json()))
        second = both(state=ValidationState.from_json(kept))
        found += follow(values[cut:], second, first=cut + 1)
        first = second
    assert found == expected
    assert (first.state, first.stop_reason) == (whole.state, whole.stop_reason)


def test_another_metric_or_patience_on_resume() -> None:
    best = both(patience=2)
    follow([3.0, 4.0, 4.0], best)
    state = best.state
    assert both(2, state).stop_reason
    assert not both(3, state).stop_reason
    assert not BestSoFar(METRIC, None, state).stop_reason
    other = EarlyStopConfig(metric="validation/bound", patience=1)
    changed = BestSoFar("validation/bound", other, state)
    assert changed.state == ValidationState(last_step=3)


def test_a_checkpoint_of_an_older_version_knows_nothing() -> None:
    assert ValidationState.from_json(None) == ValidationState()


@pytest.mark.parametrize("step", [2, 3])
def test_a_best_step_without_a_checkpoint_is_not_the_best(step: int) -> None:
    best = both()
    follow([3.0, 2.0], best)
    best.not_saved(step)
    assert best.is_best(1) == (step == 2)
