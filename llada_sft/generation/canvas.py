"""The prompts of a batch with the masked and the written tokens of their answers.

Rows are padded on the right: each token has the position that it has alone, and padding is neither
looked at nor uncovered.

Shapes: B prompts, L positions of the longest row, R rows of a forward pass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Canvas:
    """A row for each prompt: its prompt, its answer, and padding.

    Args:
        prompts: Token ids; their lengths may differ, and be 0.
        length: Tokens of each answer at first.
        max_length: Tokens that it may grow to.
        mask_token_id: From the model's config.
        pad_token_id: Any token but the mask token.
        device: The model's.

    Attributes:
        ids: [B, L] int64.
        starts: [B] int64, where each answer starts.
        ends: [B] int64, where each row ends.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        length: int,
        max_length: int,
        mask_token_id: int,
        pad_token_id: int,
        device: torch.device,
    ) -> None:
        self.mask_token_id = mask_token_id
        longest = max(map(len, prompts)) + max_length
        answer = [mask_token_id] * length
        rows = [[*prompt, *answer] for prompt in prompts]
        padded = [row + [pad_token_id] * (longest - len(row)) for row in rows]
        self.ids = torch.tensor(padded, dtype=torch.int64, device=device)
        self.starts = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.ends = self.starts + length
        self.places = torch.arange(longest, device=device)
        # What guidance masks: a mask token in a prompt is filled in, and is not part of it.
        self.is_prompt = (self.places < self.starts[:, None]) & (self.ids != mask_token_id)

    def real(self) -> Tensor | None:
        """Return [B, L] bool, true but at padding; None where there is none."""
        real = self.places < self.ends[:, None]
        return None if bool(real.all()) else real

    def answers(self) -> list[list[int]]:
        """Return the tokens of each answer."""
        rows = zip(self.ids.tolist(), self.starts.tolist(), self.ends.tolist(), strict=True)
        return [ids[start:end] for ids, start, end in rows]
