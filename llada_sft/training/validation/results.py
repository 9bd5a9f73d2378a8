"""What a validation says: sums of each item -> the numbers of each set.

Each rank sums up its own items; the sums of all ranks are put in the order of the items and added
up exactly (`math.fsum`). So the numbers do not depend on which rank has computed an item.

Shapes: N items; M masked positions of a micro-batch.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llada_sft.config.sections.validation import metric_name
from llada_sft.diffusion.levels import SHOWN_BINS, bin_of
from llada_sft.training.validation.batches import GridBatch, SetItems

# What is summed up of each item, in this order.
_COLUMNS = ("item", "masked", "loss", "bound", "nats", "right", "eos_predicted", "eos_targets")
_ITEM, _MASKED, _LOSS, _BOUND, _NATS, _RIGHT, _EOS_PREDICTED, _EOS_TARGETS = range(len(_COLUMNS))
Table = NDArray[np.float64]


def item_sums(batch: GridBatch, losses: Tensor, predictions: Tensor, eos_token_id: int) -> Table:
    """Sum up the masked positions of each item of a micro-batch.

    Args:
        batch: As it is on the CPU.
        losses: [M] fp32, the cross-entropy of each masked position.
        predictions: [M] int64, the most likely tokens.
        eos_token_id: What ends an answer.

    Returns:
        [N, columns]: item, masked positions, loss with the weights of the data and without them,
        nats, right predictions, EOS among predictions and among targets.
    """
    targets = batch.batch.targets.numpy()
    nats, predicted = losses.cpu().double().numpy(), predictions.cpu().numpy()
    examples, count = batch.examples.numpy(), len(batch.items)
    if not count:
        return np.empty((0, len(_COLUMNS)))
    weighted = batch.batch.coefficients.double().numpy() * nats
    of_positions = (
        np.ones(len(nats)),
        batch.weights.double().numpy() * weighted,
        weighted,
        nats,
        predicted == targets,
        predicted == eos_token_id,
        targets == eos_token_id,
    )
    sums = [np.bincount(examples, values, count) for values in of_positions]
    return np.stack([np.array(batch.items, np.float64), *sums], axis=1)


def by_item(tables: Sequence[Table]) -> Table:
    """Return the sums of all items, in the order of their numbers."""
    table = np.concatenate([np.empty((0, len(_COLUMNS))), *tables])
    return table[np.argsort(table[:, _ITEM])]


def column_names(sets: Iterable[str]) -> list[str]:
    """Return the names of all numbers of these sets."""
    numbers = ["loss", "bound", "perplexity", "accuracy", "eos_predicted", "eos_targets"]
    numbers += ["rows", "tokens"]
    numbers += [f"{what}_level_{level + 1}" for what in _BY_LEVEL for level in range(SHOWN_BINS)]
    return [metric_name(name, number) for name in sets for number in numbers]


_BY_LEVEL = ("loss", "accuracy")


def set_numbers(table: Table, items: SetItems) -> dict[str, float]:
    """Work out the numbers of one set.

    - loss: as trained, the mean over rows of the loss per response token, with the data's weights.
    - bound: of the negative log-likelihood per response token, in nats; perplexity: exp(bound).
      With `data.end: void`, that of the answer while its EOS is hidden, and the EOS's own nats.
    - accuracy, eos_predicted, eos_targets: shares of the masked positions.
    - loss_level_k, accuracy_level_k: mean over masked positions of the items whose level, the share
      of the response that is masked, is in the k-th of eight equal parts of [0, 1].

    Rows that the hook has corrupted have no noise level: they count in loss, rows and tokens alone.

    Args:
        table: What `item_sums` returns, of all items of all sets in their order.
        items: The set's.

    Source: LLaDA (arXiv 2502.09992), eq. 6 for the bound.
    """
    own = table[items.first : items.first + len(items)]
    lengths = np.repeat(np.array(items.lengths, np.float64), items.draws)
    drawn = ~np.repeat(np.array(items.corrupted), items.draws)
    found: dict[str, float] = {
        "loss": math.fsum(own[:, _LOSS]) / len(items),
        "rows": len(items.lengths),
        "tokens": sum(items.lengths),
    }
    own, lengths = own[drawn], lengths[drawn]
    if len(own):
        bound = math.fsum(own[:, _BOUND] * lengths) / math.fsum(lengths)
        found |= {"bound": bound, "perplexity": _exp(bound)}
        shares = {"accuracy": _RIGHT, "eos_predicted": _EOS_PREDICTED, "eos_targets": _EOS_TARGETS}
        found |= {name: _share(own, column) for name, column in shares.items()}
        found |= _by_level(own, lengths)
    return {metric_name(items.name, name): value for name, value in found.items()}


def _by_level(own: Table, lengths: NDArray[np.float64]) -> dict[str, float]:
    levels = [bin_of(level, SHOWN_BINS) for level in own[:, _MASKED] / lengths]
    found = {}
    for level in sorted(set(levels)):
        of_level = own[np.array(levels) == level]
        found[f"loss_level_{level + 1}"] = _share(of_level, _NATS)
        found[f"accuracy_level_{level + 1}"] = _share(of_level, _RIGHT)
    return found


def _share(own: Table, column: int) -> float:
    return math.fsum(own[:, column]) / math.fsum(own[:, _MASKED])


def _exp(bound: float) -> float:
    try:
        return math.exp(bound)
    except OverflowError:
        return math.inf
