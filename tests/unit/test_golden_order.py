"""The order of rows, the noise and the weights are those of earlier versions, to the bit."""

import json
from pathlib import Path

import pytest

from tests.unit.golden_order import GOLDEN, PLACES, WAYS, digest, write_files

EXPECTED = json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", WAYS)
def test_what_reaches_the_network(
    monkeypatch: pytest.MonkeyPatch, files: Path, way: str, place: str
) -> None:
    monkeypatch.setattr("llada_sft.data.examples.encode.load_tokenizer", lambda *_: None)
    assert digest(files, way, place) == EXPECTED[f"{way}; {place}"]


def test_each_way_is_another_order_and_a_resumed_one_is_the_same() -> None:
    digests = {key: golden["digest"] for key, golden in EXPECTED.items()}
    assert len(set(digests.values())) == len(WAYS) * (len(PLACES) - 1)
    assert all(digests[f"{way}; resumed"] == digests[f"{way}; one rank"] for way in WAYS)
    assert all(golden["examples"] > 100 for golden in EXPECTED.values())
