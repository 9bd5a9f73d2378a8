"""How fast the samplers of LLaDA2 are, with and without cache, on a network trained in blocks.

    python benchmarks/generate_in_blocks.py [--steps 2000] [--prompts 34] [--lengths 64 128 256]

Task, network and columns are those of generate.py; the network is trained by the bound of block
diffusion, with blocks of 32 tokens (arXiv 2503.09573), and decoded in blocks of 32. One prompt at
a time, one thread. `same %` and `speed-up` compare with the first row: one token in each pass,
without a cache. `positions` are those that were computed for an answer, in thousands.
"""

import argparse
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import generate as task_of
import report
import torch
from torch import Tensor

from llada_sft.generation import SamplerSettings
from llada_sft.model import Network
from llada_sft.model.layers.blocks import Blocks

BLOCK = task_of.BLOCK
ONE_BY_ONE = {"sampler": "llada2", "threshold": 1.0}
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("llada2, threshold 1, no cache", {**ONE_BY_ONE, "cache_blocks": False}),
    ("llada2, threshold 1", ONE_BY_ONE),
    ("llada2, threshold 0.95, no cache", {"sampler": "llada2", "cache_blocks": False}),
    ("llada2, threshold 0.95", {"sampler": "llada2"}),
    ("llada21, threshold 0.95, no cache", {"sampler": "llada21", "cache_blocks": False}),
    ("llada21, threshold 0.95", {"sampler": "llada21"}),
]


def block_loss(model: Network, cases: list[task_of.Case]) -> Tensor:
    """Return the bound of rows of one length, cut to whole blocks, for each token.

    No row has an EOS: what a token sees does not tell how long the answer is to be. Every other
    block is masked at a level from 0.85 on, as in generate.py.
    """
    length = len(cases[0][0] + cases[0][1]) // BLOCK * BLOCK
    ids = torch.tensor([(prompt + answer)[:length] for prompt, answer in cases])
    is_answer = (torch.arange(length) >= len(cases[0][0])).view(-1, BLOCK)  # [blocks, BLOCK]
    levels = 0.05 + 0.95 * torch.rand(len(ids), len(is_answer), 1)
    levels[:, ::2] = 1 - 0.15 * torch.rand_like(levels[:, ::2])
    masked = (torch.rand(len(ids), *is_answer.shape) < levels) & is_answer
    weights = (1 / levels / is_answer.sum() / len(ids)).expand(masked.shape)
    masked, weights = masked.flatten(1), weights.flatten(1)
    noisy = ids.masked_fill(masked, model.config.mask_token_id)
    of_noisy_half = torch.cat([masked, torch.zeros_like(masked)], dim=1)
    loss: Tensor = model(
        torch.cat([noisy, ids], dim=1),
        positions=of_noisy_half.flatten().nonzero()[:, 0],
        targets=ids[masked],
        coefficients=weights[masked],
        blocks=Blocks(BLOCK, doubled=True),
    ).loss
    return loss


def decode(
    model: Network, cases: list[task_of.Case], way: dict[str, Any]
) -> tuple[list[Any], float]:
    """Answer all prompts; return the answers and the seconds."""
    answers, start = [], time.process_time()
    for prompt, expected in cases:
        settings = SamplerSettings(**way, gen_length=len(expected), block_length=BLOCK)
        answers += task_of.generate(model, [prompt], settings)
    return answers, time.process_time() - start


@contextmanager
def counted(model: Network) -> Iterator[list[int]]:
    """Give a list to which each pass adds its number of positions."""
    positions: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, args: positions.append(args[0].numel()))
    try:
        yield positions
    finally:
        hook.remove()


def measure(model: Network, cases: list[task_of.Case]) -> list[dict[str, Any]]:
    """Return a line of the table for each way."""
    lines: list[dict[str, Any]] = []
    first: list[list[int]] = []
    num_tokens, number = sum(len(expected) for _, expected in cases), len(cases)
    for name, way in WAYS:
        decode(model, cases[:1], way)
        with counted(model) as positions:
            answers, seconds = decode(model, cases, way)
        first = first or [answer.ids for answer in answers]
        right = sum(a.ids == expected for a, (_, expected) in zip(answers, cases, strict=True))
        same = sum(a.ids == ids for a, ids in zip(answers, first, strict=True))
        rate = num_tokens / seconds
        lines.append(
            {
                "sampler": name,
                "length": num_tokens // number,
                "tok/s": rate,
                "speed-up": rate / lines[0]["tok/s"] if lines else 1.0,
                "passes": sum(answer.num_passes for answer in answers) / number,
                "positions": sum(positions) / number / 1000,
                "exact %": 100 * right / number,
                "same %": 100 * same / number,
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000, help="of the training")
    parser.add_argument("--prompts", type=int, default=34, help="of each length")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--out", type=Path, default=Path("generate_in_blocks.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured: dict[str, Any] = report.surroundings(("torch", "transformers"))
    task = task_of.Task()
    model = task_of.new_network(task, decodes_in_blocks=True)
    start = time.process_time()
    # The last block that is decoded is a whole one.
    longer = [length + BLOCK for length in options.lengths]
    measured["loss"] = task_of.train(model, task, options.steps, longer, block_loss)
    measured["training_seconds"] = time.process_time() - start
    draws, tables = random.Random(1), []
    for length in options.lengths:
        words = [task.draw(draws, held_out=True) for _ in range(options.prompts)]
        tables.append(measure(model, [task.case(word, length) for word in words]))
        report.print_table(tables[-1])
    measured["lines"] = [line for table in tables for line in table]
    report.write(options.out, measured)


if __name__ == "__main__":
    main()
