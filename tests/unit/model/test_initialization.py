"""Random weights: the same however a parameter is cut up, and no two chunks alike."""

import math

import pytest
import torch
from torch import Tensor

from llada_sft.model import Network, NetworkConfig, build_model, initialization
from llada_sft.model.initialization import initialize
from tests.unit.model.slices import partitioned

SEED = 3


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks end within rows and within slices, and the last one is shorter."""
    monkeypatch.setattr(initialization, "CHUNK", 100)


def slices_of(config: NetworkConfig, rank: int, world_size: int) -> dict[str, Tensor]:
    """Initialise a network whose parameters are cut up, and return what one rank holds."""
    model = Network(config)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            cut = partitioned(tuple(parameter.shape), rank, world_size, memory=math.nan)
            module.register_parameter(name, cut)
    initialize(model, SEED)
    return {name: parameter.ds_tensor for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_weights_do_not_depend_on_the_number_of_ranks(
    small_config: NetworkConfig, world_size: int
) -> None:
    whole = dict(build_model(small_config, SEED).named_parameters())
    ranks = [slices_of(small_config, rank, world_size) for rank in range(world_size)]
    for name, parameter in whole.items():
        together = torch.cat([slices[name] for slices in ranks])
        assert torch.equal(together[: parameter.numel()], parameter.detach().flatten()), name
        assert not together[parameter.numel() :].any()


def test_each_chunk_has_noise_of_its_own(small_config: NetworkConfig) -> None:
    wte = build_model(small_config, SEED).get_parameter("model.transformer.wte.weight")
    chunks = wte.detach().flatten()[:3200].view(-1, 100)
    assert len({tuple(chunk.tolist()) for chunk in chunks}) == 32


def test_gains_are_one_and_what_writes_to_the_residual_stream_is_smaller(
    small_config: NetworkConfig,
) -> None:
    for name, parameter in build_model(small_config, SEED).named_parameters():
        if parameter.dim() == 1:
            assert (parameter == 1).all(), name
            continue
        # Two layers: 0.02 / sqrt(2 · 2). The head is called ff_out as well, and is not in a block.
        residual = ".blocks." in name and name.endswith(("attn_out.weight", "ff_out.weight"))
        wanted = 0.01 if residual else 0.02
        assert parameter.std().item() == pytest.approx(wanted, rel=0.1), name
