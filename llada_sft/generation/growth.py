"""A canvas that starts short, and grows while the answer does not end in it.

A model that was trained with answers padded by EOS sees from the canvas how long its answer may
be, and one that is too long costs passes over positions that nobody needs. Before the last block of
a row is decoded, one pass asks whether EOS is probable there; if it is not, a block is added.
"""

from torch import Tensor

from llada_sft.generation.canvas import Canvas
from llada_sft.generation.predictor import Predictor
from llada_sft.generation.settings import SamplerSettings


def grow_canvas(
    predictor: Predictor, canvas: Canvas, rows: Tensor, block: int, settings: SamplerSettings
) -> None:
    """Add a block to the rows that need one, up to `gen_length` tokens.

    Args:
        predictor: The network.
        canvas: Grown in place.
        rows: [R] int64, whose next block is decoded.
        block: The next block.
        settings: Of the sampler.
    """
    # What was decoded has no EOS.
    canvas.grow(rows[canvas.ends[rows] == canvas.block_starts(rows, block)])
    is_last = canvas.ends[rows] == canvas.block_starts(rows, block + 1)
    asked = rows[is_last & (canvas.ends - canvas.starts < settings.gen_length)[rows]]
    if len(asked):
        canvas.grow(asked[~_will_end(predictor, canvas, asked, block, settings)])


def _will_end(
    predictor: Predictor, canvas: Canvas, rows: Tensor, block: int, settings: SamplerSettings
) -> Tensor:
    """Return whether EOS is probable somewhere in the last block of rows, [R] bool."""
    wanted = canvas.open_in_block(rows, block)
    logits = predictor.logits(canvas.ids[rows], rows, wanted)  # [M, V]
    is_probable = wanted.clone()
    probabilities = logits.double().softmax(dim=-1)[:, canvas.eos_token_id]
    is_probable[wanted] = probabilities >= settings.growth_threshold
    return is_probable.any(1)
