"""Lightning puts a handler of its own on TERM in `fit`; ours must be back before the first step."""

import os
import signal
from types import FrameType

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from llada_sft.cluster.rank.signals import StopRequest
from llada_sft.errors import LaunchError
from llada_sft.training.callbacks.signals import OwnSignals


def ours(number: int, frame: FrameType | None) -> None:
    raise AssertionError("no signal is sent here")


class Watching(pl.LightningModule):
    """Notes who handles TERM in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.handlers: list[object] = []
        self.signal_at_start = False

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        if self.signal_at_start:
            # Between `on_fit_start` and the first step: here the first rows are read.
            os.kill(os.getpid(), signal.SIGTERM)
        return DataLoader(torch.ones(2, 1))

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        self.handlers.append(signal.getsignal(signal.SIGTERM))
        return (self.weight * batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def handlers_of_two_steps(
    callbacks: list[pl.Callback], signal_at_start: bool = False
) -> list[object]:
    module = Watching()
    module.signal_at_start = signal_at_start
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
    trainer.fit(module)
    return module.handlers


@pytest.mark.filterwarnings("ignore")
def test_term_is_ours_in_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    stop = StopRequest()
    before = signal.signal(signal.SIGTERM, ours)
    try:
        # Without us it is Lightning's: when this changes, the callback can go.
        (module,) = {type(handler).__module__ for handler in handlers_of_two_steps([])}
        assert module.startswith("lightning.")
        signal.signal(signal.SIGTERM, stop._note)
        handlers = handlers_of_two_steps([OwnSignals(stop.claim)])
        assert [getattr(handler, "__self__", None) for handler in handlers] == [stop, stop]
        assert capsys.readouterr().out == (
            "signals: SIGUSR1 default, SIGUSR2 default, SIGTERM llada_sft.cluster.rank.signals\n"
        )
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.filterwarnings("ignore")
def test_term_before_the_first_step_is_a_request_to_stop_and_nothing_else() -> None:
    """With Lightning's handler it would end the training there, without a checkpoint."""
    stop = StopRequest()
    before = signal.signal(signal.SIGTERM, stop._note)
    try:
        handlers = handlers_of_two_steps([OwnSignals(stop.claim)], signal_at_start=True)
        assert [getattr(handler, "__self__", None) for handler in handlers] == [stop, stop]
        assert stop.names() == ["SIGTERM"]
        with pytest.raises(SystemExit):
            handlers_of_two_steps([], signal_at_start=True)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.filterwarnings("ignore")
def test_another_librarys_handler_ends_the_run_before_its_first_step() -> None:
    before = signal.signal(signal.SIGUSR2, ours)
    try:
        with pytest.raises(LaunchError, match=f"SIGUSR2: handled by {__name__}, and the job"):
            handlers_of_two_steps([OwnSignals(StopRequest().claim)])
    finally:
        signal.signal(signal.SIGUSR2, before)
