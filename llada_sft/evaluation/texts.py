"""Texts -> token ids, and answers -> texts, as the model was trained and as the official code does.

With a chat template, a prompt is rendered as it is for training, and is not encoded with special
tokens once more: its BOS is there already. An answer ends at the first EOS or end of a turn.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llada_sft.data.records.chat_template import ENDS_OF_TURN, ChatTemplate, template_of


class Cut(NamedTuple):
    """An answer's text up to its first stop string, and the text before it was cut."""

    text: str
    uncut: str


class Texts:
    """A tokenizer, and the layout of a model's prompts.

    Args:
        tokenizer: A transformers tokenizer.
        chat: Whether prompts are rendered by its chat template.
        eos_token_id: What the model's config.json names; the tokenizer may have another EOS.

    Attributes:
        template: The text of the chat template; None without one.
        ends: The ids that end an answer, with their names: EOS, and what closes a turn.
    """

    def __init__(self, tokenizer: Any, chat: bool, eos_token_id: int | None = None) -> None:
        self.tokenizer, self.chat = tokenizer, chat
        self.template = template_of(tokenizer) if chat else None
        known = tokenizer.get_vocab()
        names = [tokenizer.eos_token, *(name for name in ENDS_OF_TURN if chat)]
        if eos_token_id is not None:
            names.insert(0, tokenizer.convert_ids_to_tokens(eos_token_id))
        self.ends = {known[name]: name for name in names if name in known}

    def prompt(self, turns: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """Render the turns of a prompt.

        Args:
            turns: With `role` and `content`.
            add_generation_prompt: Otherwise the last turn is the start of the answer.
        """
        assert self.template is not None
        layout = ChatTemplate(self.tokenizer, self.template)
        asked = list(turns) if add_generation_prompt else list(turns[:-1])
        rendered = layout.prompt([dict(turn) for turn in asked])
        return rendered if add_generation_prompt else rendered + turns[-1]["content"]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; of one that is rendered, its special tokens are its own."""
        rendered = self.chat or bool(
            self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token)
        )
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=not rendered)
        return ids

    def cut(self, ids: Sequence[int], until: Sequence[str]) -> Cut:
        """Return the text of an answer.

        Stop strings may have special tokens: the text has them until it is cut.

        Args:
            ids: The tokens after the prompt.
            until: Stop strings, applied one after another.

        Source: the official eval_llada.py, `generate_until`.
        """
        end = next((place for place, token in enumerate(ids) if token in self.ends), len(ids))
        decode = self.tokenizer.decode
        text: str = decode(list(ids[:end]), skip_special_tokens=False)
        uncut: str = decode(list(ids[:end]), skip_special_tokens=True)
        for stop in until:
            text = text.split(stop, 1)[0] if stop else text
        kept = self.tokenizer.encode(text, add_special_tokens=False)
        return Cut(decode(kept, skip_special_tokens=True), uncut)
