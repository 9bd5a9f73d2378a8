"""Shards that are not those of the checkpoint: refused by name, or begun anew with a warning."""

from typing import Any, cast

import pytest

from llada_sft.config.sections.data import DataConfig
from llada_sft.data.rows.position import FilePosition, Pending
from llada_sft.errors import DataError
from llada_sft.training.checkpoint.changed_files import files_to_restart
from llada_sft.training.checkpoint.data_state import DataState
from llada_sft.training.consensus import Consensus

STATE = DataState(
    epoch=1,
    positions={
        "a.jsonl": FilePosition(2, 0),
        "b.jsonl": FilePosition(3, 2, (Pending(0, 9, 1),)),
        "c.jsonl": FilePosition(1, 0),
    },
    fingerprints={"a.jsonl": "11", "b.jsonl": "22", "c.jsonl": "33"},
)
SAME = dict(STATE.fingerprints)
DO = "restore them, start a new run, or set data.on_changed_file: restart_file"


class TwoRanks:
    """What this rank says, after what rank 0 has said."""

    def __init__(self, *of_rank_0: str) -> None:
        self._of_rank_0 = list(of_rank_0)

    def gather(self, item: object) -> list[object]:
        return [self._of_rank_0, item]


def to_restart(
    found: dict[str, str], policy: Any = "refuse", rank: int = 0, *other_rank: str
) -> list[str]:
    config = DataConfig(train="data/train", on_changed_file=policy)
    consensus = cast(Consensus, TwoRanks(*other_rank))
    return files_to_restart(config, STATE, found, found, consensus, rank)


@pytest.mark.parametrize("policy", ["refuse", "restart_file"])
def test_the_same_files_and_new_ones_are_fine(
    policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert to_restart(SAME, policy) == []
    assert to_restart(SAME | {"new.jsonl": "44"}, policy) == []
    assert capsys.readouterr().out == ""


def test_it_is_refused_by_default() -> None:
    assert DataConfig(train="data").on_changed_file == "refuse"


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_names_the_files_of_all(rank: int) -> None:
    with pytest.raises(DataError) as caught:
        to_restart(SAME | {"b.jsonl": "x"}, "refuse", rank, "a.jsonl")
    assert str(caught.value) == (
        f"data/train: changed since the checkpoint: a.jsonl, b.jsonl; {DO}"
    )


def test_a_file_that_is_gone_is_refused_too() -> None:
    with pytest.raises(DataError) as caught:
        to_restart({"a.jsonl": "11", "b.jsonl": "x"})
    assert str(caught.value) == (
        f"data/train: changed since the checkpoint: b.jsonl; {DO}\n"
        f"data/train: gone since the checkpoint: c.jsonl; {DO}"
    )


def test_a_warning_for_each_that_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    found = {"b.jsonl": "x", "c.jsonl": "y"}
    assert to_restart(found, "restart_file") == ["b.jsonl", "c.jsonl"]
    assert capsys.readouterr().out == (
        "data/train: b.jsonl changed since the checkpoint: it starts its epoch again\n"
        "data/train: c.jsonl changed since the checkpoint: it starts its epoch again\n"
        "data/train: a.jsonl is gone since the checkpoint: its rows are skipped\n"
    )
    # All ranks leave out what is gone; rank 0 has said so.
    assert to_restart(found, "restart_file", 1) == ["b.jsonl", "c.jsonl"]
    assert capsys.readouterr().out == ""
