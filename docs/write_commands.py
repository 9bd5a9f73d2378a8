"""docs/commands.md: every command with its arguments, from the parsers of the command line.

    python docs/write.py

argparse has no public list of what a parser knows: `_actions` and its like are read here alone.
"""

import argparse
from collections.abc import Iterator

from llada_sft import cli
from llada_sft.cluster.launch import command

_HEAD = """\
# Every command

Written by `python docs/write.py`, from the parsers of the command line: do not edit it.
`COMMAND --help` shows the same. `llada-sft launch` takes what `python launch.py` takes.
`section.key=value` changes a key of the [config](config.md). Exit code 0: done; 2: a mistake of
yours, with one line for each ([the messages](messages.md)); 130: Ctrl-C; others are named on the
page of the command.
"""


def parsers() -> Iterator[argparse.ArgumentParser]:
    """Give the parsers of all commands that do something, with `prog` as one types it."""
    launch = command.parser()
    launch.prog = "python launch.py"
    yield launch
    # `llada-sft launch` is the same.
    yield from (leaf for leaf in _leaves(cli.parser()) if not leaf.prog.endswith(" launch"))


def reference() -> str:
    """Return the text of docs/commands.md."""
    about = {action.dest: action.help for action in _choices(cli.parser())}
    return "\n".join([_HEAD, *(line for one in parsers() for line in _section(one, about))])


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Give the parsers below a parser; itself if it has no commands."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for inner in group.choices.values():
            yield from _leaves(inner)


def _choices(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Give what `--help` says of each command below a parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action._choices_actions
            for inner in action.choices.values():
                yield from _choices(inner)


def _section(parser: argparse.ArgumentParser, about: dict[str, str | None]) -> Iterator[str]:
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    of_group = _titles(parser)
    shown = [action for action in actions if action.dest not in ("help", "version")]
    words = [_usage(action) for action in shown if action.required or not action.option_strings]
    has_options = any(action.option_strings and not action.required for action in shown)
    usage = " ".join([parser.prog, *words, *(["[OPTIONS]"] if has_options else [])])
    meaning = parser.description or about.get(parser.prog.rpartition(" ")[2]) or ""
    yield f"## {parser.prog.removeprefix('python ')}\n"
    yield f"{_sentence(meaning)}\n"
    yield f"```\n{usage}\n```\n"
    yield from ["| argument | meaning |", "|---|---|"]
    for action in shown:
        # A bar would end the cell, in code, too.
        usage = _usage(action).replace("|", r"\|")
        yield f"| `{usage}` | {of_group.get(action.dest, '')}{_meaning(action)} |"
    yield ""
    for group in parser._mutually_exclusive_groups:
        names = ", ".join(f"`{_name(action)}`" for action in group._group_actions)
        yield f"{'One' if group.required else 'At most one'} of {names}.\n"


def _titles(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Return the title of the group of each argument that is in a group of its own."""
    usual = (parser._positionals, parser._optionals)
    return {
        action.dest: f"{group.title}: "
        for group in parser._action_groups
        if group not in usual
        for action in group._group_actions
    }


def _usage(action: argparse.Action) -> str:
    """Return an argument as one types it: `--nodes N`, `RUN`, `[section.key=value ...]`."""
    value = str(action.metavar or action.dest.upper())
    if action.option_strings:
        return _name(action) if action.nargs == 0 else f"{_name(action)} {value}"
    return {"*": f"[{value} ...]", "+": f"{value} ...", "?": f"[{value}]"}.get(
        str(action.nargs), value
    )


def _name(action: argparse.Action) -> str:
    return action.option_strings[-1] if action.option_strings else str(action.metavar)


def _meaning(action: argparse.Action) -> str:
    """Return what `--help` says, the values that are allowed and the default."""
    parts = [action.help or ("change a key of the config" if action.dest == "overrides" else "")]
    if action.choices is not None:
        parts.append(f"one of {', '.join(f'`{choice}`' for choice in action.choices)}")
    # 0 is a default, False is none.
    given = action.default is not None and action.default is not False and action.default != []
    if given and action.option_strings and "default" not in parts[0]:
        parts.append(f"default: `{action.default}`")
    return "; ".join(part for part in parts if part).replace("|", "\\|")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""
