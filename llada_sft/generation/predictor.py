"""Forward passes over rows of a canvas, counted for each of them.

Shapes: B rows of the canvas, R rows of a pass (several may be states of one row of the canvas),
L positions, Q positions that a pass computes, M wanted positions, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llada_sft.diffusion.generate import guided, without
from llada_sft.generation.canvas import Canvas
from llada_sft.model.layers.blocks import Blocks
from llada_sft.model.layers.cache import KeyValueCache
from llada_sft.model.network import Network

# Takes arguments of `Network.forward`, returns its logits.
Forward = Callable[[dict[str, Any]], Tensor]


class Predictor:
    """The network, and guidance if there is any, as a function from rows to logits.

    Args:
        model: In evaluation mode.
        canvas: Whose rows are predicted.
        cfg_scale: Strength of classifier-free guidance; 0 is none.
        before_pass: Called before each pass.
        blocks: How the network attends; None: each position sees all of its row.
        never: Tokens whose logits are -inf.
        forward: What computes; None: the model.

    Attributes:
        num_passes: [B] int64, passes in which each row took part.
        num_rows: [B] int64, rows that were computed for each row.
    """

    def __init__(
        self,
        model: Network,
        canvas: Canvas,
        cfg_scale: float,
        before_pass: Callable[[], None] = lambda: None,
        blocks: Blocks | None = None,
        never: Sequence[int] = (),
        forward: Forward | None = None,
    ) -> None:
        self._model, self._canvas, self._cfg_scale = model, canvas, cfg_scale
        self._before_pass, self._blocks, self._never = before_pass, blocks, never
        self._forward = self._model_logits if forward is None else forward
        self.num_passes = torch.zeros_like(canvas.starts)
        self.num_rows = torch.zeros_like(canvas.starts)

    @property
    def lead(self) -> int:
        """Positions before a token that must be computed with it."""
        return int(self._model.architecture.shifted)

    def logits(
        self,
        ids: Tensor,
        rows: Tensor,
        wanted: Tensor,
        cache: KeyValueCache | None = None,
        places: Tensor | None = None,
        width: int | None = None,
    ) -> Tensor:
        """Return logits at wanted positions, row after row, [M, V] floating.

        Args:
            ids: [R, L] int64.
            rows: [R] int64, the row of the canvas that each of `ids` is a state of.
            wanted: [R, L] bool.
            cache: It is filled by a pass over whole rows, and used where there are `places`.
            places: [R, Q] int64, the positions to compute, where all wanted ones are; None: all.
            width: Of a network that attends in blocks: the positions that a pass over whole rows
                computes, which end with a block. None: all.
        """
        self._before_pass()
        self._count(rows)
        if places is not None and cache is not None:
            width = cache.width
        elif width is None:
            width = self._canvas.width(rows)
        # In blocks, nothing that is looked at sees the padding after it.
        real = None if self._blocks else self._canvas.real(rows, width)
        is_prompt = self._canvas.is_prompt[rows]
        if places is None:
            ids, wanted, is_prompt = ids[:, :width], wanted[:, :width], is_prompt[:, :width]
        else:
            ids, wanted = ids.gather(1, places), wanted.gather(1, places)
            is_prompt = is_prompt.gather(1, places)

        def predict(ids: Tensor, indices: Tensor) -> Tensor:
            times = len(ids) // len(rows)
            return self._forward(
                {
                    "input_ids": ids,
                    "attention_mask": None if real is None else real.repeat(times, 1),
                    "positions": indices,
                    "cache": cache,
                    "places": None if places is None else places.repeat(times, 1),
                    "blocks": self._blocks,
                }
            )

        predict_guided = guided(predict, is_prompt, self._cfg_scale, self._canvas.mask_token_id)
        return without(predict_guided(ids, wanted.flatten().nonzero()[:, 0]), self._never)

    def new_cache(self) -> KeyValueCache:
        """Return an empty cache for the passes over some rows."""
        return KeyValueCache(self._model.architecture.num_layers)

    def keep(self, cache: KeyValueCache, kept: Tensor) -> None:
        """Drop rows of a cache; with guidance, each row has two there.

        Args:
            cache: Of a pass over R rows.
            kept: [R] bool.
        """
        cache.keep((kept if self._cfg_scale == 0 else kept.repeat(2)).nonzero()[:, 0])

    def _model_logits(self, arguments: dict[str, Any]) -> Tensor:
        arguments = dict(arguments)
        logits: Tensor = self._model(arguments.pop("input_ids"), **arguments).logits
        return logits

    def _count(self, rows: Tensor) -> None:
        times = 2 if self._cfg_scale else 1
        self.num_rows.index_add_(0, rows, torch.full_like(rows, times))
        self.num_passes[rows] += 1
