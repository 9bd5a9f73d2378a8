"""Special tokens that somebody typed: they are text, and never control what the model reads.

A chat template writes its own special tokens around the texts of a conversation. So that those in
the texts cannot be taken for them, each is hidden before the template is rendered: one character
of Unicode's private use stands for it. Afterwards the template's own tokens are ids, and what is
between them is encoded as the tokenizer's `split_special_tokens` does, with the texts as they were.
"""

import os.path
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from llada_sft.config.record_formats import SpecialTokensInText
from llada_sft.errors import DataError

# Planes of Unicode that have private characters alone.
_PRIVATE = (0xF0000, 0x100000)


class SpecialTokens:
    """The special tokens of a tokenizer, and how text is encoded that has them.

    Args:
        tokenizer: A transformers tokenizer.
        in_text: `data.special_tokens_in_text`.
        mask_token: Never part of an answer; None asks the tokenizer.
    """

    def __init__(
        self, tokenizer: Any, in_text: SpecialTokensInText, mask_token: str | None = None
    ) -> None:
        self._tokenizer, self.in_text = tokenizer, in_text
        self.mask_token = mask_token or getattr(tokenizer, "mask_token", None)
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        tokens = {token.content for token in added if token.special}
        tokens |= set(getattr(tokenizer, "all_special_tokens", []))
        self.tokens = sorted(tokens - {""}, key=lambda token: (-len(token), token))
        self._pattern = re.compile("|".join(map(re.escape, self.tokens)) or r"(?!)")
        # In most texts there is not even that.
        self._common = os.path.commonprefix(self.tokens)  # noqa: RUF071 (no paths)

    def find(self, text: str) -> str | None:
        """Return the first special token in a text."""
        if self._common not in text:
            return None
        found = self._pattern.search(text)
        return found and found.group()

    def check(self, text: str, where: str, learned: bool) -> None:
        """Refuse what must not be in a text.

        Raises:
            DataError: The text is learned, or its special tokens become ids, and it has the mask
                token; or it has a special token, and none is allowed.
        """
        token = self.find(text)
        if token is None:
            return
        if self.mask_token and self.mask_token in text and (learned or self.in_text == "token"):
            what = "an answer" if learned else "a text"
            raise DataError(
                f"{where!r} has the mask token {self.mask_token!r}: it stands for hidden tokens"
                f" and cannot be part of {what}"
            )
        if self.in_text == "refuse":
            raise DataError(
                f"{where!r} has the special token {token!r}; remove it, or set"
                " data.special_tokens_in_text to text or token"
            )

    def are_in(self, value: Any) -> bool:
        """Return whether any text of a JSON value has a special token."""
        if isinstance(value, str):
            return self._common in value and self._pattern.search(value) is not None
        if isinstance(value, dict):
            return any(map(self.are_in, value.values())) or any(map(self.are_in, value))
        return isinstance(value, list | tuple) and any(map(self.are_in, value))

    def are_in_turns(self, turns: Sequence[Mapping[str, Any]]) -> bool:
        """Return the same of turns; most have nothing but texts."""
        common = self._common
        for turn in turns:
            for value in turn.values():
                if type(value) is str:
                    if common in value and self._pattern.search(value) is not None:
                        return True
                elif self.are_in(value):
                    return True
        return False

    def hide(self, values: Any) -> tuple[Any, "Hidden | None"]:
        """Return JSON values with the special tokens in their texts hidden, and how to show them.

        With `data.special_tokens_in_text: token` nothing is hidden.
        """
        if self.in_text == "token" or not self.are_in(values):
            return values, None
        hidden = Hidden(self.tokens, "".join(texts_of(values)))
        return hidden.hide(values, self._pattern), hidden

    def encode_text(self, text: str) -> list[int]:
        """Encode a text that is all a person's."""
        split = self.in_text != "token" and self.find(text) is not None
        return self._encode(text, split or None)

    def encode(self, rendered: str, hidden: "Hidden | None" = None) -> list[int]:
        """Encode what a template has rendered; of what is hidden in it, the characters."""
        if hidden is None or not hidden.is_in(rendered):
            return self._encode(rendered)
        ids: list[int] = []
        begin = 0
        for found in self._pattern.finditer(rendered):
            ids += self._encode(hidden.show(rendered[begin : found.start()]), split=True)
            ids += self._encode(found.group())
            begin = found.end()
        return ids + self._encode(hidden.show(rendered[begin:]), split=True)

    def _encode(self, text: str, split: bool | None = None) -> list[int]:
        """Encode a text; `split`: special tokens as characters, None as the tokenizer is set."""
        ids: list[int]
        tokenizer = self._tokenizer
        if type(tokenizer) is not PreTrainedTokenizerFast:
            options = {} if split is None else {"split_special_tokens": split}
            ids = tokenizer(text, add_special_tokens=False, **options)["input_ids"]
            return ids
        # The same as calling the tokenizer, which also makes lists and offsets.
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = tokenizer.split_special_tokens if split is None else split
        (encoding,) = backend.encode_batch_fast([text], add_special_tokens=False)
        ids = encoding.ids
        return ids


class Hidden:
    """Which character stands for which special token.

    Args:
        tokens: All special tokens.
        text: Everything in which they are hidden.

    Raises:
        DataError: The text has such characters itself.
    """

    def __init__(self, tokens: list[str], text: str) -> None:
        for first in _PRIVATE:
            characters = [chr(first + number) for number in range(len(tokens))]
            if not any(character in text for character in characters):
                break
        else:
            raise DataError(
                "a text has special tokens and characters of Unicode's private planes 15 and 16;"
                " remove either"
            )
        self._character_of: Mapping[str, str] = dict(zip(tokens, characters, strict=True))
        self._table = str.maketrans(dict(zip(characters, tokens, strict=True)))
        self._characters = re.compile(f"[{characters[0]}-{characters[-1]}]")

    def hide(self, value: Any, pattern: re.Pattern[str]) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda found: self._character_of[found.group()], value)
        if isinstance(value, list):
            return [self.hide(one, pattern) for one in value]
        if isinstance(value, dict):
            return {
                self.hide(name, pattern): self.hide(one, pattern) for name, one in value.items()
            }
        return value

    def is_in(self, text: str) -> bool:
        return self._characters.search(text) is not None

    def show(self, text: str) -> str:
        return text.translate(self._table)


def texts_of(value: Any) -> list[str]:
    """Return all texts of a JSON value, names of fields among them."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return [text for one in value for text in texts_of(one)]
    if isinstance(value, dict):
        return [text for pair in value.items() for one in pair for text in texts_of(one)]
    return []
