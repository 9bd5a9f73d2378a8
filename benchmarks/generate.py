"""How fast each sampler is, next to the official one, on a task that a tiny LLaDA learns first.

    python benchmarks/generate.py [--steps 2000] [--prompts 34] [--lengths 64 128 256] [--out FILE]

The task is the demo's, again and again: `reverse abcde ` is continued by the word reversed, with
each letter replaced by the next one of the alphabet, then by the same of that word, and so on, up
to 64, 128 or 256 tokens. A word depends on the one before it, so not all tokens are known at once.
One first word in sixteen is held out for the measurement. The canvas is as long as the true answer:
nothing is gained by an EOS that comes early.

One prompt at a time, blocks of 32 tokens, one thread. Rows of the table:

tok/s       tokens of the true answers per second of this process's CPU time
speed-up    tok/s over those of the official sampler
passes      forward passes of an answer, one after another, on average
rows        rows that were computed in them
exact %     answers that are right in every token
same %      answers that are those of the official sampler
published   the speed-up that its authors report for LLaDA-8B on a GPU; not measured here
"""

import argparse
import math
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import report
import torch
from torch import Tensor

from llada_sft.demo.data import LETTERS, make_tokenizer
from llada_sft.generation import Answer, SamplerSettings, generate
from llada_sft.model import Network, NetworkConfig, build_model

WORD, BLOCK = 5, 32
# Tokens of a training batch's answers.
BATCH_TOKENS = 2048
WAYS: list[tuple[str, dict[str, Any], str]] = [
    ("official", {}, ""),
    ("verify, 3 rows", {"sampler": "verify", "max_drafts": 3}, "2.8 to 3.5"),
    ("verify, 8 rows", {"sampler": "verify", "max_drafts": 8}, ""),
    ("threshold 0.9", {"sampler": "threshold", "threshold": 0.9}, "2.5 to 5.8"),
    ("threshold 0.99", {"sampler": "threshold", "threshold": 0.99}, ""),
    ("factor 0.1", {"sampler": "factor", "factor": 0.1}, ""),
    ("entropy 0.01", {"sampler": "entropy", "entropy_bound": 0.01}, "2 to 3"),
    ("prefix cache", {"sampler": "prefix_cache"}, ""),
    ("prefix cache, threshold 0.99", {"sampler": "prefix_cache", "threshold": 0.99}, "8 to 11"),
    ("dual cache", {"sampler": "dual_cache"}, ""),
    ("dual cache, threshold 0.9", {"sampler": "dual_cache", "threshold": 0.9}, "8 to 11"),
    ("dual cache, threshold 0.99", {"sampler": "dual_cache", "threshold": 0.99}, ""),
    ("dual cache, factor 0.1", {"sampler": "dual_cache", "factor": 0.1}, ""),
]
Case = tuple[list[int], list[int]]


class Task:
    """Prompts and answers."""

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer()
        ids = self.tokenizer.convert_tokens_to_ids
        self._letters, self._space = ids(list(LETTERS)), ids(" ")
        self._start = ids(["<|startoftext|>", "reverse", " "])

    def case(self, word: list[int], length: int) -> Case:
        """Return the ids of a prompt and of its answer; a word is numbers of letters."""
        prompt = [*self._start, *(self._letters[number] for number in word), self._space]
        answer: list[int] = []
        while len(answer) < length:
            word = [(number + 1) % len(LETTERS) for number in reversed(word)]
            answer += [*(self._letters[number] for number in word), self._space]
        return prompt, answer[:length]

    def draw(self, draws: random.Random, held_out: bool) -> list[int]:
        """Return a random word; one in sixteen is held out."""
        while True:
            word = [draws.randrange(len(LETTERS)) for _ in range(WORD)]
            if (sum(number * 7**place for place, number in enumerate(word)) % 16 == 0) == held_out:
                return word


def new_network(task: Task, decodes_in_blocks: bool = False) -> Network:
    """Return the demo's network, for longer rows, with random weights."""
    special = task.tokenizer
    config = NetworkConfig.from_size(
        d_model=96,
        n_layers=3,
        n_heads=4,
        mlp_hidden_size=256,
        max_sequence_length=1024,
        vocab_size=len(special),
        mask_token_id=special.mask_token_id,
        eos_token_id=special.eos_token_id,
        pad_token_id=special.eos_token_id,
    )
    return build_model(config.changed(decodes_in_blocks=decodes_in_blocks))


def train(
    model: Network,
    task: Task,
    num_steps: int,
    lengths: list[int],
    loss_of: Callable[[Network, list[Case]], Tensor] | None = None,
) -> float:
    """Train on LLaDA's objective, or another loss; return the mean loss of the last 20 steps.

    Every other row is masked at a level from 0.85 on: decoding starts there, and levels from 0 to 1
    are seldom so high.
    """
    draws, losses = random.Random(0), []
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    for step in range(num_steps):
        # The shortest answers in two steps of three.
        length = lengths[step // 3 % len(lengths)] if step % 3 == 2 else lengths[0]
        number = BATCH_TOKENS // length
        cases = [task.case(task.draw(draws, held_out=False), length) for _ in range(number)]
        rate = min(1, (step + 1) / 50) * (0.525 + 0.475 * math.cos(math.pi * step / num_steps))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * rate
        optimizer.zero_grad()
        loss = (loss_of or batch_loss)(model, cases)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 200 == 199:
            print(f"step {step + 1}: loss {sum(losses[-20:]) / 20:.4f}", flush=True)
    model.eval()
    return sum(losses[-20:]) / len(losses[-20:])


def batch_loss(model: Network, cases: list[Case]) -> Tensor:
    """Return LLaDA's loss (arXiv 2502.09992, eq. 3) of rows that have one length."""
    ids = torch.tensor([prompt + answer for prompt, answer in cases])
    is_answer = torch.arange(ids.shape[1]) >= len(cases[0][0])
    levels = 0.05 + 0.95 * torch.rand(len(ids), 1)
    levels[::2] = 1 - 0.15 * torch.rand_like(levels[::2])
    masked = (torch.rand(ids.shape) < levels) & is_answer
    weights = (1 / levels / is_answer.sum() / len(ids)).expand(ids.shape)
    noisy = ids.masked_fill(masked, model.config.mask_token_id)
    loss: Tensor = model(
        noisy,
        positions=masked.flatten().nonzero()[:, 0],
        targets=ids[masked],
        coefficients=weights[masked],
    ).loss
    return loss


def decode(model: Network, cases: list[Case], way: dict[str, Any]) -> tuple[list[Answer], float]:
    """Answer all prompts; return the answers and the seconds."""
    answers, start = [], time.process_time()
    for prompt, expected in cases:
        settings = SamplerSettings(
            **way, gen_length=len(expected), block_length=BLOCK, eos_early_stop=False
        )
        answers += generate(model, [prompt], settings)
    return answers, time.process_time() - start


def measure(model: Network, cases: list[Case]) -> list[dict[str, Any]]:
    """Return a line of the table for each way."""
    lines: list[dict[str, Any]] = []
    official: list[list[int]] = []
    num_tokens, number = sum(len(expected) for _, expected in cases), len(cases)
    for name, way, published in WAYS:
        decode(model, cases[:1], way)
        answers, seconds = decode(model, cases, way)
        official = official or [answer.ids for answer in answers]
        right = sum(a.ids == expected for a, (_, expected) in zip(answers, cases, strict=True))
        same = sum(a.ids == ids for a, ids in zip(answers, official, strict=True))
        rate = num_tokens / seconds
        lines.append(
            {
                "sampler": name,
                "length": num_tokens // number,
                "tok/s": rate,
                "speed-up": rate / lines[0]["tok/s"] if lines else 1.0,
                "passes": sum(answer.num_passes for answer in answers) / number,
                "rows": sum(answer.num_rows for answer in answers) / number,
                "exact %": 100 * right / number,
                "same %": 100 * same / number,
                "published": published,
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
    parser.add_argument("--out", type=Path, default=Path("generate.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured: dict[str, Any] = report.surroundings(("torch", "transformers"))
    task = Task()
    model = new_network(task)
    start = time.process_time()
    measured["loss"] = train(model, task, options.steps, options.lengths)
    measured["training_seconds"] = time.process_time() - start
    draws, tables = random.Random(1), []
    for length in options.lengths:
        words = [task.draw(draws, held_out=True) for _ in range(options.prompts)]
        tables.append(measure(model, [task.case(word, length) for word in words]))
        report.print_table(tables[-1])
    measured["lines"] = [line for table in tables for line in table]
    measured["summary"] = summary(tables)
    report.print_table(measured["summary"])
    report.write(options.out, measured)


def summary(tables: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the means over all lengths: tokens per second of all together, shares of all."""
    lines: list[dict[str, Any]] = []
    for own in zip(*tables, strict=True):
        tokens = sum(line["length"] for line in own)
        line = {"sampler": own[0]["sampler"]}
        line["tok/s"] = tokens / sum(line["length"] / line["tok/s"] for line in own)
        line["speed-up"] = line["tok/s"] / lines[0]["tok/s"] if lines else 1.0
        for name in ("passes", "rows", "exact %", "same %"):
            line[name] = sum(part[name] for part in own) / len(own)
        lines.append(line)
    return lines


if __name__ == "__main__":
    main()
