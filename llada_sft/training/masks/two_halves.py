"""`objective.kind: block`: a micro-batch as [noisy ; clean], which the network runs on at once.

A noisy block sees itself and the clean blocks before it. So one pass has the loss of all blocks of
an example, each with its own noise. What is learned is in the noisy half; the clean half, prompt
included, is there to be seen.

Source: Arriola et al., Block Diffusion (arXiv 2503.09573), section 3.1.

Shapes: B rows, L positions of one half, M masked positions.
"""

import torch

from llada_sft.data.steps.collate import UnmaskedBatch
from llada_sft.model.layers.blocks import Blocks
from llada_sft.training.masks.micro_batch import MicroBatch


def in_two_halves(made: MicroBatch, batch: UnmaskedBatch, block_length: int) -> MicroBatch:
    """Put the clean tokens of a micro-batch next to its noisy ones.

    Args:
        made: Of `noisy_ids` [B, L]; it is changed to [B, 2 L].
        batch: What it was made of.
        block_length: Tokens of a block.

    Returns:
        `made`.
    """
    rows, width = made.noisy_ids.shape
    clean = torch.from_numpy(batch.input_ids)
    made.noisy_ids = torch.cat([made.noisy_ids, clean], dim=1)
    made.positions = made.positions + made.positions // width * width
    if made.real is not None:
        made.real = made.real.view(rows, 1, width).expand(-1, 2, -1).flatten()
    made.blocks = Blocks(block_length, doubled=True)
    return made
