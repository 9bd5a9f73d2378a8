"""The options of `sample` and `chat`, the settings of a sampler among them; without torch."""

from argparse import ArgumentParser, Namespace
from typing import Any, get_args

from llada_sft.choices import SAMPLERS, Remasking
from llada_sft.entry import path_argument
from llada_sft.errors import ConfigError
from llada_sft.generation.settings import SamplerSettings

_NUMBERS: tuple[tuple[str, type, str], ...] = (
    ("steps", int, "forward passes in all, of samplers with a fixed number (default: gen-length)"),
    ("gen-length", int, "tokens of an answer, at most"),
    ("block-length", int, "tokens of a block"),
    ("threshold", float, "tokens of at least this probability are written together"),
    ("factor", float, "of the sampler of this name"),
    ("entropy-bound", float, "of the sampler 'entropy', in nats"),
    ("temperature", float, "0 takes the most likely token"),
    ("cfg-scale", float, "strength of classifier-free guidance"),
    ("start-length", int, "tokens of the canvas at first; it grows while no end is in sight"),
    ("editing-threshold", float, "of llada21: from here on another token replaces a written one"),
    ("max-post-steps", int, "of llada21: passes over a block that is written, at most"),
    ("num-to-transfer", int, "of llada21: tokens that a step writes, at least"),
    ("minimal-topk", int, "of llada2: at most gen-length // this steps for each block"),
)
_FLAGS = (
    ("logits-eos-inf", "never write EOS"),
    ("confidence-eos-eot-inf", "write EOS and the end of a turn last"),
)
_NAMES = [
    *(name.replace("-", "_") for name, *_ in _NUMBERS),
    *(name.replace("-", "_") for name, _ in _FLAGS),
    "sampler",
    "remasking",
]


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
    given = {name: getattr(arguments, name) for name in _NAMES}
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
    # What is no number is refused with all other settings.
    if is_free and isinstance(length, int) and 0 < length < SamplerSettings.block_length:
        given = {**given, "block_length": length}
    return SamplerSettings(**{"eos_early_stop": True, **given})


def _add_settings(command: ArgumentParser) -> None:
    """Add an option for each setting that a user may want."""
    command.add_argument(
        "--sampler", choices=[*SAMPLERS], help="docs/samplers.md (default: official)"
    )
    for name, kind, meaning in _NUMBERS:
        command.add_argument(f"--{name}", type=kind, help=meaning)
    for name, meaning in _FLAGS:
        command.add_argument(f"--{name}", action="store_true", default=None, help=meaning)
    command.add_argument("--remasking", choices=get_args(Remasking))
    command.add_argument("--seed", type=int, default=0, help="of all random draws")
