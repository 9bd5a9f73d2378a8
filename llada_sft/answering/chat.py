"""`llada-sft chat`: a conversation in the terminal, or of the lines of a file."""

import contextlib
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from llada_sft.answering.answerer import Answered, Answerer
from llada_sft.answering.conversation import Dialogue
from llada_sft.answering.options import make_settings
from llada_sft.answering.screen import Screen
from llada_sft.choices import OWN_SETTINGS, SAMPLERS
from llada_sft.config import yaml12
from llada_sft.errors import DataError
from llada_sft.generation import SamplerSettings, generate
from llada_sft.keys import hashed

HELP = """\
/reset               forget the conversation
/system TEXT         another system prompt, and a new conversation; without TEXT none
/sampler NAME [k=v]  another sampler, with its settings: /sampler threshold threshold=0.8
/set k=v ...         other settings: /set gen_length=256 temperature=0.7
/settings            show them
/help, /quit         Ctrl-C stops an answer, Ctrl-D leaves"""
# What another sampler does not take over: they choose how many tokens a pass writes.
_OF_ONE_SAMPLER = OWN_SETTINGS | {
    "steps",
    "remasking",
    "logits_eos_inf",
    "confidence_eos_eot_inf",
}


class Chat:
    """A conversation.

    Args:
        answerer: With one prompt at a time.
        screen: Where answers are shown.
        system: The system prompt.
    """

    def __init__(self, answerer: Answerer, screen: Screen, system: str | None) -> None:
        self._answerer, self._screen = answerer, screen
        self._dialogue = Dialogue(system)
        self._asked = 0
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self._screen.say(HELP),
            "/reset": lambda _: self._reset(),
            "/system": self._set_system,
            "/sampler": self._set_sampler,
            "/set": self._set,
            "/settings": lambda _: self._show_settings(),
        }

    def run(self, next_line: Callable[[], str]) -> None:
        """Answer each line until there is none."""
        while True:
            try:
                line = next_line().strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._screen.say("(Ctrl-D or /quit leaves)", "dim")
                continue
            if line == "/quit":
                return
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._answer(line)

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name not in self._commands:
            self._problem(f"{name}: no such command; /help lists them")
            return
        self._commands[name](rest.strip())

    def _answer(self, question: str) -> None:
        try:
            ids, forgotten = self._dialogue.prompt(question, self._answerer)
        except DataError as error:
            self._problem(str(error))
            return
        if forgotten:
            self._screen.say(f"(the {forgotten} oldest turns no longer fit: forgotten)", "dim")
        begin = time.monotonic()
        try:
            with self._screen.uncovering():
                answered = self._generate(ids)
        except KeyboardInterrupt:
            self._screen.say("(stopped: the question is not kept)", "dim")
            return
        except ValueError as error:
            self._problem(str(error))
            return
        self._dialogue.add(question, answered.text)
        self._screen.say(answered.text)
        if sys.stdout.isatty():
            self._screen.say(_cost(answered, time.monotonic() - begin), "dim")

    def _generate(self, ids: list[int]) -> Answered:
        self._asked += 1
        seed = hashed("chat", self._answerer.seed, self._asked) >> 1
        settings = self._answerer.seeded(seed)
        (answer,) = generate(self._answerer.model, [ids], settings, self._screen.watch)
        return self._answerer.read(answer)

    def _reset(self) -> None:
        self._dialogue.reset()
        self._screen.say("(the conversation is forgotten)", "dim")

    def _set_system(self, text: str) -> None:
        self._dialogue.set_system(text or None)
        self._screen.say("(a new conversation)", "dim")

    def _set_sampler(self, text: str) -> None:
        name, *rest = text.split(maxsplit=1) or [""]
        if name not in SAMPLERS:
            self._problem(f"/sampler: must be one of {', '.join(SAMPLERS)}, got {name!r}")
            return
        kept = {k: v for k, v in self._changed().items() if k not in _OF_ONE_SAMPLER}
        self._change({**kept, "sampler": name}, rest[0] if rest else "")

    def _set(self, text: str) -> None:
        if not text:
            self._problem("/set: needs name=value, as /set gen_length=256")
            return
        self._change(self._changed(), text)

    def _change(self, values: dict[str, Any], text: str) -> None:
        """Take settings over, with those of `name=value name=value`."""
        try:
            for word in shlex.split(text):
                name, equals, value = word.partition("=")
                if not equals or name not in asdict(self._answerer.settings):
                    raise ValueError(f"{word!r} is not a setting with a value; /settings lists all")
                values = {**values, name: _value(value)}
            settings = make_settings(values)
            if mismatch := settings.mismatch(self._answerer.model.architecture.decodes_in_blocks):
                raise ValueError(mismatch)
            self._answerer.settings = settings
        except (ValueError, TypeError, yaml.YAMLError) as error:
            self._problem(" ".join(str(error).split()))
            return
        self._show_settings()

    def _changed(self) -> dict[str, Any]:
        """Return the settings that are not the usual ones."""
        usual = asdict(SamplerSettings())
        values = asdict(self._answerer.settings)
        return {name: value for name, value in values.items() if value != usual[name]}

    def _show_settings(self) -> None:
        values = asdict(self._answerer.settings)
        shown = (f"{name}={value}" for name, value in values.items() if value is not None)
        self._screen.say(f"({' '.join(shown)})", "dim")

    def _problem(self, text: str) -> None:
        self._screen.say(text, "red")


def chat_command(model_dir: Path, system: str | None, settings: SamplerSettings, seed: int) -> None:
    """Run `llada-sft chat` until the end of its input.

    Raises:
        LladaSftError: The model cannot be loaded.
    """
    answerer = Answerer.load(model_dir, settings, batch_size=1, seed=seed, local_rank=0)
    config = answerer.model.config
    screen = Screen(Console(), answerer.tokenizer, config.mask_token_id, config.eos_token_id)
    if sys.stdin.isatty():
        # Lines can be edited and found again once it is imported.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
        screen.say(f"{model_dir}: /help lists the commands", "dim")
    Chat(answerer, screen, system).run(lambda: input("> " if sys.stdin.isatty() else ""))


def _value(text: str) -> Any:
    """Return a value as a config has it: `1e-3` is a number, `null` is none.

    Raises:
        ValueError: It is a list or a mapping.
        yaml.YAMLError: It is no YAML.
    """
    node = yaml12.compose(text)
    if node is not None and not isinstance(node, yaml.ScalarNode):
        raise ValueError(f"{text!r} is not one value")
    return None if node is None else yaml12.scalar_value(node)


def _cost(answered: Answered, seconds: float) -> str:
    number = len(answered.ids)
    rate = number / max(seconds, 1e-9)
    cut = "" if answered.ended else "; cut at gen_length"
    return f"({number} tokens, {answered.num_passes} passes, {rate:.1f} tokens/s{cut})"
