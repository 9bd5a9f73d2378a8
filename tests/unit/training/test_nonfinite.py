"""What is said of a step whose loss or gradient is not finite."""

import math
from typing import Any

import pytest
import torch

from llada_sft.errors import NonFiniteError
from llada_sft.training.masks.micro_batch import MicroBatch
from llada_sft.training.nonfinite import NonFiniteSteps, SkippedSteps, poison_gradient


class OneRank:
    """The agreement of a single rank."""

    def gather(self, item: object) -> list[object]:
        return [item]


def micro_batch(*lines: int) -> MicroBatch:
    one = torch.zeros(1)
    rows = tuple(("a.jsonl", line) for line in lines)
    return MicroBatch(one, None, one, one, one, rows=rows)


def steps(policy: Any, rank: int = 0, *limits: Any) -> tuple[NonFiniteSteps, list[Any]]:
    notes: list[Any] = []
    consensus: Any = OneRank()
    return NonFiniteSteps(policy, consensus, rank, notes.append, *limits), notes


def skip(one: NonFiniteSteps, *numbers: int, last: int = 1000) -> None:
    for number in numbers:
        one.report_skipped_step(
            number, [micro_batch(number)], [torch.tensor(math.nan)], number == last
        )


@pytest.mark.parametrize(
    ("loss", "gradient"), [(2.5, 3.0), (math.inf, math.nan), (-math.inf, math.nan), (math.nan,) * 2]
)
def test_the_gradient_follows_the_loss_of_the_step(loss: float, gradient: float) -> None:
    weight = torch.tensor(0.1, requires_grad=True)
    poison_gradient(3.0 * weight, torch.tensor(loss)).backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor(gradient), equal_nan=True, rtol=0, atol=0)


def test_only_the_rows_of_bad_micro_batches_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    skipped, notes = steps("skip")
    losses = [torch.tensor(value) for value in (1.0, math.inf, math.nan)]
    skipped.report_skipped_step(12, [micro_batch(1, 2), micro_batch(3), micro_batch()], losses)
    assert notes == [
        {"event": "nonfinite", "step": 12, "detail": "the loss", "rows": ["a.jsonl:3"]}
    ]
    assert capsys.readouterr().out == (
        "step 12: the loss is NaN or infinite: rows a.jsonl:3; the step is skipped\n"
    )


def test_a_message_names_some_rows_and_the_journal_all() -> None:
    stopped, notes = steps("stop")
    with pytest.raises(NonFiniteError) as caught:
        stopped.report_skipped_step(1, [micro_batch(*range(1, 12))], [torch.tensor(1.0)])
    assert str(caught.value) == (
        "step 1: the gradient is NaN or infinite: rows "
        + ", ".join(f"a.jsonl:{line}" for line in range(1, 9))
        + " and 3 more; look at them, lower optim.lr, "
        "or skip such steps with train.on_nonfinite=skip"
    )
    assert len(notes[0]["rows"]) == 11


def test_one_rank_alone_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    skipped, notes = steps("skip", rank=1)
    skipped.report_skipped_step(1, [micro_batch(1)], [torch.tensor(math.nan)])
    assert notes == []
    assert capsys.readouterr().out == ""


def test_so_many_skipped_steps_in_a_row_stop_the_run() -> None:
    skipped, notes = steps("skip", 0, 3)
    skip(skipped, 4, 5, 7, 8, 10, 11)
    with pytest.raises(NonFiniteError) as caught:
        skip(skipped, 12)
    assert str(caught.value) == (
        "step 12: the loss is NaN or infinite: rows a.jsonl:12; 3 steps in a row were skipped "
        "(train.max_skipped_steps: 3); look at the rows, and lower optim.lr"
    )
    assert [note["step"] for note in notes] == [4, 5, 7, 8, 10, 11, 12]


def test_steps_in_a_row_are_counted_across_attempts() -> None:
    first, _ = steps("skip", 0, 3)
    skip(first, 4, 7, 8)
    assert first.skipped == SkippedSteps(total=3, last=8, in_a_row=2)
    # Resumed from the checkpoint of step 8: the next step is skipped too.
    second, _ = steps("skip", 0, 3, first.skipped)
    with pytest.raises(NonFiniteError, match="3 steps in a row were skipped"):
        skip(second, 9)
    # Step 9 was made.
    third, _ = steps("skip", 0, 3, first.skipped)
    skip(third, 10, 11)


def test_a_run_that_made_no_step_has_not_finished() -> None:
    short, _ = steps("skip", 0, 10)
    skip(short, 1, 2, 3)
    with pytest.raises(NonFiniteError, match=r"step 4: .* every step of the run was skipped"):
        skip(short, 4, last=4)
    made_one, _ = steps("skip", 0, 10)
    skip(made_one, 1, 2, 4, last=4)
