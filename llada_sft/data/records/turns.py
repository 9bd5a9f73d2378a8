"""Which answers of a conversation are learned.

An answer is an assistant's turn after at least one other, and with text. The paper's SFT takes an
n-turn dialogue for n single-turn pairs and draws one of them (`random`): the conversation is cut
after the drawn answer. The draw is keyed, so it is the same whenever a row is read again in an
epoch, and on any number of ranks; each epoch draws again.
"""

from collections.abc import Sequence

from llada_sft.config.record_formats import MultiTurn
from llada_sft.data.records.formats import Turn
from llada_sft.errors import DataError

# Marks the turns to learn where they are not just the last answer.
LEARN = "learn"


def choose_answers(turns: Sequence[Turn], multi_turn: MultiTurn, key: int) -> list[Turn]:
    """Cut a conversation after the answer to learn; with `all`, mark every answer.

    Args:
        turns: The conversation; it is not changed.
        multi_turn: `random`: an answer that `key` decides; `last`; or `all`.
        key: A number, uniform over a range much larger than the number of turns.

    Raises:
        DataError: There is no such answer.
    """
    if multi_turn == "last":
        return list(turns[: last_answer(turns) + 1])
    answers = [number for number in range(1, len(turns)) if _is_answer(turns[number])]
    if not answers:
        # Says why not.
        last_answer(turns)
    if multi_turn == "random":
        return list(turns[: answers[key % len(answers)] + 1])
    return [
        turn | {LEARN: True} if number in answers else turn
        for number, turn in enumerate(turns[: answers[-1] + 1])
    ]


def last_answer(turns: Sequence[Turn]) -> int:
    """Find the last turn of the assistant.

    Raises:
        DataError: There is none, or it is not an answer.
    """
    for number in range(len(turns) - 1, -1, -1):
        if turns[number]["role"] == "assistant":
            break
    else:
        raise DataError("no turn is the assistant's; a record needs a response")
    if number == 0:
        raise DataError("the conversation starts with the assistant; a record needs a prompt")
    if not turns[number]["content"].strip():
        raise DataError("the last turn of the assistant is empty; a record needs a response")
    return number


def marked_answers(turns: Sequence[Turn]) -> list[int]:
    """Return the turns that are marked, or the last answer if none is.

    Raises:
        DataError: A marked turn is not an answer.
    """
    marked = [number for number, turn in enumerate(turns) if turn.get(LEARN)]
    for number in marked:
        if number == 0 or not _is_answer(turns[number]):
            raise DataError(
                f"'messages[{number}].{LEARN}' is true, but that turn is not an answer: "
                "the assistant's, with text, after another turn"
            )
    return marked or [last_answer(turns)]


def _is_answer(turn: Turn) -> bool:
    return turn["role"] == "assistant" and bool(turn["content"].strip())
