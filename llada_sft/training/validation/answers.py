"""A few held-out prompts, answered at each validation and logged next to their references.

Under ZeRO-3 a forward pass needs all ranks. The prompts are dealt to the ranks, and each rank makes
the same number of passes: one that has fewer prompts answers the first prompt once more, and that
answer is dropped. What rank 0 gathers are the texts of at most `validation.answers` prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from llada_sft.data.examples.encode import Example
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.diffusion.blocks import generate_in_blocks
from llada_sft.diffusion.generate import generate
from llada_sft.placement import Placement
from llada_sft.training.consensus import Consensus
from llada_sft.training.validation.rows import ValidationSet

# Of the sampler, where it divides the length of the answers; otherwise an answer is one block.
_BLOCK_LENGTH = 32


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
    """Answers the chosen prompts by the official sampler, or in blocks; one token in each pass.

    Args:
        questions: The same on every rank; at least one.
        length: Tokens of an answer, and its forward passes.
        tokenizer: Makes texts of tokens.
        ids: Special tokens.
        placement: This rank.
        consensus: Gathers the texts.
        block_length: Tokens of a block, if the network is trained in blocks; 0: it is not.
    """

    def __init__(
        self,
        questions: Sequence[HeldOutPrompt],
        length: int,
        tokenizer: Any,
        ids: TokenIds,
        placement: Placement,
        consensus: Consensus,
        block_length: int = 0,
    ) -> None:
        self._block_length = block_length
        self._questions, self._length = questions, length
        self._tokenizer, self._ids = tokenizer, ids
        self._placement, self._consensus = placement, consensus

    def answer(
        self, predict: Callable[[Tensor], Tensor], device: torch.device
    ) -> list[LoggedAnswer]:
        """Answer all prompts; every rank must call this, and all get all answers.

        Args:
            predict: Returns the logits [1, L, V] of token ids [1, L]; all ranks call it together.
            device: Where the ids must be.
        """
        rank, world_size = self._placement.rank, self._placement.world_size
        own: list[LoggedAnswer] = []
        for first in range(0, len(self._questions), world_size):
            number = first + rank
            is_own = number < len(self._questions)
            question = self._questions[number if is_own else 0]
            ids = self._generate(question, predict, device)
            if is_own:
                own.append(self._logged(question, ids))
        of_ranks = cast(list[list[LoggedAnswer]], self._consensus.gather(own))
        # Rank r has the prompts r, r + W, ...
        turns = range(max(map(len, of_ranks)))
        return [of_rank[turn] for turn in turns for of_rank in of_ranks if turn < len(of_rank)]

    def _generate(
        self, question: HeldOutPrompt, predict: Callable[[Tensor], Tensor], device: torch.device
    ) -> list[int]:
        prompt = torch.tensor([question.prompt_ids], device=device)
        if self._block_length:
            output = generate_in_blocks(
                predict, prompt, self._length, self._block_length, self._ids.mask_token_id
            )
            return cast(list[int], output[0, prompt.shape[1] :].tolist())
        block_length = self._length if self._length % _BLOCK_LENGTH else _BLOCK_LENGTH
        output = generate(
            lambda ids: SimpleNamespace(logits=predict(ids)),
            prompt,
            steps=self._length,
            gen_length=self._length,
            block_length=block_length,
            mask_token_id=self._ids.mask_token_id,
        )
        answer: list[int] = output[0, prompt.shape[1] :].tolist()
        return answer

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
