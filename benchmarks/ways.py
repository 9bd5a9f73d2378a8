"""The ways of making a step that benchmarks/step.py compares: ours, and the recipes of others.

The recipes are written plainly, on our own network without compiling, so that what differs is how
rows are grouped, where the head runs and how the loss is taken:

official   the recipe of LLaDA's guidelines: rows in their order, padded with learned EOS to the
           longest of the micro-batch, logits of all positions, cross-entropy of each masked token
by length  the same with rows grouped by length within the look-ahead, as other trainers offer
padded     ours: the same rows as official; the head at masked positions only, its loss in pieces
one EOS    ours: one EOS for each row, the rest is padding that is neither learned nor attended to
packed     ours: whole examples in one row of at most so many tokens, none of them padding
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from llada_sft.config.sections.objective import ObjectiveConfig
from llada_sft.data.examples.encode import Example
from llada_sft.data.steps.collate import UnmaskedBatch, pack, pad
from llada_sft.data.steps.local_step import LocalStep
from llada_sft.data.steps.packing import in_order, packs
from llada_sft.diffusion.objective import masked_cross_entropy
from llada_sft.model import Network, NetworkConfig
from llada_sft.model.layers.kept_bytes import Checkpointing
from llada_sft.training.consensus import Report
from llada_sft.training.masks.micro_batch import MicroBatch
from llada_sft.training.noising import NoiseSource

LOOK_AHEAD = 256
Pass = Callable[[Network, MicroBatch], None]


@dataclass(frozen=True)
class Way:
    """One way of making a step of the same rows.

    Attributes:
        name: For the table.
        group: Divides rows into micro-batches; gets the EOS token, too.
        run: Forward and backward of one micro-batch.
        most_tokens: The longest row that it takes; None: any.
        checkpointing: What is kept for the backward pass.
        compiled: Whether the network's blocks are.
    """

    name: str
    group: Callable[[list[Example], int], list[UnmaskedBatch]]
    run: Pass
    most_tokens: int | None = None
    checkpointing: Checkpointing = "none"
    compiled: bool = False


def ours(model: Network, batch: MicroBatch) -> None:
    """As the training module does it."""
    loss = model(
        batch.noisy_ids,
        attention_mask=batch.attention_mask,
        positions=batch.positions,
        sequences=batch.sequences,
        targets=batch.targets,
        coefficients=batch.coefficients,
    ).loss
    torch.autograd.backward(loss)


def full_logits(model: Network, batch: MicroBatch) -> None:
    """As the official guidelines do it: logits of all positions first."""
    logits = model(batch.noisy_ids, attention_mask=batch.attention_mask).logits  # [B, L, V]
    masked = logits.flatten(0, 1)[batch.positions]  # [M, V]
    torch.autograd.backward(masked_cross_entropy(masked, batch.targets, batch.coefficients))


def padded(
    size: int, by_length: bool = False, grows: bool = True
) -> Callable[..., list[UnmaskedBatch]]:
    """Group rows of their own; `grows`: padding is learned EOS."""

    def group(rows: list[Example], eos: int) -> list[UnmaskedBatch]:
        rows = [replace(row, grows=grows) for row in rows]
        if by_length:
            parts = [rows[at : at + LOOK_AHEAD] for at in range(0, len(rows), LOOK_AHEAD)]
            rows = [row for part in parts for row in sorted(part, key=lambda r: len(r.input_ids))]
        return [pad(each, eos) for each in in_order([], iter(rows), size)]

    return group


def packed(max_tokens: int) -> Callable[..., list[UnmaskedBatch]]:
    """Group rows one after the other."""

    def group(rows: list[Example], eos: int) -> list[UnmaskedBatch]:
        return [pack(each) for each in packs([], iter(rows), max_tokens, LOOK_AHEAD)]

    return group


def compared_with_others(size: int, max_tokens: tuple[int, ...], compiled: bool) -> Iterator[Way]:
    """Yield the recipes of others, and ours."""
    yield Way(f"official, {size} rows", padded(size), full_logits)
    yield Way(f"official by length, {size} rows", padded(size, by_length=True), full_logits)
    yield Way(f"padded, {size} rows", padded(size), ours)
    yield Way(f"one EOS, {size} rows", padded(size, grows=False), ours)
    for most in max_tokens:
        yield Way(f"packed, {most} tokens", packed(most), ours, most)
    if compiled:
        for most in max_tokens:
            name = f"packed, {most} tokens, compiled"
            yield Way(name, packed(most), ours, most, compiled=True)


def ours_only(max_tokens: tuple[int, ...], compiled: bool) -> Iterator[Way]:
    """Yield each way of ours, with everything kept and with everything computed again."""
    choices: tuple[Checkpointing, ...] = ("none", "selective", "full")
    for is_compiled in (False, True)[: 1 + compiled]:
        tail = ", compiled" if is_compiled else ""
        for kept in choices:
            for size in (2, 8)[: 2 * (not is_compiled)]:
                name = f"padded, {size} rows, {kept}{tail}"
                yield Way(name, padded(size), ours, None, kept, is_compiled)
            for most in max_tokens:
                name = f"packed, {most} tokens, {kept}{tail}"
                yield Way(name, packed(most), ours, most, kept, is_compiled)


def examples(count: int, vocab_size: int, mean: int, most: int) -> list[Example]:
    """Make rows of random tokens, of log-normal lengths; a quarter of each is the prompt."""
    random = np.random.default_rng(0)
    lengths = random.lognormal(np.log(mean) - 0.5, 1.0, count).clip(8, most)
    made = []
    for line, length in enumerate(lengths.astype(int).tolist()):
        ids = random.integers(0, vocab_size - 2, length)
        response = np.arange(length) >= length // 4
        made.append(Example(ids, response, None, True, "rows.jsonl", line, 0))
    return made


def micro_batches(way: Way, rows: list[Example], config: NetworkConfig) -> list[MicroBatch]:
    """Group and mask the rows as the training does; the whole of it counts as one step."""
    source = NoiseSource(ObjectiveConfig(), 0, config.vocab_size - 1, rank=0, world_size=1)
    step = LocalStep(tuple(way.group(rows, config.vocab_size - 2)), 0, {})
    return source.micro_batches(step, Report(examples=len(rows)), 0)
