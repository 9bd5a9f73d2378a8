"""Presets of clusters: config/cluster/NAME.yaml, whose values a run's own file overrides."""

from pathlib import Path
from typing import Any

from llada_sft.errors import ConfigError

# Where `--cluster NAME` looks.
PRESETS = Path("config/cluster")


def preset_file(name: str, base: Path = Path()) -> str:
    """Return the path of a preset.

    Args:
        name: In config/cluster/, without .yaml; or a path.
        base: The folder at which relative paths start.

    Raises:
        ConfigError: There is no preset of this name; the message has those that there are.
    """
    if "/" in name or name.endswith(".yaml"):
        return str(base / name)
    file = base / PRESETS / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(one.stem for one in file.parent.glob("*.yaml")))
        do = f"it has {known}; take one of them, or a path" if known else "it has none; give a path"
        raise ConfigError(f"--cluster: {PRESETS} has no {name!r}; {do}")
    return str(file)


def over_preset(preset: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Return a file's values, and those of its preset for the keys that it does not give."""
    merged = dict(preset)
    for key, value in data.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = over_preset(below, value)
        merged[key] = value
    return merged
