"""Bad rows: each written down once, and too many of them end the run."""

import json
from pathlib import Path
from typing import Any

import pytest

from llada_sft.data.examples.quarantine import BadRowError, Quarantine
from llada_sft.data.rows.bad_row import MAX_MESSAGE
from llada_sft.data.rows.position import FilePosition
from llada_sft.data.rows.row import Row
from llada_sft.errors import DataError

ROOT = Path("data/train")


def bad(line: int, message: str = "not JSON: x", file: str = "s.jsonl") -> BadRowError:
    return BadRowError(Row(file, line, 10 * line, b"x", f"{ROOT}/{file}"), "not_json", message)


def quarantine(
    path: Path | None,
    limit: float = 1.0,
    epoch: int = 0,
    done: int = 0,
    file: str = "s.jsonl",
    fingerprint: str = "9-abcd",
) -> Quarantine:
    position = {file: FilePosition(done, 0, epoch=epoch)}
    shown = {file: f"{ROOT}/{file}"}
    return Quarantine(path, limit, {file: fingerprint}, position, shown)


def entries(path: Path) -> list[dict[str, Any]]:
    assert path.read_bytes().endswith(b"\n")
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines_in(path: Path) -> list[int]:
    return [entry["line"] for entry in entries(path)]


def stopped(judge: Quarantine, rows_read: int, end_of_epoch: bool = False) -> str:
    with pytest.raises(DataError) as caught:
        judge.judge(rows_read, end_of_epoch)
    assert type(caught.value) is DataError
    return str(caught.value)


def test_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "quarantine" / "rank_3.jsonl"
    one = quarantine(path)
    one.add(bad(7), epoch=1, row=42)
    one.add(bad(8, "two\nlines, and half a pair \ud800"), epoch=1, row=0)
    assert entries(path) == [
        {
            "file": "data/train/s.jsonl",
            "line": 7,
            "byte": 70,
            "reason": "not_json",
            "message": "not JSON: x",
            "epoch": 1,
            "row": 42,
            "fingerprint": "9-abcd",
        },
        {
            "file": "data/train/s.jsonl",
            "line": 8,
            "byte": 80,
            "reason": "not_json",
            "message": r"two lines, and half a pair \ud800",
            "epoch": 1,
            "row": 0,
            "fingerprint": "9-abcd",
        },
    ]


def test_nothing_bad_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "quarantine" / "rank_0.jsonl"
    quarantine(path).judge(1000, end_of_epoch=True)
    assert not path.parent.exists()


def test_a_message_may_not_be_as_long_as_a_record(tmp_path: Path) -> None:
    path = tmp_path / "rank_0.jsonl"
    quarantine(path).add(bad(1, "y" * 10_000), 0, 0)
    assert entries(path)[0]["message"] == "y" * MAX_MESSAGE + " ..."


def test_a_row_is_written_once_in_later_epochs_and_attempts(tmp_path: Path) -> None:
    path = tmp_path / "rank_0.jsonl"
    first = quarantine(path)
    for epoch in (0, 1):
        for line in (4, 2):
            first.add(bad(line), epoch, line)
    resumed = quarantine(path, epoch=0, done=3)
    for line in (4, 9):
        resumed.add(bad(line), 0, line)
    assert lines_in(path) == [4, 2, 9]


def test_a_row_that_another_rank_met_is_not_written_again(tmp_path: Path) -> None:
    """A run may be resumed on another number of ranks, which deals the files anew."""
    quarantine(tmp_path / "rank_1.jsonl").add(bad(4), 0, 0)
    quarantine(tmp_path / "rank_0.jsonl").add(bad(4), 0, 0)
    assert not (tmp_path / "rank_0.jsonl").exists()
    quarantine(tmp_path / "rank_0.jsonl", file="other").add(bad(4, file="other"), 0, 0)
    assert [entry["file"] for entry in entries(tmp_path / "rank_0.jsonl")] == ["data/train/other"]


def test_what_is_known_of_a_file_is_forgotten_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "rank_0.jsonl"
    first = quarantine(path)
    for line in (1, 2, 3):
        first.add(bad(line), epoch=0, row=line)
    mended = quarantine(path, limit=0.01, epoch=1, fingerprint="9-ef01")
    mended.add(bad(2, "still not JSON"), epoch=1, row=0)
    mended.judge(100)
    assert lines_in(path) == [1, 2, 3, 2]
    quarantine(path, fingerprint="9-ef01").add(bad(2), epoch=2, row=0)
    assert lines_in(path) == [1, 2, 3, 2]


def test_a_line_that_a_crash_cut_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "rank_0.jsonl"
    first = quarantine(path)
    first.add(bad(1), 0, 0)
    first.add(bad(2), 0, 1)
    whole = path.read_bytes()
    for cut in range(1, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        quarantine(path).add(bad(2), 0, 1)
        assert path.read_bytes() == whole


# Right but for the type of one value.
_EDITED = {
    "file": "data/train/s.jsonl",
    "line": 1,
    "byte": 0,
    "reason": "not_json",
    "message": "x",
    "epoch": 0,
    "row": 0,
    "fingerprint": "9-abcd",
}


@pytest.mark.parametrize(
    "line",
    ["note to myself", "[1]", "{}", '{"file": 1, "mine": 2}', "[" * 100_000]
    + [json.dumps(_EDITED | wrong) for wrong in ({"file": ["s"]}, {"epoch": "0"}, {"row": None})],
)
def test_a_line_that_somebody_wrote_is_left_alone(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rank_0.jsonl"
    path.write_text(line + "\n")
    quarantine(path).add(bad(1), 0, 0)
    assert path.read_text().startswith(line + "\n")
    assert path.read_text().count("\n") == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "rank_0.jsonl"
    one = quarantine(path)
    path.symlink_to("/dev/full")
    with pytest.raises(DataError) as caught:
        one.add(bad(1), 0, 0)
    assert str(caught.value) == f"{path}: cannot be written: No space left on device"


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    other = tmp_path / "rank_1.jsonl"
    other.mkdir()
    with pytest.raises(DataError) as caught:
        quarantine(tmp_path / "rank_0.jsonl")
    assert str(caught.value) == f"{other}: cannot be read: Is a directory"


def test_where_none_is_allowed_the_first_ends_the_run_with_its_own_line(tmp_path: Path) -> None:
    path = tmp_path / "rank_0.jsonl"
    with pytest.raises(DataError) as caught:
        quarantine(path, limit=0.0).add(bad(3), 0, 0)
    assert str(caught.value) == (
        "data/train/s.jsonl:3 (byte 30): not JSON: x;"
        " llada-sft check finds all such rows, data.max_bad_fraction allows some"
    )
    assert lines_in(path) == [3]


def test_too_many_are_shown_by_their_first_five(tmp_path: Path) -> None:
    path = tmp_path / "rank_0.jsonl"
    judge = quarantine(path, limit=0.05)
    for line in (9, 3, 8, 1, 7, 5):
        judge.add(bad(line, f"no {line}"), 0, line)
    judge.judge(99)
    judge.judge(120)
    assert stopped(judge, 119) == (
        f"{path}: 6 of 119 rows are bad, data.max_bad_fraction allows 0.05;"
        " llada-sft check finds them all; the first:\n"
        "data/train/s.jsonl:9 (byte 90): no 9\n"
        "data/train/s.jsonl:3 (byte 30): no 3\n"
        "data/train/s.jsonl:8 (byte 80): no 8\n"
        "data/train/s.jsonl:1 (byte 10): no 1\n"
        "data/train/s.jsonl:7 (byte 70): no 7"
    )


def test_few_rows_are_judged_at_the_end_of_an_epoch() -> None:
    judge = quarantine(None, limit=0.5)
    judge.judge(0, end_of_epoch=True)
    for line in (1, 2):
        judge.add(bad(line), 0, 0)
    judge.judge(3)
    judge.judge(4, end_of_epoch=True)
    assert stopped(judge, 3, end_of_epoch=True).splitlines()[0] == (
        "2 of 3 rows are bad, data.max_bad_fraction allows 0.5;"
        " llada-sft check finds them all; the first:"
    )


def test_a_share_that_is_exactly_allowed() -> None:
    """29 of 100 are 0.29, though 0.29 · 100 is less than 29 in floating point."""
    judge = quarantine(None, limit=0.29)
    for line in range(29):
        judge.add(bad(line), 0, line)
    judge.judge(100)


def test_a_resumed_run_judges_what_lies_before_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "rank_0.jsonl"
    first = quarantine(path)
    # Line 6 was met at row 60, which had been prepared ahead of the checkpoint at row 50.
    for line in (2, 6, 4):
        first.add(bad(line), 0, 10 * line)
    resumed = quarantine(path, limit=0.01, epoch=0, done=50)
    resumed.judge(200)
    # Exactly at the checkpoint's row, or just before it.
    quarantine(path, limit=0.01, epoch=0, done=60).judge(200)
    assert ": 3 of 200 rows" in stopped(quarantine(path, limit=0.01, epoch=0, done=61), 200)
    assert stopped(resumed, 199).splitlines()[0].startswith(f"{path}: 2 of 199 rows are bad")
    resumed.add(bad(6), 0, 60)
    resumed.judge(300)
    assert ": 3 of 299 rows" in stopped(resumed, 299)
    # In a later epoch all of them lie before it; another rank's files count there.
    assert ": 3 of 100 rows" in stopped(quarantine(path, limit=0.01, epoch=1), 100)
    quarantine(tmp_path / "rank_1.jsonl", limit=0.01, epoch=1, file="other").judge(100)
