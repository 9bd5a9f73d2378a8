"""Checks, before anything is changed, that other data or another model fit a run's checkpoint.

Only small files are read: the names of the shards, and the sizes in config.json. The ranks compare
the contents of the shards and the shapes of all tensors when they start.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llada_sft.cluster.watch.checkpoints import newest_of_run
from llada_sft.config import Config
from llada_sft.config.changes import Change
from llada_sft.errors import ConfigError, LladaSftError
from llada_sft.run_dir import RunDir

_DATA_STATE = "data_state.json"


def require(run: RunDir, before: Config, after: Config, changes: Sequence[Change]) -> None:
    """Check that the newest checkpoint can be resumed with what changed.

    Raises:
        ConfigError: It has one line for each change that does not fit.
    """
    keys = {change.rule for change in changes}
    lines: list[str] = []
    if keys & {"data.train", "data.train.path"}:
        lines += _files(run, after)
    if "model.path" in keys and after.model.init == "pretrained":
        lines += _sizes(before, after)
    if lines:
        raise ConfigError("\n".join(lines))


def _files(run: RunDir, after: Config) -> Iterator[str]:
    from llada_sft.data.sources import list_sources

    names = _files_of_the_checkpoint(run)
    if not names or after.data.on_changed_file != "refuse":
        return
    try:
        sources = list_sources(after.data, after.train.epochs)
    except LladaSftError:
        # Preflight reports the problem.
        return
    gone = sorted(set(names) - {shard.name for source in sources for shard in source.shards})
    if gone:
        yield (
            f"data.train: {len(gone)} of the {len(names)} files that the checkpoint knows are not"
            f" there, the first {gone[0]}: name the folder that has them, or set"
            " data.on_changed_file: restart_file"
        )


def _files_of_the_checkpoint(run: RunDir) -> list[str]:
    """Return the files that the newest checkpoint knows; none if they cannot be read."""
    newest = newest_of_run(run)
    if newest is None:
        return []
    files = _read_json(newest / _DATA_STATE).get("files")
    return list(files) if isinstance(files, dict) else []


def _sizes(before: Config, after: Config) -> Iterator[str]:
    from llada_sft.model.settings import read_settings

    try:
        models = (before.model, after.model)
        old, new = (read_settings(Path(model.path), model.mask_token) for model in models)
    except LladaSftError:
        # Preflight reports the problem of the new one; without the old one nothing is known.
        return
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and _is_a_size(key, old, new):
            yield (
                f"model.path: {after.model.path}/config.json: {key} is {new.get(key)!r}, and"
                f" {old.get(key)!r} in the model of the run: it must be the same model"
            )


def _is_a_size(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return whether a key of config.json is one of a size, or of the meaning of a token id."""
    from llada_sft.model.families import family_of
    from llada_sft.model.settings import architecture_of

    changed = {**old, key: new.get(key)}
    family = family_of(changed)
    if family is None or any(family.problems(changed)):
        return True
    # These may be changed: the weights keep their shapes.
    free: dict[str, Any] = {"max_length": 0, "norm_eps": 0.0, "rope_theta": 0.0}
    before, after = (replace(architecture_of(values), **free) for values in (old, changed))
    return before != after


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
