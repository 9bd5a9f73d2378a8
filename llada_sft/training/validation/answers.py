"""A few held-out prompts, answered at each validation and logged next to their references.

Under ZeRO-3 a forward pass needs all ranks. The prompts are dealt to the ranks, and how many passes
an answer takes depends on its tokens. So before each pass the ranks ask whether any of them needs
one; a rank that has answered its prompts makes empty passes until none does. What rank 0 gathers
are the texts of at most `validation.answers` prompts. Of each token they say in which pass it was
written: the order is what a diffusion model decides, and `llada-sft report` shows it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from llada_sft.data.examples.encode import Example
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.generation import Answer, SamplerSettings, generate
from llada_sft.generation.predictor import Forward
from llada_sft.model.network import Network
from llada_sft.placement import Placement
from llada_sft.training.consensus import Consensus
from llada_sft.training.validation.rows import ValidationSet


@dataclass(frozen=True)
class HeldOutPrompt:
    """A prompt, and the answer that the data has for it.

    Attributes:
        set_name: Empty where there is only one set.
        row: File and line.
        prompt_ids: The tokens before the first one of the response.
        reference_ids: The tokens of the response, up to its first end.
    """

    set_name: str
    row: str
    prompt_ids: tuple[int, ...]
    reference_ids: tuple[int, ...]


@dataclass(frozen=True)
class LoggedAnswer:
    """What is logged of a prompt.

    Attributes:
        tokens: The answer in pieces, and the pass that wrote each, from 1. A piece is a token; or
            several that are one character together, with the last of their passes.
        num_passes: Forward passes that the answer took.
    """

    set: str
    row: str
    prompt: str
    reference: str
    answer: str
    tokens: tuple[tuple[str, int], ...] = ()
    num_passes: int = 0


class WritingOrder:
    """Watches one answer being written, and notes in which pass each of its tokens was.

    A token that is replaced later was written by the last pass that changed it.
    """

    def __init__(self) -> None:
        self._num_passes = 0
        self._ids: list[int] = []
        self._passes: list[int] = []

    def watch(self, answers: list[list[int]]) -> None:
        """Look at the answer as it stands before the next pass; `generate` calls this."""
        self._see(answers[0])
        self._num_passes += 1

    def close(self, answer: Sequence[int]) -> list[int]:
        """Return the pass of each token of the finished answer."""
        self._see(answer)
        return self._passes[: len(answer)]

    def _see(self, ids: Sequence[int]) -> None:
        for place, token in enumerate(ids):
            if place == len(self._ids):
                self._ids.append(token)
                self._passes.append(self._num_passes)
            elif token != self._ids[place]:
                self._ids[place], self._passes[place] = token, self._num_passes


def choose_questions(
    sets: Sequence[ValidationSet], count: int, longest_prompt: int
) -> list[HeldOutPrompt]:
    """Choose prompts at equal distances among the rows of all sets.

    Args:
        sets: All of them.
        count: How many; fewer if there are fewer rows.
        longest_prompt: Rows with more tokens before the response are passed over.
    """
    fitting = [
        question
        for each in sets
        for question in (_question(each.name, example) for example in each.examples)
        if 0 < len(question.prompt_ids) <= longest_prompt
    ]
    count = min(count, len(fitting))
    return [fitting[place * len(fitting) // count] for place in range(count)]


def _question(set_name: str, example: Example) -> HeldOutPrompt:
    learned = np.flatnonzero(example.response_mask)
    start = int(learned[0])
    # Of several responses in one conversation, the first.
    ends = np.flatnonzero(~example.response_mask[start:])
    end = start + int(ends[0]) if len(ends) else len(example.response_mask)
    ids = example.input_ids.tolist()
    row = f"{example.file}:{example.line}"
    return HeldOutPrompt(set_name, row, tuple(ids[:start]), tuple(ids[start:end]))


class Answers:
    """Answers the chosen prompts.

    Args:
        questions: The same on every rank; at least one.
        settings: Of the sampler.
        tokenizer: Makes texts of tokens.
        ids: Special tokens.
        placement: This rank.
        consensus: Keeps the passes of the ranks in step, and gathers the texts.
    """

    def __init__(
        self,
        questions: Sequence[HeldOutPrompt],
        settings: SamplerSettings,
        tokenizer: Any,
        ids: TokenIds,
        placement: Placement,
        consensus: Consensus,
    ) -> None:
        self._questions, self._settings = questions, settings
        self._tokenizer, self._ids = tokenizer, ids
        self._placement, self._consensus = placement, consensus

    def answer(self, network: Network, forward: Forward) -> list[LoggedAnswer]:
        """Answer all prompts; every rank must call this, and all get all answers.

        Args:
            network: In evaluation mode.
            forward: Computes its passes; all ranks call it together.
        """
        rank, world_size = self._placement.rank, self._placement.world_size
        own = [
            self._logged(question, *self._generate(question, network, forward))
            for question in self._questions[rank::world_size]
        ]
        self._wait_for_others(network, forward)
        of_ranks = cast(list[list[LoggedAnswer]], self._consensus.gather(own))
        # Rank r has the prompts r, r + W, ...
        turns = range(max(map(len, of_ranks)))
        return [of_rank[turn] for turn in turns for of_rank in of_ranks if turn < len(of_rank)]

    def _generate(
        self, question: HeldOutPrompt, network: Network, forward: Forward
    ) -> tuple[Answer, list[int]]:
        """Return the answer of a prompt, and the pass that wrote each of its tokens."""
        order = WritingOrder()

        def predict(arguments: dict[str, Any]) -> Tensor:
            self._consensus.largest(1)
            return forward(arguments)

        prompts = [question.prompt_ids]
        (answer,) = generate(network, prompts, self._settings, order.watch, predict)
        return answer, order.close(answer.ids)

    def _wait_for_others(self, network: Network, forward: Forward) -> None:
        """Make passes over one token as long as another rank needs passes."""
        ids = torch.full((1, 1), self._ids.mask_token_id, device=network.device)
        while self._consensus.largest(0):
            forward({"input_ids": ids})

    def _logged(
        self, question: HeldOutPrompt, answer: Answer, passes: Sequence[int]
    ) -> LoggedAnswer:
        return LoggedAnswer(
            question.set_name,
            question.row,
            prompt=str(self._tokenizer.decode(question.prompt_ids)),
            reference=self._text(question.reference_ids),
            answer=self._text(answer.ids),
            tokens=tuple(answer_pieces(self._text, answer.ids, passes)),
            num_passes=answer.num_passes,
        )

    def _text(self, ids: Sequence[int]) -> str:
        eos = self._ids.eos_token_id
        end = list(ids).index(eos) if eos in ids else len(ids)
        return str(self._tokenizer.decode(ids[:end], skip_special_tokens=True))


def answer_pieces(
    text_of: Callable[[Sequence[int]], str], ids: Sequence[int], passes: Sequence[int]
) -> Iterator[tuple[str, int]]:
    """Yield the pieces of an answer's text, and the pass that wrote each; together they are all.

    A token alone may decode differently than among others: a piece is what it adds to the text
    before it. Half a character adds nothing that stays.

    Args:
        text_of: Decodes tokens.
        ids: The answer.
        passes: The pass that wrote each of its tokens.
    """
    whole, shown, last = text_of(ids), 0, 0
    for end, number in enumerate(passes, start=1):
        text, last = text_of(ids[:end]), max(last, number)
        if len(text) > shown and whole.startswith(text):
            yield text[shown:], last
            shown, last = len(text), 0
    if shown < len(whole):
        yield whole[shown:], last
