"""`llada-sft logs`: the last lines, one attempt's lines, and following with both."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llada_sft.cluster import journal
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.watch import logs
from llada_sft.cluster.watch.following import JobWatch
from llada_sft.cluster.watch.logs import Wanted
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

FakeTool = Callable[[str, str], None]
ATTEMPT_1 = "attempt 1: rank 0 of 2, 2026-11-28 01:02:03 UTC\none\n"
ATTEMPT_2 = "attempt 2: rank 0 of 2, 2026-11-28 01:12:03 UTC\ntwo\nand a last line"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "a")
    run.logs.mkdir(parents=True)
    run.slurm.mkdir()
    run.config.write_text("")
    return run


def attempts(run: RunDir, *jobs: str | None) -> None:
    for number, job in enumerate(jobs, start=1):
        of_job = {} if job is None else {"job_id": job}
        for entry in ({"event": "started", "attempt": number}, {"event": "ended", "cause": "hang"}):
            journal.append(run.journal, cast(Entry, {**entry, **of_job}))


def shown(
    run: RunDir, wanted: Wanted, capfd: pytest.CaptureFixture[str], follow: bool = False
) -> str:
    if follow:
        logs.follow(run, wanted, ask_every_s=0.01)
    else:
        logs.print_log(run, wanted)
    return capfd.readouterr().out


@pytest.mark.parametrize("job", ["42", None])
@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(), "srun: a line\n" + ATTEMPT_1 + ATTEMPT_2),
        (Wanted(attempt=1), ATTEMPT_1),
        (Wanted(attempt=2), ATTEMPT_2),
        (Wanted(attempt=1, tail=1), "one\n"),
        (Wanted(tail=1), "and a last line"),
        (Wanted(tail=2), "two\nand a last line"),
        (Wanted(attempt=2, tail=99), ATTEMPT_2),
    ],
)
def test_the_part_that_is_wanted(
    run: RunDir,
    capfd: pytest.CaptureFixture[str],
    job: str | None,
    wanted: Wanted,
    expected: str,
) -> None:
    attempts(run, job, job)
    log = run.rank_log(0) if job is None else run.slurm / f"{job}_0_log.out"
    log.write_text("srun: a line\n" + ATTEMPT_1 + ATTEMPT_2)
    assert shown(run, wanted, capfd) == expected


def test_an_attempt_of_an_earlier_job(run: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    attempts(run, "41", "42", "42")
    # An older version wrote no line at the begin of an attempt.
    (run.slurm / "41_3_log.out").write_text("of job 41\n")
    (run.slurm / "42_3_log.out").write_text("of job 42\n")
    assert shown(run, Wanted(rank=3, attempt=1), capfd) == "of job 41\n"
    with pytest.raises(LaunchError) as caught:
        logs.print_log(run, Wanted(rank=3, attempt=2))
    assert str(caught.value) == (
        f"{run.slurm}/42_3_log.out: does not say where attempt 2 begins: an older version wrote it,"
        " or that attempt ended before its ranks; without --attempt the whole log is shown"
    )
    with pytest.raises(LaunchError, match=r"41_7_log\.out: no such log: .* has it a rank 7\?$"):
        logs.print_log(run, Wanted(rank=7, attempt=1))


@pytest.mark.parametrize(("jobs", "have"), [([], "it has none yet"), (["1"], "the last one is 1")])
def test_no_such_attempt(run: RunDir, jobs: list[str], have: str) -> None:
    attempts(run, *jobs)
    with pytest.raises(LaunchError) as caught:
        logs.print_log(run, Wanted(attempt=7))
    assert str(caught.value) == f"{run.path}: has no attempt 7; {have}"


def test_following_starts_with_the_last_lines(
    run: RunDir, capfd: pytest.CaptureFixture[str]
) -> None:
    attempts(run, None, None)
    run.rank_log(0).write_text(ATTEMPT_1 + ATTEMPT_2 + "\n")
    out = shown(run, Wanted(tail=2), capfd, follow=True)
    assert out.splitlines()[:3] == ["two", "and a last line", "ended        hang (exit code 71)"]
    out = shown(run, Wanted(attempt=2), capfd, follow=True)
    assert out.startswith(ATTEMPT_2)
    # Piped: no live line.
    assert "\x1b" not in out
    with pytest.raises(LaunchError, match=r"^--attempt 1 has ended: leave --follow away$"):
        logs.follow(run, Wanted(attempt=1))
    with pytest.raises(LaunchError, match="has no attempt 3"):
        logs.follow(run, Wanted(attempt=3))


@given(
    lines=st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line), max_size=12),
    count=st.integers(1, 14),
    begin=st.integers(0, 30),
)
def test_the_last_lines_are_those_of_the_whole_text(
    lines: list[bytes], count: int, begin: int
) -> None:
    text = b"\n".join(lines)
    begin = min(begin, len(text))
    position = logs._last_lines(BytesIO(text), begin, len(text), count)
    assert text[position:] == b"".join(text[begin:].splitlines(keepends=True)[-count:]) or (
        # Python's own splitlines also splits at other characters than the newline.
        text[position:].rstrip(b"\n").count(b"\n") < count
    )


def test_the_last_lines_of_a_large_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"line %d\n" % number for number in range(50_000)))
    with log.open("rb") as file:
        position = logs._last_lines(file, 0, log.stat().st_size, 20_000)
        file.seek(position)
        assert file.read().splitlines() == [b"line %d" % number for number in range(30_000, 50_000)]


def test_each_change_of_state_is_a_line(
    run: RunDir, fake_tool: FakeTool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    answers = [
        "JobState=PENDING Reason=Resources StartTime=Unknown Restarts=0",
        "JobState=PENDING Reason=Resources StartTime=1795828000 Restarts=0",
        "JobState=PENDING Reason=OutOfCoffee StartTime=Unknown Restarts=0",
        "JobState=CONFIGURING Reason=None NodeList=node[1-2] Restarts=0",
        "JobState=RUNNING Reason=None NodeList=node[1-2] Restarts=0",
        "JobState=RUNNING Reason=None NodeList=node[1-2] Restarts=0",
        "JobState=PENDING Reason=BeginTime NodeList=(null) Restarts=1",
        "JobState=RUNNING Reason=None NodeList=node3 Restarts=1",
    ]
    watch = JobWatch(run, "42")
    for answer in answers:
        fake_tool("scontrol", f"echo 'JobId=42 {answer}'")
        assert not watch.is_over()
    fake_tool("scontrol", "echo JobId=42 JobState=COMPLETED")
    assert watch.is_over()
    assert capfd.readouterr().err.splitlines() == [
        "job 42 is PENDING: Resources: it is among the next to start, and waits for nodes to become"
        " free; start: no estimate yet",
        "job 42 is PENDING: OutOfCoffee; start: no estimate yet",
        "job 42 is CONFIGURING on node[1-2]",
        "job 42 is RUNNING on node[1-2]",
        "job 42 was requeued (1 so far)",
        "job 42 is PENDING: BeginTime: it was asked to start later (--begin), or was requeued a"
        " moment ago; start: no estimate yet",
        "job 42 is RUNNING on node3",
    ]
