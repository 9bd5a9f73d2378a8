"""YAML file and overrides -> one frozen config, or every mistake at once with its line.

    compose (nodes with lines) -> plain data -> over a preset -> overrides -> pydantic -> Config

Each step adds to the same list of problems; one `ConfigError` shows them all, in the order of the
file. The YAML is read as 1.2 (`yaml12.py`); the words for what pydantic finds are in `problems.py`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from llada_sft.config import yaml12
from llada_sft.config.places.presets import over_preset, preset_file
from llada_sft.config.problems import describe_problems, shown, under_new_names
from llada_sft.config.schema import Config
from llada_sft.config.values import build_validators
from llada_sft.config.yaml12 import KeyPath
from llada_sft.errors import ConfigError

SchemaT = TypeVar("SchemaT", bound=BaseModel)
# Far more than any config has, but read quickly. An alias counts as all the values that it
# repeats: nine lines of nine aliases each would be a billion values.
MAX_BYTES = 1 << 18
MAX_VALUES = 10_000
MAX_DEPTH = 32
SHOWN_PROBLEMS = 50


class Loaded(NamedTuple):
    """A config, and where each of its values is from.

    Attributes:
        origin: Returns "FILE:LINE", "command line" or "default" for the keys of a value.
    """

    config: Config
    origin: Callable[[KeyPath], str]


def load_config(
    path: str | Path, overrides: Sequence[str] = (), preset: str | None = None
) -> Config:
    """Read a config file and apply `section.key=value` overrides, the last of a key winning.

    Args:
        path: The file.
        overrides: Applied after the file.
        preset: A name in config/cluster/, or a path: a file whose values are those of keys that
            neither `path` nor the overrides give.

    Raises:
        ConfigError: One line for every mistake in the files and in the overrides.
    """
    return load_with_origins(path, overrides, preset).config


def load_with_origins(
    path: str | Path, overrides: Sequence[str] = (), preset: str | None = None
) -> Loaded:
    """Read a config as `load_config`, and remember where each value is from.

    Raises:
        ConfigError: As `load_config`.
    """
    source = _Source(str(path))
    data = source.read()
    if preset is not None:
        source.preset = _Source(preset_file(preset))
        data = over_preset(source.preset.read("write the sections that it presets"), data)
    for text in overrides:
        source.override(data, text)
    return Loaded(source.validate(data, Config), lambda keys: source.origin(data, keys))


def load_as(
    schema: type[SchemaT], path: str | Path | None, overrides: Sequence[str] = ()
) -> SchemaT:
    """Read a config file of any schema; without a file, overrides alone.

    Raises:
        ConfigError: One line for every mistake in the file and in the overrides.
    """
    source = _Source("the command line" if path is None else str(path))
    data = {} if path is None else source.read()
    for text in overrides:
        source.override(data, text)
    return source.validate(data, schema)


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the config.yaml of a run directory, which may be of an older version.

    Keys that have another name now are read under it; overrides have the new names.

    Raises:
        ConfigError: As `load_config`.
    """
    source = _Source(str(path))
    data = under_new_names(source.read())
    for text in overrides:
        source.override(data, text)
    return source.validate(data, Config)


def read_values(path: str | Path) -> dict[str, Any]:
    """Read a config file of any version into plain data: nothing is checked against the schema.

    Raises:
        ConfigError: The file is not YAML, or not a mapping.
    """
    source = _Source(str(path))
    data = source.read()
    source.raise_problems()
    return data


@dataclass
class _Source:
    """A file with its overrides: knows where each key was given, and gathers the problems."""

    path: str
    root: yaml.Node | None = None
    overridden: dict[KeyPath, str] = field(default_factory=dict)
    # (place in the file, text); overrides come after the file.
    problems: list[tuple[int, str]] = field(default_factory=list)
    # Keys whose value is already a problem; None replaces the value.
    unreadable: set[KeyPath] = field(default_factory=set)
    num_values: int = 0
    # The file whose values are those of keys that this one does not give.
    preset: "_Source | None" = None

    def read(self, if_empty: str = "write the sections run, model and data") -> dict[str, Any]:
        """Read the file into plain data; without a mapping there is nothing more to check."""
        try:
            self.root = yaml12.compose(self._text())
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{self.path}: not UTF-8 text") from None
        except (yaml.YAMLError, RecursionError) as error:
            raise ConfigError(_not_yaml(self.path, error)) from None
        if self.root is None:
            raise ConfigError(f"{self.path}: empty; {if_empty}")
        data = self._plain(self.root, (), ())
        if not isinstance(data, dict):
            line = self.root.start_mark.line + 1
            raise ConfigError(
                f"{self.path}:{line}: must be a mapping of sections, got {shown(data)}"
            )
        return data

    def override(self, data: dict[str, Any], text: str) -> None:
        """Set one key of `data` from `section.key=value`."""
        where = f"override {text!r}"
        try:
            keys, node = _read_override(text)
        except ValueError as error:
            self._add_last(f"{where}: {error}")
            return
        self.overridden = {k: v for k, v in self.overridden.items() if k[: len(keys)] != keys}
        self.overridden[keys] = where
        value = None if node is None else self._plain(node, keys, ())
        for depth, key in enumerate(keys[:-1], start=1):
            # A section without keys, or `lora: null`.
            if data.get(key) is None:
                data[key] = {}
            data = data[key]
            if not isinstance(data, dict):
                self._add_last(f"{where}: {'.'.join(keys[:depth])} is not a section")
                return
        data[keys[-1]] = value

    def validate(self, data: dict[str, Any], schema: type[SchemaT]) -> SchemaT:
        """Check the data against a schema.

        JSON mode, because a list must be able to fill a tuple while everything else stays strict.
        """
        build_validators(schema)
        try:
            config = schema.model_validate_json(json.dumps(data))
        except ValidationError as error:
            for problem in islice(describe_problems(error, data, schema), SHOWN_PROBLEMS + 1):
                source = self._source_of(problem.path)
                if problem.path not in source.unreadable:
                    source._add(problem.path, problem.text)
        self.raise_problems()
        return config

    def origin(self, data: Any, path: KeyPath) -> str:
        """Return where the value at a path of the final data is from."""
        for key in path:
            inside = key in data if isinstance(data, dict) else isinstance(data, list)
            if not inside:
                return "default"
            data = data[key]
        source = self._source_of(path)
        return "command line" if source._override(path) else f"{source.path}:{source._line(path)}"

    def _source_of(self, path: KeyPath) -> "_Source":
        """Return the preset if the value at a path is from there, else this source."""
        if self.preset is None or self._override(path) or self._has(path):
            return self
        return self.preset if self.preset._has(path) else self

    def raise_problems(self) -> None:
        """Raise all problems that were found, in the order of the files."""
        of_preset = self.preset.problems if self.preset else []
        if problems := [
            *sorted(of_preset, key=lambda problem: problem[0]),
            *sorted(self.problems, key=lambda problem: problem[0]),
        ]:
            lines = list(dict.fromkeys(text for _, text in problems))
            more = ["further problems are not shown"] if len(lines) > SHOWN_PROBLEMS else []
            raise ConfigError("\n".join([*lines[:SHOWN_PROBLEMS], *more]))

    def _text(self) -> str:
        """Return the file's text.

        Raises:
            ConfigError: It is far larger than a config.
            OSError: It cannot be read.
            UnicodeDecodeError: It is not UTF-8.
        """
        with Path(self.path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{self.path}: not a config: larger than {MAX_BYTES:,} bytes")
        return content.decode("utf-8")

    def _plain(self, node: yaml.Node, path: KeyPath, above: tuple[yaml.Node, ...]) -> Any:
        """Return the value of a node, and add what is wrong with it to the problems.

        Raises:
            ConfigError: There are too many values, or they are nested too deeply.
        """
        self.num_values += 1
        where = self._override(path) or self.path
        if self.num_values > MAX_VALUES:
            raise ConfigError(f"{where}: not a config: more than {MAX_VALUES:,} values")
        if any(node is ancestor for ancestor in above):
            self._add(path, "an alias to itself is not allowed")
            self.unreadable.add(path)
            return None
        if len(above) > MAX_DEPTH:
            raise ConfigError(f"{where}: not a config: nested too deeply")
        try:
            if isinstance(node, yaml.ScalarNode):
                return yaml12.scalar_value(node)
            yaml12.check_tag(node)
        except ValueError as error:
            self._add(path, str(error), node.start_mark.line + 1)
            self.unreadable.add(path)
            return None
        inside = (*above, node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, inside)
        return [self._plain(item, (*path, i), inside) for i, item in enumerate(node.value)]

    def _mapping(
        self, node: yaml.MappingNode, path: KeyPath, above: tuple[yaml.Node, ...]
    ) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._add(path, "a key must be one word", line)
                continue
            try:
                key = yaml12.whole_characters(key_node.value)
            except ValueError as error:
                self._add(path, f"a key {error}", line)
                continue
            if key == "<<":
                self._add(path, "a merge key (<<) is not allowed; write the keys themselves", line)
                continue
            if key in values:
                self._add((*path, key), f"given twice, first on line {lines[key]}; keep one", line)
            lines.setdefault(key, line)
            values[key] = self._plain(value_node, (*path, key), above)
        return values

    def _add(self, path: KeyPath, text: str, line: int | None = None) -> None:
        name = ".".join(map(str, path))
        # Without a name it concerns several sections, and its text names them.
        what = f"{name}: {text}" if name else text
        if where := self._override(path):
            self._add_last(f"{where}: {what}")
        elif self.root is None:
            self._add_last(f"{self.path}: {what}")
        else:
            line = line or self._line(path)
            self.problems.append((line, f"{self.path}:{line}: {what}"))

    def _override(self, path: KeyPath) -> str | None:
        """Return the override that gave the value at a path, or something below it.

        None if the file gave the value.
        """
        lengths = range(len(path), 0, -1)
        given = next(filter(None, (self.overridden.get(path[:length]) for length in lengths)), None)
        if given or not path or self._has(path):
            return given
        below = (text for keys, text in self.overridden.items() if keys[: len(path)] == path)
        return next(below, None)

    def _add_last(self, text: str) -> None:
        self.problems.append((1 << 60, text))

    def _line(self, path: KeyPath) -> int:
        """Return the line of a key, or of the innermost section around it that is in the file."""
        return self._way_to(path)[-1]

    def _has(self, path: KeyPath) -> bool:
        """Return whether the file gives the value at a path."""
        return len(self._way_to(path)) > len(path)

    def _way_to(self, path: KeyPath) -> list[int]:
        """Return the line of the file's root, and of each key of a path that is in the file."""
        if self.root is None:
            return []
        node, lines = self.root, [self.root.start_mark.line + 1]
        for key in path:
            if isinstance(node, yaml.MappingNode):
                matching = [(k, v) for k, v in node.value if k.value == key]
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int):
                matching = [(v, v) for v in node.value[key : key + 1]]
            else:
                break
            if not matching:
                break
            lines.append(matching[-1][0].start_mark.line + 1)
            node = matching[-1][1]
        return lines


def _read_override(text: str) -> tuple[tuple[str, ...], yaml.Node | None]:
    """Return the keys of `section.key=value`, and the node of the value.

    Raises:
        ValueError: What is wrong with it.
    """
    name, equals, value = text.partition("=")
    keys = tuple(name.strip().split("."))
    if not equals or not all(keys) or len(keys) > MAX_DEPTH:
        raise ValueError("must be section.key=value")
    try:
        yaml12.whole_characters(text)
        node = yaml12.compose(value)
    except (yaml.YAMLError, RecursionError):
        raise ValueError("the value is not YAML; quote it") from None
    if yaml12.is_cut_by_a_comment(node, value):
        raise ValueError("'#' begins a comment in YAML; quote the value")
    return keys, node


def _not_yaml(path: str, error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        what = " ".join(filter(None, (error.context, error.problem)))
        return f"{path}:{error.problem_mark.line + 1}: not YAML: {what}"
    if isinstance(error, RecursionError):
        return f"{path}: not a config: nested too deeply"
    return f"{path}: not YAML: {str(error).splitlines()[0]}"


def dump_config(config: Config) -> str:
    """Write a config as YAML that reads back to an equal one."""
    return yaml12.dump(config.model_dump(mode="json"))


def dump_with_origins(config: Config, origin: Callable[[KeyPath], str]) -> str:
    """Write a config as `dump_config` does, with a comment on where each value is from."""
    # A path may have a newline, and a comment must not.
    return yaml12.dump_with_comments(
        config.model_dump(mode="json"), lambda keys: " ".join(origin(keys).split())
    )
