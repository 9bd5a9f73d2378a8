"""metrics.csv -> curves: the numbers of the file, whatever state it is in."""

from pathlib import Path

import pytest

from llada_sft.report.curves import TOKENS_PER_ROW, curves_of, read_rows
from llada_sft.report.limits import Limits
from llada_sft.training.log.log_interval import share_of
from llada_sft.training.log.metrics_csv import read_metrics
from tests.report_runs import RECORDED, write_run

LIMITS = Limits()


def test_the_curves_of_a_recorded_run_are_its_file() -> None:
    problems: list[str] = []
    found = curves_of(read_rows(RECORDED, problems), LIMITS)
    assert problems == []
    rows = read_metrics(RECORDED.metrics)
    for column in ("loss", "lr", "validation_loss", "loss_level_8", share_of("short")):
        logged = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
        series = found["series"][column]
        assert list(zip(series["x"], series["y"], strict=True)) == logged
        assert found["last"][column] == [
            logged[-1][0],
            next(row[column] for row in reversed(rows) if row[column]),
        ]
    # Without a GPU there is no number of it: the column is empty.
    assert "mfu" not in found["series"]
    assert found["sums"]["rows"] == sum(int(row["rows"]) for row in rows if row["rows"])


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        # A validation's row, and the step's own.
        ("step,loss,validation_loss\n2,,0.5\n2,0.75,\n", {"loss": [(2, 0.75)]}),
        # Of a resumed run whose first row after its checkpoint is not yet there, and then is.
        (
            "step,loss\n1,9\n2,8\n3,7\n4,6\n3,5\n",
            {"loss": [(1, 9.0), (2, 8.0), (3, 5.0)]},
        ),
        ("step,loss\n1,nan\n2,inf\n3,1.5\n", {"loss": [(1, None), (2, None), (3, 1.5)]}),
        # An older version, without most columns; and a line that is being written.
        ("step,loss\n1,2.5\n2,2.", {"loss": [(1, 2.5)]}),
        ("step,loss,odd\n1,2.5,text\n", {"loss": [(1, 2.5)]}),
        ("", {}),
        ("step,loss\n", {}),
    ],
)
def test_rows_of_a_step_and_of_a_resumed_run(
    tmp_path: Path, metrics: str, expected: dict[str, list[tuple[int, float | None]]]
) -> None:
    run = write_run(tmp_path / "run", metrics)
    series = curves_of(read_rows(run, []), LIMITS)["series"]
    series.pop("validation_loss", None)
    found = {name: list(zip(one["x"], one["y"], strict=True)) for name, one in series.items()}
    assert found == expected


def test_steps_without_a_finite_loss_are_named(tmp_path: Path) -> None:
    lines = "".join(f"{step},nan\n" for step in range(1, 31))
    series = curves_of(read_rows(write_run(tmp_path / "a", f"step,loss\n{lines}"), []), LIMITS)
    loss = series["series"]["loss"]
    assert (loss["num_nonfinite"], len(loss["nonfinite"])) == (30, 20)
    assert loss["nonfinite"][0] == [1, "nan"]


def test_a_zoomed_out_curve_has_logged_points_alone(tmp_path: Path) -> None:
    lines = "".join(f"{step},{step % 7}.25\n" for step in range(1, 9001))
    series = curves_of(read_rows(write_run(tmp_path / "a", f"step,loss\n{lines}"), []), LIMITS)
    loss = series["series"]["loss"]
    assert loss["logged"] == 9000
    assert len(loss["x"]) <= LIMITS.points
    assert all(y == x % 7 + 0.25 for x, y in zip(loss["x"], loss["y"], strict=True))


def test_how_long_rows_are(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "step,tokens,rows\n1,100,4\n2,90,0\n3,60,3\n")
    lengths = curves_of(read_rows(run, []), LIMITS)["series"][TOKENS_PER_ROW]
    assert (lengths["x"], lengths["y"]) == ([1, 3], [25.0, 20.0])


@pytest.mark.parametrize(
    ("metrics", "problem"),
    [
        ("step,loss\n1,2\n2,3,4\nx,1\n", "metrics.csv: 2 lines cannot be read, and are not shown"),
        ("1,2\n3,4\n", "metrics.csv: 2 lines cannot be read, and are not shown"),
    ],
)
def test_damaged_lines_are_counted(tmp_path: Path, metrics: str, problem: str) -> None:
    problems: list[str] = []
    read_rows(write_run(tmp_path / "run", metrics), problems)
    assert problems == [problem]


def test_of_a_very_long_file_the_end_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(f"{step},0.5\n" for step in range(1000))
    run = write_run(tmp_path / "run", f"step,loss\n{lines}")
    read_end = "llada_sft.cluster.run_files.read_end"
    monkeypatch.setattr(read_end, lambda path: path.read_bytes()[-2000:])
    problems: list[str] = []
    rows = read_rows(run, problems)
    assert rows[-1] == {"step": "999", "loss": "0.5"}
    assert 200 < len(rows) < 300
    assert problems == ["metrics.csv: only its last 0 MiB are shown"]
