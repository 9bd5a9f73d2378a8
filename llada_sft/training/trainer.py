"""Config -> ranks -> data -> Trainer -> fit: the whole of a run on one rank, in order.

The process group comes first: the ranks agree on the length of the training and on the step from
which it resumes before anything is built. The network is then built inside Lightning's `fit`, where
its parameters are partitioned from the start.
"""

from datetime import timedelta
from typing import Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger

from llada_sft.config.arithmetic import no_rows_left, nothing_to_do, stopped_early
from llada_sft.config.schema import Config
from llada_sft.data.examples.hook import examples_key
from llada_sft.data.steps.dataset import StepDataset
from llada_sft.data.steps.prefetch import step_loader
from llada_sft.errors import DataError
from llada_sft.model.kernels.choice import choose_kernels
from llada_sft.model.kernels.use import import_kernels
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.training.begin import TrainingJob, begin_training
from llada_sft.training.build_data import build_dataset, build_noise, never_written
from llada_sft.training.build_network import (
    build_network,
    checkpointing_line,
    checkpointing_of,
    compiles,
    token_ids,
)
from llada_sft.training.callbacks.adapters_learn import AdaptersLearn
from llada_sft.training.callbacks.checkpoint_saver import CheckpointSaver
from llada_sft.training.callbacks.leave_on_exception import LeaveOnException
from llada_sft.training.callbacks.profile import Profile
from llada_sft.training.callbacks.progress import Progress
from llada_sft.training.callbacks.row_summary import RowSummary
from llada_sft.training.callbacks.signals import OwnSignals
from llada_sft.training.callbacks.start_times import StartTimes
from llada_sft.training.callbacks.stragglers import Stragglers
from llada_sft.training.checkpoint.half_done import restart_half_done_rows
from llada_sft.training.checkpoint.resume import Resume, find_resume
from llada_sft.training.feed import StepFeed
from llada_sft.training.host import Host
from llada_sft.training.log.efficiency import Efficiency
from llada_sft.training.log.log_interval import share_of
from llada_sft.training.log.loggers import build_loggers
from llada_sft.training.log.signals import StepSignals, signal_columns
from llada_sft.training.log.step_journal import StepJournal
from llada_sft.training.masks.level_losses import LevelLosses
from llada_sft.training.module import DiffusionModule
from llada_sft.training.nodes.own_time import OwnTime
from llada_sft.training.nonfinite import NonFiniteSteps
from llada_sft.training.ranks import optimizer_threads
from llada_sft.training.schedule.build import build_schedule
from llada_sft.training.schedule.plan import Schedule
from llada_sft.training.strategy import Zero3Strategy, deepspeed_config
from llada_sft.training.validation.best import BestSoFar
from llada_sft.training.validation.build import build_validation
from llada_sft.training.validation.results import column_names

Outcome = Literal["finished", "stopped"]


def train(config: Config, run: RunDir, placement: Placement, host: Host) -> Outcome:
    """Train on this rank, from the newest complete checkpoint if there is one.

    Args:
        config: The whole config.
        run: The run directory; all ranks share it.
        placement: This rank.
        host: What the job around the training provides.

    Returns:
        `finished`, or `stopped` if the ranks were signalled to stop and saved.

    Raises:
        LladaSftError: A user's mistake, in one line per problem.
    """
    start = StartTimes(config.log.level == "debug", host.phase)
    start.mark("Python and imports")
    job = begin_training(config, run, placement, host, start)
    resume = _find_resume(job)
    start.mark("checkpoint found and verified")
    journal = StepJournal(host, job.consensus, placement.rank)
    if resume.stopped:
        journal.stop_agreed(resume.step)
        return "stopped"
    best = BestSoFar(config.train.keep_best, config.train.early_stop, resume.validation)
    if _has_ended(job, resume, best):
        return "finished"
    dataset = _find_rows(job, resume)
    schedule = build_schedule(config, dataset, resume, placement, job.consensus)
    host.pulse("start", resume.step)
    start.mark("data and schedule")
    parts = _Parts(job, resume, dataset, schedule, best, journal)
    trainer = parts.trainer(start)
    host.phase("network", None)
    trainer.fit(parts.module, train_dataloaders=parts.feed, ckpt_path=resume.checkpoint)
    host.pulse("end", trainer.global_step)
    ended = outcome(parts.saver.stopped, trainer.global_step)
    if best.stop_reason and ended == "finished":
        job.say(f"step {trainer.global_step}: early stop: {best.stop_reason}")
        job.note_early_stop(best.stop_reason)
    elif ended == "finished" and trainer.global_step == resume.step:
        job.say(no_rows_left(resume.step))
    return ended


class _Parts:
    """What the training consists of on this rank; each part knows those built before it.

    Attributes:
        feed: The steps.
        module: What computes a step.
        saver: Writes the checkpoints.
    """

    def __init__(
        self,
        job: TrainingJob,
        resume: Resume,
        dataset: StepDataset,
        schedule: Schedule,
        best: BestSoFar,
        journal: StepJournal,
    ) -> None:
        self._job, self._resume, self._dataset = job, resume, dataset
        rank = job.placement.rank
        self._row_summary = RowSummary(job.consensus, rank, resume.step)
        self._own_time = OwnTime()
        self._levels = None
        if job.config.objective.t_density == "importance":
            self._levels = LevelLosses(resume.step, resume.levels, rank)
        self.feed = self._build_feed(schedule)
        train = job.config.train
        self._nonfinite = NonFiniteSteps(
            train.on_nonfinite,
            job.consensus,
            rank,
            note=job.host.note,
            max_skipped=train.max_skipped_steps,
            skipped=resume.skipped,
        )
        self.saver = self._build_saver(best, journal)
        self.module = _build_module(job, dataset, self._nonfinite, self._levels)
        self._validation = build_validation(
            job.config,
            job.network,
            job.placement,
            job.consensus,
            run=job.run,
            host=job.host,
            first_step=resume.step,
            best=best,
            stop_agreed=lambda: self.feed.stop_agreed,
        )

    def trainer(self, start: StartTimes) -> pl.Trainer:
        """Return Lightning's trainer, with the log and the callbacks in their order."""
        job = self._job
        config, host = job.config, job.host
        return build_trainer(
            config,
            job.placement,
            job.device,
            loggers=self._loggers(),
            callbacks=[
                LeaveOnException(host.failed),
                OwnSignals(host.claim_signals),
                # Before the saver: what does not learn is not saved.
                AdaptersLearn(job.adapters is not None, job.consensus),
                # And a checkpoint knows of the validation of its step.
                *self._validation,
                self.saver,
                Progress(config.log.every_n_steps),
                self._row_summary,
                start,
                Stragglers(self._own_time, job.nodes, job.warn),
                Profile(config.train.profile, job.run.profile, host.require_owner),
            ],
            load_universal=self._resume.universal,
        )

    def _build_feed(self, schedule: Schedule) -> StepFeed:
        job = self._job
        return StepFeed(
            step_loader(self._dataset, job.config.data.prefetch_steps),
            build_noise(job.config, job.network, job.placement, self._levels),
            job.consensus,
            stop_requested=job.host.stop_requested,
            first_step=self._resume.step,
            num_sources=len(self._dataset.mixed_sources),
            epoch_ended=self._row_summary.epoch_ended,
            pulse=job.host.pulse,
            schedule=schedule,
            max_steps=job.config.train.max_steps,
            writes_ended=lambda: self.saver.writes_ended,
            own_us=lambda: self._own_time.last_us,
        )

    def _build_saver(self, best: BestSoFar, journal: StepJournal) -> CheckpointSaver:
        job = self._job
        return CheckpointSaver(
            job.run,
            job.config.train,
            job.consensus,
            feed=self.feed,
            fingerprints=self._dataset.fingerprints(),
            journal=journal,
            pulse=job.host.pulse,
            examples_key=examples_key(job.config.data),
            skipped=lambda: self._nonfinite.skipped,
            require_owner=job.host.require_owner,
            levels=self._levels,
            adapters=job.adapters_record,
            best=best,
        )

    def _loggers(self) -> list[Logger]:
        job, sources = self._job, self._dataset.mixed_sources
        columns = [
            *signal_columns(sources),
            *map(share_of, sources),
            *(() if job.balance is None else job.balance.COLUMNS),
            *column_names(job.config.data.validation_sets),
        ]
        return build_loggers(
            job.config, job.run, job.placement, self._resume.step, columns, job.host
        )


def _find_resume(job: TrainingJob) -> Resume:
    """Agree on the checkpoint to resume from."""
    job.host.phase("checkpoint", None)
    resume = find_resume(
        job.run,
        job.placement,
        job.consensus,
        host=job.host,
        network=(job.adapters or job.network.architecture).parameter_shapes(),
        max_steps=job.config.train.max_steps,
        base=job.base,
        other_ranks=job.config.optim.kind != "adamw_8bit",
    )
    job.host.pulse("start", resume.step)
    return resume


def _has_ended(job: TrainingJob, resume: Resume, best: BestSoFar) -> bool:
    """Return whether all steps of the training are made; if so, say why."""
    max_steps = job.config.train.max_steps
    if max_steps is not None and resume.step >= max_steps:
        job.say(nothing_to_do(max_steps, resume.step))
        return True
    if best.stop_reason:
        job.say(stopped_early(best.stop_reason, resume.step))
        job.note_early_stop(best.stop_reason)
    return bool(best.stop_reason)


def _find_rows(job: TrainingJob, resume: Resume) -> StepDataset:
    """Find this rank's rows, and where to start in them."""
    job.host.phase("data", None)
    dataset = build_dataset(
        job.config,
        job.network,
        placement=job.placement,
        resume=resume,
        run=job.run,
        consensus=job.consensus,
    )
    restart_half_done_rows(
        dataset,
        job.config.data,
        state=resume.data,
        run=job.run,
        consensus=job.consensus,
        note=job.host.note if job.placement.rank == 0 else None,
    )
    job.host.pulse("start", resume.step)
    return dataset


def _build_module(
    job: TrainingJob, dataset: StepDataset, nonfinite: NonFiniteSteps, levels: LevelLosses | None
) -> DiffusionModule:
    config, network, adapters = job.config, job.network, job.adapters
    dora = config.lora is not None and config.lora.dora
    compiled = compiles(config.model, config.deepspeed.hooks_inside_blocks, job.device, dora)
    if compiled:
        # Import the compiler now: it fails inside zero.Init, which changes torch.Tensor.
        torch.compiler.reset()
    kernels = choose_kernels(config, network.architecture.head_dim, job.device, compiled)
    import_kernels(kernels)
    job.say(kernels.line(compiled))
    checkpointing = checkpointing_of(config, network, compiled)
    if line := checkpointing_line(config, network, checkpointing):
        job.say(line)
    return DiffusionModule(
        lambda: build_network(
            config.model, network, config.run.seed, compiled, checkpointing, adapters, kernels
        ),
        config.optim,
        log_every_n_steps=config.log.every_n_steps,
        sources=dataset.mixed_sources,
        report_skipped_step=nonfinite.report_skipped_step,
        pulse=job.host.pulse,
        efficiency=Efficiency.of(
            network.architecture,
            job.device,
            config.train.precision,
            config.objective.draws,
            config.objective.block_tokens,
            None if adapters is None else adapters.num_trained,
        ),
        levels=levels,
        balance=job.balance,
        signals=StepSignals(token_ids(network).eos_token_id, dataset.mixed_sources),
        never_written=never_written(config, network),
    )


def outcome(stopped: bool, step: int) -> Outcome:
    """Return how a training ended; the same on all ranks.

    Raises:
        DataError: The training ended without a step.
    """
    if stopped:
        return "stopped"
    if step == 0:
        raise DataError(
            "data.train: the training ended without a step: none of its rows makes an example (the"
            " files are empty, or the hook drops every row), or every step was skipped"
        )
    return "finished"


def build_trainer(
    config: Config,
    placement: Placement,
    device: torch.device,
    loggers: list[Logger],
    callbacks: list[pl.Callback],
    load_universal: bool = False,
) -> pl.Trainer:
    """Build Lightning's Trainer around `Zero3Strategy`; what the package does itself is off."""
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        strategy=Zero3Strategy(
            deepspeed_config(config.deepspeed, config.optim.gradient_clip, config.train.precision),
            placement,
            device,
            precision=config.train.precision,
            timeout=timedelta(seconds=config.collective_timeout_s),
            load_universal=load_universal,
            optimizer_threads=optimizer_threads(
                config.deepspeed.offload_optimizer, config.slurm.cpus_per_rank
            ),
            leaf_blocks=config.deepspeed.leaf_blocks,
        ),
        # The feed runs through all epochs: for Lightning they are one, and a resume is within it.
        max_epochs=1,
        max_steps=config.train.max_steps or -1,
        logger=loggers,
        callbacks=callbacks,
        limit_val_batches=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
