"""Takes the job's signals back from Lightning, which installs handlers of its own in `fit`.

Lightning's SIGTERM handler runs a collective inside the signal handler: if only one rank receives
the signal, that rank waits there forever. It is installed *after* `on_fit_start`.
"""

from collections.abc import Callable

import lightning.pytorch as pl


class OwnSignals(pl.Callback):
    """Calls `claim_signals` after Lightning has installed its handlers, and prints its answer."""

    def __init__(self, claim_signals: Callable[[], str]) -> None:
        self._claim_signals = claim_signals

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        owners = self._claim_signals()
        if owners and trainer.is_global_zero:
            print(owners, flush=True)
