"""The golden network in float64, and what the official evaluation says of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llada_sft.model import Network, load_model

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="session")
def golden() -> Network:
    return load_model(GOLDEN / "tiny_llada", torch.float64)


@pytest.fixture(scope="session")
def official() -> dict[str, Any]:
    cases: dict[str, Any] = json.loads((GOLDEN / "eval_tiny_llada/eval.json").read_text())
    return cases
