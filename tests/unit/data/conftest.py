"""The demo's tokenizer: small, and with LLaDA's special tokens."""

from typing import Any

import pytest

from llada_sft.demo.data import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()
