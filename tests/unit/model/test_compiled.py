"""Compiled blocks: the same loss and gradients, and no compiling again for other lengths."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from llada_sft.config.sections.model import LoraConfig
from llada_sft.model import NetworkConfig, build_model
from llada_sft.model.adapter_plan import plan_adapters
from llada_sft.model.adapters import add_adapters
from llada_sft.model.families import llada2, llada_moe
from llada_sft.model.layers.attention import Sequences
from tests.unit.model.test_llada2 import TINY


@pytest.fixture
def moe_config() -> NetworkConfig:
    """The layers with experts and the one without have the same first part."""
    return NetworkConfig(
        llada_moe.FAMILY.config_json(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            dense_intermediate_size=72,
            expert_intermediate_size=16,
            shared_expert_intermediate_size=24,
            moe_layer_freq=[0, 1, 1],
            num_experts=6,
            num_experts_per_tok=2,
            max_position_embeddings=64,
            vocab_size=101,
            mask_token_id=100,
            eos_token_id=99,
            pad_token_id=99,
        )
    )


@pytest.fixture
def llada2_config() -> NetworkConfig:
    return NetworkConfig(llada2.FAMILY.config_json(**TINY | {"vocab_size": 101}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "num_graphs", "adapters"),
    [
        ("small_config", 2, None),
        ("small_config", 2, LoraConfig()),
        ("moe_config", 3, None),
        ("llada2_config", 3, None),
    ],
)
# Of torch's compiler itself; elsewhere warnings are errors.
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_have_the_same_loss_and_gradients(
    kind: str, num_graphs: int, adapters: LoraConfig | None, request: pytest.FixtureRequest
) -> None:
    model = build_model(request.getfixturevalue(kind))
    if adapters is not None:
        add_adapters(model, plan_adapters(model.architecture, adapters), 0)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.02)
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
    # Two parts of a block, whatever the layer and the length; the second one with or without
    # experts, which themselves are not compiled.
    assert counters["stats"]["unique_graphs"] == num_graphs
