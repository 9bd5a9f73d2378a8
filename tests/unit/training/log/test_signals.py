"""What the losses of logged steps say, by hand; of all ranks together."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from llada_sft.data.rows.position import FilePosition
from llada_sft.data.steps.local_step import StepSize
from llada_sft.model.layers.head import LossTerms
from llada_sft.training.log.signals import StepSignals, signal_columns
from llada_sft.training.masks.level_losses import BatchLevels
from tests.unit.training.steps import EOS, example, local_step, report, source


def micro_batch(
    losses: list[float], rows: list[int], shares: list[float], targets: list[int]
) -> Any:
    """A micro-batch whose coefficients are 1, after its forward pass."""
    coefficients = torch.ones(len(losses))
    terms = LossTerms(coefficients, torch.tensor(rows), max(1, len(shares)))
    terms.losses = torch.tensor(losses)
    of_positions = np.array(rows, np.int64)
    levels = BatchLevels(
        of_positions, np.ones(len(rows)), shares, [1.0] * len(shares), of_positions, shares
    )
    return SimpleNamespace(
        terms=terms, levels=levels, targets=torch.tensor(targets), is_masked=True
    )


EMPTY = micro_batch([0.0], [0], [], [0])


def test_by_hand() -> None:
    signals = StepSignals(EOS)
    signals.add(micro_batch([1.0, 2.0, 5.0], [0, 0, 1], [0.2, 1.0], [1, EOS, 3]), 4.0)
    signals.add(micro_batch([3.0], [0], [0.2], [EOS]), 4.0)
    signals.add(EMPTY, 4.0)
    found = signals.close(torch.tensor(2.5), lambda sums: sums, 1)
    # Losses of micro-batches: 8 · 4 / 2 and 3 · 4 / 1.
    assert found == {
        "loss": 2.5,
        "loss_level_2": 2.0,
        "loss_level_8": 5.0,
        "eos_share": 0.5,
        "loss_variance": pytest.approx(np.var([16.0, 12.0])),
    }
    assert found.keys() <= {"loss", *signal_columns([])}
    # It starts again.
    assert signals.close(torch.tensor(1.0), lambda sums: sums, 1) == {"loss": 1.0}


def test_ranks_add_up() -> None:
    """Two ranks with the same micro-batches have the same numbers as one of them."""
    batches = [micro_batch([1.0, 4.0], [0, 1], [0.5, 0.9], [1, 2]), EMPTY]
    found = []
    for world_size in (1, 2):
        signals = StepSignals(EOS)
        for batch in batches:
            signals.add(batch, 2.0)
        found.append(signals.close(torch.tensor(3.0), partial(torch.mul, world_size), world_size))
    assert found[0] == found[1]


def test_what_the_hook_has_corrupted_has_no_level() -> None:
    signals = StepSignals(EOS)
    signals.add(micro_batch([1.0, 2.0], [0, 1], [float("nan"), 0.1], [EOS, 1]), 1.0)
    found = signals.close(torch.tensor(0.0), lambda sums: sums, 1)
    assert (found["loss_level_1"], found["eos_share"]) == (2.0, 0.5)
    assert "loss_level_8" not in found


def test_a_micro_batch_of_which_nothing_is_masked_has_a_loss_of_zero() -> None:
    """`bernoulli` masks nothing of one in L + 1 answers of L tokens; the head still runs once."""
    signals, by = StepSignals(EOS), {"masking": "bernoulli", "t_sampling": "independent"}
    found: list[bool] = []
    for line in range(40):
        step = local_step([example(1, 2, line)], StepSize(1, 1))
        (batch,) = source(**by).micro_batches(step, report([step]), step=0)
        if batch.is_masked:
            continue
        batch = batch.to(torch.device("cpu"))
        assert batch.terms is not None and batch.positions.tolist() == [0]
        batch.terms.losses = torch.tensor([7.0])
        signals.add(batch, 1.0)
        found.append(True)
    assert len(found) > 5
    numbers = signals.close(torch.tensor(0.0), lambda sums: sums, 1)
    assert numbers == {"loss": 0.0, "loss_variance": 0.0}


def test_a_loss_that_is_not_a_number_is_seen() -> None:
    signals = StepSignals(EOS)
    signals.add(micro_batch([float("nan")], [0], [0.5], [1]), 1.0)
    found = signals.close(torch.tensor(0.0), lambda sums: sums, 1)
    assert np.isnan(found["loss_variance"]) and np.isnan(found["loss_level_5"])


def test_each_source_has_its_epoch() -> None:
    signals = StepSignals(EOS, ["chat", "code"])
    signals.see({"chat/a": FilePosition(1, 0), "code/b": FilePosition(0, 0, epoch=2)})
    signals.see({"chat/a": FilePosition(1, 0, epoch=1)})
    found = signals.close(torch.tensor(0.0), lambda sums: sums, 1)
    assert (found["epoch_chat"], found["epoch_code"]) == (1, 2)
    assert {"epoch_chat", "epoch_code"} <= set(signal_columns(["chat", "code"]))
