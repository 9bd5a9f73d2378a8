"""The options of `sample` and `chat`, the settings of a sampler among them; without torch."""

from argparse import ArgumentParser, Namespace
from typing import Any, get_args, get_type_hints

from llada_sft.choices import SAMPLERS
from llada_sft.entry import path_argument
from llada_sft.errors import ConfigError
from llada_sft.generation.settings import SamplerSettings
from llada_sft.generation.settings_table import SETTINGS

_OPTIONS = {
    name: setting.option for name, setting in SETTINGS.items() if setting.option is not None
}


def add_sample(sample: ArgumentParser) -> None:
    """Add the arguments of `llada-sft sample`."""
    sample.add_argument(
        "model", metavar="MODEL", type=path_argument, help="an exported or official model"
    )
    asked = sample.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", action="append", help="may be given repeatedly")
    asked.add_argument(
        "--input", type=path_argument, metavar="FILE", help=".jsonl of prompts or records"
    )
    sample.add_argument(
        "--out", type=path_argument, metavar="FILE", help=".jsonl to write, with --input"
    )
    sample.add_argument("--system", metavar="TEXT", help="the system prompt of those without one")
    sample.add_argument(
        "--complete", action="store_true", help="continue the texts: they are no user's turns"
    )
    sample.add_argument(
        "--field", action="append", default=[], metavar="FIELD=NAME", help="as data.fields"
    )
    sample.add_argument("--skip-bad", action="store_true", help="answer the rows that can be asked")
    sample.add_argument(
        "--batch-size", type=int, default=8, help="prompts that are answered at once"
    )
    sample.add_argument("--ranks", type=int, default=1, help="processes on this machine")
    _add_settings(sample)


def add_chat(chat: ArgumentParser) -> None:
    """Add the arguments of `llada-sft chat`."""
    chat.add_argument(
        "model", metavar="MODEL", type=path_argument, help="an exported or official model"
    )
    chat.add_argument("--system", metavar="TEXT", help="the system prompt")
    _add_settings(chat)


def settings_of(arguments: Namespace) -> SamplerSettings:
    """Return the settings that the options ask for.

    Answers end with their first EOS: what follows it would not be shown.

    Raises:
        ConfigError: They do not fit together.
    """
    given = {name: getattr(arguments, name) for name in _OPTIONS}
    try:
        return make_settings({name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        name, _, problem = str(error).partition(" ")
        raise ConfigError(f"--{name.replace('_', '-')}: {problem}") from None


def make_settings(given: dict[str, Any]) -> SamplerSettings:
    """Return settings for answers that are read; without `block_length`, blocks of at most 32.

    For a network that attends in blocks, they are of 32 also where the answer is shorter.

    Raises:
        ValueError: They do not fit together.
    """
    length = given.get("gen_length", SamplerSettings.gen_length)
    sampler = given.get("sampler", SamplerSettings.sampler)
    in_blocks = sampler in SAMPLERS and SAMPLERS[sampler].in_blocks
    is_free = not in_blocks and "block_length" not in given
    if is_free and 0 < length < SamplerSettings.block_length:
        given = {**given, "block_length": length}
    return SamplerSettings(**{"eos_early_stop": True, **given})


def _add_settings(command: ArgumentParser) -> None:
    """Add an option for each setting that a user may want."""
    types = get_type_hints(SamplerSettings)
    for name, meaning in _OPTIONS.items():
        option = f"--{name.replace('_', '-')}"
        # int | None, a Literal's first word, float: the first says how the option is read.
        kind, *_ = get_args(types[name]) or [types[name]]
        if kind is bool:
            command.add_argument(option, action="store_true", default=None, help=meaning)
        elif isinstance(kind, str):
            command.add_argument(option, choices=get_args(types[name]), help=meaning or None)
        else:
            command.add_argument(option, type=kind, help=meaning)
    command.add_argument("--seed", type=int, default=0, help="of all random draws")
