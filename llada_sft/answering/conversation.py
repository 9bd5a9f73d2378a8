"""The turns of a chat, and what of them fits into the model."""

from typing import Any

from llada_sft.answering.answerer import Answerer
from llada_sft.answering.questions import Question
from llada_sft.data.records.conversation import Turn
from llada_sft.errors import DataError


class Dialogue:
    """A conversation with a model.

    Args:
        system: The system prompt; None: there is none.
    """

    def __init__(self, system: str | None = None) -> None:
        self._system = system
        self._turns: list[Turn] = []

    def reset(self) -> None:
        """Forget all turns."""
        self._turns.clear()

    def set_system(self, system: str | None) -> None:
        """Set the system prompt; the conversation begins afresh."""
        self._system = system
        self.reset()

    def prompt(self, text: str, answerer: Answerer) -> tuple[list[int], int]:
        """Return the tokens of the conversation with a question, and how many turns they lack.

        While it is too long, the oldest question and its answer are forgotten.

        Raises:
            DataError: The question alone is too long, or the chat template cannot render it.
        """
        first: list[Turn] = []
        if self._system is not None:
            first = [{"role": "system", "content": self._system}]
        question: Turn = {"role": "user", "content": text}
        forgotten = 0
        while True:
            turns = [*first, *self._turns[forgotten:], question]
            try:
                ids = answerer.prompt_ids(Question(0, text, turns))
            except DataError:
                if forgotten == len(self._turns):
                    raise
                forgotten += 2
                continue
            del self._turns[:forgotten]
            return ids, forgotten

    def add(self, question: str, answer: str) -> None:
        """Keep a question and its answer."""
        self._turns += [_turn("user", question), _turn("assistant", answer)]


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}
