"""What both entry points take for a path, and how they end."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llada_sft.cli import parser
from llada_sft.entry import exit_code, print_or_drop
from llada_sft.errors import DataError


def test_an_error_of_the_users_has_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise DataError("a.jsonl:1: bad")

    assert exit_code(fail) == 2
    assert capsys.readouterr() == ("", "a.jsonl:1: bad\n")


def test_ctrl_c_is_130() -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    assert exit_code(interrupt) == 130


def test_a_defect_of_ours_keeps_its_traceback() -> None:
    def fail() -> int:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        exit_code(fail)


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    script = (
        "import sys; from llada_sft.entry import exit_code\n"
        "def write():\n for _ in range(100000): print('line')\n return 0\n"
        "sys.exit(exit_code(write))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None and writer.stderr is not None
        writer.stdout.close()
        assert (writer.stderr.read(), writer.wait(30)) == (b"", 1)


@pytest.mark.parametrize("lines", [1, 100_000])
def test_an_output_without_room_is_one_line(lines: int) -> None:
    script = (
        "import sys; from llada_sft.entry import exit_code\n"
        f"def write():\n for _ in range({lines}): print('line')\n return 0\n"
        "sys.exit(exit_code(write))"
    )
    for environment in ({}, {"PYTHONUNBUFFERED": "1"}):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-c", script],
                stdout=full,
                stderr=subprocess.PIPE,
                env=os.environ | environment,
            )
        assert done.stderr == b"the output cannot be written: No space left on device\n"
        assert done.returncode == 2


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_what_the_shell_has_closed_goes_nowhere(tmp_path: Path, closed: tuple[int, ...]) -> None:
    script = (
        "import os, subprocess, sys; from llada_sft.entry import exit_code\n"
        "def write():\n"
        " file = open('kept', 'w'); assert file.fileno() > 2\n"
        " print('line'); print('line', file=sys.stderr); sys.stdout.buffer.write(b'line')\n"
        " return subprocess.run(['sh', '-c', 'echo out; echo err >&2']).returncode\n"
        "sys.exit(exit_code(write))"
    )
    redirections = " ".join(f"{number}>&-" for number in closed)
    command = shlex.join([sys.executable, "-c", script]) + f" {redirections}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment)
    assert done.returncode == 0
    assert (tmp_path / "kept").read_bytes() == b""


def test_another_error_of_the_system_keeps_its_traceback() -> None:
    def fail() -> int:
        raise OSError(5, "elsewhere")

    with pytest.raises(OSError, match="elsewhere"):
        exit_code(fail)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["shard", "a.jsonl", "s3://b/out", "--num-shards=1"], "argument OUT: must be a path of"),
        (["export", "run", "file:///out"], "argument OUT: must be a path of this machine, not a"),
        (["export", "run", ""], "argument OUT: must not be empty"),
        (["cancel", ""], "argument RUN: must not be empty"),
        (["status", ""], "argument RUN: must not be empty"),
        (["report", ""], "argument RUN: must not be empty"),
        (["report", "a", "--out", "s3://b/page"], "argument --out: must be a path of this"),
        (["check", ""], "argument CONFIG: must not be empty"),
        (["launch", "--config="], "argument --config: must not be empty"),
        (["init", ""], "argument DIR: must not be empty"),
        (["sample", "m", "--prompt=p", "--out="], "argument --out: must not be empty"),
    ],
)
def test_an_argument_that_is_not_a_path_here(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(words)
    assert caught.value.code == 2
    assert f"error: {problem}" in capsys.readouterr().err


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_command_that_acts_does_so_for_a_reader_that_has_gone(
    stream: str, tmp_path: Path
) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from llada_sft.entry import exit_code, print_or_drop\n"
        f"def act():\n shown = print_or_drop('line', sys.{stream})\n"
        f" Path({str(tmp_path / 'shown')!r}).write_text(str(shown)); return 3\n"
        "sys.exit(exit_code(act))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as writer:
        streams = {"stdout": writer.stdout, "stderr": writer.stderr}
        gone = streams.pop(stream)
        (other,) = streams.values()
        assert gone is not None and other is not None
        gone.close()
        assert (other.read(), writer.wait(30)) == (b"", 3)
    assert (tmp_path / "shown").read_text() == "False"


def test_what_somebody_reads_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_or_drop("a")
    assert print_or_drop("b", sys.stderr)
    assert capsys.readouterr() == ("a\n", "b\n")


def test_what_an_output_cannot_encode_is_no_traceback() -> None:
    script = (
        "import sys; from llada_sft.entry import exit_code\n"
        "def write():\n print('\\u00d7 \\udcff'); return 0\n"
        "sys.exit(exit_code(write))"
    )
    for encoding, shown in (("ascii", b"\\xd7 \\udcff\n"), ("utf-8", b"\xc3\x97 \\udcff\n")):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=True,
        )
        assert done.stdout == shown


def test_nothing_is_looked_through_at_the_exit() -> None:
    script = (
        "import atexit, gc; from llada_sft.entry import exit_code\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"
        "exit_code(lambda: 0); print(gc.isenabled(), gc.get_freeze_count())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["True 0", "True"]
