"""Tiny random networks of each family, in float64: what rounds differently shows no difference."""

from pathlib import Path

import pytest
import torch

from llada_sft.model import Network, load_model

GOLDEN = Path(__file__).parents[2] / "golden"
FAMILIES = ("tiny_llada", "tiny_llada_moe", "tiny_llada_moe_shared", "tiny_dream")


@pytest.fixture(scope="session", params=FAMILIES)
def of_family(request: pytest.FixtureRequest) -> Network:
    return load_model(GOLDEN / request.param, torch.float64)


@pytest.fixture(scope="session")
def golden() -> Network:
    return load_model(GOLDEN / "tiny_llada", torch.float64)
