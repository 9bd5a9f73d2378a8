"""The golden network with a toy tokenizer, and what the official evaluation says of it."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llada_sft.evaluation.loaded import LoadedModel
from llada_sft.model import Network, load_model
from tests.unit.evaluation.project import write_model, write_tasks

GOLDEN = Path(__file__).parents[2] / "golden"
# Ids of the toy tokenizer that are special.
SPECIAL = (504, 505, 510)


@pytest.fixture(scope="session")
def golden() -> Network:
    return load_model(GOLDEN / "tiny_llada", torch.float64)


@pytest.fixture(scope="session")
def official() -> dict[str, Any]:
    cases: dict[str, Any] = json.loads((GOLDEN / "eval_tiny_llada/eval.json").read_text())
    return cases


@pytest.fixture(scope="session")
def toy_tokenizer() -> PreTrainedTokenizerFast:
    """A text is words `w<id>` with spaces between them."""
    words = {f"w{number}": number for number in range(512)}
    tokenizer = Tokenizer(models.WordLevel(words, "w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="w504",
        eos_token="w505",
        pad_token="w505",
        mask_token="w510",
        clean_up_tokenization_spaces=False,
    )


class GoldenModel(LoadedModel):
    """The golden network behind the toy tokenizer."""

    def __init__(self, network: Network, tokenizer: PreTrainedTokenizerFast) -> None:
        self.directory, self.device, self.dtype = GOLDEN / "tiny_llada", network.device, "fp64"
        self.mask_token_id = network.config.mask_token_id
        self.max_length, self.tokenizer, self.has_template = 256, tokenizer, False
        self._network, self.decodes_in_blocks = network, False
        self.eos_token_id = network.config.eos_token_id

    @cached_property
    def network(self) -> Network:
        return self._network


@pytest.fixture
def golden_model(golden: Network, toy_tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    return GoldenModel(golden, toy_tokenizer)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("evaluated") / "model")


@pytest.fixture(scope="session")
def tasks_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks") / "own")
