"""Lightning puts a handler of its own on TERM in `fit`; ours must be back before the first step."""

import signal
from types import FrameType

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from llada_sft.training.callbacks.signals import OwnSignals


def ours(number: int, frame: FrameType | None) -> None:
    raise AssertionError("no signal is sent here")


class Watching(pl.LightningModule):
    """Notes who handles TERM in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.handlers: list[object] = []

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        self.handlers.append(signal.getsignal(signal.SIGTERM))
        return (self.weight * batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def handlers_of_two_steps(callbacks: list[pl.Callback]) -> list[object]:
    module = Watching()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(module, DataLoader(torch.ones(2, 1)))
    return module.handlers


@pytest.mark.filterwarnings("ignore")
def test_term_is_ours_in_every_step() -> None:
    before = signal.signal(signal.SIGTERM, ours)
    try:
        claim = OwnSignals(lambda: signal.signal(signal.SIGTERM, ours) and None)
        assert handlers_of_two_steps([claim]) == [ours, ours]
        # Without us it is Lightning's: when this changes, the callback can go.
        assert ours not in handlers_of_two_steps([])
    finally:
        signal.signal(signal.SIGTERM, before)
