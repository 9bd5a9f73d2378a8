"""The step never waits for the device: it runs on one whose values nobody can read.

On torch's meta device there are shapes and dtypes alone. Whatever asks for a value (`.item()`, a
boolean index, `nonzero`) raises there, and would wait for the device on CUDA.
"""

import pytest
import torch
from torch import Tensor

from llada_sft.model import Network, NetworkConfig
from llada_sft.model.families import llada2
from llada_sft.model.layers import attention
from llada_sft.model.layers.attention import Sequences
from llada_sft.model.layers.blocks import Blocks
from llada_sft.model.layers.kept_bytes import Checkpointing
from tests.unit.model.test_llada2 import TINY

LENGTHS = (7, 1, 12)
META = torch.device("meta")


def kernel_of_shapes(q: Tensor, k: Tensor, v: Tensor, *bounds: object) -> Tensor:
    return q + k + v


@pytest.mark.parametrize(
    ("kind", "dtype"),
    # Of experts, the meta device has a product in bf16 alone.
    [("dense", torch.float32), ("dense", torch.bfloat16), ("llada2", torch.bfloat16)],
)
@pytest.mark.parametrize("checkpointing", ["none", "full", "offload"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("blocks", [None, Blocks(4), Blocks(4, doubled=True)])
def test_forward_and_backward_read_no_value(
    kind: str,
    small_config: NetworkConfig,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    checkpointing: Checkpointing,
    packed: bool,
    blocks: Blocks | None,
) -> None:
    monkeypatch.setattr(attention, "has_varlen_kernel", lambda *_: True)
    monkeypatch.setattr(attention, "varlen_attn", kernel_of_shapes)
    config = small_config
    if kind == "llada2":
        # Sizes that the grouped product takes in bf16.
        sizes = TINY | {"hidden_size": 32, "moe_intermediate_size": 16}
        config = NetworkConfig(llada2.FAMILY.config_json(**sizes))
    with META:
        model = Network(config).to(dtype)
    model.set_activation_checkpointing(checkpointing)
    sequences, halves = Sequences(LENGTHS), 1 if blocks is None else blocks.halves
    sequences.ends, sequences.places = sequences.ends.to(META), sequences.places.to(META)
    loss = model(
        torch.empty(1, 20 * halves, dtype=torch.int64, device=META),
        positions=torch.empty(9, dtype=torch.int64, device=META),
        sequences=sequences if packed else None,
        targets=torch.empty(9, dtype=torch.int64, device=META),
        coefficients=torch.empty(9, device=META),
        blocks=blocks,
    ).loss
    torch.autograd.backward(loss)
    assert (loss.shape, loss.dtype, loss.device) == ((), torch.float32, META)
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.dtype == dtype
        assert parameter.grad.shape == parameter.shape
