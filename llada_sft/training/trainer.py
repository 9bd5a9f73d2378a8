"""Config -> ranks -> data -> Trainer -> fit: the whole of a run on one rank, in order.

The process group comes first: the ranks agree on the length of the training and on the step from
which it resumes before anything is built. The network is then built inside Lightning's `fit`, where
its parameters are partitioned from the start.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger

from llada_sft.config.arithmetic import no_rows_left, nothing_to_do, stopped_early
from llada_sft.config.schema import Config
from llada_sft.data.examples.hook import examples_key
from llada_sft.data.steps.dataset import StepDataset
from llada_sft.data.steps.prefetch import step_loader
from llada_sft.data.steps.yields import SAMPLE_ROWS
from llada_sft.errors import DataError
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.training.build_data import build_dataset, build_noise, never_written
from llada_sft.training.build_network import (
    base_weights,
    build_balance,
    build_network,
    checkpointing_line,
    checkpointing_of,
    compiles,
    plan_training,
    token_ids,
    trained_network,
)
from llada_sft.training.callbacks.adapters_learn import AdaptersLearn
from llada_sft.training.callbacks.checkpoint_saver import CheckpointSaver
from llada_sft.training.callbacks.leave_on_exception import LeaveOnException
from llada_sft.training.callbacks.profile import Profile
from llada_sft.training.callbacks.progress import Progress
from llada_sft.training.callbacks.row_summary import RowSummary
from llada_sft.training.callbacks.signals import OwnSignals
from llada_sft.training.callbacks.start_times import StartTimes
from llada_sft.training.checkpoint.changed_files import files_changed
from llada_sft.training.checkpoint.half_done import restart_half_done_rows
from llada_sft.training.checkpoint.resume import Resume, find_resume
from llada_sft.training.consensus import Consensus
from llada_sft.training.feed import StepFeed
from llada_sft.training.host import Host
from llada_sft.training.log.efficiency import Efficiency
from llada_sft.training.log.library_warnings import quiet_libraries
from llada_sft.training.log.log_interval import share_of
from llada_sft.training.log.metrics_csv import MetricsCsv
from llada_sft.training.log.signals import StepSignals, signal_columns
from llada_sft.training.log.step_journal import StepJournal
from llada_sft.training.log.tensorboard import TensorBoardLog
from llada_sft.training.log.wandb_log import WandbLog
from llada_sft.training.masks.level_losses import LevelLosses
from llada_sft.training.module import DiffusionModule
from llada_sft.training.nonfinite import NonFiniteSteps
from llada_sft.training.ranks import choose_device, init_ranks, optimizer_threads
from llada_sft.training.schedule.plan import Basis, Schedule
from llada_sft.training.strategy import Zero3Strategy, deepspeed_config, require_quantization
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
    start = StartTimes(config.log.level == "debug")
    start.mark("Python and imports")
    quiet_libraries()
    device = choose_device(config.train.accelerator, placement.local_rank)
    require_quantization(config.deepspeed, device)
    torch.set_num_threads(config.train.threads_per_rank)
    init_ranks(placement, device, timedelta(seconds=config.collective_timeout_s))
    consensus = Consensus()
    # Files are removed from here on, and the imports took time: another process may own the run.
    host.require_owner()
    start.mark("ranks")
    network_config = trained_network(config)
    balance = build_balance(config.model, network_config)
    journal = StepJournal(host, consensus, placement.rank)
    max_steps = config.train.max_steps
    adapters = plan_training(config, network_config)
    if adapters is not None and placement.rank == 0:
        print(adapters.line(), flush=True)
    shapes = (adapters or network_config.architecture).parameter_shapes()
    base = "" if adapters is None else base_weights(config)
    resume = find_resume(
        run,
        placement,
        consensus,
        host=host,
        network=shapes,
        max_steps=max_steps,
        base=base,
    )
    host.pulse("start", resume.step)
    start.mark("checkpoint found and verified")
    if resume.stopped:
        journal.stop_agreed(resume.step)
        return "stopped"
    if max_steps is not None and resume.step >= max_steps:
        if placement.rank == 0:
            print(nothing_to_do(max_steps, resume.step), flush=True)
        return "finished"
    best = BestSoFar(config.train.keep_best, config.train.early_stop, resume.validation)
    if best.stop_reason:
        if placement.rank == 0:
            print(stopped_early(best.stop_reason, resume.step), flush=True)
            host.ended_early(f"early stop: {best.stop_reason}")
        return "finished"
    dataset = build_dataset(
        config,
        network_config,
        placement=placement,
        resume=resume,
        run=run,
        consensus=consensus,
    )
    note = host.note if placement.rank == 0 else None
    restart_half_done_rows(
        dataset, config.data, state=resume.data, run=run, consensus=consensus, note=note
    )
    host.pulse("start", resume.step)
    schedule = build_schedule(config, dataset, resume, placement, consensus)
    host.pulse("start", resume.step)
    start.mark("data and schedule")
    row_summary = RowSummary(consensus, placement.rank, resume.step)
    levels = None
    if config.objective.t_density == "importance":
        levels = LevelLosses(resume.step, resume.levels, placement.rank)
    feed = StepFeed(
        step_loader(dataset, config.data.prefetch_steps),
        build_noise(config, network_config, placement, levels),
        consensus,
        stop_requested=host.stop_requested,
        first_step=resume.step,
        num_sources=len(dataset.mixed_sources),
        epoch_ended=row_summary.epoch_ended,
        pulse=host.pulse,
        schedule=schedule,
        max_steps=max_steps,
        writes_ended=lambda: saver.writes_ended,
    )
    nonfinite = NonFiniteSteps(
        config.train.on_nonfinite,
        consensus,
        placement.rank,
        note=host.note,
        max_skipped=config.train.max_skipped_steps,
        skipped=resume.skipped,
    )
    saver = CheckpointSaver(
        run,
        config.train,
        consensus,
        feed=feed,
        fingerprints=dataset.fingerprints(),
        journal=journal,
        pulse=host.pulse,
        examples_key=examples_key(config.data),
        skipped=lambda: nonfinite.skipped,
        require_owner=host.require_owner,
        levels=levels,
        adapters=None if adapters is None else adapters.record(base, config.train.precision),
        best=best,
    )
    dora = config.lora is not None and config.lora.dora
    compiled = compiles(config.model, config.deepspeed.hooks_inside_blocks, device, dora)
    if compiled:
        # Import the compiler now: it fails inside zero.Init, which changes torch.Tensor.
        torch.compiler.reset()
    checkpointing = checkpointing_of(config, network_config, compiled)
    line = checkpointing_line(config, network_config, checkpointing)
    if placement.rank == 0 and line is not None:
        print(line, flush=True)
    module = DiffusionModule(
        lambda: build_network(
            config.model, network_config, config.run.seed, compiled, checkpointing, adapters
        ),
        config.optim,
        log_every_n_steps=config.log.every_n_steps,
        sources=dataset.mixed_sources,
        report_skipped_step=nonfinite.report_skipped_step,
        pulse=host.pulse,
        efficiency=Efficiency.of(
            network_config.architecture,
            device,
            config.train.precision,
            config.objective.draws,
            config.objective.block_tokens,
            None if adapters is None else adapters.num_trained,
        ),
        levels=levels,
        balance=balance,
        signals=StepSignals(token_ids(network_config).eos_token_id, dataset.mixed_sources),
        never_written=never_written(config, network_config),
    )
    validation = build_validation(
        config,
        network_config,
        placement,
        consensus,
        run=run,
        host=host,
        first_step=resume.step,
        best=best,
        stop_agreed=lambda: feed.stop_agreed,
    )
    trainer = build_trainer(
        config,
        placement,
        device,
        loggers=build_loggers(
            config,
            run,
            placement,
            first_step=resume.step,
            columns=[
                *signal_columns(dataset.mixed_sources),
                *map(share_of, dataset.mixed_sources),
                *(() if balance is None else balance.COLUMNS),
                *column_names(config.data.validation_sets),
            ],
            host=host,
        ),
        callbacks=[
            LeaveOnException(host.failed),
            OwnSignals(host.claim_signals),
            # Before the saver: what does not learn is not saved.
            AdaptersLearn(adapters is not None, consensus),
            # And a checkpoint knows of the validation of its step.
            *validation,
            saver,
            Progress(config.log.every_n_steps),
            row_summary,
            start,
            Profile(config.train.profile, run.profile, host.require_owner),
        ],
        load_universal=resume.universal,
    )
    trainer.fit(module, train_dataloaders=feed, ckpt_path=resume.checkpoint)
    host.pulse("end", trainer.global_step)
    ended = outcome(saver.stopped, trainer.global_step)
    if best.stop_reason and placement.rank == 0 and ended == "finished":
        print(f"step {trainer.global_step}: early stop: {best.stop_reason}", flush=True)
        host.ended_early(f"early stop: {best.stop_reason}")
    elif placement.rank == 0 and ended == "finished" and trainer.global_step == resume.step:
        print(no_rows_left(resume.step), flush=True)
    return ended


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


def build_schedule(
    config: Config,
    dataset: StepDataset,
    resume: Resume,
    placement: Placement,
    consensus: Consensus,
) -> Schedule:
    """Build the schedule from the checkpoint's, or sample rows to plan a new one."""
    # Rank 0 decides: a rank that sees another version of the hook must not use another rate.
    seen = consensus.gather(Basis.of(config, dataset.sources, placement.world_size))
    basis = cast(Basis, seen[0])
    planned = resume.planned
    changed = resume.data is not None and files_changed(
        resume.data, dataset.fingerprints(), consensus
    )
    yields = None if planned is None else planned.yields_for(basis, placement.rank, changed)
    dataset.know_yields(yields, SAMPLE_ROWS)

    def say(line: str) -> None:
        if placement.rank == 0:
            print(line, flush=True)

    ratio = 1.0
    # With slurm.elastic the global batch was the same on another number of ranks.
    if resume.world_size is not None and config.slurm.elastic is None:
        ratio = resume.world_size / placement.world_size
    return Schedule(
        config.optim,
        basis,
        step=resume.step,
        kept=planned,
        data_changed=changed,
        say=say,
        older_ratio=ratio,
    )


def build_loggers(
    config: Config,
    run: RunDir,
    placement: Placement,
    first_step: int,
    columns: Sequence[str],
    host: Host,
) -> list[Logger]:
    """Make the loggers that the config asks for; a resumed run continues their curves."""
    loggers: list[Logger] = []
    if config.log.csv:
        loggers.append(MetricsCsv(run.metrics, first_step, columns, host.require_owner))
    if config.log.tensorboard:
        loggers.append(
            TensorBoardLog(run.logs, name="tensorboard", version="", purge_step=first_step + 1)
        )
    if config.log.wandb_project and placement.rank == 0:

        def warn(text: str) -> None:
            print(text, flush=True)
            host.note({"event": "warning", "detail": text})

        loggers.append(WandbLog(config.log.wandb_project, run, config.run.name, warn))
    return loggers
