"""Which files there are, who reads them, and how many rows they have."""

from pathlib import Path

import pytest

from llada_sft.config.sections.data import DataConfig
from llada_sft.data.rows import count
from llada_sft.data.rows.count import count_rows
from llada_sft.data.shards import assign_files, list_shards, shard_root
from llada_sft.data.sources import list_sources, name_shards
from llada_sft.errors import ConfigError, DataError


def test_a_folder_and_a_glob_are_sorted(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.json", ".d.jsonl", "a.jsonl.partial"):
        (tmp_path / name).touch()
    expected = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert list_shards(str(tmp_path)) == expected
    assert list_shards(f"file://{tmp_path}") == expected
    assert list_shards(f"{tmp_path}/*.jsonl") == expected
    assert list_shards(f"{tmp_path}/a.jsonl") == expected[:1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", ": no .jsonl, .jsonl.gz, .jsonl.zst files in this folder"),
        ("/x", "/x: no such folder or file"),
        ("/*.jsonl", "/*.jsonl: no file matches"),
    ],
)
def test_no_shards_is_an_error(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        list_shards(f"{tmp_path}{name}")
    assert str(caught.value) == f"{tmp_path}{message}"


@pytest.mark.parametrize("pattern", ["**/**/*.jsonl", "**/**", "**/a/**/*.jsonl", "**/**/**/*"])
def test_a_file_that_a_glob_matches_twice_is_one_file(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/x.jsonl").touch()
    assert list_shards(f"{tmp_path}/{pattern}") == [tmp_path / "a/b/x.jsonl"]


CHARACTERS = [
    "[1]",
    "[",
    "]",
    "[!a]",
    "*",
    "?",
    "**",
    "{a,b}",
    "~",
    "$HOME",
    "%d",
    " ",
    "'",
    '"',
    "#",
    "&",
]


@pytest.mark.parametrize("characters", CHARACTERS)
def test_names_may_have_the_characters_of_a_glob(tmp_path: Path, characters: str) -> None:
    folder = tmp_path / f"data{characters}"
    (folder / "sub").mkdir(parents=True)
    names = [f"a{characters}.jsonl", "b.jsonl", f"sub/{characters}c.jsonl"]
    for name in names:
        (folder / name).touch()
    # What a glob of such a name would find as well.
    (tmp_path / "data1").mkdir()
    (tmp_path / "data1/b.jsonl").touch()
    for path, found in (
        (f"{folder}", names[:2]),
        (f"{folder}/", names[:2]),
        (f"{folder}/*.jsonl", names[:2]),
        (f"{folder}/**/*.jsonl", names),
        (f"{folder}/{names[0]}", names[:1]),
        (f"{folder}/?.jsonl", names[1:2]),
        (f"file://{folder}", names[:2]),
    ):
        shards = list_shards(path)
        assert sorted(shards) == sorted(folder / name for name in found)
        # Named below the data's folder, which may be moved.
        listed = [shard.name for shard in name_shards(shards, shard_root(path))]
        assert sorted(listed) == sorted(found)
    (only,) = list_shards(f"{folder}/sub")
    assert [shard.name for shard in name_shards([only], shard_root(f"{folder}/sub"))] == [
        f"{characters}c.jsonl"
    ]


@pytest.mark.parametrize("train", ["{}", "{}/*.jsonl", "{}/**/*.jsonl", "{}/a.jsonl", ["{}"]])
def test_moving_the_data_keeps_the_names(tmp_path: Path, train: str | list[str]) -> None:
    found = []
    for name in ("data", "data[2]", "elsewhere/deep*"):
        folder = tmp_path / name / "train"
        (folder / "x").mkdir(parents=True)
        for shard in ("a.jsonl", "b.jsonl", "x/c.jsonl"):
            (folder / shard).touch()
        path = train.format(folder) if isinstance(train, str) else (train[0].format(folder),)
        (source,) = list_sources(DataConfig(train=path), epochs=1)
        found.append([shard.name for shard in source.shards])
    assert found[0] == found[1] == found[2] and "a.jsonl" in found[0]


def test_every_file_has_one_rank() -> None:
    files = [Path(f"{i}.jsonl") for i in range(7)]
    owned = [assign_files(files, rank, 3) for rank in range(3)]
    assert owned[1] == [files[1], files[4]]
    assert sorted(file for one in owned for file in one) == files
    # As many files as ranks: one each.
    assert [assign_files(files, rank, 7) for rank in range(7)] == [[file] for file in files]


def test_fewer_files_than_ranks() -> None:
    files = [Path(f"data/train/{i}.jsonl") for i in range(3)]
    with pytest.raises(ConfigError) as caught:
        assign_files(files, 0, 16)
    assert str(caught.value) == (
        "3 shards for 16 ranks in data/train: use at most 3 ranks,"
        " or run  llada-sft shard data/train data/train_16 --num-shards 16"
    )


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{}\n\n  \n{"x": 1}')
    (tmp_path / "b.jsonl").touch()
    assert count_rows([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]) == ([2, 0], False)


def test_many_bytes_are_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "COUNT_UP_TO_BYTES", 100)
    monkeypatch.setattr(count, "SAMPLE_BYTES", 50)
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    files[0].write_text("123456789\n" * 100)
    files[1].write_text("123456789\n" * 300)
    assert count_rows(files) == ([100, 300], True)


@pytest.mark.parametrize("piece", [1, 3, 8])
@pytest.mark.parametrize("sample", [7, 9, 30, 1000])
def test_a_long_line_is_counted_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, sample: int
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("1234567\n" + " " * 9 + "\n" + " " * 7 + "x\n\nx\n" * 9 + " " * 9 + "x")
    monkeypatch.setattr(count, "SAMPLE_BYTES", sample)
    for limit in (10, 10_000):
        monkeypatch.setattr(count, "COUNT_UP_TO_BYTES", limit)
        whole = count_rows([path])
        with monkeypatch.context() as patch:
            patch.setattr(count, "_PIECE_BYTES", piece)
            assert count_rows([path]) == whole
    assert whole == ([20], False)
