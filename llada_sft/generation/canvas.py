"""The prompts of a batch with the masked and the written tokens of their answers.

Rows are padded on the right: each token has the position that it has alone, and padding is neither
looked at nor uncovered.

Shapes: B prompts, L positions of the longest row, R rows that are chosen.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Canvas:
    """A row for each prompt: its prompt, its answer, and padding.

    Args:
        prompts: Token ids; their lengths may differ, and be 0.
        lengths: Tokens of each answer at first.
        max_length: Tokens that it may grow to; no answer has more.
        block_length: Tokens of a block.
        mask_token_id: From the model's config.
        eos_token_id: The token that ends an answer; None: all of its tokens are wanted.
        device: The model's.

    Attributes:
        ids: [B, L] int64.
        starts: [B] int64, where each answer starts.
        ends: [B] int64, where each row ends.
        places: [L] int64, all positions.
        is_prompt: [B, L] bool, what guidance masks: a mask token in a prompt is filled in, and is
            not part of it.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        lengths: Sequence[int],
        max_length: int,
        block_length: int,
        mask_token_id: int,
        eos_token_id: int | None,
        device: torch.device,
    ) -> None:
        self.mask_token_id, self.eos_token_id = mask_token_id, eos_token_id
        self.block_length = block_length
        self._max_length = max_length
        sizes = [len(prompt) for prompt in prompts]
        longest = max(
            size + max(length, max_length) for size, length in zip(sizes, lengths, strict=True)
        )
        # Any token but the mask token, which would be uncovered.
        padding = int(mask_token_id == 0)
        rows = [
            [*prompt, *[mask_token_id] * length]
            for prompt, length in zip(prompts, lengths, strict=True)
        ]
        padded = [row + [padding] * (longest - len(row)) for row in rows]
        self.ids = torch.tensor(padded, dtype=torch.int64, device=device)
        self.starts = torch.tensor(sizes, device=device)
        self.ends = self.starts + torch.tensor(lengths, device=device)
        self.places = torch.arange(longest, device=device)
        self.is_prompt = (self.places < self.starts[:, None]) & (self.ids != mask_token_id)

    def width(self, rows: Tensor) -> int:
        """Return the positions that passes over rows need; what is after them is padding."""
        return int(self.starts[rows].max() + (self.ends - self.starts)[rows].max())

    def real(self, rows: Tensor, width: int) -> Tensor | None:
        """Return [R, width] bool, true but at padding; None where there is none."""
        real = self.places[:width] < self.ends[rows, None]
        return None if bool(real.all()) else real

    def within(self, firsts: Tensor, ends: Tensor) -> Tensor:
        """Return [R, L] bool, true from `firsts` to before `ends`, both [R] int64."""
        return (self.places >= firsts[:, None]) & (self.places < ends[:, None])

    def block_starts(self, rows: Tensor, block: int) -> Tensor:
        """Return where a block of rows starts, [R] int64."""
        return self.starts[rows] + block * self.block_length

    def open_in_block(self, rows: Tensor, block: int) -> Tensor:
        """Return [R, L] bool, true at the mask tokens of a block of rows."""
        firsts = self.block_starts(rows, block)
        in_block = self.within(firsts, firsts + self.block_length)
        return in_block & (self.ids[rows] == self.mask_token_id)

    def open_until(self, ids: Tensor, rows: Tensor, block: int) -> Tensor:
        """Return [R, L] bool, true at all mask tokens up to the end of a block.

        Args:
            ids: [R, L] int64, states of rows.
            rows: [R] int64.
            block: Of the answer.
        """
        before_end = self.places < self.block_starts(rows, block + 1)[:, None]
        return before_end & (ids == self.mask_token_id)

    def grow(self, rows: Tensor) -> None:
        """Add a block of mask tokens at the end of rows."""
        added = self.within(self.ends[rows], self.ends[rows] + self.block_length)
        self.ids[rows] = self.ids[rows].masked_fill(added, self.mask_token_id)
        self.ends[rows] += self.block_length

    def open_before(self, rows: Tensor) -> Tensor:
        """Return the number of mask tokens in the prompts of rows, [R] int64."""
        before = self.places < self.starts[rows, None]
        return (before & (self.ids[rows] == self.mask_token_id)).sum(1)

    def ended(self, rows: Tensor) -> Tensor:
        """Return whether answers have their EOS, and no mask token before it, [R] bool."""
        if self.eos_token_id is None:
            return torch.zeros_like(rows, dtype=torch.bool)
        ids, answer = self.ids[rows], self.within(self.starts[rows], self.ends[rows])
        is_eos = answer & (ids == self.eos_token_id)
        is_open = answer & (ids == self.mask_token_id)
        # Both are at the first one, or at 0 where there is none.
        first_eos, first_open = is_eos.int().argmax(1), is_open.int().argmax(1)
        return is_eos.any(1) & (~is_open.any(1) | (first_eos < first_open))

    def answers(self) -> list[list[int]]:
        """Return the tokens of each answer, up to its EOS where it has ended there."""
        ended = self.ended(torch.arange(len(self.ids), device=self.ids.device))
        rows = zip(self.ids.tolist(), self.starts.tolist(), self.ends.tolist(), strict=True)
        answers = [ids[start:end][: self._max_length] for ids, start, end in rows]
        return [
            answer[: answer.index(self.eos_token_id) + 1]
            if has_ended and self.eos_token_id in answer
            else answer
            for answer, has_ended in zip(answers, ended.tolist(), strict=True)
        ]
