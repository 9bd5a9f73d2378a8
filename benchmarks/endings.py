"""Each `data.end` on longer and longer canvases: how many answers are still right.

    python benchmarks/endings.py --out benchmarks/results/cpu/endings.json

The task is the demo's (llada_sft/demo), with words of `--shortest` to `--longest` letters of eight
instead of three to five; all lengths are equally frequent. A network of the demo's size is trained
with `batch_max` for `--base-steps`, as the published networks were: what an EOS is, they know. From
there it is trained once for each end, on the same rows in the same order and with the same number
of steps. Examples, noise, coefficients and the network are those of the package; the loop is
one process. Then words that were never trained are answered with the official sampler, one token
at each step, on canvases of `--canvases` times the longest answer with its EOS, in one block: the
network alone decides where an answer ends.

`exact` is the share of answers that are right to the last letter, in percent; `letters` how many
letters answers have, over those that they should have. Void and rainbow networks answer twice: as
the package samples, where a confidence is the probability among all tokens, and with confidences
among the tokens that may be written (`among the others`).
"""

import argparse
import copy
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import report
import torch

from llada_sft.answering.answerer import answer
from llada_sft.config.sections.data import DataConfig
from llada_sft.config.sections.objective import ObjectiveConfig
from llada_sft.config.sections.optim import OptimConfig
from llada_sft.data.examples.answer_end import answer_end_of, end_token_ids
from llada_sft.data.examples.encode import Encoder, Example
from llada_sft.data.records.chat_tokens import encode_record
from llada_sft.data.rows.row import Row
from llada_sft.data.steps.collate import pack, pad
from llada_sft.data.steps.local_step import LocalStep
from llada_sft.demo.data import LETTERS, make_tokenizer
from llada_sft.generation import SamplerSettings
from llada_sft.model import Network, NetworkConfig, build_model
from llada_sft.training.build_network import token_ids
from llada_sft.training.consensus import Report
from llada_sft.training.noising import NoiseSource
from llada_sft.training.schedule.learning_rate import learning_rate

RESERVED = tuple(f"<|reserved_token_{number}|>" for number in range(7))
OPTIM = OptimConfig(lr=3e-3, final_lr=3e-4, weight_decay=0.01, schedule="cosine", warmup_steps=50)
Line = dict[str, Any]


def words(count: int, shortest: int, longest: int, seed: int) -> list[str]:
    """Return words of random letters; every length is equally frequent."""
    draw = random.Random(seed)
    lengths = [shortest + number % (longest - shortest + 1) for number in range(count)]
    draw.shuffle(lengths)
    return ["".join(draw.choices(LETTERS, k=length)) for length in lengths]


class Task:
    """Rows of the task as examples of one end.

    Args:
        data: The data section.
        tokenizer: Of the demo, with reserved tokens.
        network: Of the network to train.
    """

    def __init__(self, data: DataConfig, tokenizer: Any, network: NetworkConfig) -> None:
        self._encoder = Encoder(
            hook=lambda record, tokenizer, max_length: encode_record(record, tokenizer),
            hook_path=Path("hook.py"),
            tokenizer=tokenizer,
            vocab_size=network.vocab_size,
            max_length=data.max_length,
            on_too_long="skip",
            answer_end=answer_end_of(data, token_ids(network), tokenizer),
        )

    def examples(self, rows: Sequence[str], first: int) -> list[Example]:
        """Return the examples of words; `first`: the line of the first word."""
        return [
            example
            for line, word in enumerate(rows, start=first)
            for example in self._encoder(_row(word, line)).examples
        ]


def _row(word: str, line: int) -> Row:
    record = {"prompt": f"reverse {word}", "response": word[::-1]}
    return Row("words", line, 0, json.dumps(record).encode(), "words")


def batches(task: Task, sizes: argparse.Namespace, steps: int) -> Iterator[list[Example]]:
    """Yield the batches of a training: no word comes twice, but by chance."""
    rows = words(steps * sizes.batch, sizes.shortest, sizes.longest, seed=1 + steps)
    for start in range(0, len(rows), sizes.batch):
        yield task.examples(rows[start : start + sizes.batch], start)


def train(
    model: Network, task: Task, objective: ObjectiveConfig, sizes: argparse.Namespace, steps: int
) -> int:
    """Train a network in place; return how many tokens it has read."""
    ids = token_ids(model.config)
    noise = NoiseSource(objective, 0, ids.mask_token_id, rank=0, world_size=1)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=OPTIM.lr, betas=OPTIM.betas, weight_decay=OPTIM.weight_decay
    )
    model.train()
    positions = 0
    for step, examples in enumerate(batches(task, sizes, steps)):
        grows = any(example.grows for example in examples)
        together = pad(examples, ids.eos_token_id) if grows else pack(examples)
        local = LocalStep((together,), 0, {})
        counts = Report(examples=local.num_examples, response_tokens=local.num_response_tokens)
        (batch,) = noise.micro_batches(local, counts, step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(OPTIM, step, steps)
        loss: torch.Tensor = model(
            batch.noisy_ids,
            attention_mask=batch.attention_mask,
            positions=batch.positions,
            sequences=batch.sequences,
            targets=batch.targets,
            coefficients=batch.terms or batch.coefficients,
        ).loss
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.gradient_clip)
        optimizer.step()
        positions += local.num_positions
        if step % 100 == 0 or step == steps - 1:
            print(f"  step {step + 1}: loss {loss.item():.4f}", flush=True)
    return positions


def measure(model: Network, tokenizer: Any, canvas: int, held_out: Sequence[str]) -> Line:
    """Answer held-out words; return the share of right answers, and of letters that are there."""
    settings = SamplerSettings(steps=canvas, gen_length=canvas, block_length=canvas)
    said = answer(model.eval(), tokenizer, [f"reverse {word}" for word in held_out], settings)
    right = sum(text == word[::-1] for text, word in zip(said, held_out, strict=True))
    found = {"canvas": canvas, "exact": right / len(held_out)}
    return found | {"letters": sum(map(len, said)) / sum(map(len, held_out))}


@contextmanager
def among_the_others(model: Network) -> Iterator[None]:
    """Let tokens that are never written have no probability."""
    tokens = list(model.config.suppress_tokens)

    def without(module: Any, inputs: Any, output: Any) -> None:
        output.logits[..., tokens] = -torch.inf

    handle = model.register_forward_hook(without)
    try:
        yield
    finally:
        handle.remove()


def ends(sizes: argparse.Namespace, ids: list[int]) -> dict[str, Line]:
    """Return the keys of the data section for each end that is compared."""
    more = {"end_tokens": sizes.end_tokens}
    return {
        "batch_max": {"end": "batch_max"},
        "1": {"end": 1},
        "void": {"end": "void", "void_token_id": ids[0], **more},
        "rainbow": {"end": "rainbow", "rainbow_token_ids": tuple(ids), **more},
    }


def network_of(tokenizer: Any, sizes: argparse.Namespace) -> NetworkConfig:
    """Return the demo's network, with room for the longest canvas."""
    longest = (sizes.longest + 1) * max(sizes.canvases)
    return NetworkConfig.from_size(
        d_model=96,
        n_layers=3,
        n_heads=4,
        mlp_hidden_size=256,
        max_sequence_length=2 * longest,
        vocab_size=len(tokenizer),
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


def data_of(network: NetworkConfig, keys: Line) -> DataConfig:
    return DataConfig(train="-", max_length=network.architecture.max_length, **keys)


def base_network(keys: Line, tokenizer: Any, sizes: argparse.Namespace) -> Network:
    """Train the network that each end begins with."""
    network = network_of(tokenizer, sizes)
    model = build_model(network, seed=sizes.seed)
    task = Task(data_of(network, keys), tokenizer, network)
    train(model, task, ObjectiveConfig(), sizes, sizes.base_steps)
    return model


def compare(
    name: str, keys: Line, base: Network, tokenizer: Any, sizes: argparse.Namespace
) -> list[Line]:
    """Train one network, and let it answer on each canvas."""
    model, data = copy.deepcopy(base), data_of(base.config, keys)
    task = Task(data, tokenizer, model.config)
    start = time.monotonic()
    weight = {"void_weight": sizes.void_weight} if name == "void" else {}
    positions = train(model, task, ObjectiveConfig(**weight), sizes, sizes.steps)
    trained = {"tokens": positions, "train_s": time.monotonic() - start}
    model.config.suppress_tokens = end_token_ids(data, token_ids(model.config))
    held_out = words(sizes.held_out, sizes.shortest, sizes.longest, seed=0)
    canvases = [times * (sizes.longest + 1) for times in sizes.canvases]

    def line(called: str) -> Line:
        answers = [measure(model, tokenizer, canvas, held_out) for canvas in canvases]
        print(f"  {called}: {[round(each['exact'], 3) for each in answers]}", flush=True)
        return {"end": called, **trained, "answers": answers}

    lines = [line(name)]
    if model.config.suppress_tokens:
        with among_the_others(model):
            lines.append(line(f"{name}, among the others"))
    return lines


def shown(line: Line, canvases: Sequence[int]) -> Line:
    """Return a line of the table."""
    row = {"end": line["end"]}
    for times, found in zip(canvases, line["answers"], strict=True):
        row[f"exact {times}x"] = f"{100 * found['exact']:.1f}"
        row[f"letters {times}x"] = f"{found['letters']:.2f}"
    return row | {"tokens trained": f"{line['tokens']:,}", "s": f"{line['train_s']:.0f}"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ends", nargs="+", default=["batch_max", "1", "void", "rainbow"])
    parser.add_argument("--shortest", type=int, default=3)
    parser.add_argument("--longest", type=int, default=8)
    parser.add_argument("--base-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--end-tokens", type=int, default=36)
    parser.add_argument("--void-weight", type=float, default=1.0)
    parser.add_argument("--canvases", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--held-out", type=int, default=210)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    sizes = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(RESERVED)})
    found = report.surroundings(["torch"])
    found["options"] = {name: value for name, value in vars(sizes).items() if name != "out"}
    lines = []
    all_ends = ends(sizes, tokenizer.convert_tokens_to_ids(list(RESERVED)))
    base = base_network(all_ends["batch_max"], tokenizer, sizes)
    for name in sizes.ends:
        print(name, flush=True)
        lines += compare(name, all_ends[name], base, tokenizer, sizes)
    found["ends"] = lines
    report.print_table([shown(line, sizes.canvases) for line in lines])
    if sizes.out is not None:
        sizes.out.parent.mkdir(parents=True, exist_ok=True)
        report.write(sizes.out, found)


if __name__ == "__main__":
    main()
