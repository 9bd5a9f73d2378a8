"""The format of a dataset, told from its first rows."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from llada_sft.config.sections.data import DataConfig
from llada_sft.data.records.detect import Detected, detect_format
from llada_sft.data.sources import list_sources
from llada_sft.errors import DataError

PROMPT = b'{"prompt": "a", "response": "b"}\n'
MESSAGES = b'{"messages": [{"role": "user", "content": "a"}]}\n'
OWN = b'{"problem": "a", "solution": "b"}\n'
TEXT = b'{"text": "a"}\n'
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def detect(folder: Path, *contents: bytes, **keys: Any) -> Detected:
    for number, content in enumerate(contents):
        (folder / f"{number}.jsonl").write_bytes(content)
    (source,) = list_sources(DataConfig(train=str(folder), **keys), epochs=1)
    return detect_format(source, None)


@pytest.mark.parametrize(
    ("contents", "expected", "shown"),
    [
        ([PROMPT * 3], ("prompt_response", 3, 3), "prompt_response (3 of the first 3 rows)"),
        ([MESSAGES * 70, OWN], ("messages", 70, 71), "messages (70 of the first 71 rows)"),
        ([TEXT * 500], ("text", 100, 100), "text (100 of the first 100 rows)"),
        # Of the first shard that has rows, in the order of the file.
        ([b" \n", b"", TEXT * 60 + PROMPT * 40], ("text", 60, 100), None),
        ([PROMPT * 100, MESSAGES * 900], ("prompt_response", 100, 100), None),
        # Blank lines are no rows, and what is not JSON has no format.
        ([BYTE_ORDER_MARK + PROMPT + b"\n \n{\n\xff\n" + TEXT * 2], ("text", 2, 5), None),
        ([BYTE_ORDER_MARK + TEXT], ("text", 1, 1), None),
        # Such a mark is one at the beginning only: training takes the other row for a bad one.
        ([BYTE_ORDER_MARK + TEXT + BYTE_ORDER_MARK + TEXT], ("text", 1, 2), None),
        ([b"{"], (None, 0, 1), None),
        ([MESSAGES + PROMPT], ("messages", 1, 2), None),
        ([PROMPT + MESSAGES], ("prompt_response", 1, 2), None),
        ([OWN * 2 + PROMPT], (None, 2, 3), "raw, no known format (2 of the first 3 rows)"),
        ([b""], (None, 0, 0), "no rows to tell the format of"),
    ],
)
def test_most_of_the_first_rows_say_it(
    tmp_path: Path, contents: list[bytes], expected: tuple[Any, int, int], shown: str | None
) -> None:
    detected = detect(tmp_path, *contents)
    assert detected == Detected(*expected)
    assert shown is None or str(detected) == shown


def test_fields_of_other_names(tmp_path: Path) -> None:
    fields = {"prompt": "problem", "response": "solution"}
    assert detect(tmp_path, OWN, fields=fields).format == "prompt_response"
    assert detect(tmp_path, PROMPT, fields=fields).format is None


def test_no_more_is_read_than_needed(tmp_path: Path) -> None:
    """A damaged end is found where it is read: here, only the beginning of the first shard is."""
    whole = gzip.compress(PROMPT * 100_000, mtime=0)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) - 20])
    (tmp_path / "b.jsonl").write_bytes(whole)
    assert detect(tmp_path) == Detected("prompt_response", 100, 100)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:40])
    with pytest.raises(DataError, match="truncated or corrupt"):
        detect(tmp_path)


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/formats", recursive=True)


def test_a_remote_shard(memory: Any, tmp_path: Path) -> None:
    memory.pipe_file("/formats/a.jsonl", MESSAGES * 2)
    url = "memory://formats"
    (source,) = list_sources(DataConfig(train=url), epochs=1)
    assert detect_format(source, str(tmp_path)) == Detected("messages", 2, 2)
