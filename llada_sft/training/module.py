"""The LightningModule: micro-batches through the engine, one optimizer step, its numbers."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.fabric.loggers.logger import Logger
from torch import Tensor, nn

from llada_sft.config.sections.optim import OptimConfig
from llada_sft.model.adapter_plan import MAGNITUDE
from llada_sft.model.layers.balance import Balance, Routing
from llada_sft.model.layers.head import LossTerms
from llada_sft.model.network import Network
from llada_sft.training.host import Phase
from llada_sft.training.log.efficiency import Efficiency
from llada_sft.training.log.log_interval import Interval
from llada_sft.training.log.metrics_csv import MetricsCsv
from llada_sft.training.log.signals import StepSignals
from llada_sft.training.masks.edits import write_predictions
from llada_sft.training.masks.level_losses import LevelLosses
from llada_sft.training.masks.micro_batch import MicroBatch
from llada_sft.training.noising import StepBatch
from llada_sft.training.nonfinite import poison_gradient
from llada_sft.training.strategy import Zero3Strategy

# In a checkpoint: how many tokens chose each expert in its last step; and the buffers, which
# DeepSpeed does not load on another number of ranks.
_ROUTERS, _BUFFERS = "router_counts", "buffers"


def parameter_groups(network: Network, weight_decay: float) -> list[dict[str, object]]:
    """Decay the parameters that the member of the family says: matrices, not gains and biases.

    Of adapters, A and B decay, and DoRA's magnitudes do not.
    """
    matrices: list[nn.Parameter] = []
    gains: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if network.adapted and not parameter.requires_grad:
            continue
        decays = network.architecture.decays(name) and MAGNITUDE not in name
        (matrices if decays else gains).append(parameter)
    groups: list[dict[str, object]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(config: OptimConfig, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    """Return the AdamW that the config asks for.

    That in 8 bits keeps the moments of fewer than 4,096 elements in fp32.

    Source: Dettmers et al., 8-bit Optimizers via Block-wise Quantization (arXiv 2110.02861).
    """
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.kind == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        optimizer: torch.optim.Optimizer = AdamW8bit(groups, **settings)
        return optimizer
    # Fused: one pass over the states instead of one for each operation; on CPU, too.
    return torch.optim.AdamW(groups, **settings, fused=True)


class DiffusionModule(pl.LightningModule):
    """Fine-tunes a mask predictor; one Lightning batch is one optimizer step.

    Args:
        build_network: Builds the network; called where parameters are partitioned when created.
        optim: The optim section.
        log_every_n_steps: Steps between two reductions of the loss for the logs.
        sources: Names of the mixed sources.
        report_skipped_step: Called on every rank with a step that was skipped, because its loss or
            its gradient is not finite: its number, the rank's micro-batches, the loss of each, and
            whether the step is the last of the training.
        pulse: Called with the phase that this rank enters, and the step.
        efficiency: What MFU is worked out from.
        levels: Collects the losses by noise level, if levels are drawn by them.
        balance: The losses of routers; None if the network has no experts.
        signals: Sums up what the losses say; None: it is not logged.
        never_written: With `objective.edit` by the network itself, the mask token, which is never
            put in the place of another; None: without it.
    """

    def __init__(
        self,
        build_network: Callable[[], Network],
        optim: OptimConfig,
        log_every_n_steps: int,
        sources: Sequence[str] = (),
        report_skipped_step: Callable[
            [int, list[MicroBatch], list[Tensor], bool], None
        ] = lambda *step: None,
        pulse: Callable[[Phase, int], None] = lambda phase, step: None,
        efficiency: Efficiency | None = None,
        levels: LevelLosses | None = None,
        balance: Balance | None = None,
        signals: StepSignals | None = None,
        never_written: int | None = None,
    ) -> None:
        super().__init__()
        self._balance, self._signals = balance, signals
        self._never_written = never_written
        self.automatic_optimization = False
        self._build_network, self._levels = build_network, levels
        self._optim = optim
        self._log_every_n_steps = log_every_n_steps
        self._new_interval = partial(Interval, sources, efficiency)
        self._interval = self._new_interval()
        self._report_skipped_step = report_skipped_step
        self._pulse, self._skipped_steps = pulse, 0
        # The last logged numbers of a step, for the progress bar.
        self.last_metrics: dict[str, float] = {}
        self.network: Network | None = None

    @property
    def _zero3(self) -> Zero3Strategy:
        return cast(Zero3Strategy, self.trainer.strategy)

    def configure_model(self) -> None:
        if self.network is None:
            self.network = self._build_network()
            # Checkpoints of adapters lack the frozen weights, which the model directory has.
            self.strict_loading = not self.network.adapted

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.network is not None
        return build_optimizer(
            self._optim, parameter_groups(self.network, self._optim.weight_decay)
        )

    def forward(self, batch: MicroBatch | dict[str, Any]) -> Tensor:
        """Return this rank's part of the global batch's loss, times the number of ranks.

        Of arguments of the network, `input_ids` among them, it returns the logits.
        """
        assert self.network is not None
        if isinstance(batch, dict):
            logits: Tensor = self.network(**batch).logits
            return logits
        routing = Routing()
        loss: Tensor = self.network(
            batch.noisy_ids,
            attention_mask=batch.attention_mask,
            positions=batch.positions,
            sequences=batch.sequences,
            targets=batch.targets,
            coefficients=batch.terms or batch.coefficients,
            routing=routing,
            blocks=batch.blocks,
        ).loss
        # A validation has the loss of tokens alone.
        if self._balance is None or not torch.is_grad_enabled():
            return loss
        return loss + self._balance.loss(routing, batch.real)

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        step = self.global_step
        assert batch.pace is not None
        rate = batch.pace.rate
        optimizer = cast(torch.optim.Optimizer, self.optimizers())
        for group in optimizer.param_groups:
            group["lr"] = rate
        if self._balance is not None:
            world_size = self.trainer.world_size
            self._balance.begin_step(batch.computed_tokens, world_size, self.device)
        losses = self._accumulate(batch)
        optimizer.step()
        if self._levels is not None:
            self._levels.step_ended(step)
        if self._balance is not None:
            self._balance.end_step(partial(self._zero3.reduce, reduce_op="sum"))
        if not self._zero3.step_applied:
            self._report_skipped_step(step + 1, batch.micro_batches, losses, batch.pace.is_last)
            self._skipped_steps += 1
        self._interval.add(batch.counts)
        if self._signals is not None:
            self._signals.see(batch.positions)
        if (step + 1) % self._log_every_n_steps == 0:
            self._log_step(step + 1, torch.stack(losses).sum(), rate, batch)

    def _accumulate(self, step: StepBatch) -> list[Tensor]:
        """Add up the gradients of a step; return the loss of each micro-batch."""
        losses: list[Tensor] = []
        batches = step.micro_batches
        for batch in batches:
            self._pulse("step", self.global_step)
            if self._never_written is not None:
                write_predictions(batch, self._predict(batch), self._never_written)
            micro_loss = self._zero3.deepspeed_engine(batch)
            losses.append(micro_loss.detach())
            if self._levels is not None:
                self._note_levels(self._levels, batch)
            if self._signals is not None:
                self._signals.add(batch, step.counts.examples / self.trainer.world_size)
            last = batch is batches[-1]
            if last:
                micro_loss = poison_gradient(micro_loss, torch.stack(losses).sum())
            self._zero3.accumulate(micro_loss, last)
        return losses

    def _predict(self, batch: MicroBatch) -> Tensor:
        """Return what the network predicts at the positions of a micro-batch, [M] int64.

        Every rank runs it for each of its micro-batches, of which all have as many.
        """
        terms = batch.terms
        batch.terms = asking = LossTerms(
            batch.coefficients, torch.zeros_like(batch.positions), 1, predicts=True
        )
        with self._zero3.evaluating(), torch.no_grad():
            self._zero3.deepspeed_engine(batch)
        batch.terms = terms
        assert asking.predictions is not None
        return asking.predictions

    def _note_levels(self, levels: LevelLosses, batch: MicroBatch) -> None:
        assert batch.levels is not None and batch.terms is not None
        # The head has just computed them.
        assert batch.terms.losses is not None
        levels.add(batch.levels, batch.terms.losses)

    def _log_step(self, step: int, loss: Tensor, rate: float, batch: StepBatch) -> None:
        # The mean over ranks of (world size × the rank's part) is the global batch's loss.
        mean_of, routers = partial(self._zero3.reduce, reduce_op="mean"), {}
        if self._balance is not None:
            loss = loss - self._balance.added
            routers = self._balance.metrics(mean_of, batch.computed_tokens)
        if self._signals is None:
            signals = {"loss": float(mean_of(loss))}
        else:
            sum_of = partial(self._zero3.reduce, reduce_op="sum")
            signals = self._signals.close(loss, sum_of, self.trainer.world_size)
        self.last_metrics = {
            "epoch": batch.epoch,
            **signals,
            "lr": rate,
            "gradient_norm": self._zero3.gradient_norm,
            "examples": batch.counts.examples,
            "skipped_steps": self._skipped_steps,
            **routers,
            **self._interval.close(self.trainer.world_size),
        }
        self.log_metrics(step, self.last_metrics)
        self._skipped_steps = 0

    def log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Pass the numbers of a step to the loggers."""
        for logger in list(self.loggers):
            try:
                logger.log_metrics(metrics, step)
            except OSError as error:
                self._not_logged(logger, step, error)

    def _not_logged(self, logger: Logger, step: int, error: OSError) -> None:
        """Warn and continue: `train.on_failed_save` decides what a full disk means for the run."""
        reason = error.strerror or str(error)
        print(f"warning: step {step}: {logger.name}: not logged: {reason}", file=sys.stderr)
        # TensorBoard's writer thread has ended: it would fail again, and once more at the end.
        if not isinstance(logger, MetricsCsv):
            self.trainer.loggers = [other for other in self.trainer.loggers if other is not logger]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # A run that has trained all rows may be resumed with more epochs. Lightning would remember
        # that it saw its last batch, and end at once.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        progress["is_last_batch"] = False
        if self._balance is not None:
            checkpoint[_ROUTERS] = self._balance.state()
        assert self.network is not None
        buffers = {name: buffer.cpu() for name, buffer in self.network.named_buffers()}
        if buffers:
            checkpoint[_BUFFERS] = buffers

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._balance is not None and _ROUTERS in checkpoint:
            self._balance.load_state(checkpoint[_ROUTERS])
        assert self.network is not None
        for name, values in checkpoint.get(_BUFFERS, {}).items():
            self.network.get_buffer(name).copy_(values)

    def on_train_start(self) -> None:
        # Building the network and reading the checkpoint do not count in the first interval.
        self._interval = self._new_interval()

    @contextmanager
    def validating(self) -> Iterator[Callable[[], None]]:
        """Evaluate instead of training: without gradients, and in no interval of the log.

        Yields:
            Says that this rank makes progress; to be called before each forward pass.
        """
        pulse = partial(self._pulse, "validation", self.global_step)
        pulse()
        self._interval.pause()
        with self._zero3.evaluating(), torch.no_grad():
            yield pulse
        self._interval.resume()
        self._pulse("step", self.global_step)

    def evaluate(self, batch: MicroBatch | dict[str, Any]) -> Tensor:
        """Run the network as `forward` does; every rank must call this equally often."""
        result: Tensor = self._zero3.deepspeed_engine(batch)
        return result
