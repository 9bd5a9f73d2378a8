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

from dataclasses import dataclass

import torch
from torch import Tensor

from llada_sft.diffusion.generate import num_transfer_tokens
from llada_sft.generation.blocks import Decoding
from llada_sft.generation.growth import grow_canvas


@dataclass
class _Row:
    """A row in a block; its state is that of the canvas.

    Attributes:
        index: Of the canvas.
        shares: Tokens that each step still to come writes.
        tokens: [L] int64, and scores: [L] float64, of the last pass; None before the first one.
        num_guesses: How many states to guess.
    """

    index: int
    shares: list[int]
    tokens: Tensor | None = None
    scores: Tensor | None = None
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
        is_open = self._canvas.open_in_block(rows, block, self._settings.block_length)
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
        states = [[canvas.ids[row.index].clone(), *self._guesses(row)] for row in pending]
        ids = torch.stack([state for own in states for state in own])  # [S, L]
        indices = [row.index for row, own in zip(pending, states, strict=True) for _ in own]
        rows = torch.tensor(indices, device=ids.device)  # [S]
        ends = canvas.starts[rows] + (block + 1) * self._settings.block_length
        eligible = canvas.within(torch.zeros_like(ends), ends) & (ids == canvas.mask_token_id)
        logits = self._decoding.predictor.logits(ids, rows, eligible)
        tokens, scores = self._decoding.candidates.choose(logits, eligible, rows)
        # Where the mask token itself was predicted, a step may have fewer candidates than its
        # share: what else it takes stays as it is.
        tokens = torch.where(eligible, tokens, ids)
        first = 0
        for row, own in zip(pending, states, strict=True):
            after = first + len(own)
            self._follow(row, block, own, tokens[first:after], scores[first:after])
            first = after

    def _follow(
        self, row: _Row, block: int, states: list[Tensor], tokens: Tensor, scores: Tensor
    ) -> None:
        """Take the steps of a row as long as they lead to its next guess."""
        ids = self._canvas.ids[row.index]
        num_right = 0
        for number, state in enumerate(states):
            if number and (self._is_done(row, block) or not torch.equal(ids, state)):
                break
            num_right = number
            row.tokens, row.scores = tokens[number], scores[number]
            taken = self._best(row.scores, row.shares.pop(0))
            ids[taken] = row.tokens[taken]
        all_right = num_right == len(states) - 1
        row.num_guesses = min(
            self._settings.max_drafts - 1, 2 * len(states) - 1 if all_right else max(1, num_right)
        )

    def _guesses(self, row: _Row) -> list[Tensor]:
        """Return the states that the next steps of a row may reach, by its last pass.

        The state after the last step needs no pass.
        """
        if row.tokens is None or row.scores is None:
            return []
        ids = self._canvas.ids[row.index]
        scores = row.scores.masked_fill(ids != self._canvas.mask_token_id, -torch.inf)
        states, shares = [ids], row.shares[:-1][: row.num_guesses]
        for taken in torch.split(self._best(scores, sum(shares)), shares):
            states.append(states[-1].scatter(0, taken, row.tokens[taken]))
        return states[1:]

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
        is_open = self._canvas.open_in_block(rows, block, self._settings.block_length)
        return not bool(is_open.any()) or bool(self._canvas.ended(rows))
