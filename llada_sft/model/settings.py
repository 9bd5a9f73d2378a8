"""`config.json` of a model directory as plain values, checked: which network it asks for.

Without torch and transformers: preflight refuses on the login node, with the same messages, what
loading would refuse on the nodes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llada_sft.errors import CheckpointError, ConfigError
from llada_sft.model.families import FAMILIES, family_of
from llada_sft.model.families.architecture import Architecture


def read_settings(model_dir: Path) -> dict[str, Any]:
    """Read `config.json` of a model directory, without running any code of it.

    Raises:
        CheckpointError: The file is missing or not JSON, or describes a network that is not
            implemented here; one line per key.
    """
    path = model_dir / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{model_dir}: no config.json; a model is a directory in Hugging Face's layout"
        )
    values = _read_object(path)
    if problems := _problems(values):
        raise CheckpointError("\n".join(f"{path}: {problem}" for problem in problems))
    return values


def read_generation_config(model_dir: Path) -> dict[str, Any]:
    """Read `generation_config.json` of a model directory; it may be missing.

    Raises:
        CheckpointError: It is not a JSON object.
    """
    path = model_dir / "generation_config.json"
    return _read_object(path) if path.is_file() else {}


def read_suppressed(model_dir: Path, vocab_size: int) -> tuple[int, ...]:
    """Return the tokens that samplers must not write: `suppress_tokens`, as transformers has it.

    Raises:
        CheckpointError: `generation_config.json` is damaged, or these are no tokens.
    """
    given = read_generation_config(model_dir).get("suppress_tokens") or []
    good = isinstance(given, list) and all(
        isinstance(token, int) and not isinstance(token, bool) and 0 <= token < vocab_size
        for token in given
    )
    if not good:
        raise CheckpointError(
            f"{model_dir / 'generation_config.json'}: suppress_tokens: must be a list of token ids"
            f" below {vocab_size}, got {json.dumps(given)}"
        )
    return tuple(given)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}; download the file again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: must be a JSON object; download the file again")
    return values


def architecture_of(values: Mapping[str, Any]) -> Architecture:
    """Return the network that the values of `read_settings` ask for."""
    family = family_of(values)
    assert family is not None
    return family.architecture(values)


def require_trainable(model_dir: Path, network: Architecture) -> None:
    """Check that a network can be trained.

    Raises:
        CheckpointError: `config.json` names no mask token, or no EOS token: each example ends with
            it; or its router has a bias, through which the official code has no gradient.
    """
    path = model_dir / "config.json"
    for key in ("mask_token_id", "eos_token_id"):
        if getattr(network, key) is None:
            raise CheckpointError(f"{path}: {key}: must be given, got null")
    if network.experts is not None and network.experts.router.bias == "weights":
        raise CheckpointError(
            f"{path}: a router with a bias cannot be trained, only sampled: take another checkpoint"
        )


def require_experts(has_experts: bool, balance_weight: float | None, z_weight: float) -> None:
    """Check that losses of routers are asked for where there are routers.

    Args:
        has_experts: Whether the network has experts.
        balance_weight: `model.router_balance_weight`.
        z_weight: `model.router_z_weight`.

    Raises:
        ConfigError: One line for each weight of a network without experts.
    """
    weights = {"router_balance_weight": (balance_weight, "null"), "router_z_weight": (z_weight, 0)}
    lines = [
        f"model.{key}: the network has no experts, got {value}; set it to {unused}"
        for key, (value, unused) in weights.items()
        if value
    ]
    if lines and not has_experts:
        raise ConfigError("\n".join(lines))


def _problems(values: Mapping[str, Any]) -> list[str]:
    family = family_of(values)
    if family is not None:
        return list(family.problems(values))
    kinds = f"{values.get('model_type')!r}, architectures {values.get('architectures')!r}"
    known = ", ".join(family.name for family in FAMILIES)
    return [f"model_type: no network that is implemented here ({known}), got {kinds}"]
