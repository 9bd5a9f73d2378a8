"""Completion of the two commands in a shell: static scripts, made by shtab from their parsers.

What an argument is completed with follows from its name in the usage line: RUN, CONFIG, DIR.
"""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from llada_sft.errors import LaunchError

SHELLS = ("bash", "zsh")
_FILES = {"bash": "_shtab_compgen_files", "zsh": "_files"}
_FOLDERS = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/"}
_CONFIGS = {"bash": "_llada_sft_configs", "zsh": "_files -g '*.yaml'"}
_RUNS = {"bash": "_llada_sft_runs", "zsh": "_llada_sft_runs"}
# By the metavar of an argument.
_COMPLETED_WITH = {
    "RUN": _RUNS,
    "CONFIG": _CONFIGS,
    "FILE": _CONFIGS,
    "DIR": _FOLDERS,
    "OUT": _FOLDERS,
    "IN": _FILES,
}
# Runs below the default of run.root, and any path.
_FUNCTIONS = {
    "bash": """\
_llada_sft_runs() {
  compgen -d -- "$1"
  [ -d runs ] && (cd runs && compgen -d -- "$1")
}
_llada_sft_configs() {
  compgen -d -- "$1"
  compgen -f -X '!*.yaml' -- "$1"
}""",
    "zsh": """\
_llada_sft_runs() {
  local -a names
  names=(runs/*(N/:t))
  compadd -a names
  _files -/
}""",
}


def completion_script(parsers: Mapping[str, argparse.ArgumentParser], shell: str) -> str:
    """Return the text that a shell sources to complete commands.

    Args:
        parsers: The parser of each command, by the command's name.
        shell: One of SHELLS.

    Raises:
        LaunchError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise LaunchError("completion: needs shtab: pip install 'llada-sft[completion]'") from None
    texts = []
    for name, parser in parsers.items():
        parser.prog = name
        for action in _actions(parser):
            if isinstance(action.metavar, str) and action.metavar in _COMPLETED_WITH:
                # What shtab looks for; argparse has no such attribute.
                vars(action)["complete"] = _COMPLETED_WITH[action.metavar]
        texts.append(shtab.complete(parser, shell, preamble=_FUNCTIONS[shell]))
    return "\n".join(texts)


def _actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Yield the arguments of a parser and of its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
