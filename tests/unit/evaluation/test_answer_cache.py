"""What one process wrote the next one finds; what is not whole is not there."""

from pathlib import Path
from typing import Any

import pytest

from llada_sft.errors import ConfigError
from llada_sft.evaluation.answer_cache import AnswerCache, folder_name, request_key

ENTRIES = [{"key": "a", "value": 1.5}, {"key": "b", "text": "line\u2028 one\nline two\x85"}]


def test_entries_of_all_processes_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "new/folder"
    for rank, entry in enumerate(ENTRIES):
        cache = AnswerCache(folder, rank, 2)
        cache.add([entry])
        cache.close()
    again = AnswerCache(folder)
    assert [again["a"], again["b"]] == ENTRIES
    assert "c" not in again


def test_each_process_has_a_file_of_its_own(tmp_path: Path) -> None:
    caches = [AnswerCache(tmp_path) for _ in range(3)]
    for number, cache in enumerate(caches):
        cache.add([{"key": str(number)}])
        cache.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"rank_0_of_1_{number}.jsonl" for number in range(3)
    ]


@pytest.mark.parametrize("end", [b'{"key": "c', b'{"key": "c"}', b'\xff\n{"value": 3}\n[]\n\n'])
def test_what_a_killed_process_left_half_written_is_not_there(tmp_path: Path, end: bytes) -> None:
    cache = AnswerCache(tmp_path)
    cache.add(ENTRIES)
    cache.close()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes() + end)
    again = AnswerCache(tmp_path)
    assert "a" in again
    assert "c" not in again


def test_nothing_is_written_where_nothing_is_added(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "none")
    cache.add([])
    cache.close()
    assert not (tmp_path / "none").exists()


DEPENDS_ON: dict[str, Any] = {"weights": "1", "settings": {"steps": 4}, "template": None}


@pytest.mark.parametrize(
    "other",
    [
        {"weights": "2"},
        {"settings": {"steps": 8}},
        {"template": "{{ messages }}"},
        {"versions": {"torch": "3"}},
    ],
)
def test_a_folder_is_of_one_model_template_version_and_setting(other: dict[str, Any]) -> None:
    assert folder_name("a", DEPENDS_ON) == folder_name("a", dict(reversed(DEPENDS_ON.items())))
    assert folder_name("a", DEPENDS_ON) != folder_name("a", DEPENDS_ON | other)
    assert folder_name("a", DEPENDS_ON) != folder_name("b", DEPENDS_ON)


def test_a_key_is_of_the_whole_request() -> None:
    assert request_key("a", ["b", "c"]) == request_key("a", ["b", "c"])
    assert request_key("a", ["b", "c"]) != request_key("a", ["bc", ""])


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file/answers"
    with pytest.raises(ConfigError) as error:
        AnswerCache(folder).add([{"key": "a"}])
    assert str(error.value) == (
        f"--results: {folder}: cannot be written: Not a directory; free room there, or name"
        " another folder"
    )
