"""What follows an answer, by `data.end`: EOS, and what else shows a sampler that nothing follows.

    a number    that many EOS
    batch_max   one EOS; in its micro-batch, EOS up to the longest example (steps/collate.py)
    void        one EOS and K void tokens, which are always masked (training/masks/void_end.py)
    rainbow     one EOS and K tokens of a cycle of reserved ones, masked as the answer is

Repeated EOS teach a network that EOS is likely wherever the canvas is long, and its answers become
shorter, or vanish. With void and rainbow, an answer has one EOS, and another token says that a
place is empty. Samplers never write that token.

K is uniform on 0 ... `data.end_tokens`. It is keyed by the row and its epoch: the same on any
number of ranks, in any micro-batch, and after a resume. An answer is cut for its EOS alone, as with
`end: 1`; K is smaller where `data.max_length` leaves less room.

A network that is trained in blocks (`objective.kind: block`) writes whole blocks. So what follows
an answer reaches to the end of its last block: EOS, void tokens, or the cycle, learned as they
always are. What ends without a tail (an answer that was cut, a piece of a document, what the hook
has corrupted) may end within a block, which is shorter then.

Source: VoidPadding (arXiv 2606.17999) and Rainbow Padding (arXiv 2510.03680), which fill the batch
instead; their published code takes the reserved tokens of LLaDA's tokenizer, from 126084 on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llada_sft.config.sections.data import DataConfig, End, fewest_end_tokens
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.data.records.chat_template import template_of
from llada_sft.errors import ConfigError, DataError
from llada_sft.keys import hashed

# Tokens in the cycle of rainbow: as many are enough (arXiv 2510.03680).
RAINBOW_TOKENS = 7


class Tail(NamedTuple):
    """What is put after an answer.

    Attributes:
        ids: int64 [T].
        num_learned: The first ones, which are learned as the answer is.
        num_hidden: The last ones, which are always masked.
    """

    ids: NDArray[np.int64]
    num_learned: int
    num_hidden: int


NO_TAIL = Tail(np.empty(0, np.int64), 0, 0)


@dataclass(frozen=True)
class AnswerEnd:
    """Makes the tails of answers.

    Args:
        end: `data.end`.
        eos_token_id: From the model's config.
        token_ids: What may follow the EOS: the void token, or the cycle of rainbow.
        most_tokens: `data.end_tokens`.
        block_length: Tails end with a block of so many tokens; 0: they do not.
    """

    end: End
    eos_token_id: int
    token_ids: tuple[int, ...] = ()
    most_tokens: int = 0
    block_length: int = 0

    @property
    def fewest_tokens(self) -> int:
        """Tokens of each tail at least; an answer is cut so that they fit."""
        return fewest_end_tokens(self.end)

    @property
    def grows(self) -> bool:
        """Whether a tail grows to the longest example of its micro-batch."""
        return self.end == "batch_max"

    def tail(self, room: int, row_key: int, part: int, before: int = 0) -> Tail:
        """Return the tail of an answer.

        Args:
            room: The most tokens that it may have, at least `fewest_tokens`. Of blocks, it reaches
                to the end of one.
            row_key: Of the row and epoch; with `part`, which of its examples this is, it keys how
                many tokens the tail has.
            before: Tokens of the example before the tail.
        """
        if not self.token_ids:
            return self._of_eos(self.fewest_tokens + self._missing(before + self.fewest_tokens))
        drawn = hashed("end", row_key, part) % (self.most_tokens + 1)
        count = min(drawn, room - self.fewest_tokens)
        count += self._missing(before + self.fewest_tokens + count)
        cycle = np.resize(np.array(self.token_ids, np.int64), count)
        ids = np.concatenate([self._of_eos(self.fewest_tokens).ids, cycle])
        if self.end == "void":
            return Tail(ids, num_learned=self.fewest_tokens, num_hidden=len(ids))
        return Tail(ids, num_learned=len(ids), num_hidden=0)

    def _of_eos(self, num_eos: int) -> Tail:
        return Tail(np.full(num_eos, self.eos_token_id, np.int64), num_eos, num_hidden=0)

    def _missing(self, length: int) -> int:
        """Count the tokens from a length on to the end of a block."""
        return -length % self.block_length if self.block_length else 0

    def require_unused(self, *lists: NDArray[np.int64] | None) -> None:
        """Check that the ids of an example have none that only a tail has.

        Raises:
            DataError: They have one.
        """
        for token_id in self.token_ids:
            for ids in lists:
                if ids is not None and np.count_nonzero(ids == token_id):
                    raise DataError(
                        f"token {token_id} is in the example: data.end: {self.end} puts it after"
                        " answers, and samplers never write it; take the token out, or set"
                        f" {_KEYS[str(self.end)]} to what no text has"
                    )


_KEYS = {"void": "data.void_token_id", "rainbow": "data.rainbow_token_ids"}


def end_token_ids(config: DataConfig, ids: TokenIds) -> tuple[int, ...]:
    """Return the ids of the tokens that `data.end` puts after the EOS; samplers must not write any.

    Raises:
        ConfigError: The network reserves none and the config names none, or these cannot be.
    """
    chosen: tuple[int, ...]
    if config.end == "void":
        given = config.void_token_id
        chosen = ids.reserved[:1] if given is None else (given,)
    elif config.end == "rainbow":
        chosen = config.rainbow_token_ids or ids.reserved[:RAINBOW_TOKENS]
    else:
        return ()
    key = _KEYS[config.end]
    if not chosen:
        raise ConfigError(
            f"data.end: {config.end}: no token is known that this network's tokenizer reserves;"
            f" set {key} to ids that no text has"
        )
    if problems := list(_problems(chosen, ids)):
        raise ConfigError("\n".join(f"{key}: {problem}" for problem in problems))
    return chosen


def _problems(chosen: tuple[int, ...], ids: TokenIds) -> Iterator[str]:
    named = {
        "the mask token": ids.mask_token_id,
        "the EOS token": ids.eos_token_id,
        "the padding token": ids.pad_token_id,
    }
    for token_id in dict.fromkeys(chosen):
        if token_id >= ids.vocab_size:
            yield f"must be below vocab_size, {ids.vocab_size}, got {token_id}"
        for name, used in named.items():
            if token_id == used:
                yield f"{token_id} is {name}; take an id that nothing uses"
                break
    if len(set(chosen)) < len(chosen):
        yield f"each must be there once, got {list(chosen)}"


def require_reserved(tokenizer: Any, token_ids: tuple[int, ...], key: str) -> None:
    """Check that a tokenizer does not use tokens: it lacks them, or has them as special ones.

    Raises:
        ConfigError: One is in ordinary text, in the chat template, or has a role, as BOS has.
    """
    added, template = tokenizer.added_tokens_decoder, template_of(tokenizer)
    for token_id in token_ids:
        token = tokenizer.convert_ids_to_tokens(token_id) if token_id < len(tokenizer) else None
        if token is None:
            continue
        use = None
        if token_id not in added or not added[token_id].special:
            use = "ordinary text may have it"
        elif token in tokenizer.special_tokens_map.values():
            use = "the tokenizer names it as one of its special tokens"
        elif token in template:
            use = "the chat template writes it"
        if use:
            raise ConfigError(f"{key}: token {token_id} ({token!r}) is in use: {use}; take another")


def answer_end_of(config: DataConfig, ids: TokenIds, tokenizer: Any) -> AnswerEnd:
    """Return what follows the answers of a config's rows.

    Raises:
        ConfigError: Its tokens cannot be.
    """
    token_ids = end_token_ids(config, ids)
    if token_ids and tokenizer is not None:
        require_reserved(tokenizer, token_ids, _KEYS[str(config.end)])
    most_tokens = config.end_tokens if token_ids else 0
    return AnswerEnd(config.end, ids.eos_token_id, token_ids, most_tokens, ids.block_length)
