"""The answer of a chat on the terminal, while its tokens are uncovered.

Without a terminal, or on one that cannot move its cursor, the finished answer is all that is shown.
"""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

_COVER, _PLAIN_COVER = "░", "_"
_EVERY_S = 0.05
# A model must not move the cursor or change the terminal's title.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Screen:
    """Shows answers.

    Args:
        console: The terminal, or what stands for it.
        tokenizer: Of the model.
        mask_token_id: Tokens that are still covered.
        eos_token_id: What follows it is not shown.
    """

    def __init__(
        self, console: Console, tokenizer: Any, mask_token_id: int, eos_token_id: int | None
    ) -> None:
        self._console, self._tokenizer = console, tokenizer
        self._mask_token_id, self._eos_token_id = mask_token_id, eos_token_id
        encoding = (console.encoding or "").lower()
        self._cover = _COVER if encoding.startswith("utf") else _PLAIN_COVER
        self._live: Live | None = None
        self._shown_at = 0.0

    @contextmanager
    def uncovering(self) -> Iterator[None]:
        """Show what `watch` is called with; it is gone at the end of the block."""
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            yield
            return
        with Live(console=self._console, auto_refresh=False, transient=True) as self._live:
            try:
                yield
            finally:
                self._live.update("", refresh=True)
        self._live = None

    def watch(self, answers: Sequence[Sequence[int]]) -> None:
        """Show the first answer as it stands, a few times a second at most."""
        if self._live is None or time.monotonic() < self._shown_at + _EVERY_S:
            return
        self._live.update(self.covered(answers[0]), refresh=True)
        self._shown_at = time.monotonic()

    def covered(self, ids: Sequence[int]) -> Text:
        """Return the text of an answer, with a sign for each token that is covered."""
        ids = list(ids)
        if self._eos_token_id in ids:
            ids = ids[: ids.index(self._eos_token_id)]
        text = Text()
        for is_covered, run in groupby(ids, lambda token: token == self._mask_token_id):
            tokens = list(run)
            if is_covered:
                text.append(self._cover * len(tokens), style="dim")
            else:
                text.append(
                    without_controls(self._tokenizer.decode(tokens, skip_special_tokens=True))
                )
        return text

    def say(self, text: str, style: str = "") -> None:
        """Print a line of text, an answer or a message."""
        self._console.print(Text(without_controls(text), style=style), soft_wrap=True)


def without_controls(text: str) -> str:
    """Return a text without control characters, but for tabs and ends of lines."""
    return _CONTROL.sub("", text.replace("\r\n", "\n"))
