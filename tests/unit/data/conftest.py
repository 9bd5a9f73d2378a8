"""The demo's tokenizer, small and with LLaDA's special tokens; a cache of the tests' own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llada_sft.data import cache
from llada_sft.demo.data import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what the tests cache among their own temporary files."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "default_folder", lambda: folder)
        yield folder
