"""The paths that a command is given, looked at before anything heavy is imported.

Importing torch takes seconds. A mistyped path is answered before that, with the same line that
reading it would raise later. Data behind URLs is not looked at here: a service is asked once.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from llada_sft.config import load_run_config
from llada_sft.config.schema import Config
from llada_sft.config.sections.data import DataConfig
from llada_sft.config.sections.model import ModelConfig
from llada_sft.data.examples.hook import check_hook
from llada_sft.data.examples.tokenizer import tokenizer_file
from llada_sft.data.shards import list_shards
from llada_sft.data.storage.files import is_remote
from llada_sft.errors import ConfigError, LladaSftError
from llada_sft.model.index import read_index, require_unused
from llada_sft.model.settings import read_settings
from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint.folder import best_step, chosen_step, steps_to_average


def look_before_check(config: Config) -> None:
    """Look at the model directory, the hook and the data of a config with absolute paths.

    Raises:
        ConfigError: It has the problems of each path.
    """
    looks: list[Callable[[], object]] = [
        partial(_look_at_model, config.model),
        partial(check_hook, Path(config.data.hook)),
        *(partial(list_shards, path) for path in _local_data(config.data)),
    ]
    problems = []
    for look in looks:
        try:
            look()
        except LladaSftError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))


def look_before_export(
    run_dir: Path, out: Path, step: int | None, best: bool = False, average: int = 1
) -> int:
    """Look at a run, its model directory, the checkpoints that are chosen, and the folder to write.

    Returns:
        The step of the checkpoint.

    Raises:
        LladaSftError: The first problem.
    """
    run = RunDir(run_dir)
    _look_at_network(load_run_config(run.config).model)
    chosen = best_step(run.checkpoints) if best else chosen_step(run.checkpoints, step)
    steps_to_average(run.checkpoints, chosen, average)
    require_unused(out)
    return chosen


def require_average(average: int, adapter: bool) -> None:
    """Check how many checkpoints are to be averaged.

    Raises:
        ConfigError: None; or several of which only the adapters are written.
    """
    if average < 1:
        raise ConfigError(f"--average: must be at least 1, got {average}")
    if average > 1 and adapter:
        raise ConfigError(
            "--average: the mean of adapters is not an adapter of their rank; leave --adapter away"
        )


def look_before_sample(model_dir: Path) -> None:
    """Look at an exported model.

    Raises:
        LladaSftError: The first problem.
    """
    read_settings(model_dir)
    read_index(model_dir)
    tokenizer_file(model_dir)


def _look_at_model(model: ModelConfig) -> None:
    _look_at_network(model)
    tokenizer_file(Path(model.path))


def _look_at_network(model: ModelConfig) -> None:
    """Look at what the network's sizes are read from: config.json, or the tokenizer."""
    directory = Path(model.path)
    if model.size is None:
        read_settings(directory, model.mask_token)
    else:
        tokenizer_file(directory)


def _local_data(data: DataConfig) -> Iterator[str]:
    """Yield the local paths of `data.train` and `data.validation`."""
    if isinstance(data.train, str):
        paths = [data.train]
    elif isinstance(data.train, dict):
        paths = [source.path for source in data.train.values()]
    else:
        paths = list(data.train)
    paths += data.validation_sets.values()
    return (path for path in paths if not is_remote(path))
