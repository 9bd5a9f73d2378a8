"""The error of a validation: how much its numbers vary with the masks, next to the official way.

    python launch.py --config config/demo.yaml --local run.name=early train.max_steps=90
    llada-sft export runs/early demo/early
    make demo
    python benchmarks/validation.py --model demo/early demo/model \
      --out benchmarks/results/cpu/validation.json

The rows of the demo's held-out data go through a trained model again and again, each time with
other masks: of another seed. All estimators have the same number of forward passes for each row
(`draws`). `official` draws a level for each mask, independent of all others, and masks each token
by itself (the official SFT code); `exact` draws a number of tokens instead; `grid` is what
`validation.draws` does.

Of the loss per row and of the bound per response token, the table has the mean over seeds and the
standard deviation over seeds, which is the standard error of one validation; each with its own
standard error. `x less` is the official one's error over that of the line. The means must agree.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import numpy as np
import report
import torch
from variance import read_examples

from llada_sft.config import load_config
from llada_sft.data.examples.encode import Example
from llada_sft.data.steps.collate import pad
from llada_sft.diffusion.grid import grid_levels, grid_masks
from llada_sft.diffusion.noise import Noise, draw_noise, independent
from llada_sft.keys import hashed
from llada_sft.model import load_model
from llada_sft.training.build_network import token_ids
from llada_sft.training.masks.noisy_batch import noisy_micro_batch
from llada_sft.training.noising import response_masks

Line = dict[str, Any]
# The masks of all rows: draws of each, by a seed.
Draw = Callable[[list[torch.Tensor], int, int], list[list[Noise]]]


def independent_masks(masking: Any) -> Draw:
    """Return what draws each mask by itself."""

    def draw(rows: list[torch.Tensor], draws: int, seed: int) -> list[list[Noise]]:
        keys = [[hashed(seed, row, number) for number in range(draws)] for row in range(len(rows))]
        return [
            [draw_noise(mask, independent(key), key, masking) for key in of_row]
            for mask, of_row in zip(rows, keys, strict=True)
        ]

    return draw


def grid(rows: list[torch.Tensor], draws: int, seed: int) -> list[list[Noise]]:
    levels = grid_levels([int(mask.sum()) for mask in rows], draws, seed)
    return [
        grid_masks(mask, of_row, hashed(seed, row))
        for row, (mask, of_row) in enumerate(zip(rows, levels, strict=True))
    ]


ESTIMATORS: dict[str, Draw] = {
    "official": independent_masks("bernoulli"),
    "exact": independent_masks("exact"),
    "grid": grid,
}


class Rows:
    """The rows of a data set, all in one padded batch.

    Args:
        model: A trained network.
        examples: The rows.
        size: Rows of a forward pass.
    """

    def __init__(self, model: Any, examples: Sequence[Example], size: int) -> None:
        ids = token_ids(model.config)
        self._model, self._mask = model, ids.mask_token_id
        by_length = sorted(examples, key=lambda example: len(example.input_ids))
        self._batches = [
            pad(by_length[start : start + size], ids.eos_token_id)
            for start in range(0, len(by_length), size)
        ]
        self.masks = [mask for batch in self._batches for mask in response_masks(batch)]

    @torch.no_grad()
    def numbers(self, noises: list[list[Noise]]) -> tuple[float, float]:
        """Return the loss per row and the bound per response token, in nats."""
        loss = bound = 0.0
        lengths = [int(mask.sum()) for mask in self.masks]
        draws = len(noises[0])
        for draw in range(draws):
            first = 0
            for batch in self._batches:
                last = first + len(batch.keys)
                own = [of_row[draw] for of_row in noises[first:last]]
                loss += self._forward(batch, own, [float(each) for each in lengths[first:last]])
                bound += self._forward(batch, own, [1.0] * len(own))
                first = last
        return loss / (draws * len(lengths)), bound / (draws * sum(lengths))

    def _forward(self, batch: Any, noises: list[Noise], divisors: list[float]) -> float:
        made = noisy_micro_batch(batch, noises, divisors, self._mask)
        found = self._model(
            made.noisy_ids,
            attention_mask=made.attention_mask,
            positions=made.positions,
            targets=made.targets,
            coefficients=made.coefficients,
        )
        return float(found.loss)


def measure(name: str, rows: Rows, draws: int, seeds: int) -> Line:
    start = time.monotonic()
    found = np.array(
        [rows.numbers(ESTIMATORS[name](rows.masks, draws, seed)) for seed in range(seeds)]
    )
    line: Line = {"estimator": name, "draws": draws}
    for column, what in enumerate(("loss", "bound")):
        values = found[:, column]
        error = float(values.std(ddof=1))
        line |= {
            what: float(values.mean()),
            f"{what}_mean_se": error / np.sqrt(seeds),
            f"{what}_error": error,
            # Of a standard deviation of nearly normal numbers.
            f"{what}_error_se": error / np.sqrt(2 * (seeds - 1)),
        }
    return line | {"seconds": time.monotonic() - start}


def compared(lines: list[Line]) -> list[Line]:
    """Add how much smaller than the official one each error is, at equal forward passes."""
    official = {line["draws"]: line for line in lines if line["estimator"] == "official"}
    for line in lines:
        for what in ("loss", "bound"):
            line[f"{what}_x_less"] = (
                official[line["draws"]][f"{what}_error"] / line[f"{what}_error"]
            )
    return lines


def shown(line: Line) -> dict[str, str]:
    """Return a line of the table."""
    row = {"estimator": line["estimator"], "draws": str(line["draws"])}
    for what in ("loss", "bound"):
        row |= {
            what: f"{line[what]:.4f} ± {line[f'{what}_mean_se']:.1g}",
            f"error of {what}": f"{line[f'{what}_error']:.2g} ± {line[f'{what}_error_se']:.1g}",
            f"{what} x less": f"{line[f'{what}_x_less']:.1f}",
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="config/demo.yaml", help="whose data is read")
    parser.add_argument("--model", type=Path, nargs="+", default=[Path("demo/early")])
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--size", type=int, default=100, help="rows of a forward pass")
    parser.add_argument("--out", type=Path)
    sizes = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(sizes.config)
    found = report.surroundings(["torch", "numpy"])
    options = {"rows": sizes.rows, "draws": sizes.draws, "seeds": sizes.seeds}
    found |= {"options": options, "models": {}}
    held_out = config.data.model_copy(update={"train": config.data.validation})
    for path in sizes.model:
        model = load_model(path)
        examples = read_examples(config.model_copy(update={"data": held_out}), model, sizes.rows)
        rows = Rows(model, examples[: sizes.rows], sizes.size)
        lines = []
        for draws in sizes.draws:
            for name in ESTIMATORS:
                lines.append(measure(name, rows, draws, sizes.seeds))
                print(f"{path}: {name}, {draws}: {lines[-1]['seconds']:.0f} s", flush=True)
        compared(lines)
        print(f"\n{path}, {sizes.rows} rows")
        report.print_table([shown(line) for line in lines])
        found["models"][str(path)] = lines
        if sizes.out is not None:
            sizes.out.parent.mkdir(parents=True, exist_ok=True)
            report.write(sizes.out, found)


if __name__ == "__main__":
    main()
