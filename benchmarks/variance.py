"""The variance of the batch's loss and gradient: every estimator next to the official one.

    python launch.py --config config/demo.yaml --local run.name=early train.max_steps=90
    llada-sft export runs/early demo/early
    make demo
    python benchmarks/variance.py --model demo/model demo/early \
      --out benchmarks/results/cpu/variance.json

Batches of `--rows` rows of the demo's training data go through trained models that no longer
change; noise, coefficients and levels are made by the code of the training. All estimators have the
same number of forward passes: with pairs, a batch has half as many examples, each in two rows.

`masks`: the variance given the examples: the same examples are drawn again and again, in several
sets, and the variances of the sets are averaged. `all`: other examples in each batch, too; pairs
have half as many, which costs them part of what they gain. `gradient`: E|g - mean|² / |mean|² over
batches with other examples: how far the direction of a step is off. Each number is followed by its
standard error, from a jackknife over sets or batches; `mean` must be that of the official one.
`x less` is the variance of low-discrepancy levels alone (the default) over that of the line.

Level densities are fitted while batches go by, as in training, for `--warmup` batches before
anything is measured.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import numpy as np
import report
import torch

from llada_sft.config import load_config
from llada_sft.config.schema import Config
from llada_sft.config.sections.objective import ObjectiveConfig
from llada_sft.data.examples.encode import Example, build_encoder
from llada_sft.data.rows.stream import RowStream
from llada_sft.data.sources import list_sources
from llada_sft.data.steps.collate import pad
from llada_sft.data.steps.local_step import LocalStep
from llada_sft.model import load_model
from llada_sft.training.build_network import token_ids
from llada_sft.training.consensus import Report
from llada_sft.training.masks.level_losses import LevelLosses, LevelState
from llada_sft.training.masks.micro_batch import MicroBatch
from llada_sft.training.noising import NoiseSource

Line = dict[str, Any]
ESTIMATORS: dict[str, dict[str, str]] = {
    "bernoulli, independent (official)": {"masking": "bernoulli", "t_sampling": "independent"},
    "bernoulli": {"masking": "bernoulli"},
    "bernoulli, importance": {"masking": "bernoulli", "t_density": "importance"},
    "bernoulli, pairs": {"masking": "bernoulli", "pairs": "antithetic"},
    "exact, independent": {"t_sampling": "independent"},
    "exact, independent, pairs": {"t_sampling": "independent", "pairs": "antithetic"},
    "exact (default)": {},
    "exact, importance": {"t_density": "importance"},
    "exact, pairs": {"pairs": "antithetic"},
    "exact, pairs, importance": {"pairs": "antithetic", "t_density": "importance"},
}
DEFAULT = "exact (default)"


class Batches:
    """Noisy batches of one estimator, as the training makes them.

    Args:
        objective: The estimator.
        model: A trained network; it stays as it is.
        eos: Pads rows.
        mask: Stands at masked positions.
    """

    def __init__(self, objective: ObjectiveConfig, model: Any, eos: int, mask: int) -> None:
        self._model, self._eos = model, eos
        self._levels = None
        if objective.t_density == "importance":
            self._levels = LevelLosses(0, LevelState(), rank=0)
        self._noise = NoiseSource(objective, 0, mask, 0, 1, self._levels)
        self._step = 0

    @property
    def draws(self) -> int:
        return self._noise.draws

    def loss(self, examples: Sequence[Example]) -> torch.Tensor:
        """Return the loss of a batch whose noise was never drawn before."""
        step, self._step = self._step, self._step + 1
        # The epoch is part of the key of the noise.
        rows = [replace(example, epoch=step) for example in examples]
        local = LocalStep((pad(rows, self._eos),), step, {})
        counts = Report(examples=local.num_examples, response_tokens=local.num_response_tokens)
        if self._levels is not None:
            counts = replace(counts, by_level=self._levels.report(step))
        (batch,) = self._noise.micro_batches(local, counts, step)
        loss = self._forward(batch)
        if self._levels is not None:
            assert batch.levels is not None and batch.terms is not None
            assert batch.terms.losses is not None
            self._levels.add(batch.levels, batch.terms.losses)
            self._levels.step_ended(step)
        return loss

    def _forward(self, batch: MicroBatch) -> torch.Tensor:
        loss: torch.Tensor = self._model(
            batch.noisy_ids,
            attention_mask=batch.attention_mask,
            positions=batch.positions,
            targets=batch.targets,
            coefficients=batch.terms or batch.coefficients,
        ).loss
        return loss

    def gradient(self, examples: Sequence[Example]) -> torch.Tensor:
        loss = self.loss(examples)
        parameters = list(self._model.parameters())
        return torch.cat([each.flatten() for each in torch.autograd.grad(loss, parameters)])


def read_examples(config: Config, model: Any, count: int) -> list[Example]:
    """Read the first examples of the training data, with a tail of one EOS."""
    data = config.data.model_copy(update={"end": 1, "format": "prompt_response"})
    encoder = build_encoder(data, Path(config.model.path), token_ids(model.config))
    (source,) = list_sources(data, epochs=1)
    rows = RowStream(source.shards, seed=0, shuffle=True, cache_dir=None)
    examples: list[Example] = []
    for row in rows.rows(0, rows.start_positions()):
        examples += encoder(row).examples
        if len(examples) >= count:
            break
    return examples


def chosen(examples: list[Example], size: int, seed: int) -> Iterator[list[Example]]:
    """Yield batches of other examples again and again."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(len(examples))
        for start in range(0, len(order) - size + 1, size):
            yield [examples[number] for number in order[start : start + size]]


def jackknife(parts: np.ndarray[Any, Any], statistic: Callable[..., float]) -> tuple[float, float]:
    """Return a statistic of parts along axis 0, and its standard error."""
    count = len(parts)
    without = np.array([statistic(np.delete(parts, number, axis=0)) for number in range(count)])
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    return statistic(parts), float(error)


def gradient_noise(products: np.ndarray[Any, Any]) -> float:
    """Return E|g - mean|² / |mean|², without the bias of the mean; `products`: [K, K] of K g."""
    count = len(products)
    of_pairs = (products.sum() - np.trace(products)) / (count * (count - 1))
    return float(np.trace(products) / count / of_pairs - 1)


def without(products: np.ndarray[Any, Any], number: int) -> np.ndarray[Any, Any]:
    return np.delete(np.delete(products, number, axis=0), number, axis=1)


def measure(name: str, model: Any, examples: list[Example], sizes: argparse.Namespace) -> Line:
    """Measure one estimator."""
    ids = token_ids(model.config)
    objective = ObjectiveConfig.model_validate(ESTIMATORS[name])
    batches = Batches(objective, model, ids.eos_token_id, ids.mask_token_id)
    per_batch = sizes.rows // batches.draws
    start = time.monotonic()
    with torch.no_grad():
        others = chosen(examples, per_batch, seed=1)
        if objective.t_density == "importance":
            for _ in range(sizes.warmup):
                batches.loss(next(others))
        whole = np.array([batches.loss(next(others)).item() for _ in range(sizes.batches)])
        sets = chosen(examples, per_batch, seed=2)
        repeated = np.array(
            [
                [batches.loss(examples_of_set).item() for _ in range(sizes.repeats)]
                for examples_of_set in (next(sets) for _ in range(sizes.sets))
            ]
        )
    gradients = chosen(examples, per_batch, seed=3)
    stacked = torch.stack([batches.gradient(next(gradients)) for _ in range(sizes.gradients)])
    products = (stacked.double() @ stacked.double().T).numpy()
    count = len(products)
    noises = np.array([gradient_noise(without(products, number)) for number in range(count)])
    of_gradient = gradient_noise(products)
    gradient_error = np.sqrt((count - 1) / count * ((noises - noises.mean()) ** 2).sum())
    masks, masks_error = jackknife(repeated, lambda parts: float(parts.var(axis=1, ddof=1).mean()))
    all_, all_error = jackknife(whole, lambda parts: float(parts.var(ddof=1)))
    return {
        "estimator": name,
        "mean": float(whole.mean()),
        "mean_se": float(whole.std(ddof=1) / np.sqrt(len(whole))),
        "masks": masks,
        "masks_se": masks_error,
        "all": all_,
        "all_se": all_error,
        "gradient": of_gradient,
        "gradient_se": float(gradient_error),
        "seconds": time.monotonic() - start,
    }


def compared(lines: list[Line]) -> list[Line]:
    """Add how much less than the default each estimator varies."""
    (default,) = (line for line in lines if line["estimator"] == DEFAULT)
    for line in lines:
        for what in ("masks", "all", "gradient"):
            line[f"{what}_x_less"] = default[what] / line[what]
    return lines


def shown(line: Line) -> dict[str, str]:
    """Return a line of the table."""

    def number(name: str) -> str:
        return f"{line[name]:.3g} ± {line[f'{name}_se']:.1g}"

    row = {"estimator": line["estimator"], "mean": number("mean")}
    for name in ("masks", "all", "gradient"):
        row |= {name: number(name), f"{name} x less": f"{line[f'{name}_x_less']:.2f}"}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="config/demo.yaml", help="whose data is read")
    parser.add_argument("--model", type=Path, nargs="+", default=[Path("demo/model")])
    parser.add_argument("--rows", type=int, default=32, help="of a batch; even")
    parser.add_argument("--examples", type=int, default=4096, help="to choose from")
    parser.add_argument("--batches", type=int, default=250)
    parser.add_argument("--sets", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--gradients", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--out", type=Path)
    sizes = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(sizes.config)
    found = report.surroundings(["torch", "numpy"])
    options = {name: value for name, value in vars(sizes).items() if isinstance(value, int)}
    found |= {"options": options, "models": {}}
    for path in sizes.model:
        model = load_model(path)
        examples = read_examples(config, model, sizes.examples)
        lines = []
        for name in ESTIMATORS:
            lines.append(measure(name, model, examples, sizes))
            print(f"{path}: {name}: {lines[-1]['seconds']:.0f} s", flush=True)
        compared(lines)
        print(f"\n{path}, batches of {sizes.rows} rows")
        report.print_table([shown(line) for line in lines])
        found["models"][str(path)] = lines
    if sizes.out is not None:
        sizes.out.parent.mkdir(parents=True, exist_ok=True)
        report.write(sizes.out, found)


if __name__ == "__main__":
    main()
