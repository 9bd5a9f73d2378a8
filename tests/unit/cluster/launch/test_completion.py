"""The completion scripts, sourced and asked in a real shell."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llada_sft import cli
from llada_sft.cluster.launch.completion import SHELLS

ROOT = Path(__file__).parents[4]
# Completes a line as bash does when TAB is pressed at its end.
ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function=$(complete -p "${1##*/}" | sed 's/.* -F \\([^ ]*\\).*/\\1/')
"$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "llada_sft", "completion", shell]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    path = folder / f"completion.{shell}"
    path.write_text(done.stdout)
    return path


@pytest.fixture(scope="module")
def in_bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return script("bash", tmp_path_factory.mktemp("bash"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("llada-sft st", {"status"}),
        ("llada-sft res", {"resume"}),
        ("llada-sft status fi", {"first"}),
        ("llada-sft logs runs/f", {"runs/first"}),
        ("llada-sft resume --n", {"--nodes"}),
        ("llada-sft logs first --t", {"--tail"}),
        ("llada-sft check config/m", {"config/mine.yaml"}),
        ("llada-sft completion z", {"zsh"}),
        ("launch.py --config config/m", {"config/mine.yaml"}),
        ("./launch.py --fol", {"--follow"}),
    ],
)
def test_bash_completes(in_bash: Path, tmp_path: Path, line: str, expected: set[str]) -> None:
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "config").mkdir()
    for name in ("mine.yaml", "mine.txt"):
        (tmp_path / "config" / name).write_text("")
    command = ["bash", "-c", ASK, "ask", str(in_bash), *line.split(" ")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (set(done.stdout.split()), done.stderr) == (expected, "")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="this machine has no zsh")
def test_zsh_reads_its_script(tmp_path: Path) -> None:
    path = script("zsh", tmp_path)
    done = subprocess.run(["zsh", "-n", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_shells_are_those_of_the_command() -> None:
    for shell in SHELLS:
        assert cli.parser().parse_args(["completion", shell]).shell == shell
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["completion", "cmd.exe"])


def test_without_shtab_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    monkeypatch.setattr(sys, "argv", ["llada-sft", "completion", "bash"])
    assert cli.main() == 2
    assert capsys.readouterr().err == (
        "completion: needs shtab: pip install 'llada-sft[completion]'\n"
    )
