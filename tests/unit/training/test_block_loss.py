"""The block objective on a real network: one loss however examples meet, and dFactory's numbers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llada_sft.data.examples.encode import Example
from llada_sft.data.rows.position import ExampleKey
from llada_sft.data.steps.collate import UnmaskedBatch, pack, pad
from llada_sft.data.steps.local_step import LocalStep
from llada_sft.diffusion.noise import Noise
from llada_sft.model import Network, NetworkConfig, build_model, load_model
from llada_sft.training.consensus import Report
from llada_sft.training.masks.micro_batch import MicroBatch
from llada_sft.training.masks.noisy_batch import noisy_micro_batch
from llada_sft.training.masks.two_halves import in_two_halves
from tests.unit.training.steps import source

EOS, MASK = 99, 100
BLOCK = 8
GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def model() -> Network:
    size = {"d_model": 32, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 72}
    config = NetworkConfig.from_size(
        **size,
        max_sequence_length=64,
        vocab_size=101,
        mask_token_id=MASK,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    return build_model(config)


def example(line: int, prompt: int, length: int, **more: Any) -> Example:
    random = np.random.default_rng(line)
    ids = random.integers(0, 98, length)
    mask = np.arange(length) >= prompt
    return Example(ids, mask, None, False, "a.jsonl", line, 0, block_length=BLOCK, **more)


# Whole blocks, one that was cut within a block, one that the hook has corrupted, one with weights.
EXAMPLES = [
    example(1, 3, 24),
    example(2, 13, 16),
    replace(example(3, 0, 11), noisy_ids=np.arange(11)),
    example(4, 15, 40),
    example(5, 2, 13),
    example(6, 9, 16, loss_weights=np.linspace(0, 2, 16, dtype=np.float32)),
]


def loss_and_gradient(model: Network, made: Sequence[MicroBatch]) -> tuple[float, Tensor]:
    model.zero_grad()
    total = 0.0
    for batch in made:
        loss = model(
            batch.noisy_ids,
            attention_mask=batch.attention_mask,
            positions=batch.positions,
            sequences=batch.sequences,
            targets=batch.targets,
            coefficients=batch.terms,
            blocks=batch.blocks,
        ).loss
        loss.backward()
        total += loss.item()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return total, torch.cat(gradients)


def on_ranks(dealt: Sequence[Sequence[UnmaskedBatch]], **objective: Any) -> list[MicroBatch]:
    """Return the micro-batches of all ranks, each counting as in the mean over ranks."""
    steps = [LocalStep(tuple(batches), 0, {}) for batches in dealt]
    noises = [
        source(rank, len(dealt), 3, kind="block", block_length=BLOCK, **objective)
        for rank in range(len(dealt))
    ]
    noises = [replace(noise, mask_token_id=MASK) for noise in noises]
    counts = Report(
        examples=sum(step.num_examples for step in steps),
        response_tokens=sum(step.num_response_tokens for step in steps),
        masked=sum(noise.num_masked(step, 5) for noise, step in zip(noises, steps, strict=True)),
    )
    made = [
        batch
        for noise, step in zip(noises, steps, strict=True)
        for batch in noise.micro_batches(step, counts, 5)
    ]
    for batch in made:
        assert batch.terms is not None
        batch.terms.coefficients /= len(dealt)
        if batch.terms.confidence is not None:
            batch.terms.confidence /= len(dealt)
    return made


def padded(rows: Sequence[Example]) -> UnmaskedBatch:
    return pad(rows, EOS)


def singly(rows: Sequence[Example]) -> list[UnmaskedBatch]:
    return [padded([row]) for row in rows]


ARRANGEMENTS: dict[str, list[list[UnmaskedBatch]]] = {
    "padded": [[padded(EXAMPLES)]],
    "packed": [[pack(EXAMPLES)]],
    "accumulated 2": [[pack(EXAMPLES[:3]), padded(EXAMPLES[3:])]],
    "accumulated 4": [[*singly(EXAMPLES[:3]), pack(EXAMPLES[3:])]],
    "2 ranks": [[pack(EXAMPLES[::2])], [padded(EXAMPLES[1::2])]],
    "3 ranks": [[pack(EXAMPLES[rank::3]), padded([])] for rank in range(3)],
    "3 ranks accumulated": [singly(EXAMPLES[rank::3]) for rank in range(3)],
}


@pytest.mark.parametrize(
    "objective",
    [
        {},
        {"normalization": "token"},
        {"masking": "bernoulli"},
        {"pairs": "antithetic"},
        {"confidence_weight": 0.5},
        {"band": (0.3, 0.8)},
        {"band": (0.3, 0.8), "normalization": "token", "pairs": "antithetic"},
    ],
    ids=str,
)
def test_one_loss_in_any_arrangement(model: Network, objective: dict[str, Any]) -> None:
    # Levels go by the place in the global batch: the same here however it is dealt.
    loss, gradient = loss_and_gradient(model, on_ranks([singly(EXAMPLES)], **objective))
    for name, dealt in ARRANGEMENTS.items():
        found, other = loss_and_gradient(model, on_ranks(dealt, **objective))
        assert found == pytest.approx(loss, rel=1e-5), name
        assert (other - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_a_document_never_sees_another(model: Network) -> None:
    changed = replace(EXAMPLES[1], input_ids=EXAMPLES[1].input_ids[::-1].copy())
    seen = []
    for second in (EXAMPLES[1], changed):
        rows = [EXAMPLES[0], second, EXAMPLES[3]]
        (batch,) = on_ranks([[pack(rows)]])
        logits = model(
            batch.noisy_ids,
            positions=batch.positions,
            sequences=batch.sequences,
            blocks=batch.blocks,
        ).logits
        start = len(EXAMPLES[0].input_ids)
        others = (batch.positions < start) | (batch.positions >= start + len(second.input_ids))
        seen.append(logits[others])
    torch.testing.assert_close(*seen, atol=1e-6, rtol=0)


class Published:
    """A network with what dFactory computed for it."""

    def __init__(self, name: str) -> None:
        self.model = load_model(GOLDEN / name, dtype=torch.float32)
        self.expected = load_file(GOLDEN / name / "expected.safetensors")
        self.block_length = int(self.expected["block_size"])
        # Of the tokenizer, which is not there (README.md).
        self.mask = 510

    def micro_batch(self, rows: slice, num_masked: int) -> MicroBatch:
        """Return rows of its batch with its masks, the loss divided by a number of tokens."""
        ids, labels = self.expected["input_ids"][rows], self.expected["sft_labels"][rows]
        prompts = self.expected["sft_prompt_lengths"][rows]
        learned = torch.arange(ids.shape[1]) >= prompts[:, None]
        batch = UnmaskedBatch(
            input_ids=ids.numpy(),
            response_mask=learned.numpy(),
            attention_mask=None,
            keys=tuple(ExampleKey("a", row, 0, 0) for row in range(len(ids))),
            lengths=(ids.shape[1],) * len(ids),
            block_length=self.block_length,
        )
        masks = labels >= 0
        assert not (masks & ~learned).any()
        noises = [Noise(mask, t=0.5, weight=1.0) for mask in masks]
        made = noisy_micro_batch(batch, noises, [float(num_masked)] * len(ids), self.mask)
        assert torch.equal(made.noisy_ids, self.expected["sft_noisy_ids"][rows])
        return in_two_halves(made, batch, self.block_length)

    def loss(self, batch: MicroBatch) -> Tensor:
        found: Tensor = self.model(
            batch.noisy_ids,
            positions=batch.positions,
            targets=batch.targets,
            coefficients=batch.coefficients,
            blocks=batch.blocks,
        ).loss
        return found


@pytest.fixture(scope="module", params=["tiny_llada2_moe", "tiny_llada2_moe_b"])
def published(request: pytest.FixtureRequest) -> Published:
    return Published(request.param)


def masked_of(published: Published, rows: slice) -> int:
    return int((published.expected["sft_labels"][rows] >= 0).sum())


def test_the_band_has_the_published_loss_and_gradients(published: Published) -> None:
    """The mean over the masked tokens of the batch."""
    every, expected = slice(0, 3), published.expected
    loss = published.loss(published.micro_batch(every, masked_of(published, every)))
    assert loss.item() == pytest.approx(expected["sft_bd_loss"].item(), rel=1e-5)
    published.model.zero_grad()
    loss.backward()
    compared = 0
    for name, parameter in published.model.named_parameters():
        official = expected.get(f"grad.{name}")
        if official is None or parameter.grad is None:
            continue
        own = parameter.grad if parameter.grad.shape == official.shape else None
        own = parameter.grad.flatten()[:4096] if own is None else own
        assert (own - official).abs().max() <= 1e-5 * official.abs().max(), name
        compared += 1
    assert compared > 10


def test_the_published_loss_of_two_micro_batches_is_a_mean_of_means(published: Published) -> None:
    """Ours is the mean over both: that of theirs only where each is divided by its own tokens."""
    parts = (slice(0, 1), slice(1, 3))
    with torch.no_grad():
        of_means = [
            published.loss(published.micro_batch(rows, 2 * masked_of(published, rows))).item()
            for rows in parts
        ]
        both = masked_of(published, slice(0, 3))
        ours = sum(published.loss(published.micro_batch(rows, both)).item() for rows in parts)
    expected = published.expected
    assert sum(of_means) == pytest.approx(
        expected["sft_bd_loss_two_micro_batches_1_2"].item(), rel=1e-5
    )
    assert ours == pytest.approx(expected["sft_bd_loss"].item(), rel=1e-5)
