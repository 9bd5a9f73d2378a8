"""A few examples as text: prompt, response and what follows it, each marked."""

import itertools
import os.path
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from llada_sft.data.examples.encode import Encoder, Example
from llada_sft.data.examples.parse import parse_row
from llada_sft.data.records.chat_tokens import texts_that_are_read
from llada_sft.data.rows.row import Row

Kind = Literal["prompt", "response", "end"]
_COLOURS = {"prompt": "\x1b[36m", "response": "\x1b[32m", "end": "\x1b[35m"}
_RESET = "\x1b[0m"
# Characters of a piece that are shown, from its start and its end.
_HEAD, _TAIL = 500, 200
# Characters around the place where a text and what it is decoded to differ.
_SHOWN_DIFFERENCE = 40


@dataclass(frozen=True)
class Shown:
    """An example: where its row is, and its pieces in order."""

    where: str
    pieces: list[tuple[Kind, str]]


def show(where: str, example: Example, encoder: Encoder) -> Shown:
    """Decode an example, piece by piece."""
    end = len(example.input_ids) - example.tail - example.num_void
    kinds: list[Kind] = [
        "end" if place >= end else "response" if learned else "prompt"
        for place, learned in enumerate(example.response_mask.tolist())
    ]
    pieces: list[tuple[Kind, str]] = []
    begin = 0
    for kind, run in itertools.groupby(kinds):
        length = sum(1 for _ in run)
        ids = example.input_ids[begin : begin + length].tolist()
        pieces.append((kind, _shortened(encoder.tokenizer.decode(ids))))
        begin += length
    return Shown(where, pieces)


def texts_not_given_back(row: Row, encoder: Encoder) -> Iterator[tuple[str, str]]:
    """Return the texts of a row that the tokenizer decodes to others, and these."""
    if encoder.layout is None:
        return
    for text in texts_that_are_read(encoder.reader(parse_row(row), key=0)):
        decoded = encoder.tokenizer.decode(
            encoder.layout.special.encode_text(text), clean_up_tokenization_spaces=False
        )
        if decoded != text:
            yield _difference(text, decoded)


def _difference(text: str, decoded: str) -> tuple[str, str]:
    """Return the parts of two texts where they begin to differ."""
    same = len(os.path.commonprefix([text, decoded]))  # noqa: RUF071 (no paths)
    begin = max(0, same - _SHOWN_DIFFERENCE // 2)
    end = begin + _SHOWN_DIFFERENCE
    return text[begin:end], decoded[begin:end]


def lines_of(shown: Shown, colour: bool) -> Iterator[str]:
    """Lay an example out: in colours, or with the kind of each piece before it."""
    yield shown.where
    if colour:
        text = "".join(f"{_COLOURS[kind]}{_visible(text)}{_RESET}" for kind, text in shown.pieces)
        # A colour ends with its line: pagers forget it there.
        yield from (f"  {line}" for line in text.split("\n"))
        return
    for kind, text in shown.pieces:
        first, *rest = _visible(text).split("\n")
        yield f"  {f'[{kind}]':<10} {first}"
        yield from (f"  {'':<10} {line}" for line in rest)


def legend(colour: bool) -> str:
    """Return the legend of the colours."""
    names = {"prompt": "prompt", "response": "response", "end": "end padding (EOS)"}
    if not colour:
        return ", ".join(f"[{kind}] {name}" for kind, name in names.items())
    return ", ".join(f"{_COLOURS[kind]}{name}{_RESET}" for kind, name in names.items())


def _shortened(text: str) -> str:
    if len(text) <= _HEAD + _TAIL:
        return text
    return f"{text[:_HEAD]} ... {text[-_TAIL:]}"


def _visible(text: str) -> str:
    """Write control characters out: a text may hold what moves the cursor of a terminal."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text
    )
