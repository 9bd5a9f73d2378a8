"""The samplers of LLaDA2.0 and LLaDA2.1, for networks that attend in blocks.

Blocks are counted from the start of the prompt: the first one that is decoded has the end of the
prompt in it. A position sees its own block and those before it, so keys and values of a finished
block are final: they are kept, and a pass computes one block alone. Only the first pass over a
block computes the block before it as well, whose last tokens were written after its last pass.

Each row of a batch is in a block of its own.

Source: the released generate() of LLaDA2.0 (arXiv 2512.15745) and of LLaDA2.1, at temperature 0,
whose tokens these are. Two things differ there: its mask token may be written, and an EOS in the
prompt can make the answer empty.

Shapes: B rows of the canvas, R rows of a pass, L positions.
"""

import torch
from torch import Tensor

from llada_sft.generation.blocks import Decoding
from llada_sft.generation.selection import select
from llada_sft.model.layers.cache import KeyValueCache

_EDITING_THRESHOLD, _MAX_POST_STEPS = 0.9, 16


class BlockCausalDecoder:
    """Decodes all answers of a canvas.

    Args:
        decoding: Its predictor must attend in blocks of the canvas's length, and its rows end with
            a block.
    """

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self._canvas, self._settings = decoding.canvas, decoding.settings
        self._length = self._canvas.block_length
        self._edits = self._settings.sampler == "llada21"
        # Of each row, [B] int64: its block, the passes that were made over it, and those that
        # found no mask token in it.
        self._blocks = self._canvas.starts // self._length
        self._num_steps = torch.zeros_like(self._blocks)
        self._num_posts = torch.zeros_like(self._blocks)

    @torch.no_grad()
    def fill(self) -> None:
        """Decode all answers in place."""
        predictor = self._decoding.predictor
        cache = None if self._settings.cache_blocks is False else predictor.new_cache()
        rows, is_first = torch.arange(len(self._blocks), device=self._blocks.device), True
        while len(rows):
            kept = self._pass(rows, cache, is_first)
            if cache is not None and not bool(kept.all()):
                predictor.keep(cache, kept)
            rows, is_first = rows[kept], False

    def _pass(self, rows: Tensor, cache: KeyValueCache | None, is_first: bool) -> Tensor:
        """Make a pass over the blocks of rows, and return which rows need more, [R] bool."""
        canvas = self._canvas
        ids, in_block = canvas.ids[rows], self._in_block(rows)
        is_open = in_block & (ids == canvas.mask_token_id)
        is_answer = canvas.places >= canvas.starts[rows, None]
        asked = is_open | (in_block & is_answer) if self._edits else is_open
        logits = self._logits(ids, rows, asked, cache, is_first)
        tokens, scores = self._decoding.candidates.choose(logits, asked, rows)
        written = self._written(scores.masked_fill(~is_open, -torch.inf), is_open, rows)
        edited = self._edited(tokens, scores, ids, asked & ~is_open)
        canvas.ids[rows] = torch.where(written | edited, tokens, ids)
        self._num_steps[rows] += 1
        done = self._finish(rows, is_open.any(1), edited.any(1))
        wrote_end = (written & (tokens == canvas.eos_token_id)).any(1)
        return ~self._ended(rows, wrote_end, done) & ~self._move_on(rows, done)

    def _logits(
        self,
        ids: Tensor,
        rows: Tensor,
        asked: Tensor,
        cache: KeyValueCache | None,
        is_first: bool,
    ) -> Tensor:
        """Compute whole rows up to the ends of their blocks, or what the cache does not have."""
        predictor = self._decoding.predictor
        width = int(self._blocks[rows].max() + 1) * self._length
        if cache is None or is_first:
            return predictor.logits(ids, rows, asked, cache, width=width)
        lead = self._length if bool((self._num_steps[rows] == 0).any()) else predictor.lead
        number = min(self._length + lead, width)
        cache.grow(width)
        firsts = (self._blocks[rows] * self._length - lead).clamp(min=0)
        places = firsts[:, None] + torch.arange(number, device=rows.device)
        return predictor.logits(ids, rows, asked, cache, places)

    def _in_block(self, rows: Tensor) -> Tensor:
        """Return [R, L] bool, true at the blocks that rows are in."""
        firsts = self._blocks[rows] * self._length
        return self._canvas.within(firsts, firsts + self._length)

    def _written(self, scores: Tensor, is_open: Tensor, rows: Tensor) -> Tensor:
        """Return which mask tokens are replaced, [R, L] bool."""
        if self._edits:
            share = torch.full_like(rows, self._settings.num_to_transfer or 1)
        else:
            # A whole block's, also where the prompt fills a part of it.
            number, rest = divmod(self._length, self._settings.steps_per_block)
            share = number + (self._num_steps[rows] < rest).long()
        return select(self._settings.choice, scores, is_open.sum(1), share)

    def _edited(self, tokens: Tensor, scores: Tensor, ids: Tensor, asked: Tensor) -> Tensor:
        """Return which written tokens are replaced, [R, L] bool."""
        threshold = self._settings.editing_threshold
        threshold = _EDITING_THRESHOLD if threshold is None else threshold
        return asked & (tokens != ids) & (scores > threshold)

    def _finish(self, rows: Tensor, was_open: Tensor, edited: Tensor) -> Tensor:
        """Return which rows need no more passes over their blocks, [R] bool."""
        is_open = self._in_block(rows) & (self._canvas.ids[rows] == self._canvas.mask_token_id)
        is_full = ~is_open.any(1)
        if not self._edits:
            return is_full | (self._num_steps[rows] == self._settings.steps_per_block)
        posts = self._settings.max_post_steps
        self._num_posts[rows] += is_full.long()
        is_late = self._num_posts[rows] > (_MAX_POST_STEPS if posts is None else posts)
        return (is_full & is_late) | ~(was_open | edited)

    def _ended(self, rows: Tensor, wrote_end: Tensor, done: Tensor) -> Tensor:
        """Return which answers have come to their end, [R] bool."""
        has_end, stops = self._canvas.ended(rows), self._settings.stops_early
        if self._edits:
            return has_end & done & stops
        if self._settings.eos_in_prompt_ends and stops:
            is_prompt = self._canvas.places < self._canvas.starts[rows, None]
            is_end = self._canvas.ids[rows] == self._canvas.eos_token_id
            is_void = wrote_end & (is_prompt & is_end).any(1)
            self._canvas.ends[rows[is_void]] = self._canvas.starts[rows[is_void]]
            return is_void | (has_end & (wrote_end | done))
        return has_end & (done | (wrote_end & stops))

    def _move_on(self, rows: Tensor, done: Tensor) -> Tensor:
        """Let rows go to their next block; return which have none, [R] bool."""
        moved = rows[done]
        self._blocks[moved] += 1
        self._num_steps[moved] = self._num_posts[moved] = 0
        return self._blocks[rows] * self._length == self._canvas.ends[rows]
