"""How far a run is, by the end of its metrics file."""

from pathlib import Path

import pytest

from llada_sft.cluster.watch.progress import NO_STEP, RunProgress, clock, read_progress
from llada_sft.run_dir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "logs").mkdir()
    return RunDir(tmp_path)


def test_a_run_without_a_step(run: RunDir) -> None:
    assert read_progress(run) == RunProgress()
    assert read_progress(run).line() == NO_STEP
    run.metrics.write_text("step,loss\n")
    assert read_progress(run).line() == NO_STEP


def test_a_run_that_ended_before_its_first_row(run: RunDir) -> None:
    assert read_progress(run).line(3, known_step=3) == "step 3 of 3"
    run.metrics.write_text("step,loss\n2,0.5\n")
    assert read_progress(run).line(3, known_step=3) == "step 2 of 3, loss 0.5"


def test_another_file_is_refused(run: RunDir) -> None:
    run.metrics.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has no column step"):
        read_progress(run)


def test_the_time_of_a_step_is_that_of_recent_rows(run: RunDir) -> None:
    # (step, tokens since the row before, tokens/s): 10 steps of 2 s, then 5 of 4 s.
    rows = ["10,1000,1", "20,1000,50", "20,,", "25,1000,50"]
    run.metrics.write_text("step,tokens,tokens_per_s\n" + "".join(f"{row}\n" for row in rows))
    progress = read_progress(run)
    assert (progress.step, progress.step_seconds) == (25, (20 + 20) / 15)
    assert progress.seconds_left(40) == pytest.approx(15 * 40 / 15)
    assert progress.seconds_left(25) == 0
    # An estimate that was too low, and none.
    assert progress.seconds_left(24) is None
    assert progress.seconds_left(None) is None


def test_a_step_that_is_logged_twice_counts_once(run: RunDir) -> None:
    rows = ["10,100,10", "10,100,10", "20,100,10"]
    run.metrics.write_text("step,tokens,tokens_per_s\n" + "".join(f"{row}\n" for row in rows))
    assert read_progress(run).step_seconds == 1.0


def test_only_recent_rows_count(run: RunDir) -> None:
    slow = [f"{step},1000,1" for step in range(1, 30)]
    fast = [f"{step},1000,1000" for step in range(30, 60)]
    text = "".join(f"{row}\n" for row in [*slow, *fast])
    run.metrics.write_text(f"step,tokens,tokens_per_s\n{text}")
    assert read_progress(run).step_seconds == 1.0


@pytest.mark.parametrize("rows", [["10,0,0", "20,5,0"], ["10,x,1", "20,x,1"], ["20,1,1", "20,1,1"]])
def test_no_time_from_rows_that_do_not_say_it(run: RunDir, rows: list[str]) -> None:
    run.metrics.write_text("step,tokens,tokens_per_s\n" + "".join(f"{row}\n" for row in rows))
    assert read_progress(run).step_seconds is None


@pytest.mark.parametrize("value", ["nan", "inf", "x", ""])
def test_a_value_that_is_no_number(run: RunDir, value: str) -> None:
    run.metrics.write_text(f"step,loss,lr\n10,{value},1e-5\n")
    progress = read_progress(run)
    assert progress.number("loss") is None
    assert (progress.number("lr"), progress.number("mfu")) == (1e-5, None)
    assert progress.line().endswith("lr 1e-05")


def test_the_slowest_rank_is_shown_where_the_file_knows_it(run: RunDir) -> None:
    run.metrics.write_text("step,slowest_rank,slowest_ratio\n10,3,1.504\n")
    assert read_progress(run).line() == "step 10, slowest rank 3 (by itself 1.50 × the median)"
    run.metrics.write_text("step,slowest_rank,slowest_ratio\n10,,\n")
    assert read_progress(run).line() == "step 10"


def test_the_slowest_rank_of_an_earlier_attempt_is_not_shown(run: RunDir) -> None:
    """The run continues with one rank; a row of a validation has neither column."""
    header = "step,tokens_per_s,validation_loss,slowest_rank,slowest_ratio\n"
    run.metrics.write_text(f"{header}10,5,,3,1.5\n10,,0.5,,\n")
    assert "slowest rank 3" in read_progress(run).line()
    run.metrics.write_text(f"{header}10,5,,3,1.5\n20,5,,,\n")
    assert "slowest" not in read_progress(run).line()


def test_a_step_of_thousands_of_digits(run: RunDir) -> None:
    run.metrics.write_text(f"step,loss\n{'9' * 9999},1\n")
    assert read_progress(run).step == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0:00:00"), (61, "0:01:01"), (100 * 3600, "100:00:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
