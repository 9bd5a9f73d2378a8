"""The golden network: a random three-layer LLaDA, and what the official code computes with it."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from llada_sft.model import Network, NetworkConfig, load_model

GOLDEN = Path(__file__).parents[2] / "golden" / "tiny_llada"


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def expected() -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(GOLDEN / "expected.safetensors")
    return tensors


@pytest.fixture
def golden_config() -> dict[str, Any]:
    values: dict[str, Any] = json.loads((GOLDEN / "config.json").read_text())
    return values


@pytest.fixture
def golden() -> Network:
    return load_model(GOLDEN)


@pytest.fixture
def small_config() -> NetworkConfig:
    """Two layers whose parameters do not divide evenly by 3."""
    return NetworkConfig.from_size(
        d_model=32,
        n_layers=2,
        n_heads=4,
        mlp_hidden_size=72,
        max_sequence_length=64,
        vocab_size=101,
        mask_token_id=100,
        eos_token_id=99,
        pad_token_id=98,
    )
