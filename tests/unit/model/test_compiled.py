"""Compiled blocks: the same loss and gradients, and no compiling again for other lengths."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from llada_sft.model import NetworkConfig, build_model
from llada_sft.model.layers.attention import Sequences


@pytest.mark.slow
# Of torch's compiler itself; elsewhere warnings are errors.
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_have_the_same_loss_and_gradients(small_config: NetworkConfig) -> None:
    model = build_model(small_config)
    packs = [(7, 1, 12), (3,) * 9, (40,), (2, 2)]

    def result(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        ids = torch.arange(sum(lengths))[None] * 7 % 99
        positions = torch.arange(0, sum(lengths), 2)
        loss = model(
            ids,
            positions=positions,
            sequences=Sequences(lengths),
            targets=ids[0, positions],
            coefficients=torch.ones(len(positions)),
        ).loss
        model.zero_grad()
        torch.autograd.backward(loss)
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return loss.detach(), torch.cat(grads)

    eager = [result(lengths) for lengths in packs]
    torch._dynamo.reset()
    counters["stats"].clear()
    model.compile_blocks()
    for lengths, (loss, gradient) in zip(packs, eager, strict=True):
        compiled_loss, compiled_gradient = result(lengths)
        torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=0)
        assert (compiled_gradient - gradient).norm() < 1e-5 * gradient.norm()
    # Two parts of the block, whatever the layer and the length.
    assert counters["stats"]["unique_graphs"] == 2
