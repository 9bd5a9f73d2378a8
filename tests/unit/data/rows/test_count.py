"""Rows of shards: counted, or estimated, and those of the rank that reads most of them."""

from pathlib import Path

import pytest

from llada_sft.config.arithmetic import RowCount
from llada_sft.config.sections.data import DataConfig, SourceConfig
from llada_sft.data.rows import count as row_count
from llada_sft.data.rows.count import count_rows, count_sources
from llada_sft.data.sources import list_sources


def write(folder: Path, rows: list[int]) -> str:
    folder.mkdir(parents=True)
    for number, count in enumerate(rows):
        # Blank lines are no rows, and the last row has no newline.
        text = ('{"a": 1}\n\n' * count).rstrip("\n")
        (folder / f"{number}.jsonl").write_text(text)
    return str(folder)


def test_the_rank_that_reads_most(tmp_path: Path) -> None:
    config = DataConfig(train=write(tmp_path / "train", [5, 1, 2, 7, 3]), hook="hook.py")
    sources = list_sources(config, epochs=3)
    # Ranks 0 and 1 of two: 5 + 2 + 3 and 1 + 7 rows in an epoch.
    assert count_sources(sources, world_size=2) == RowCount(18, 10)
    assert count_sources(sources, world_size=5) == RowCount(18, 7)


def test_epochs_of_sources_by_name_are_all_that_there_is(tmp_path: Path) -> None:
    config = DataConfig(
        train={
            "a": SourceConfig(path=write(tmp_path / "a", [5, 1]), epochs=2),
            "b": SourceConfig(path=write(tmp_path / "b", [2, 4])),
        },
        hook="hook.py",
    )
    counted = count_sources(list_sources(config, epochs=3), world_size=2)
    # Rank 0: 2 · 5 + 3 · 2; rank 1: 2 · 1 + 3 · 4.
    assert counted == RowCount(12, 16, by_source={"a": (6, 2), "b": (6, 3)})


def test_past_a_limit_rows_are_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [Path(write(tmp_path / str(n), [n])) / "0.jsonl" for n in (1000, 400)]
    size = sum(file.stat().st_size for file in files)
    monkeypatch.setattr(row_count, "COUNT_UP_TO_BYTES", size)
    assert count_rows(files) == ([1000, 400], False)
    monkeypatch.setattr(row_count, "COUNT_UP_TO_BYTES", size - 1)
    monkeypatch.setattr(row_count, "SAMPLE_BYTES", 2000)
    rows, estimated = count_rows(files) or ([], False)
    assert estimated and rows == pytest.approx([1000, 400], rel=0.02)
