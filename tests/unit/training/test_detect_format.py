"""`data.format: auto` is settled by the first rank, for all of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from llada_sft.config.sections.data import DataConfig
from llada_sft.data.sources import Source, list_sources
from llada_sft.errors import DataError, PeerFailedError
from llada_sft.placement import Placement
from llada_sft.training.build_data import settle_format
from llada_sft.training.consensus import Consensus


class Ranks:
    """What rank 0 says is what everybody hears."""

    def __init__(self) -> None:
        self.said: list[object] = []

    def gather(self, item: object) -> list[object]:
        self.said.append(item)
        return self.said


def placement(rank: int) -> Placement:
    return Placement(rank, 2, rank, 0, "127.0.0.1", 1234)


@pytest.mark.parametrize(
    ("row", "expected", "shown"),
    [
        ('{"text": "a"}', "text", "text (1 of the first 1 rows)"),
        ('{"a": "b"}', "raw", "raw, no known format (1 of the first 1 rows)"),
    ],
)
def test_the_first_rank_tells_it_and_prints_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, expected: str, shown: str
) -> None:
    (tmp_path / "a.jsonl").write_text(row + "\n")
    (source,), ranks = list_sources(DataConfig(train=str(tmp_path)), 1), cast(Any, Ranks())
    for rank in range(2):
        settled = settle_format(source, None, placement(rank), cast(Consensus, ranks))
        assert settled == replace(source, format=expected)
        assert capsys.readouterr().out == (f"{tmp_path}: {shown}\n" if rank == 0 else "")
        # The others do not look.
        (tmp_path / "a.jsonl").unlink(missing_ok=True)
    assert ranks.said == [expected, None]


def test_a_format_that_is_stated_is_not_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    source = Source("", (), format="raw")
    assert settle_format(source, None, placement(0), cast(Consensus, None)) is source
    assert capsys.readouterr().out == ""


def test_a_format_that_is_stated_stays_and_what_it_does_not_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": "b", "id": 3}\n{}\n')
    data = DataConfig(train=str(tmp_path), format="alpaca")
    for expected in (
        f"{tmp_path}: not read, in the first 2 rows: 'id' (1); data.ignore_fields silences this\n",
        "",
    ):
        (source,), ranks = list_sources(data, 1), cast(Any, Ranks())
        assert settle_format(source, None, placement(0), cast(Consensus, ranks)) == source
        assert capsys.readouterr().out == expected
        data = data.model_copy(update={"ignore_fields": ("id",)})


def test_a_first_shard_that_cannot_be_read_ends_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("1\n")
    (source,), ranks = list_sources(DataConfig(train=str(tmp_path)), 1), cast(Any, Ranks())
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DataError, match="cannot be read: No such file or directory"):
        settle_format(source, None, placement(0), ranks)
    with pytest.raises(PeerFailedError):
        settle_format(source, None, placement(1), ranks)
    assert ranks.said == [None, None]
