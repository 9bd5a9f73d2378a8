"""What the golden networks compute on the way to their logits."""

from collections.abc import Mapping

import torch
from torch import Tensor

from llada_sft.model import Network


def assert_states(model: Network, expected: Mapping[str, Tensor]) -> None:
    """Compare the embeddings, what each block and the last norm return, and the logits."""
    states: list[Tensor] = []
    model.get_input_embeddings().register_forward_hook(lambda *call: states.append(call[2]))
    for block in model.blocks()[:-1]:
        block.register_forward_hook(lambda *call: states.append(call[2][0]))
    norm = model.get_submodule(model.architecture.names.final_norm)
    norm.register_forward_hook(lambda *call: states.append(call[2]))
    logits = model(expected["input_ids"]).logits
    torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=0)
    for number, state in enumerate(states):
        torch.testing.assert_close(state, expected[f"hidden.{number}"], atol=1e-5, rtol=0)
    assert len(states) == model.architecture.num_layers + 1
