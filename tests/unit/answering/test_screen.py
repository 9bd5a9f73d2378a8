"""What a terminal shows of an answer while its tokens are uncovered, and where there is none."""

import io

import pytest
from rich.console import Console

from llada_sft.answering.screen import Screen, without_controls
from llada_sft.demo.data import make_tokenizer

TOKENIZER = make_tokenizer()
MASK, EOS = TOKENIZER.mask_token_id, TOKENIZER.eos_token_id


def ids(*tokens: str) -> list[int]:
    return [MASK if token == "?" else TOKENIZER.convert_tokens_to_ids(token) for token in tokens]


def screen(file: io.StringIO, **options: object) -> Screen:
    console = Console(file=file, width=20, **options)  # type: ignore[arg-type]
    return Screen(console, TOKENIZER, MASK, EOS)


def test_covered_tokens_have_a_sign_each() -> None:
    shown = screen(io.StringIO()).covered(ids("a", "?", "?", "b"))
    assert len(shown.plain) == 4 and shown.plain[0] == "a" and shown.plain[3] == "b"
    assert len(set(shown.plain[1:3])) == 1


def test_what_follows_the_end_is_not_shown() -> None:
    assert screen(io.StringIO()).covered([*ids("a"), EOS, MASK]).plain == "a"


def test_a_terminal_shows_the_answer_as_it_stands() -> None:
    file = io.StringIO()
    shown = screen(file, force_terminal=True, no_color=True)
    with shown.uncovering():
        shown.watch([ids("a", "?")])
    assert "a" in file.getvalue()


def test_without_a_terminal_nothing_is_shown_on_the_way() -> None:
    file = io.StringIO()
    shown = screen(file, force_terminal=False)
    with shown.uncovering():
        shown.watch([ids("a", "?")])
    assert file.getvalue() == ""
    shown.say("a [b]")
    assert file.getvalue() == "a [b]\n"


def test_no_colour_means_none() -> None:
    file = io.StringIO()
    screen(file, force_terminal=True, no_color=True).say("wrong", "red")
    assert "\x1b[3" not in file.getvalue()


@pytest.mark.parametrize("text", ["\x1b[2Ja", "a\x07", "\x9b31ma", "a\r"])
def test_an_answer_cannot_command_the_terminal(text: str) -> None:
    assert without_controls(text).isprintable()


def test_long_lines_are_not_broken() -> None:
    file = io.StringIO()
    screen(file, force_terminal=False).say("word " * 20)
    assert file.getvalue().count("\n") == 1
