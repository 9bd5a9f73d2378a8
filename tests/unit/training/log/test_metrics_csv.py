"""The metrics file over several attempts, and after a crash in the middle of a line."""

import csv
import errno
from pathlib import Path

import pytest

from llada_sft.errors import SupersededError
from llada_sft.training.log.metrics_csv import COLUMNS, MetricsCsv, data_wait, read_metrics

HEADER = ",".join(COLUMNS) + "\r\n"


def log(path: Path, first_step: int, steps: list[int], loss: float = 1.5) -> None:
    logger = MetricsCsv(path, first_step)
    for step in steps:
        logger.log_metrics({"loss": loss, "lr": 0.1}, step)


def steps_of(path: Path) -> list[int]:
    return [int(row["step"]) for row in read_metrics(path)]


def test_rows_are_appended_under_one_header(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "metrics.csv"
    log(path, 0, [1, 2])
    rest = "," * (len(COLUMNS) - 4)
    rows = "".join(f"{step},,1.5,0.1{rest}\r\n" for step in (1, 2))
    assert path.read_bytes().decode() == HEADER + rows
    assert read_metrics(path)[0] == dict.fromkeys(COLUMNS, "") | {
        "step": "1",
        "loss": "1.5",
        "lr": "0.1",
    }


def test_a_resumed_run_drops_the_rows_that_come_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log(path, 0, [10, 20, 30, 40])
    log(path, 20, [30], loss=2.5)
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [
        ("10", "1.5"),
        ("20", "1.5"),
        ("30", "2.5"),
    ]
    assert [one.name for one in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_run_that_logs_nothing_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log(path, 0, [10, 20])
    before = path.read_bytes()
    MetricsCsv(path, 10).log_hyperparams({"a": 1})
    assert path.read_bytes() == before


def test_there_is_no_file(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.csv") == []


@pytest.mark.parametrize(
    "row",
    [f"20,,1.5,0.1{',' * (len(COLUMNS) - 4)}\r\n", f"20{',' * (len(COLUMNS) - 1)}0.4321\r\n"],
)
def test_a_last_line_that_was_cut_is_left_out(tmp_path: Path, row: str) -> None:
    path = tmp_path / "metrics.csv"
    for cut in range(1, len(row)):
        path.write_bytes(
            (HEADER + f"10,,1.5,0.1{',' * (len(COLUMNS) - 4)}\r\n" + row[:-cut]).encode()
        )
        assert steps_of(path) == [10], row[:-cut]
    path.write_bytes(HEADER[:-5].encode())
    assert steps_of(path) == []


@pytest.mark.parametrize(
    "damage", [b"\0" * 40, b"\xff\xfe", b'20,0,"1.5', b"\xc2\xb2,0", b"9" * 200_000, b"9" * 5000]
)
def test_a_damaged_line_takes_no_other_with_it(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.csv"
    log(path, 0, [10, 20, 30, 40])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], damage, b"\r\n", *lines[3:]]))
    assert steps_of(path) == [10, 30, 40]
    log(path, 30, [40])
    assert steps_of(path) == [10, 30, 40]


@pytest.mark.parametrize("content", [b"\0" * 4096, b"\xff" * 99, b"a,b\n1,2\n", b"\n\n"])
def test_a_file_of_something_else_is_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    log(path, 40, [50])
    assert steps_of(path) == [50]
    assert path.with_name("metrics.csv.damaged").read_bytes() == content


def test_a_file_with_fewer_columns_is_continued(tmp_path: Path) -> None:
    """A run may be resumed with a newer version, which logs more."""
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\r\n10,1.5\r\n")
    log(path, 10, [20])
    assert [(row["step"], row["loss"], row["fill"]) for row in read_metrics(path)] == [
        ("10", "1.5", ""),
        ("20", "1.5", ""),
    ]


def test_a_cut_line_does_not_reach_into_the_next_attempt(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log(path, 0, [10, 20])
    path.write_bytes(path.read_bytes()[:-7])
    log(path, 20, [30])
    assert steps_of(path) == [10, 30]


def interval(seconds: float, data_wait: float) -> dict[str, float]:
    return {"tokens": 1000, "tokens_per_s": 1000 / seconds, "data_wait": data_wait}


def test_waiting_is_a_share_of_the_time_of_all_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = MetricsCsv(path, 0)
    logger.log_metrics(interval(seconds=2, data_wait=0.5), 10)
    logger.log_metrics({"validation_loss": 1.0}, 10)
    logger.log_metrics(interval(seconds=6, data_wait=0.1), 20)
    assert data_wait(read_metrics(path)) == pytest.approx((2 * 0.5 + 6 * 0.1) / 8)
    assert data_wait([]) == 0


def test_a_full_disk_leaves_no_half_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    logger = MetricsCsv(path, 0)
    logger.log_metrics({"loss": 1.5}, 1)

    def half(self: object, row: object) -> None:
        with path.open("a") as file:
            file.write("2,0,1.")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerow", half)
        with pytest.raises(OSError, match="No space left"):
            logger.log_metrics({"loss": 2.5}, 2)
    logger.log_metrics({"loss": 3.5}, 3)
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [
        ("1", "1.5"),
        ("3", "3.5"),
    ]


def test_a_run_that_was_lost_gets_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    MetricsCsv(path, 0).log_metrics({"loss": 1.5}, 1)

    def lost() -> None:
        raise SupersededError("lost")

    before = path.read_text()
    # Neither a row, nor those dropped that this attempt would make again.
    with pytest.raises(SupersededError):
        MetricsCsv(path, 0, require_owner=lost).log_metrics({"loss": 2.5}, 1)
    assert path.read_text() == before
