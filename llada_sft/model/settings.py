"""`config.json` of a model directory as plain values, checked: which network it asks for.

Without torch and transformers: preflight refuses on the login node, with the same messages, what
loading would refuse on the nodes.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llada_sft.config.sections.objective import ObjectiveConfig
from llada_sft.errors import CheckpointError, ConfigError
from llada_sft.model.families import FAMILIES, family_of, keys
from llada_sft.model.families.architecture import Architecture, Experts


def read_settings(model_dir: Path, mask_token: str | int | None = None) -> dict[str, Any]:
    """Read `config.json` of a model directory, without running any code of it.

    Where it names no mask token, `mask_token_id` is that of `mask_token`, or else the tokenizer's.

    Args:
        model_dir: The model directory.
        mask_token: `model.mask_token`.

    Raises:
        CheckpointError: The file is missing or not JSON, or describes a network that is not
            implemented here; one line per key.
        ConfigError: `mask_token` is not in the tokenizer, or is not what `config.json` names.
    """
    path = model_dir / "config.json"
    if not path.is_file():
        raise CheckpointError(_no_config(model_dir))
    values = keys.with_rope_keys(_read_object(path))
    named = values.get("mask_token_id")
    if named is None or mask_token is not None:
        found = find_mask_token(model_dir, mask_token)
        if named is not None and named != found:
            raise ConfigError(
                f"model.mask_token: {path} has mask_token_id {named}, got {mask_token!r}; remove it"
            )
        if found is not None:
            values["mask_token_id"] = found
    if problems := _problems(values):
        raise CheckpointError("\n".join(f"{path}: {problem}" for problem in problems))
    return values


def _no_config(model_dir: Path) -> str:
    """Say that a directory is no model, and what it is if that is known."""
    if (model_dir / "adapter_config.json").is_file():
        return (
            f"{model_dir}: no config.json: these are adapters alone; export the run without"
            " --adapter: they are merged into its network"
        )
    if (model_dir / "checkpoints").is_dir():
        return (
            f"{model_dir}: no config.json: this is a run, not a model; write one with"
            f"  llada-sft export {shlex.quote(str(model_dir))} OUT"
        )
    return f"{model_dir}: no config.json; a model is a directory in Hugging Face's layout"


def no_eos(model_dir: Path) -> CheckpointError:
    """Return the error that answers need an EOS token, and config.json names none."""
    path = model_dir / "config.json"
    return CheckpointError(f"{path}: eos_token_id: must be given, got null: answers need it")


def find_mask_token(model_dir: Path, mask_token: str | int | None = None) -> int | None:
    """Return the id of a mask token; None where neither the user nor the tokenizer names one.

    Args:
        model_dir: Has the tokenizer.
        mask_token: `model.mask_token`, which comes before what the tokenizer names.

    Raises:
        CheckpointError: A file of the tokenizer is damaged.
        ConfigError: `mask_token` is not in the tokenizer.
    """
    if isinstance(mask_token, int):
        return mask_token
    tokens = model_dir / "tokenizer.json"
    text = _named_by_tokenizer(model_dir) if mask_token is None else mask_token
    found = _token_id(_read_object(tokens), text) if text and tokens.is_file() else None
    if found is None and mask_token is not None:
        raise ConfigError(f"model.mask_token: {tokens} has no such token, got {mask_token!r}")
    return found


def _named_by_tokenizer(model_dir: Path) -> str | None:
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        path = model_dir / file
        named = _read_object(path).get("mask_token") if path.is_file() else None
        text = named.get("content") if isinstance(named, dict) else named
        if isinstance(text, str):
            return text
    return None


def _token_id(tokenizer: Mapping[str, Any], text: str) -> int | None:
    """Look a token up in the object of a tokenizer.json."""
    for token in tokenizer.get("added_tokens") or []:
        if token.get("content") == text:
            return int(token["id"])
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    if not isinstance(vocabulary, dict):
        # Unigram's: pairs of a token and its logarithm.
        texts = (entry[0] if isinstance(entry, list) else None for entry in vocabulary)
        vocabulary = {text: number for number, text in enumerate(texts)}
    found: int | None = vocabulary.get(text)
    return found


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
        CheckpointError: Nothing names the mask token, or the EOS token: each example ends with it;
            or the official training has dropout in attention, or a router with a bias, through
            which the official code has no gradient.
    """
    path = model_dir / "config.json"
    if network.mask_token_id is None:
        raise CheckpointError(
            f"{path}: mask_token_id: must be given, got null, and the tokenizer names no mask"
            " token; set model.mask_token to its text or its id"
        )
    if network.eos_token_id is None:
        raise CheckpointError(f"{path}: eos_token_id: must be given, got null")
    if network.attention_dropout:
        raise CheckpointError(
            f"{path}: attention_dropout: training has no dropout, got"
            f" {network.attention_dropout:g} (a missing key may mean that); set it to 0 there"
        )
    if network.experts is not None and network.experts.router.bias == "weights":
        raise CheckpointError(
            f"{path}: a router with a bias cannot be trained, only sampled: take another checkpoint"
        )


def require_objective(model_dir: Path, network: Architecture, objective: ObjectiveConfig) -> None:
    """Check that a network is trained with the attention that it is sampled with.

    Raises:
        ConfigError: It decodes in blocks and is to be trained without, or the other way round it
            cannot be trained in blocks.
    """
    if objective.kind == "block" and network.shifted:
        raise ConfigError(
            f"objective.kind: {model_dir} predicts each token at the position before it, which may"
            " be in another block, got block; set it to full"
        )
    if objective.kind == "full" and network.decodes_in_blocks and not objective.allow_mismatch:
        raise ConfigError(
            f"objective.kind: {model_dir} decodes in blocks and never sees a later one, got full;"
            " set it to block (docs/recipes.md), or set objective.allow_mismatch: true"
        )


def require_experts(experts: Experts | None, balance_weight: float | None, z_weight: float) -> None:
    """Check that losses of routers are asked for where there are such routers.

    Args:
        experts: Of the network.
        balance_weight: `model.router_balance_weight`.
        z_weight: `model.router_z_weight`.

    Raises:
        ConfigError: One line for each weight of a network without experts; or a weight of the
            softmax's normaliser, where the scores are sigmoids.
    """
    if experts is not None:
        if z_weight and experts.router.scores != "softmax":
            raise ConfigError(
                "model.router_z_weight: the router has sigmoids and no softmax,"
                f" got {z_weight:g}; set it to 0"
            )
        return
    weights = {"router_balance_weight": (balance_weight, "null"), "router_z_weight": (z_weight, 0)}
    lines = [
        f"model.{key}: the network has no experts, got {value}; set it to {unused}"
        for key, (value, unused) in weights.items()
        if value
    ]
    if lines:
        raise ConfigError("\n".join(lines))


def _problems_of_blocks(values: Mapping[str, Any]) -> list[str]:
    given = values.get("decodes_in_blocks", False)
    return [] if isinstance(given, bool) else [f"decodes_in_blocks: must be a bool, got {given!r}"]


def _problems_of_tokens(network: Architecture) -> list[str]:
    mask = network.mask_token_id
    if mask is None or mask != network.eos_token_id:
        return []
    return [f"mask_token_id: must not be eos_token_id, which can be learned, got {mask} for both"]


def _problems(values: Mapping[str, Any]) -> list[str]:
    family = family_of(values)
    if family is not None:
        problems = (_problems_of_blocks, keys.rope_problems, family.problems)
        lines = [line for find in problems for line in find(values)]
        return lines or _problems_of_tokens(family.architecture(values))
    kinds = f"{values.get('model_type')!r}, architectures {values.get('architectures')!r}"
    known = ", ".join(family.name for family in FAMILIES)
    return [f"model_type: no network that is implemented here ({known}), got {kinds}"]
