"""Several steps of the official sampler from one forward pass, with its tokens.

The official sampler needs one pass for each step, because a step depends on what the step before it
wrote. But one pass already predicts all candidates, and their order changes little from step to
step. So the states that the next steps would reach are guessed, each one step further than the one
before, and one pass computes all of them as rows of a batch. What the official sampler does at the
first one is then known; if it leads to the second one, what it does there is known as well, and so
on up to the first wrong guess. Nothing of a wrong guess is used: the tokens are those of the
official sampler. Rows are computed in vain for wrong guesses, so a row's number of guesses follows
how many were right.

Source: the idea is that of arXiv 2510.04147 and arXiv 2510.00294.

Shapes: B prompts, S states in a pass, L positions.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from llada_sft.diffusion.generate import num_transfer_tokens
from llada_sft.generation.blocks import Decoding
from llada_sft.generation.growth import grow_canvas

# What a pass predicts at a state: the tokens, [L] int64, and how good each is, [L] float64.
_Prediction = tuple[Tensor, Tensor]


@dataclass
class _Row:
    """A row in a block; its state is that of the canvas.

    Attributes:
        index: Of the canvas.
        shares: Tokens that each step still to come writes.
        known: The states of this block that were computed.
        last: What was predicted at the state before the present one; None at the first one.
        num_guesses: How many states to guess.
    """

    index: int
    shares: list[int]
    known: dict[bytes, _Prediction] = field(default_factory=dict)
    last: _Prediction | None = None
    num_guesses: int = 1


class Verifier:
    """Decodes all answers of a canvas."""

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self._canvas, self._settings = decoding.canvas, decoding.settings

    @torch.no_grad()
    def fill(self) -> None:
        """Decode all answers in place."""
        canvas = self._canvas
        rows = torch.arange(len(canvas.ids), device=canvas.ids.device)
        for block in range(self._settings.num_blocks):
            rows = rows[~canvas.ended(rows)]
            if len(rows) == 0:
                return
            grow_canvas(self._decoding.predictor, canvas, rows, block, self._settings)
            pending = self._start_block(rows, block)
            while pending:
                self._pass(pending, block)
                pending = [row for row in pending if not self._is_done(row, block)]

    def _start_block(self, rows: Tensor, block: int) -> list[_Row]:
        is_open = self._canvas.open_in_block(rows, block)
        shares = num_transfer_tokens(is_open.sum(1), self._settings.steps_per_block).tolist()
        # A step without a share changes nothing. Mask tokens of a prompt take shares of the block,
        # and the official sampler leaves as many masks there; others need more steps.
        extra = torch.zeros_like(rows) if self._settings.exact else self._canvas.open_before(rows)
        return [
            _Row(index, [share for share in own if share] + [1] * more)
            for index, own, more in zip(rows.tolist(), shares, extra.tolist(), strict=True)
        ]

    def _pass(self, pending: list[_Row], block: int) -> None:
        """Compute the states of rows and the guesses after them, and take the steps known by it."""
        canvas = self._canvas
        states = [self._states(row) for row in pending]
        ids = torch.stack([state for own in states for state in own])  # [S, L]
        indices = [row.index for row, own in zip(pending, states, strict=True) for _ in own]
        rows = torch.tensor(indices, device=ids.device)  # [S]
        eligible = canvas.open_until(ids, rows, block)
        logits = self._decoding.predictor.logits(ids, rows, eligible)
        tokens, scores = self._decoding.candidates.choose(logits, eligible, rows)
        # Where the mask token itself was predicted, a step may have fewer candidates than its
        # share: what else it takes stays as it is.
        predictions = zip(torch.where(eligible, tokens, ids), scores, strict=True)
        for row, own in zip(pending, states, strict=True):
            row.known |= {_key(state): next(predictions) for state in own}
            num_steps = self._follow(row, block)
            most = self._settings.max_drafts - 1
            row.num_guesses = min(most, 2 * len(own) - 1 if num_steps >= len(own) else num_steps)

    def _follow(self, row: _Row, block: int) -> int:
        """Take the steps of a row as long as its state was computed; return their number."""
        ids, num_steps = self._canvas.ids[row.index], 0
        while not self._is_done(row, block) and _key(ids) in row.known:
            row.last = tokens, scores = row.known[_key(ids)]
            taken = self._best(scores, row.shares.pop(0))
            ids[taken] = tokens[taken]
            num_steps += 1
        return num_steps

    def _states(self, row: _Row) -> list[Tensor]:
        """Return the state of a row, and those that its next steps may reach, to be computed.

        Each is guessed by what was predicted at the one before it, or last at one before that. A
        state that was computed on another way to it is not computed again. The state after the last
        step needs no pass.
        """
        ids = self._canvas.ids[row.index].clone()
        states, prediction = [ids], row.last
        for share in row.shares[:-1]:
            if prediction is None or len(states) > row.num_guesses:
                break
            tokens, scores = prediction
            open_scores = scores.masked_fill(ids != self._canvas.mask_token_id, -torch.inf)
            taken = self._best(open_scores, share)
            ids = ids.scatter(0, taken, tokens[taken])
            if _key(ids) in row.known:
                prediction = row.known[_key(ids)]
            else:
                states.append(ids)
        return states

    def _best(self, scores: Tensor, number: int) -> Tensor:
        """Return the positions of the highest scores, [number] int64, the highest first.

        Among equal ones: those that the official code takes, or the leftmost ones.
        """
        if self._settings.exact:
            return scores.topk(number).indices
        return scores.argsort(descending=True, stable=True)[:number]

    def _is_done(self, row: _Row, block: int) -> bool:
        if self._settings.exact:
            return not row.shares
        rows = torch.tensor([row.index], device=self._canvas.ids.device)
        is_open = self._canvas.open_in_block(rows, block)
        return not bool(is_open.any()) or bool(self._canvas.ended(rows))


def _key(ids: Tensor) -> bytes:
    return ids.cpu().numpy().tobytes()
