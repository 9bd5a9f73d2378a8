"""A cache and a tokenizer for tests that read real rows."""

from collections.abc import Iterator

import pytest

from llada_sft.data.storage import cache


@pytest.fixture(scope="module")
def own_cache_and_no_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the cache of a module's tests in a folder of its own; hooks get None as tokenizer."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llada_sft.data.examples.encode.load_tokenizer", lambda *_: None)
        patch.setattr(cache, "default_folder", lambda: folder)
        yield
