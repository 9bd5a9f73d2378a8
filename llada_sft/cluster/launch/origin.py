"""Where a run's hook and setup.sh were copied from: recorded at launch, in code/origin.json.

A run of an older version has no such record: then the config that the launch command in command.txt
names is read again.
"""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from llada_sft.config import load_config, resolve_paths
from llada_sft.config.places.presets import preset_file
from llada_sft.errors import LladaSftError
from llada_sft.run_dir import RunDir


@dataclass(frozen=True)
class Origin:
    """Where the hook and setup.sh were copied from, as absolute paths.

    Attributes:
        hook: None if it is not known.
        setup: None if it is not known, or the run has none.
    """

    hook: str | None = None
    setup: str | None = None


def origin_of(run: RunDir) -> Origin:
    """Return where the hook and setup.sh were copied from, as far as it is known."""
    try:
        recorded = json.loads(run.origin.read_text(encoding="utf-8"))
        return Origin(_text(recorded["hook"]), _text(recorded["setup"]))
    except (OSError, ValueError, LookupError, TypeError):
        return _from_command(run)


def _from_command(run: RunDir) -> Origin:
    try:
        first = run.command.read_text(encoding="utf-8").splitlines()[0]
        # cd FOLDER && python launch.py --config FILE [--cluster NAME] [section.key=value ...]
        cd, folder, operator, *words = shlex.split(first)
        config = _value_of(words, "--config")
        has_preset = any(word.partition("=")[0] == "--cluster" for word in words)
        preset = _value_of(words, "--cluster") if has_preset else None
    except (OSError, ValueError, LookupError):
        return Origin()
    if (cd, operator) != ("cd", "&&"):
        return Origin()
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    try:
        preset = preset and preset_file(preset, Path(folder))
        launched = resolve_paths(load_config(Path(folder) / config, overrides, preset), folder)
    except LladaSftError:
        return Origin()
    return Origin(launched.data.hook, launched.slurm.setup)


def _value_of(words: list[str], option: str) -> str:
    joined = [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
    return joined[-1] if joined else words[words.index(option) + 1]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
