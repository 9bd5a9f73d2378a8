"""Packed and padded are the same training: the same noise, the same loss, the same gradients."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llada_sft.config.sections.objective import ObjectiveConfig
from llada_sft.data.examples.encode import Example
from llada_sft.data.steps.collate import UnmaskedBatch, pack, pad
from llada_sft.data.steps.local_step import LocalStep
from llada_sft.diffusion.objective import masked_cross_entropy
from llada_sft.model import Network, NetworkConfig, build_model
from llada_sft.training.consensus import Report
from llada_sft.training.masks.micro_batch import MicroBatch
from llada_sft.training.noising import NoiseSource

EOS, MASK = 99, 100


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


def example(prompt: int, response: int, line: int, corrupted: bool = False) -> Example:
    """An example with a tail of two EOS."""
    random = np.random.default_rng(line)
    length = prompt + response + 2
    ids = random.integers(0, 98, length)
    ids[-2:] = EOS
    noisy = random.integers(0, 98, length) if corrupted else None
    return Example(ids, np.arange(length) >= prompt, noisy, False, "a.jsonl", line, 0)


EXAMPLES = [
    example(3, 20, 1),
    example(9, 1, 2),
    example(0, 7, 3, corrupted=True),
    example(15, 4, 4),
    example(2, 40, 5),
]


# The same with a void end, but where the hook has corrupted the input; and one that was cut.
WITH_VOID = [
    one
    if one.noisy_ids is not None or number == 4
    else replace(
        one,
        response_mask=one.response_mask & (np.arange(len(one.input_ids)) < len(one.input_ids) - 1),
        hidden=2,
    )
    for number, one in enumerate(EXAMPLES)
]


def drawn(batches: list[UnmaskedBatch], **objective: Any) -> list[MicroBatch]:
    step = LocalStep(tuple(batches), 0, {})
    counts = Report(examples=step.num_examples, response_tokens=step.num_response_tokens)
    noise = NoiseSource(ObjectiveConfig(**objective), 3, MASK, 0, 1)
    return noise.micro_batches(step, counts, step=5)


def loss_and_gradient(model: Network, batches: list[MicroBatch]) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    total = torch.zeros(())
    for batch in batches:
        logits = model(
            batch.noisy_ids, batch.attention_mask, batch.positions, batch.sequences
        ).logits
        loss = masked_cross_entropy(logits, batch.targets, batch.coefficients)
        torch.autograd.backward(loss)
        total += loss.detach()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return total, torch.cat(gradients)


def relative(one: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other))


@pytest.mark.parametrize("normalization", ["answer", "token"])
@pytest.mark.parametrize("masking", ["exact", "bernoulli"])
@pytest.mark.parametrize("t_sampling", ["low_discrepancy", "independent"])
@pytest.mark.parametrize("examples", [EXAMPLES, WITH_VOID], ids=["eos", "void"])
def test_packed_and_padded_have_the_same_loss_and_gradients(
    model: Network, normalization: str, masking: str, t_sampling: str, examples: list[Example]
) -> None:
    objective = {"normalization": normalization, "masking": masking, "t_sampling": t_sampling}
    padded = drawn([pad(examples[:3], EOS), pad(examples[3:], EOS)], **objective)
    packed = drawn([pack(examples[:4]), pack(examples[4:])], **objective)
    assert sum(batch.noisy_ids.numel() for batch in packed) == sum(
        len(one.input_ids) for one in examples
    )
    padded_loss, padded_gradient = loss_and_gradient(model, padded)
    packed_loss, packed_gradient = loss_and_gradient(model, packed)
    assert relative(packed_loss, padded_loss) < 1e-6
    assert relative(packed_gradient, padded_gradient) < 1e-6


def test_targets_and_coefficients_are_those_of_the_padded_ones() -> None:
    (padded,) = drawn([pad(EXAMPLES, EOS)])
    (packed,) = drawn([pack(EXAMPLES)])
    # Both go through the examples in order: what is masked comes in the same order, too.
    assert torch.equal(packed.targets, padded.targets)
    assert torch.equal(packed.coefficients, padded.coefficients)
    assert not torch.equal(packed.positions, padded.positions)
    assert packed.sequences is not None and packed.attention_mask is None
    assert packed.sequences.lengths == tuple(len(one.input_ids) for one in EXAMPLES)
    moved = packed.to(torch.device("meta")).sequences
    assert moved is not None and moved.lengths == packed.sequences.lengths
    assert moved.ends.is_meta and moved.places.is_meta
