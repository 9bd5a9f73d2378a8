"""The demo's data: the same on every machine, held-out words apart, and nothing lost in tokens."""

import hashlib
from pathlib import Path

import pytest

from llada_sft.data.examples.tokenizer import load_tokenizer
from llada_sft.demo.data import NUM_HELD_OUT, make_records, make_tokenizer, write_demo

HASHES = {
    "heldout/shard_000.jsonl": "0da805e0ffeb4c46",
    "train/shard_000.jsonl": "10cbb627ed6378c3",
    "train/shard_001.jsonl": "85681c235dce8132",
    "train/shard_002.jsonl": "20e2ada8c4a43708",
    "train/shard_003.jsonl": "fa628ab0ec3a5930",
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_files_are_the_same_everywhere(demo: Path) -> None:
    found = {
        name: hashlib.sha256(content).hexdigest()[:16]
        for name, content in contents(demo / "data").items()
    }
    assert found == HASHES


def test_written_twice_it_is_the_same(demo: Path, tmp_path: Path) -> None:
    write_demo(tmp_path)
    assert contents(tmp_path) == contents(demo)


def test_no_word_is_in_both_splits() -> None:
    train, held_out = make_records()
    splits = [{record["prompt"] for record in records} for records in (train, held_out)]
    assert splits[0] & splits[1] == set()
    assert len(splits[0]) == len(train) == 8**3 + 8**4 + 8**5 - NUM_HELD_OUT
    assert len(splits[1]) == len(held_out) == NUM_HELD_OUT
    for record in (train[0], held_out[0]):
        assert record["prompt"] == f"reverse {record['response'][::-1]}"


def test_the_tokenizer_gives_every_record_back(demo: Path) -> None:
    train, held_out = make_records()
    texts = [record[key] for record in train + held_out for key in ("prompt", "response")]
    for tokenizer in (make_tokenizer(), load_tokenizer(demo / "tokenizer")):
        encoded = tokenizer(texts[-2000:], add_special_tokens=False)["input_ids"]
        assert tokenizer.batch_decode(encoded) == texts[-2000:]
    backend = make_tokenizer().backend_tokenizer
    everything = backend.encode_batch_fast(texts, add_special_tokens=False)
    assert backend.decode_batch([one.ids for one in everything]) == texts
