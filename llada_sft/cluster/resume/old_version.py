"""The config of a run as the version that launched it reads it: its values and its defaults.

This is needed when a run gets other code. A default that has changed since must not change the run,
a key that is no longer known must not end the run, and both are reported.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from llada_sft.config.problems import RENAMED, under_new_names
from llada_sft.config.reader import read_values
from llada_sft.config.schema import Config
from llada_sft.errors import ConfigError
from llada_sft.run_dir import RunDir

TIMEOUT_S = 60
# This program runs with the old package and must not import anything from the present package.
_PROGRAM = """
import json, sys
from llada_sft.config import reader, schema
for module in (reader, schema):
    # If the run's code lacks a module, Python would import the module of an editable install.
    if not module.__file__.startswith(sys.argv[2] + "/"):
        raise SystemExit(module.__file__ + " is not the run's own")
Config = schema.Config
config = reader.load_config(sys.argv[1])
defaults = {}
for section, field in Config.model_fields.items():
    # A section may be null.
    inside = getattr(type(getattr(config, section)), "model_fields", {})
    defaults[section] = {
        key: info.default for key, info in inside.items() if not info.is_required()
    }
print(json.dumps({"values": config.model_dump(mode="json"), "defaults": defaults}, default=str))
"""


@dataclass(frozen=True)
class OldConfig:
    """What config.yaml means to the version of the run's code.

    Attributes:
        values: The values of all keys of that version, by section; a section may be null.
        defaults: The defaults of the keys, by section; empty if that code could not be run.
    """

    values: Mapping[str, Mapping[str, Any] | None]
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_old(run: RunDir) -> OldConfig:
    """Let the run's own code read its config; if that fails, only read the file.

    Raises:
        ConfigError: The file cannot be read, either.
    """
    environment = {**os.environ, "PYTHONPATH": str(run.code), "PYTHONSAFEPATH": "1"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(run.config), str(run.code)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
        printed = json.loads(done.stdout)
        return OldConfig(printed["values"], printed["defaults"])
    except (OSError, subprocess.SubprocessError, ValueError, LookupError):
        return OldConfig(_read_file(run))


def carry_over(old: OldConfig) -> tuple[dict[str, Any], list[str]]:
    """Convert the old version's values to the keys of this version.

    Returns:
        The data of a config.yaml, and one line for each key that this version reads differently.
    """
    data: dict[str, Any] = {}
    lines = [
        f"{section}.{key}: is called {section}.{new} now"
        for (section, key), new in RENAMED.items()
        if key in (old.values.get(section) or {})
    ]
    old = OldConfig(under_new_names(old.values), under_new_names(old.defaults))
    for section, field_of_section in Config.model_fields.items():
        given = old.values.get(section, {})
        kinds = get_args(field_of_section.annotation) or (field_of_section.annotation,)
        if type(None) in kinds and not given:
            data[section] = None
            lines += [] if section in old.values else [f"{section}: is new: null"]
            continue
        model: Any = kinds[0]
        values, defaults = given or {}, old.defaults.get(section, {})
        data[section] = {key: values[key] for key in model.model_fields if key in values}
        for key, info in model.model_fields.items():
            new = None if info.is_required() else _plain(info.default)
            lines += _difference(f"{section}.{key}", key, values, defaults, new)
        gone = [key for key in values if key not in model.model_fields]
        lines += [f"{section}.{key}: is no longer a key; was {_shown(values[key])}" for key in gone]
    unknown = [section for section in old.values if section not in Config.model_fields]
    lines += [f"{section}: is no longer a section" for section in unknown]
    return data, lines


def _difference(
    name: str, key: str, values: Mapping[str, Any], defaults: Mapping[str, Any], new: Any
) -> list[str]:
    if key not in values:
        return [f"{name}: is new: {_shown(new)}"]
    if key not in defaults or _plain(defaults[key]) == new:
        return []
    return [f"{name}: stays {_shown(values[key])}; the default is now {_shown(new)}"]


def _read_file(run: RunDir) -> Mapping[str, Mapping[str, Any] | None]:
    data = read_values(run.config)
    if bad := [name for name, section in data.items() if not isinstance(section, dict | None)]:
        raise ConfigError(f"{run.config}: {bad[0]}: must be a section")
    return data


def _plain(value: object) -> Any:
    """Convert a default to what it becomes in JSON."""
    return json.loads(json.dumps(value, default=str))


def _shown(value: object) -> str:
    return json.dumps(value, default=str)
