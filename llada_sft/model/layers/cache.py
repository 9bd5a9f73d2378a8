"""Keys and values that later forward passes look at without computing them again.

Attention in both directions makes a cache an approximation: keys and values of a position depend on
all tokens, those that were written since included. Whoever keeps one decides when it is refreshed.
Of attention in blocks it is exact, once a block and those before it are finished.

Shapes: B rows, C positions of the cache, L positions of a pass, K key and value heads, D features
of a head.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llada_sft.model.layers.blocks import BlockPlan, Blocks, plan_blocks


class LayerCache:
    """Keys and values of one block, each as the last pass over its position computed it.

    Attributes:
        keys: [B, C, K, D] floating; None before the first pass.
        values: [B, C, K, D] floating; None before the first pass.
    """

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def update(self, k: Tensor, v: Tensor, places: Tensor | None) -> tuple[Tensor, Tensor]:
        """Put those of a pass at their places, and return those of all positions.

        Args:
            k: [B, L, K, D] floating.
            v: [B, L, K, D] floating.
            places: [B, L] int64; None: all positions, in their order.
        """
        if places is None:
            self.keys, self.values = k, v
            return k, v
        assert self.keys is not None and self.values is not None
        rows = torch.arange(len(k), device=k.device)[:, None]
        self.keys[rows, places], self.values[rows, places] = k, v
        return self.keys, self.values

    def grow(self, num_positions: int) -> None:
        """Add positions at the end, of zeros until a pass computes them."""
        assert self.keys is not None and self.values is not None
        added = (0, 0, 0, 0, 0, num_positions)
        self.keys, self.values = F.pad(self.keys, added), F.pad(self.values, added)


@dataclass(frozen=True)
class CachedPlan:
    """How a block attends in one pass.

    Attributes:
        layer: Its keys and values.
        places: [B, L] int64, the positions of the pass; None: all.
        how: [B, 1, 1 or L, C] bool, true where a position is seen; None: all are; or, in a pass
            over all positions, how they attend in blocks.
    """

    layer: LayerCache
    places: Tensor | None
    how: Tensor | BlockPlan | None


class KeyValueCache:
    """Keys and values of all blocks of a network, for the rows of a batch.

    The first pass must be over all positions. A pass over some of them replaces their keys and
    values, and looks at those of all positions. With attention in blocks, rows may grow afterwards.

    Attributes:
        layers: One for each block.
    """

    def __init__(self, num_layers: int) -> None:
        self.layers = [LayerCache() for _ in range(num_layers)]

    @property
    def width(self) -> int:
        """C; after the first pass."""
        keys = self.layers[0].keys
        assert keys is not None
        return keys.shape[1]

    def grow(self, width: int) -> None:
        """Make room for positions up to `width`, after the first pass.

        What is not computed yet must not be looked at: of attention in blocks, a pass over a block
        sees nothing after it.
        """
        if width > self.width:
            added = width - self.width
            for layer in self.layers:
                layer.grow(added)

    def plans(
        self,
        places: Tensor | None,
        real: Tensor | None,
        length: int,
        blocks: Blocks | None = None,
    ) -> list[CachedPlan]:
        """Return how each layer attends in a pass.

        Args:
            places: [B, L] int64; None: all positions.
            real: [B, C] bool, true at real tokens; None: all are.
            length: L.
            blocks: How the positions of the cache attend; None: all see each other.
        """
        how: Tensor | BlockPlan | None
        if blocks is None:
            how = None if real is None else real[:, None, None, :]
        elif places is None:
            how = plan_blocks(blocks, (length,), real)
        else:
            how = self._before(places, blocks, real)
        return [CachedPlan(layer, places, how) for layer in self.layers]

    def _before(self, places: Tensor, blocks: Blocks, real: Tensor | None) -> Tensor:
        """Return which positions those of a pass see: [B, 1, L, C] bool."""
        block = torch.arange(self.width, device=places.device) // blocks.length  # [C]
        seen = block <= (places // blocks.length)[..., None]  # [B, L, C]
        return (seen if real is None else seen & real[:, None])[:, None]

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows.

        Args:
            rows: [R] int64, indices of rows.
        """
        for layer in self.layers:
            assert layer.keys is not None and layer.values is not None
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
