"""A few held-out prompts, answered at each validation and logged next to their references.

Under ZeRO-3 a forward pass needs all ranks. The prompts are dealt to the ranks, and how many passes
an answer takes depends on its tokens. So before each pass the ranks ask whether any of them needs
one; a rank that has answered its prompts makes empty passes until none does. What rank 0 gathers
are the texts of at most `validation.answers` prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from llada_sft.data.examples.encode import Example
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.generation import SamplerSettings, generate
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
    """What is logged of a prompt."""

    set: str
    row: str
    prompt: str
    reference: str
    answer: str


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
            self._logged(question, self._generate(question, network, forward))
            for question in self._questions[rank::world_size]
        ]
        self._wait_for_others(network, forward)
        of_ranks = cast(list[list[LoggedAnswer]], self._consensus.gather(own))
        # Rank r has the prompts r, r + W, ...
        turns = range(max(map(len, of_ranks)))
        return [of_rank[turn] for turn in turns for of_rank in of_ranks if turn < len(of_rank)]

    def _generate(
        self, question: HeldOutPrompt, network: Network, forward: Forward
    ) -> Sequence[int]:
        def predict(arguments: dict[str, Any]) -> Tensor:
            self._consensus.largest(1)
            return forward(arguments)

        (answer,) = generate(network, [question.prompt_ids], self._settings, forward=predict)
        return answer.ids

    def _wait_for_others(self, network: Network, forward: Forward) -> None:
        """Make passes over one token as long as another rank needs passes."""
        ids = torch.full((1, 1), self._ids.mask_token_id, device=network.device)
        while self._consensus.largest(0):
            forward({"input_ids": ids})

    def _logged(self, question: HeldOutPrompt, answer: Sequence[int]) -> LoggedAnswer:
        return LoggedAnswer(
            question.set_name,
            question.row,
            prompt=str(self._tokenizer.decode(question.prompt_ids)),
            reference=self._text(question.reference_ids),
            answer=self._text(answer),
        )

    def _text(self, ids: Sequence[int]) -> str:
        eos = self._ids.eos_token_id
        end = list(ids).index(eos) if eos in ids else len(ids)
        return str(self._tokenizer.decode(ids[:end], skip_special_tokens=True))
