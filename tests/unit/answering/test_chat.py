"""A chat as somebody types it: answers, commands, mistakes, and a stop in the middle."""

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from llada_sft.answering import chat
from llada_sft.answering.answerer import Answerer
from llada_sft.answering.chat import Chat
from llada_sft.answering.options import make_settings
from llada_sft.answering.screen import Screen
from llada_sft.demo.data import make_tokenizer
from llada_sft.generation import Answer
from llada_sft.model import Network

TOKENIZER = make_tokenizer()


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that the model was asked with; its answers are a, b, c, ..."""
    asked: list[str] = []

    def answers(_: object, prompts: list[list[int]], *__: object) -> list[Answer]:
        asked.append(TOKENIZER.decode(prompts[0]))
        if "hhhh" in asked[-1].rpartition("user")[2]:
            raise KeyboardInterrupt
        letter = TOKENIZER.convert_tokens_to_ids(chr(ord("a") + len(asked) - 1))
        return [Answer([letter, TOKENIZER.eos_token_id], 2, 2, batch_size=1, device="cpu")]

    monkeypatch.setattr(chat, "generate", answers)
    return asked


def talk(model: Network, *lines: str, system: str | None = None) -> list[str]:
    """Type lines, then leave; return what the screen said."""
    file = io.StringIO()
    answerer = Answerer(model, TOKENIZER, make_settings({"gen_length": 8}), batch_size=1)
    screen = Screen(
        Console(file=file, force_terminal=False, width=80),
        TOKENIZER,
        TOKENIZER.mask_token_id,
        TOKENIZER.eos_token_id,
    )
    typed: Iterator[str] = iter(lines)

    def next_line() -> str:
        for line in typed:
            if line == "^C":
                raise KeyboardInterrupt
            return line
        raise EOFError

    Chat(answerer, screen, system).run(next_line)
    return file.getvalue().splitlines()


def test_a_question_comes_with_the_turns_before_it(model: Network, prompts: list[str]) -> None:
    assert talk(model, "gh", "f") == ["a", "b"]
    assert "gh" in prompts[0] and prompts[1].startswith(f"{prompts[0]}a")


def test_empty_lines_ask_nothing(model: Network, prompts: list[str]) -> None:
    assert talk(model, "", "   ") == [] and prompts == []


def test_reset_forgets_the_turns(model: Network, prompts: list[str]) -> None:
    talk(model, "gh", "/reset", "gh")
    assert prompts[1] == prompts[0]


def test_a_system_prompt_stays(model: Network, prompts: list[str]) -> None:
    talk(model, "x", "/system ded", "x", "/reset", "x", "/system", "x", system="fef")
    assert ["fef" in text for text in prompts] == [True, False, False, False]
    assert ["ded" in text for text in prompts] == [False, True, True, False]
    assert prompts[1] == prompts[2]


def test_a_stopped_answer_keeps_the_session(model: Network, prompts: list[str]) -> None:
    said = talk(model, "gh", "hhhh", "f")
    assert said[0] == "a" and "stopped" in said[1] and said[2] == "c"
    assert "hhhh" not in prompts[2] and "gh" in prompts[2]


def test_ctrl_c_at_the_prompt_says_how_to_leave(model: Network, prompts: list[str]) -> None:
    said = talk(model, "^C", "x")
    assert "/quit" in said[0] and said[1] == "a"


def test_quit_leaves(model: Network, prompts: list[str]) -> None:
    assert talk(model, "/quit", "x") == []


def test_the_oldest_turns_are_forgotten_first(model: Network, prompts: list[str]) -> None:
    said = talk(model, "d" * 10, "e" * 10, "f" * 10, "g" * 10)
    assert any("2 oldest turns" in line for line in said)
    assert "dddd" not in prompts[-1] and "gggg" in prompts[-1]
    assert all(len(TOKENIZER.encode(text)) <= 56 for text in prompts)


def test_a_question_that_is_too_long_is_one_line(model: Network, prompts: list[str]) -> None:
    said = talk(model, "x" * 80, "y")
    assert len(said) == 2 and "--gen-length" in said[0] and said[1] == "a"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("/nothing", "no such command"),
        ("/sampler", "must be one of"),
        ("/sampler best", "must be one of"),
        ("/sampler llada2", "this network has full attention"),
        ("/sampler official threshold=0.9", "not a setting of the sampler"),
        ("/set", "needs name=value"),
        ("/set steps", "not a setting with a value"),
        ("/set nothing=1", "not a setting with a value"),
        ("/set gen_length=many", "gen_length"),
        ("/set gen_length=-8", "gen_length"),
        ("/set temperature='", "quotation"),
        ("/set temperature=[", "["),
        ("/set temperature=[1]", "'[1]' is not one value"),
        ("/set temperature=warm", "temperature must be a number, got 'warm'"),
        ("/set eos_token_id=x", "eos_token_id must be a whole number, got 'x'"),
        ("/set eos_early_stop=maybe", "eos_early_stop must be true or false, got 'maybe'"),
        ("/set temperature=1e-3", "temperature=0.001"),
    ],
)
def test_a_mistake_is_one_line(model: Network, prompts: list[str], line: str, problem: str) -> None:
    said = talk(model, line, "x")
    assert len(said) == 2 and problem in said[0] and said[1] == "a"


def test_settings_are_changed_and_shown(model: Network, prompts: list[str]) -> None:
    said = talk(model, "/sampler threshold threshold=0.7", "/set gen_length=16", "/sampler verify")
    assert "sampler=threshold" in said[0] and "threshold=0.7" in said[0]
    assert "gen_length=16" in said[1] and "threshold=0.7" in said[1]
    assert "sampler=verify" in said[2] and "threshold=0.7" not in said[2]


@pytest.mark.parametrize("sampler", ["official", "threshold", "dual_cache", "verify"])
def test_a_real_answer_is_watched(model: Network, sampler: str) -> None:
    watched: list[list[list[int]]] = []
    settings = make_settings({"gen_length": 8, "sampler": sampler})
    (answer,) = chat.generate(model, [[5, 6]], settings, watched.append)
    covered = [state[0].count(TOKENIZER.mask_token_id) for state in watched]
    assert covered[0] == 8 and covered == sorted(covered, reverse=True)
    assert len(watched) == answer.num_passes


def test_blocks_have_the_length_of_the_training_whatever_the_answer_has() -> None:
    assert make_settings({"gen_length": 8}).block_length == 8
    for sampler in ("llada2", "llada21"):
        assert make_settings({"gen_length": 8, "sampler": sampler}).block_length == 32
