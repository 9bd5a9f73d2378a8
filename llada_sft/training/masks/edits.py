"""`objective.edit`: answer tokens that are not masked, but wrong, for a network that edits.

LLaDA2.1's sampler overwrites tokens that it has written. So its network must find wrong ones among
those that it sees. Of the answer tokens of a noisy half that are not masked, each is replaced with
the chance `edit.share`; the target is the original token, and its loss counts `edit.weight` times
as much as that of a token that is always masked would: 1 / (answer length · N). Tokens that are not
replaced have no loss. What follows an answer and is learned as it is (EOS, the cycle of rainbow)
may be replaced, too; what is always masked may not.

- random: by a token of the vocabulary, uniformly, but the mask token, EOS, padding and the tokens
  that samplers never write; never by the original one.
- model: by what the network predicts if these tokens are masked as well. It may be right: then the
  target is to keep the token.

Masked tokens are predicted from a block with wrong tokens then, which is what a sampler sees. With
a share above 0, the loss is no longer a bound of the likelihood; validation has no replaced token.

Source: LLaDA2.1's released sampler. Its training recipe has unpublished rates.

Shapes: B rows, L positions; S positions of one example's span.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llada_sft.config.sections.objective import EditConfig
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.keys import hashed
from llada_sft.training.masks.micro_batch import MicroBatch


@dataclass(frozen=True)
class Edits:
    """The replaced tokens of a micro-batch.

    Attributes:
        replaced: bool [B · L].
        tokens: int64, one for each that is replaced: what stands there.
        weight: What their loss is multiplied by.
    """

    replaced: Tensor
    tokens: Tensor
    weight: float


class EditSource:
    """Chooses tokens to replace, and what replaces them.

    Args:
        config: `objective.edit`.
        ids: Special tokens and vocabulary.
        never: Other tokens that samplers do not write.
    """

    def __init__(self, config: EditConfig, ids: TokenIds, never: Iterable[int] = ()) -> None:
        self._config, self._mask = config, ids.mask_token_id
        special = {ids.mask_token_id, ids.eos_token_id, ids.pad_token_id, *ids.reserved, *never}
        allowed = [token for token in range(ids.vocab_size) if token not in special]
        self._allowed = torch.tensor(allowed, dtype=torch.int64)

    def choose(self, clean: Tensor, free: Sequence[tuple[slice, Tensor, int]]) -> Edits:
        """Choose among the tokens of a micro-batch.

        Args:
            clean: int64 [B · L].
            free: Of each row or packed example its span, [S] bool what may be replaced there, and
                the key of the choice.
        """
        replaced = torch.zeros(clean.shape, dtype=torch.bool)
        tokens: list[Tensor] = []
        for span, may_be, key in free:
            generator = torch.Generator().manual_seed(hashed("edit", key))
            places = may_be.nonzero().squeeze(1)
            numbers = torch.rand(len(places), generator=generator, dtype=torch.float64)
            chosen = places[numbers < self._config.share]
            replaced[span.start + chosen] = True
            tokens.append(self._instead_of(clean[span][chosen], generator))
        # In the order of the positions: rows follow one another, and so do the chosen of each.
        return Edits(replaced, torch.cat([clean[:0], *tokens]), self._config.weight)

    def _instead_of(self, originals: Tensor, generator: torch.Generator) -> Tensor:
        if self._config.source == "model":
            # The network is asked when it is there.
            return torch.full_like(originals, self._mask)
        numbers = torch.randint(len(self._allowed), originals.shape, generator=generator)
        following = self._allowed[(numbers + 1) % len(self._allowed)]
        drawn = self._allowed[numbers]
        return torch.where(drawn == originals, following, drawn)


def write_predictions(batch: MicroBatch, predictions: Tensor, mask_token_id: int) -> None:
    """Put predictions in the place of the tokens that are to be replaced, without waiting for them.

    Args:
        batch: Its noisy tokens are changed.
        predictions: [M] int64, at its positions.
        mask_token_id: Where it is predicted, the original token stays.
    """
    assert batch.replaced is not None
    noisy = batch.noisy_ids.view(-1)
    instead = torch.where(predictions == mask_token_id, batch.targets, predictions)
    noisy[batch.positions] = torch.where(batch.replaced, instead, noisy[batch.positions])
