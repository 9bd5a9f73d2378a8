"""How both entry points end."""

import os
import subprocess
import sys

import pytest

from llada_sft.entry import exit_code
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
