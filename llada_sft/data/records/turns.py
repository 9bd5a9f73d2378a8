"""Which answers of a conversation are learned, and how much each counts.

An answer is an assistant's turn after at least one other, with text or a call. Its fields may say
that it is not learned (`weight: 0`, `train: false`), or how much its loss counts (`weight: 0.5`).

The paper's SFT takes an n-turn dialogue for n single-turn pairs and draws one of them (`random`):
the conversation is cut after the drawn answer. The draw is keyed, so it is the same whenever a row
is read again in an epoch, and on any number of ranks; each epoch draws again.
"""

from collections.abc import Sequence

from llada_sft.config.record_formats import MultiTurn
from llada_sft.data.records.conversation import (
    CALLS,
    FLAGS,
    LARGEST_WEIGHT,
    REASONING,
    WEIGHT,
    Turn,
)
from llada_sft.errors import DataError

# Marks the turns to learn where they are not just the last answer.
LEARN = "learn"
_SAYING = frozenset({WEIGHT, *FLAGS})
_MORE = frozenset({*CALLS, *REASONING})


class NothingToLearnError(Exception):
    """All answers of a row say that they are not to be learned: it is skipped."""


def choose_answers(
    turns: Sequence[Turn], multi_turn: MultiTurn, key: int, history: int = 0
) -> list[Turn]:
    """Cut a conversation after the answer to learn; mark answers where that is not just the last.

    Args:
        turns: The conversation; it is not changed.
        multi_turn: `random`: an answer that `key` decides; `last`; or `all`.
        key: A number, uniform over a range much larger than the number of turns.
        history: How many turns, at the start, are learned with `all` alone.

    Raises:
        DataError: There is no such answer.
        NothingToLearnError: There is, but no answer is to be learned.
    """
    weights = loss_weights(turns)
    first = 0 if multi_turn == "all" else history
    if multi_turn == "last":
        chosen = [_last(turns, weights, first)]
    else:
        possible = [
            number
            for number in range(max(first, 1), len(turns))
            if weights[number] > 0 and _is_answer(turns[number])
        ]
        # Says why there is none.
        possible = possible or [_last(turns, weights, first)]
        chosen = possible if multi_turn == "all" else [possible[key % len(possible)]]
    cut = turns[: chosen[-1] + 1]
    if multi_turn != "all" and not any(map(_says_how, cut)):
        return list(cut)
    return [
        turn | {LEARN: number in chosen}
        if turn["role"] == "assistant" and (_says_how(turn) or number in chosen)
        else turn
        for number, turn in enumerate(cut)
    ]


def answers_to_learn(turns: Sequence[Turn]) -> list[int]:
    """Return the turns that are marked, or the last answer if none is.

    Raises:
        DataError: A marked turn is not an answer, or there is none.
        NothingToLearnError: No answer is to be learned.
    """
    weights = loss_weights(turns)
    marked = [number for number, turn in enumerate(turns) if turn.get(LEARN) is True]
    return marked or [_last(turns, weights, 0)]


def loss_weights(turns: Sequence[Turn]) -> list[float]:
    """Return what the loss of each turn is multiplied by; 0 is not learned.

    Raises:
        DataError: A turn says it wrongly, or a turn is to be learned that is not an answer.
    """
    return [_loss_weight(turn, number) for number, turn in enumerate(turns)]


def _loss_weight(turn: Turn, number: int) -> float:
    weight: float = 1 if turn["role"] == "assistant" else 0
    if not _says_how(turn):
        return weight
    if turn.get(LEARN) is False:
        return 0
    said_by = None
    for name in FLAGS:
        flag = turn.get(name)
        if flag is None:
            continue
        if flag not in (True, False):
            raise DataError(f"'messages[{number}].{name}' must be true or false, got {flag!r}")
        if not flag:
            weight = 0
        elif not _may_be_learned(turn, number):
            raise _not_an_answer(f"'messages[{number}].{name}' is true", turn)
        said_by = name
    given = turn.get(WEIGHT)
    if given is None:
        return weight
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if not is_number or not 0 <= given <= LARGEST_WEIGHT:
        raise DataError(
            f"'messages[{number}].{WEIGHT}' must be a number from 0 to {LARGEST_WEIGHT:g},"
            f" got {given!r}"
        )
    if given > 0 and not _may_be_learned(turn, number):
        raise _not_an_answer(f"'messages[{number}].{WEIGHT}' is {given}", turn)
    if said_by is not None and bool(given) != bool(turn[said_by]):
        raise DataError(
            f"'messages[{number}]' says both {WEIGHT!r}: {given} and {said_by!r}:"
            f" {str(bool(turn[said_by])).lower()}; keep one"
        )
    found: float = given
    return found


def _says_how(turn: Turn) -> bool:
    # Few turns have such a field: this runs for each turn of a training.
    return not _SAYING.isdisjoint(turn) and any(turn.get(name) is not None for name in _SAYING)


def _may_be_learned(turn: Turn, number: int) -> bool:
    return number > 0 and _is_answer(turn)


def _not_an_answer(what: str, turn: Turn) -> DataError:
    return DataError(
        f"{what}, but that turn is not an answer: the assistant's, with text, after another turn"
    )


def _last(turns: Sequence[Turn], weights: Sequence[float], first: int) -> int:
    """Find the last turn of the assistant that is to be learned."""
    of_assistant = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not of_assistant:
        raise DataError("no turn is the assistant's; a record needs a response")
    learned = [number for number in of_assistant if weights[number] > 0 and number >= first]
    if not learned:
        raise NothingToLearnError
    number = learned[-1]
    if number == 0:
        raise DataError("the conversation starts with the assistant; a record needs a prompt")
    if not _is_answer(turns[number]):
        raise DataError("the last turn of the assistant is empty; a record needs a response")
    return number


def _is_answer(turn: Turn) -> bool:
    return turn["role"] == "assistant" and (
        bool((turn["content"] or "").strip()) or any(turn.get(name) for name in CALLS)
    )


def is_plain(turn: Turn) -> bool:
    """Return whether a turn is nothing but its text."""
    return _MORE.isdisjoint(turn) or not any(turn.get(name) for name in _MORE)
