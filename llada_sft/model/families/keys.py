"""Checks of the values in config.json; each gives one line for each problem."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

Values = Mapping[str, Any]
# Of the object `rope_parameters`.
_ROPE_KEYS = ("rope_theta", "partial_rotary_factor")


def implemented(values: Values, choices: Mapping[str, tuple[object, ...]]) -> Iterator[str]:
    """Refuse values that ask for another network; the first of each key's choices is the default.

    Ignoring such a key would compute something else in silence.
    """
    for key, allowed in choices.items():
        if values.get(key, allowed[0]) not in allowed:
            yield f"{key}: only {json.dumps(allowed[0])} is implemented, got {_shown(values, key)}"


def whole_number(values: Values, key: str, least: int = 1, optional: bool = False) -> Iterator[str]:
    """Ask for a whole number; `optional`: the key may be missing, or null."""
    value = values.get(key)
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        yield f"{key}: must be a whole number, got {_shown(values, key)}"
    elif value < least:
        yield f"{key}: must be at least {least}, got {value}"


def positive(values: Values, key: str, default: float | None = None) -> Iterator[str]:
    """Ask for a positive number; without a default the key must be there."""
    value = values.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        yield f"{key}: must be a number, got {json.dumps(value)}"
    # NaN fails every comparison.
    elif not 0 < value < float("inf"):
        yield f"{key}: must be a positive number, got {json.dumps(value)}"


def with_rope_keys(values: Values) -> dict[str, Any]:
    """Return config.json with what `rope_parameters` says under the keys that families read.

    transformers 5 writes one object where `rope_theta`, `partial_rotary_factor` and `rope_scaling`
    were; a key that is there as well stays (`rope_problems` compares them).
    """
    given = values.get("rope_parameters")
    if not isinstance(given, dict):
        return dict(values)
    found = {key: given[key] for key in _ROPE_KEYS if key in given}
    if given.get("rope_type", "default") != "default":
        found["rope_scaling"] = given
    there = {key: value for key, value in values.items() if value is not None}
    return {**values, **found, **there}


def rope_problems(values: Values) -> Iterator[str]:
    """Refuse `rope_parameters` that are no object, or say something else than the keys of old."""
    given = values.get("rope_parameters")
    if not isinstance(given, dict | None):
        yield f"rope_parameters: must be an object, got {_shown(values, 'rope_parameters')}"
        return
    for key in _ROPE_KEYS:
        if given and key in given and values.get(key) != given[key]:
            inside = json.dumps(given[key])
            yield f"{key}: is {inside} in rope_parameters, got {_shown(values, key)}; keep one"


def choice_of_bool(values: Values, key: str) -> Iterator[str]:
    """Ask for true or false, where the key is given."""
    if not isinstance(values.get(key), bool | None):
        yield f"{key}: must be true or false, got {_shown(values, key)}"


def divides(values: Values, width: str, heads: str, kv_heads: str) -> Iterator[str]:
    """Ask that heads divide the width evenly, and that key and value heads divide the heads.

    Args:
        values: config.json.
        width: Key of the width.
        heads: Key of the number of heads.
        kv_heads: Key of the number of key and value heads, which may be missing.
    """
    if values[width] % values[heads] or values[width] // values[heads] % 2:
        yield (
            f"{width} / {heads}: must be an even whole number, "
            f"got {values[width]} / {values[heads]}"
        )
    if values[heads] % (values.get(kv_heads) or values[heads]):
        yield f"{kv_heads}: must divide {heads}, {values[heads]}, got {values[kv_heads]}"


def tokens_fit(values: Values, keys: tuple[str, ...], rows: int, named: str) -> Iterator[str]:
    """Ask that token ids are rows of the embedding."""
    for key in keys:
        value = values.get(key)
        if value is not None and value >= rows:
            yield f"{key}: does not fit {named}, {rows}, got {value}"


def _shown(values: Values, key: str) -> str:
    return json.dumps(values.get(key))
