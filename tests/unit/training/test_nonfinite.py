"""What is said of a step whose loss or gradient is not finite."""

import math
from typing import Any

import pytest
import torch

from llada_sft.errors import NonFiniteError
from llada_sft.training.noising import MicroBatch
from llada_sft.training.nonfinite import NonFiniteSteps, spoil


class OneRank:
    """The agreement of a single rank."""

    def gather(self, item: object) -> list[object]:
        return [item]


def micro_batch(*lines: int) -> MicroBatch:
    one = torch.zeros(1)
    rows = tuple(("a.jsonl", line) for line in lines)
    return MicroBatch(one, None, one, one, one, rows=rows)


def steps(policy: Any, rank: int = 0) -> tuple[NonFiniteSteps, list[Any]]:
    notes: list[Any] = []
    consensus: Any = OneRank()
    return NonFiniteSteps(policy, consensus, rank, notes.append), notes


@pytest.mark.parametrize(
    ("loss", "gradient"), [(2.5, 3.0), (math.inf, math.nan), (-math.inf, math.nan), (math.nan,) * 2]
)
def test_the_gradient_follows_the_loss_of_the_step(loss: float, gradient: float) -> None:
    weight = torch.tensor(0.1, requires_grad=True)
    spoil(3.0 * weight, torch.tensor(loss)).backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor(gradient), equal_nan=True, rtol=0, atol=0)


def test_only_the_rows_of_bad_micro_batches_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    skipped, notes = steps("skip")
    losses = [torch.tensor(value) for value in (1.0, math.inf, math.nan)]
    skipped.left_out(12, [micro_batch(1, 2), micro_batch(3), micro_batch()], losses)
    assert notes == [
        {"event": "nonfinite", "step": 12, "detail": "the loss", "rows": ["a.jsonl:3"]}
    ]
    assert capsys.readouterr().out == (
        "step 12: the loss is NaN or infinite: rows a.jsonl:3; the step is left out\n"
    )


def test_a_message_names_some_rows_and_the_journal_all() -> None:
    stopped, notes = steps("stop")
    with pytest.raises(NonFiniteError) as caught:
        stopped.left_out(1, [micro_batch(*range(1, 12))], [torch.tensor(1.0)])
    assert str(caught.value) == (
        "step 1: the gradient is NaN or infinite: rows "
        + ", ".join(f"a.jsonl:{line}" for line in range(1, 9))
        + " and 3 more; look at them, lower optim.lr, "
        "or leave such steps out with train.on_nonfinite=skip"
    )
    assert len(notes[0]["rows"]) == 11


def test_one_rank_alone_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    skipped, notes = steps("skip", rank=1)
    skipped.left_out(1, [micro_batch(1)], [torch.tensor(math.nan)])
    assert notes == []
    assert capsys.readouterr().out == ""
