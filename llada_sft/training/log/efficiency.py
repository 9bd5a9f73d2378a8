"""How well a training uses its machines: model FLOP/s utilization (MFU) and peak memory."""

import resource
from dataclasses import dataclass

import torch

from llada_sft.model.families.architecture import Architecture
from llada_sft.model.flops import needed_operations, peak_rate
from llada_sft.training.consensus import Report


@dataclass(frozen=True)
class Efficiency:
    """What MFU is worked out from.

    Attributes:
        network: Its sizes.
        peak: Operations per second of a rank's device; None if they are not known: then there is
            no MFU.
        draws: Masks of each example that the network runs on.
        block_length: Tokens of a block, if the network runs on noisy and clean ones; else 0.
        adapters: Parameters of the adapters that are trained; None: all of the network's are.
    """

    network: Architecture
    peak: float | None
    draws: int = 1
    block_length: int = 0
    adapters: int | None = None

    @staticmethod
    def of(
        network: Architecture,
        device: torch.device,
        precision: str,
        draws: int = 1,
        block_length: int = 0,
        adapters: int | None = None,
    ) -> "Efficiency":
        """Look the device up: a known GPU that trains in bf16."""
        known = device.type == "cuda" and precision == "bf16"
        peak = peak_rate(torch.cuda.get_device_name(device)) if known else None
        return Efficiency(network, peak, draws, block_length, adapters)

    def needed(self, counts: Report) -> float:
        """Return the operations that a step needs, on all ranks.

        Half of the response tokens count as masked, which is what the noise masks on average.
        """
        masked = self.draws * counts.response_tokens / 2
        # Of L tokens in blocks of B, L (L + B) pairs of 2 L positions see each other.
        squares = counts.squares + self.block_length * counts.tokens
        halves = 2 if self.block_length else 1
        sizes = counts.tokens, squares, masked
        return needed_operations(self.network, *sizes, self.adapters, halves)


def peak_memory() -> tuple[int, int]:
    """Return the bytes that this process had at most: of tensors on its GPU, and resident.

    The first is 0 without a GPU.
    """
    # Asking would start CUDA in a training on CPU.
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpu = torch.cuda.max_memory_allocated() if started else 0
    # Linux counts in KiB.
    return gpu, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
