"""The numbers of a validation, by hand and against the full logits; not of any order."""

import math

import numpy as np
import pytest
import torch

from llada_sft.diffusion.objective import diffusion_loss
from llada_sft.training.validation.batches import ValidationBatches
from llada_sft.training.validation.results import (
    Table,
    by_item,
    column_names,
    item_sums,
    set_numbers,
)
from llada_sft.training.validation.rows import ValidationSet
from tests.unit.training.steps import EOS, TABLE, example, logits_at
from tests.unit.training.validation.test_batches import batches_of, rows


def table_of(batches: ValidationBatches) -> Table:
    """Return the sums of a network that is a table."""
    tables = []
    for batch in batches:
        logits = logits_at(batch.batch, TABLE)
        losses = torch.nn.functional.cross_entropy(logits, batch.batch.targets, reduction="none")
        tables.append(item_sums(batch, losses, logits.argmax(-1), EOS))
    return by_item(tables)


def test_loss_and_bound_are_those_of_the_full_logits() -> None:
    each, draws = rows(3, 5, 2, 7), 4
    batches = batches_of([each], draws=draws, size=3)
    numbers = set_numbers(table_of(batches), batches.sets[0])
    loss = nats = 0.0
    for batch in batches_of([each], draws=draws, size=1):
        noisy = batch.batch.noisy_ids
        masked = torch.zeros(noisy.numel(), dtype=torch.bool)
        masked[batch.batch.positions] = True
        masked = masked.view(noisy.shape)
        clean = noisy.clone()
        clean[masked] = batch.batch.targets
        length, count = noisy.shape[1] - 2, int(masked.sum())
        weights = torch.tensor(length / count)
        loss += diffusion_loss(TABLE[noisy], clean, masked, weights, length, 1).item()
        nats += diffusion_loss(TABLE[noisy], clean, masked, weights, 1, 1).item()
    assert numbers["validation_loss"] == pytest.approx(loss / (4 * draws), rel=1e-6)
    assert numbers["validation/bound"] == pytest.approx(nats / (draws * 17), rel=1e-6)
    bound = numbers["validation/bound"]
    assert numbers["validation/perplexity"] == math.exp(bound)
    assert (numbers["validation/rows"], numbers["validation/tokens"]) == (4, 17)


def test_shares_and_levels_by_hand() -> None:
    """Two rows of 2 tokens with 2 masks each: levels 1/2 and 1, which are in the parts 5 and 8."""
    batches = batches_of([rows(2, 2, name="dev")])
    #                item masked loss bound nats right predicted targets
    table = np.array([[0, 1, 1.0, 0.5, 0.5, 1, 0, 1],
                      [1, 2, 2.0, 1.0, 2.0, 1, 2, 1],
                      [2, 1, 3.0, 1.5, 1.5, 0, 0, 0],
                      [3, 2, 4.0, 2.0, 4.0, 0, 1, 1]])  # fmt: skip
    assert set_numbers(table, batches.sets[0]) == {
        "validation/dev/loss": 2.5,
        "validation/dev/rows": 2,
        "validation/dev/tokens": 4,
        # 2 · (0.5 + 1 + 1.5 + 2) / 8
        "validation/dev/bound": 1.25,
        "validation/dev/perplexity": math.exp(1.25),
        "validation/dev/accuracy": 2 / 6,
        "validation/dev/eos_predicted": 3 / 6,
        "validation/dev/eos_targets": 3 / 6,
        "validation/dev/loss_level_5": 1.0,
        "validation/dev/accuracy_level_5": 0.5,
        "validation/dev/loss_level_8": 1.5,
        "validation/dev/accuracy_level_8": 0.25,
    }


def test_the_order_of_the_items_changes_no_digit() -> None:
    batches = batches_of([rows(3, 5, 2, 7, 6)], draws=3)
    table = table_of(batches)
    expected = set_numbers(table, batches.sets[0])
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(table))
        assert set_numbers(by_item(np.array_split(table[order], 3)), batches.sets[0]) == expected


def test_each_set_has_its_own_numbers() -> None:
    one, two = rows(3, 4, name="one"), rows(6, name="two")
    together = batches_of([one, two], draws=3)
    table = table_of(together)
    found = set_numbers(table, together.sets[0]) | set_numbers(table, together.sets[1])
    alone = [batches_of([each], draws=3) for each in (one, two)]
    expected = {}
    for batches in alone:
        expected |= set_numbers(table_of(batches), batches.sets[0])
    assert found == expected
    assert found.keys() <= set(column_names(["one", "two"]))


def test_corrupted_rows_have_a_loss_and_no_level() -> None:
    row = example(1, 3)
    corrupted = ValidationSet("", [type(row)(**{**vars(row), "noisy_ids": row.input_ids})])
    batches = batches_of([corrupted])
    numbers = set_numbers(table_of(batches), batches.sets[0])
    assert numbers.keys() == {"validation_loss", "validation/rows", "validation/tokens"}


def test_a_bound_without_end_is_infinite() -> None:
    batches = batches_of([rows(2)], draws=1)
    table = np.array([[0, 2, 1e4, 1e4, 2e4, 0, 0, 0]])
    numbers = set_numbers(table, batches.sets[0])
    assert numbers["validation/perplexity"] == math.inf
