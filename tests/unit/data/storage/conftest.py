"""The small files of these tests stand for large ones."""

from collections.abc import Iterator

import pytest

from llada_sft.data.storage import cache


@pytest.fixture(autouse=True)
def _no_file_is_small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cache, "SMALL_BYTES", -1)
    yield
