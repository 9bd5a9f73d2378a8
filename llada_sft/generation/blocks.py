"""Decoding block by block, with any rule of selection and any cache.

All rows are in the same block. A row leaves the passes of a block when it has no mask left there,
and the batch when it has its EOS.

Caches: each block starts with a pass over whole rows, which also writes tokens. Later passes
compute from the start of the block to the end of the canvas (prefix), or the block alone (dual),
and take the keys and values of all other positions from that first pass. Where a network predicts
the next token (`Architecture.shifted`), they compute the position before the block as well.

Source: Fast-dLLM (arXiv 2505.22618), algorithm 1, and its released generate.py.

Shapes: R rows of a pass, L positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llada_sft.diffusion.generate import num_transfer_tokens
from llada_sft.generation.candidates import Candidates
from llada_sft.generation.canvas import Canvas
from llada_sft.generation.growth import grow_canvas
from llada_sft.generation.predictor import Predictor
from llada_sft.generation.selection import select
from llada_sft.generation.settings import SamplerSettings
from llada_sft.model.layers.cache import KeyValueCache


@dataclass(frozen=True)
class Decoding:
    """What decodes a batch.

    Attributes:
        predictor: The network.
        canvas: The rows.
        candidates: Chooses and scores tokens.
        settings: Of the sampler.
    """

    predictor: Predictor
    canvas: Canvas
    candidates: Candidates
    settings: SamplerSettings


@torch.no_grad()
def fill_blocks(decoding: Decoding) -> None:
    """Decode all answers of the canvas, in place."""
    canvas, settings = decoding.canvas, decoding.settings
    rows = torch.arange(len(canvas.ids), device=canvas.ids.device)
    for block in range(settings.num_blocks):
        rows = rows[~canvas.ended(rows)]
        if len(rows) == 0:
            return
        grow_canvas(decoding.predictor, canvas, rows, block, settings)
        _fill_block(decoding, rows, block)


def _fill_block(decoding: Decoding, rows: Tensor, block: int) -> None:
    canvas, settings = decoding.canvas, decoding.settings
    is_open = canvas.open_in_block(rows, block)
    shares = num_transfer_tokens(is_open.sum(1), settings.steps_per_block)  # [R, steps]
    cache, step = None, 0
    while len(rows) and not (settings.traits.cache == "dual" and step == settings.steps_per_block):
        if step == 0 and settings.traits.cache != "none":
            cache = decoding.predictor.new_cache()
        share = shares[:, step] if step < shares.shape[1] else torch.zeros_like(rows)
        _step(decoding, rows, block, share, cache, is_first=step == 0)
        is_open = canvas.open_in_block(rows, block)
        kept = is_open.any(1) & ~canvas.ended(rows)
        if cache is not None and not bool(kept.all()):
            decoding.predictor.keep(cache, kept)
        rows, shares, step = rows[kept], shares[kept], step + 1


def _step(
    decoding: Decoding,
    rows: Tensor,
    block: int,
    share: Tensor,
    cache: KeyValueCache | None,
    is_first: bool,
) -> None:
    """Make a pass, and write what the rule takes."""
    canvas, settings = decoding.canvas, decoding.settings
    ids, places = canvas.ids[rows], None
    if is_first or cache is None:
        eligible = canvas.open_until(ids, rows, block)
    else:
        places = _computed_places(decoding, rows, block, cache.width)
        eligible = canvas.open_in_block(rows, block)
    logits = decoding.predictor.logits(ids, rows, eligible, cache, places)
    tokens, scores = decoding.candidates.choose(logits, eligible, rows)
    taken = select(settings.choice, scores, eligible.sum(1), share)
    canvas.ids[rows] = torch.where(taken, tokens, ids)


def _computed_places(decoding: Decoding, rows: Tensor, block: int, width: int) -> Tensor:
    """Return the positions that a pass after the first one of a block computes, [R, Q] int64."""
    canvas = decoding.canvas
    firsts, length = canvas.block_starts(rows, block), canvas.block_length
    if decoding.settings.traits.cache == "prefix":
        length = int((canvas.ends[rows] - firsts).max())
    lead = decoding.predictor.lead
    places = torch.arange(min(length + lead, width), device=rows.device)
    return (firsts - lead).clamp(min=0)[:, None] + places
