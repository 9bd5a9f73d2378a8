"""Keeps the job's signals out of Lightning's hands, which installs handlers of its own in `fit`.

Lightning's SIGTERM handler runs a collective inside the signal handler: if only one rank receives
the signal, that rank waits there forever. It also sets a flag that ends the training before its
next batch, without a checkpoint. It would be installed *after* `on_fit_start`.
"""

from collections.abc import Callable

import lightning.pytorch as pl


class OwnSignals(pl.Callback):
    """Keeps Lightning from installing handlers, calls `claim_signals`, and prints its answer."""

    def __init__(self, claim_signals: Callable[[], str]) -> None:
        self._claim_signals = claim_signals

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A SIGTERM while the first rows are read would otherwise be Lightning's.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        owners = self._claim_signals()
        if owners and trainer.is_global_zero:
            print(owners, flush=True)
