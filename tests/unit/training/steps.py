"""Steps made of no files, and a network that is a table: for tests of noise and of order."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llada_sft.config.sections.objective import ObjectiveConfig
from llada_sft.data.examples.encode import Example
from llada_sft.data.rows.position import FilePosition
from llada_sft.data.steps.collate import pad
from llada_sft.data.steps.local_step import LocalStep, StepSize
from llada_sft.training.consensus import Report
from llada_sft.training.masks.micro_batch import MicroBatch
from llada_sft.training.noising import NoiseSource

EOS, MASK, VOCAB = 9, 8, 10


def example(
    prompt: int, response: int, line: int = 1, file: str = "a", grows: bool = False, **more: Any
) -> Example:
    rng = np.random.default_rng(line + 1000 * len(file))
    return Example(
        input_ids=rng.integers(0, VOCAB, prompt + response),
        response_mask=np.arange(prompt + response) >= prompt,
        noisy_ids=more.get("noisy_ids"),
        grows=grows,
        file=file,
        line=line,
        part=more.get("part", 0),
        loss_weights=more.get("loss_weights"),
    )


def local_step(
    examples: Sequence[Example], size: StepSize, epoch: int = 0, end: bool = False
) -> LocalStep:
    position = {"a": FilePosition(len(examples), 0)}
    per_batch = size.micro_batch_size
    batches = [pad(examples[i : i + per_batch], EOS) for i in range(0, size.examples, per_batch)]
    return LocalStep(tuple(batches), epoch, position, end)


def report(steps: Iterable[LocalStep]) -> Report:
    counts = [(step.num_examples, step.num_response_tokens) for step in steps]
    return Report(sum(n for n, _ in counts), sum(tokens for _, tokens in counts))


def source(rank: int = 0, world_size: int = 1, seed: int = 0, **objective: Any) -> NoiseSource:
    return NoiseSource(ObjectiveConfig(**objective), seed, MASK, rank, world_size)


def logits_at(batch: MicroBatch, table: Tensor) -> Tensor:
    """A stand-in network [VOCAB, VOCAB]: what it predicts depends on the noisy token alone."""
    return table[batch.noisy_ids.flatten()[batch.positions]]


TABLE = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0))


def local_steps(rank: int, epochs: Sequence[int], size: StepSize) -> Iterator[LocalStep]:
    """As many examples in each epoch as `epochs` says."""
    for epoch, count in enumerate(epochs):
        rows = [example(1, 2, line, f"file{rank}") for line in range(count)]
        for start in range(0, count, size.examples):
            yield local_step(rows[start : start + size.examples], size, epoch)
        yield local_step([], size, epoch, end=True)
