"""What is computed again: by counting the operations of a forward and backward pass."""

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llada_sft.model import NetworkConfig, build_model
from llada_sft.model.layers.activations import Checkpointing

BLOCKS = 2
# Matrix products of a block's forward pass, but the last: its result is needed for nothing.
PRODUCTS = 6


class Operations(TorchDispatchMode):
    """Counts operations by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.counts[function.name().partition(".")[0]] += 1
        return function(*args, **(kwargs or {}))


def operations(config: NetworkConfig, checkpointing: Checkpointing) -> Counter[str]:
    model = build_model(config)
    model.set_activation_checkpointing(checkpointing)
    with Operations() as seen:
        logits: Tensor = model(torch.arange(20)[None]).logits
        torch.autograd.backward(logits.sum())
    return seen.counts


@pytest.mark.parametrize(
    ("checkpointing", "products", "activations"),
    [("none", 0, 0), ("selective", 0, BLOCKS), ("full", PRODUCTS * BLOCKS, BLOCKS)],
)
def test_what_is_computed_again(
    small_config: NetworkConfig, checkpointing: Checkpointing, products: int, activations: int
) -> None:
    assert small_config.architecture.num_layers == BLOCKS
    kept = operations(small_config, "none")
    found = operations(small_config, checkpointing)
    assert found["aten::mm"] == kept["aten::mm"] + products
    assert found["aten::silu"] == kept["aten::silu"] + activations
    attention = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert kept[attention] == BLOCKS
    assert found[attention] == BLOCKS * (2 if checkpointing == "full" else 1)


def test_without_gradients_nothing_is_prepared_for_them(small_config: NetworkConfig) -> None:
    model = build_model(small_config)
    model.set_activation_checkpointing("full")
    with torch.no_grad(), Operations() as seen:
        assert not model(torch.arange(20)[None]).logits.requires_grad
    assert seen.counts["aten::silu"] == BLOCKS
