"""Lets a rank leave when the training raises, before Lightning cleans up after it.

That cleanup moves the network off the GPU and waits for collectives that no other rank joins.
"""

from collections.abc import Callable

import lightning.pytorch as pl

from llada_sft.errors import LladaSftError


class LeaveOnException(pl.Callback):
    """Calls `leave` with an unexpected exception; after a user's mistake all ranks end together."""

    def __init__(self, leave: Callable[[Exception, int], None]) -> None:
        self._leave = leave

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, Exception) and not isinstance(exception, LladaSftError):
            self._leave(exception, trainer.global_step)
