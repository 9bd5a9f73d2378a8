"""The loggers that a config asks for."""

from collections.abc import Sequence

from lightning.pytorch.loggers import Logger

from llada_sft.config.schema import Config
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.training.host import Host
from llada_sft.training.log.metrics_csv import MetricsCsv
from llada_sft.training.log.tensorboard import TensorBoardLog
from llada_sft.training.log.wandb_log import WandbLog


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
