"""A model, its tokenizer and a sampler: what is asked -> token ids -> answers -> text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llada_sft.answering.questions import Question, said_by_user
from llada_sft.data.examples.tokenizer import load_tokenizer
from llada_sft.data.records.chat_template import end_of_turn
from llada_sft.data.records.chat_tokens import encode_prompt, layout_of
from llada_sft.errors import ConfigError, DataError
from llada_sft.generation import Answer, SamplerSettings, generate
from llada_sft.keys import hashed
from llada_sft.model.configuration import read_config
from llada_sft.model.loading import load_model
from llada_sft.model.network import Network
from llada_sft.model.settings import no_eos


@dataclass(frozen=True)
class Answered:
    """The answer to a prompt.

    Attributes:
        text: Up to the first EOS, without special tokens.
        ids: The tokens of the text.
        ended: Whether there was an EOS: otherwise it ends because `gen_length` tokens are there.
        num_passes: Forward passes that it took part in, one after another.
    """

    text: str
    ids: list[int]
    ended: bool
    num_passes: int


class Answerer:
    """Answers prompts.

    Args:
        model: In evaluation mode.
        tokenizer: The model's.
        settings: The sampler's.
        batch_size: Prompts that go through the model together.
        seed: With a prompt's key, of its random draws.
    """

    def __init__(
        self,
        model: Network,
        tokenizer: Any,
        settings: SamplerSettings,
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.batch_size, self.seed = batch_size, seed

    @classmethod
    def load(
        cls, model_dir: Path, settings: SamplerSettings, batch_size: int, seed: int, local_rank: int
    ) -> "Answerer":
        """Load a model onto this process's device: in bf16 on a GPU, in fp32 on a CPU.

        Raises:
            LladaSftError: It cannot be loaded, or the sampler is not for it.
        """
        network = read_config(model_dir).architecture
        mismatch = settings.mismatch(network.decodes_in_blocks)
        if mismatch is not None:
            raise ConfigError(f"--{mismatch.replace(' ', ': ', 1)}")
        if settings.lacks_eos(network.eos_token_id):
            raise no_eos(model_dir)
        device, dtype = torch.device("cpu"), torch.float32
        if torch.cuda.is_available():
            device = torch.device("cuda", local_rank % torch.cuda.device_count())
            dtype = torch.bfloat16
        model = load_model(model_dir, dtype, device)
        config = model.config
        tokenizer = load_tokenizer(model_dir, config.mask_token_id, config.chat_template)
        return cls(model, tokenizer, settings, batch_size, seed)

    def seeded(self, seed: int | None) -> SamplerSettings:
        """Return the settings with a seed, and with the end of a turn as the tokenizer has it."""
        return replace(self.settings, seed=seed, eot_token_id=end_of_turn(self.tokenizer))

    @property
    def max_prompt(self) -> int:
        """Most tokens of a prompt: with its answer it has the positions that the model knows."""
        return self.model.architecture.max_length - self.settings.gen_length

    def prompt_ids(self, question: Question) -> list[int]:
        """Return the tokens of a prompt.

        Raises:
            DataError: The chat template cannot render it, or it is too long.
        """
        if question.ids is not None:
            ids = list(question.ids)
        elif question.text is not None:
            ids = self._plain(question.text)
        else:
            ids = encode_prompt(question.turns, self.tokenizer, question.tools)
        if len(ids) > self.max_prompt:
            raise DataError(
                f"the prompt has {len(ids):,} tokens: with an answer of up to"
                f" {self.settings.gen_length:,} (--gen-length) that is more than the"
                f" {self.model.architecture.max_length:,} of the model"
            )
        number = self.model.architecture.num_embeddings
        unknown = next((token for token in ids if not 0 <= token < number), None)
        if unknown is not None:
            raise DataError(f"tokens must be from 0 to {number - 1}, got {unknown}")
        return ids

    def _plain(self, text: str) -> list[int]:
        """Encode text that is continued: after BOS, as in pretraining."""
        begin = self.tokenizer.bos_token or ""
        special = layout_of(self.tokenizer).special
        return [
            *(special.encode(begin) if begin else []),
            *special.encode_text(text.removeprefix(begin)),
        ]

    def answers(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[int]
    ) -> Iterator[list[tuple[int, Answered]]]:
        """Answer prompts, those of similar length together, the longest first.

        What is drawn at random for a prompt depends on the seed and on its key alone: such prompts
        go through the model one by one.

        Args:
            prompts: Token ids.
            keys: One for each.

        Yields:
            The answers of a batch with their numbers in `prompts`.
        """
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        draws = self.settings.temperature > 0 or self.settings.remasking == "random"
        size = 1 if draws else self.batch_size
        for begin in range(0, len(order), size):
            numbers = order[begin : begin + size]
            seed = self.settings.seed
            if draws:
                seed = hashed("answer", self.seed, keys[numbers[0]]) >> 1
            asked = [prompts[number] for number in numbers]
            given = generate(self.model, asked, self.seeded(seed))
            yield [(number, self.read(one)) for number, one in zip(numbers, given, strict=True)]

    def read(self, answer: Answer) -> Answered:
        """Return the text of an answer."""
        eos = self.settings.eos_token_id
        eos = self.model.config.eos_token_id if eos is None else eos
        ended = eos in answer.ids
        ids = answer.ids[: answer.ids.index(eos)] if ended else answer.ids
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Answered(text, ids, ended, answer.num_passes)


def answer(
    model: Network, tokenizer: Any, prompts: Sequence[str], settings: SamplerSettings
) -> list[str]:
    """Answer each prompt, as one user turn.

    Args:
        model: In evaluation mode.
        tokenizer: The model's.
        prompts: Texts of the user.
        settings: For all of them.

    Returns:
        The responses up to their first EOS, in the order of the prompts.
    """
    answerer = Answerer(model, tokenizer, settings, batch_size=max(1, len(prompts)))
    ids = [encode_prompt(said_by_user(text), tokenizer) for text in prompts]
    responses = [""] * len(prompts)
    for batch in answerer.answers(ids, range(len(prompts))):
        for number, answered in batch:
            responses[number] = answered.text
    return responses
