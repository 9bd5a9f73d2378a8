"""`--sweep KEY=VALUE,VALUE`: the runs of a sweep, each with its values, its name and its overrides.

Several `--sweep` are combined: each value of one with each value of the others. The name of a run
is made of its values (`lr=1e-05_seed=1`), so that the same command names the same runs again.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product
from math import prod
from typing import Any

import yaml

from llada_sft.config import Config, load_config
from llada_sft.config.yaml12 import compose
from llada_sft.errors import ConfigError

MAX_RUNS = 1000
SHOWN_PROBLEMS = 50
# The limit of `run.name`, less room for a number that makes it unique.
_MAX_NAME = 72
_MAX_VALUE = 40


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep.

    Attributes:
        name: Its `run.name`: the name of its directory in the sweep's.
        values: The swept keys with its values, as JSON has them.
        overrides: What the sweep changes of the config.
        config: Its config.
    """

    name: str
    values: dict[str, Any]
    overrides: Sequence[str]
    config: Config


def runs_of_sweep(
    file: str, overrides: Sequence[str], sweep: Sequence[str], cluster: str | None = None
) -> list[SweptRun]:
    """Return all runs of a sweep, their configs checked.

    Args:
        file: The config file.
        overrides: Those of all runs: `section.key=value`.
        sweep: `section.key=value,value`, one for each swept key.

    Raises:
        ConfigError: One line for each mistake in any of the runs.
    """
    axes = _axes(sweep, overrides)
    found: list[tuple[list[str], Config]] = []
    problems: dict[str, None] = {}
    for texts in product(*axes.values()):
        own = [f"{key}={text}" for key, text in zip(axes, texts, strict=True)]
        try:
            found.append((own, load_config(file, [*overrides, *own], cluster)))
        except ConfigError as error:
            problems |= dict.fromkeys(str(error).splitlines())
    problems |= dict.fromkeys(_given_twice(axes, [config for _, config in found]))
    if problems:
        more = ["further problems are not shown"] if len(problems) > SHOWN_PROBLEMS else []
        raise ConfigError("\n".join([*list(problems)[:SHOWN_PROBLEMS], *more]))
    values = [{key: value_of(config, key) for key in axes} for _, config in found]
    names = _unique([_name(run) for run in values], values)
    return [
        _swept_run(name, of_run, own, config)
        for name, of_run, (own, config) in zip(names, values, found, strict=True)
    ]


def _swept_run(name: str, values: dict[str, Any], own: Sequence[str], config: Config) -> SweptRun:
    root = f"{config.run.root}/{config.run.name}"
    place = [f"run.root={json.dumps(root)}", f"run.name={json.dumps(name)}"]
    run = config.run.model_copy(update={"root": root, "name": name})
    return SweptRun(name, values, [*own, *place], config.model_copy(update={"run": run}))


def _axes(sweep: Sequence[str], overrides: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of each swept key, as they were written."""
    set_keys = {text.partition("=")[0].strip() for text in overrides}
    axes: dict[str, list[str]] = {}
    problems = []
    for text in sweep:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")) or "." not in key:
            problems.append(f"--sweep {text!r}: must be section.key=value,value,...")
        elif problem := _refused(key, key in axes, key in set_keys):
            problems.append(f"--sweep {key}: {problem}")
        elif not (texts := split_values(values)):
            problems.append(f"--sweep {text!r}: the values are not YAML; quote them")
        else:
            axes[key] = texts
    number = prod(map(len, axes.values()))
    if number > MAX_RUNS:
        sizes = " × ".join(str(len(texts)) for texts in axes.values())
        problems.append(f"--sweep: {sizes} = {number:,} runs; at most {MAX_RUNS:,} are launched")
    if problems:
        raise ConfigError("\n".join(problems))
    return axes


def _refused(key: str, is_swept: bool, is_set: bool) -> str:
    """Return why a key cannot be swept; empty if it can."""
    section = key.partition(".")[0]
    if is_swept:
        return "is swept twice; give all its values at once"
    if is_set:
        return f"is set to one value, too; remove {key}=... from the command line"
    if section == "slurm" or (section == "run" and key != "run.seed"):
        return (
            "says where a run is, not what it learns, and cannot be swept; launch one run for each"
            " value, with another run.name"
        )
    return ""


def split_values(text: str) -> list[str]:
    """Split "a,[b,c],'d,e'" at the commas that are outside of brackets and quotes.

    Returns:
        The values as they are written; empty where the text is not a list of YAML values.
    """
    whole = f"[{text}\n]"
    try:
        node = compose(whole)
    except (yaml.YAMLError, RecursionError):
        return []
    if not isinstance(node, yaml.SequenceNode) or node.end_mark.index != len(whole):
        return []
    places = [(item.start_mark.index, item.end_mark.index) for item in node.value]
    starts, ends = [start for start, _ in places], [end for _, end in places]
    between = [whole[end:start] for end, start in zip([0, *ends], [*starts, None], strict=True)]
    # A comment would hide values.
    if any("#" in text for text in between):
        return []
    return [whole[start:end] for start, end in places]


def value_of(config: Config, key: str) -> Any:
    """Return the value of a dotted key of a config, as JSON has it."""
    value: Any = config.model_dump(mode="json")
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _given_twice(axes: dict[str, list[str]], configs: Sequence[Config]) -> Iterator[str]:
    """Yield a line for each value of a key that is the same as one before."""
    if len(configs) != prod(map(len, axes.values())):
        return
    for number, (key, texts) in enumerate(axes.items()):
        step = prod(len(texts) for texts in list(axes.values())[number + 1 :])
        seen: dict[str, str] = {}
        for text, config in zip(texts, configs[::step], strict=False):
            value = json.dumps(value_of(config, key), sort_keys=True)
            if value in seen:
                yield f"--sweep {key}: {text} is the same value as {seen[value]}; give it once"
            seen.setdefault(value, text)


def _name(values: dict[str, Any]) -> str:
    last = [key.rpartition(".")[2] for key in values]
    labels = [
        name if last.count(name) == 1 else key for key, name in zip(values, last, strict=True)
    ]
    pairs = zip(labels, values.values(), strict=True)
    return "_".join(f"{label}={_label(value)}" for label, value in pairs)


def _label(value: Any) -> str:
    """Return a value as a part of a file's name."""
    text = value if isinstance(value, str) else json.dumps(value)
    # The end of a path says more than its start.
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-")[-_MAX_VALUE:] or "empty"


def _unique(names: Sequence[str], values: Sequence[dict[str, Any]]) -> Iterable[str]:
    """Yield the names; those that are too long, or given twice, end with a digest of the values."""
    for name, of_run in zip(names, values, strict=True):
        if len(name) <= _MAX_NAME and names.count(name) == 1:
            yield name
        else:
            text = json.dumps(of_run, sort_keys=True).encode()
            yield f"{name[: _MAX_NAME - 9]}-{blake2b(text, digest_size=4).hexdigest()}"
