"""Checks, on the login node, for problems that would end the job on its nodes.

The checks only read: small files, the headers of weights, shards up to their first row. They never
import torch. Every check adds its problems to one list, so that a user sees all problems at once
instead of one per hour in the queue.
"""

import importlib.util
import netrc
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from llada_sft.cluster.preflight.place import place_problems
from llada_sft.config import Config
from llada_sft.errors import ConfigError, LladaSftError
from llada_sft.run_dir import RunDir

if TYPE_CHECKING:
    from llada_sft.data.storage.files import Shard
    from llada_sft.model.families.architecture import Architecture


def require(config: Config, new_run: RunDir | None = None) -> None:
    """Check everything that can be known before the job starts.

    Args:
        config: The config, with absolute paths.
        new_run: The run directory, if it does not exist yet.

    Raises:
        ConfigError: It has one line for each problem.
    """
    if problems := find_problems(config, new_run):
        raise ConfigError("\n".join(problems))


def find_problems(config: Config, new_run: RunDir | None = None) -> list[str]:
    """Return one line for each problem. The arguments are those of `require`."""
    checks: tuple[Callable[[Config], Iterator[str]], ...] = (
        _training_files,
        _validation_files,
        _hook,
        _setup_script,
        _checkpoint,
        _tokenizer,
        _adapters,
        _kernels,
        _wandb,
    )
    place = [] if new_run is None else list(place_problems(new_run))
    return place + [problem for check in checks for problem in check(config)]


def _training_files(config: Config) -> Iterator[str]:
    from llada_sft.data.sources import list_sources

    try:
        sources = list_sources(config.data, config.train.epochs)
    except LladaSftError as error:
        yield str(error)
        return
    for source in sources:
        try:
            source.of_rank(0, config.largest_world_size)
        except LladaSftError as error:
            yield str(error)
        where = f"data.train.{source.name}: " if source.name else ""
        yield from _without_rows(f"{where}{source.path}", [named.shard for named in source.shards])


def _validation_files(config: Config) -> Iterator[str]:
    from llada_sft.data.shards import list_shards

    for name, path in config.data.validation_sets.items():
        try:
            shards = list_shards(path)
        except LladaSftError as error:
            yield str(error)
            continue
        do = f"remove the set {name}" if name else "set data.validation=null"
        for problem in _without_rows(path, shards):
            yield f"{problem}: fill it, or {do}"


def _without_rows(path: str, shards: "Sequence[Shard]") -> Iterator[str]:
    from llada_sft.data.rows.count import has_rows

    try:
        if not has_rows(shards):
            yield f"{path}: no rows in {len(shards)} files"
    except LladaSftError as error:
        yield str(error)


def _hook(config: Config) -> Iterator[str]:
    from llada_sft.data.examples.hook import check_hook

    try:
        check_hook(Path(config.data.hook))
    except LladaSftError as error:
        yield str(error)


def _setup_script(config: Config) -> Iterator[str]:
    if config.slurm.setup is not None and not Path(config.slurm.setup).is_file():
        yield f"{config.slurm.setup}: no such file; set slurm.setup, or slurm.setup=null"


def _checkpoint(config: Config) -> Iterator[str]:
    """Check what loading checks: the keys of config.json, the names and shapes of all tensors."""
    if config.model.init == "random":
        return
    from llada_sft.model.index import check_tensors, read_index
    from llada_sft.model.settings import (
        architecture_of,
        read_settings,
        require_experts,
        require_objective,
        require_trainable,
    )

    model = Path(config.model.path)
    try:
        settings = read_settings(model, config.model.mask_token)
    except LladaSftError as error:
        yield str(error)
        return
    network = architecture_of(settings)
    if config.data.max_length > network.max_length:
        yield (
            f"data.max_length: must be at most the context of {model / 'config.json'},"
            f" {network.max_length}, got {config.data.max_length}"
        )
    yield from _end_tokens(config, network)
    try:
        require_objective(model, network, config.objective)
    except LladaSftError as error:
        yield str(error)
    try:
        require_trainable(model, network)
        given = config.model
        require_experts(network.experts, given.router_balance_weight, given.router_z_weight)
    except LladaSftError as error:
        yield str(error)
    try:
        slots = read_index(model)
        check_tensors(network.tensor_shapes(network.is_stacked(slots)), slots, model)
    except LladaSftError as error:
        yield str(error)


def _end_tokens(config: Config, network: "Architecture") -> Iterator[str]:
    """Check the tokens that `data.end` puts after answers, as far as config.json tells."""
    if config.data.end not in ("void", "rainbow"):
        return
    from llada_sft.data.examples.answer_end import end_token_ids
    from llada_sft.data.examples.tokenizer import TokenIds

    if network.mask_token_id is None or network.eos_token_id is None:
        return
    ids = TokenIds(
        vocab_size=network.vocab_size,
        eos_token_id=network.eos_token_id,
        mask_token_id=network.mask_token_id,
        pad_token_id=network.pad_token_id,
        reserved=network.reserved_token_ids,
    )
    try:
        end_token_ids(config.data, ids)
    except ConfigError as error:
        yield from str(error).splitlines()


def _adapters(config: Config) -> Iterator[str]:
    """Check that LoRA's packages are there, and that each of its targets matches something."""
    if config.lora is None:
        return
    from llada_sft.model.adapter_plan import missing_packages, plan_adapters
    from llada_sft.model.settings import architecture_of, read_settings

    yield from missing_packages(config.lora)
    # A network with random weights has the tokenizer's vocabulary: the ranks check its targets.
    if config.model.init == "random":
        return
    try:
        settings = read_settings(Path(config.model.path), config.model.mask_token)
    except LladaSftError:
        # `_checkpoint` says why.
        return
    try:
        plan_adapters(architecture_of(settings), config.lora)
    except ConfigError as error:
        yield from str(error).splitlines()


def _kernels(config: Config) -> Iterator[str]:
    """Check that the packages of kernels that are asked for by name are there."""
    model = config.model
    of_blocks = {model.norm_kernel, model.swiglu_kernel, model.rope_kernel}
    asked = {model.attention_kernel, model.loss_kernel} | of_blocks
    if asked <= {"auto", "torch"} and config.optim.kind == "adamw":
        return
    from llada_sft.model.kernels.choice import missing_kernels

    yield from missing_kernels(config)


def _tokenizer(config: Config) -> Iterator[str]:
    """Check that the tokenizer exists and has the mask token."""
    from llada_sft.data.examples.tokenizer import known_ids

    model = Path(config.model.path)
    tokenizer = _read_json(model / "tokenizer.json")
    if isinstance(tokenizer, str):
        yield tokenizer
        return
    no_mask = f"{model / 'tokenizer.json'}: tokenizer has no mask token"
    given = config.model.mask_token
    if isinstance(given, int) and given not in known_ids(tokenizer):
        yield f"model.mask_token: {model / 'tokenizer.json'} has no token of this id, got {given}"
        return
    if config.model.init == "random":
        names = _read_json(model / "tokenizer_config.json")
        if isinstance(names, str):
            yield names
            return
        if not names.get("mask_token") and given is None:
            yield f"{no_mask}; add it as mask_token to tokenizer_config.json"
        if not names.get("eos_token") and not (model / "special_tokens_map.json").exists():
            yield (
                f"{model}: tokenizer has no EOS token; "
                "name it in tokenizer_config.json ('eos_token')"
            )
        return
    settings = _read_json(model / "config.json")
    mask = settings.get("mask_token_id") if isinstance(settings, dict) else None
    if isinstance(mask, int) and mask not in known_ids(tokenizer):
        yield f"{no_mask}; no token has the id {mask} of config.json: take the model's own"


def _read_json(path: Path) -> dict[str, Any] | str:
    """Read a JSON object; return the problem instead if there is one."""
    try:
        content = orjson.loads(path.read_bytes())
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}; set model.path"
    except orjson.JSONDecodeError as error:
        return f"{path}:{error.lineno}: not JSON: {error.msg}"
    if not isinstance(content, dict):
        return f"{path}: must be a JSON object"
    return content


def _wandb(config: Config) -> Iterator[str]:
    """Check that Weights & Biases is installed and has a key, if it is to be used."""
    if config.log.wandb_project is None or os.environ.get("WANDB_MODE") in ("disabled", "dryrun"):
        return
    if importlib.util.find_spec("wandb") is None:
        yield (
            "log.wandb_project: the package wandb is not installed:"
            " run  pip install 'llada-sft[wandb]'  or set log.wandb_project=null"
        )
    if os.environ.get("WANDB_MODE") != "offline" and not _has_wandb_key(config):
        yield (
            "log.wandb_project: no key for W&B: run  wandb login, or set WANDB_API_KEY,"
            " or WANDB_MODE=offline, or log.wandb_project=null"
        )


def _has_wandb_key(config: Config) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    files = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    setup = config.slurm.setup
    try:
        for file in filter(None, files):
            path = Path(file).expanduser()
            if path.is_file() and host and netrc.netrc(path).authenticators(host):
                return True
        # setup.sh may export the key.
        return setup is not None and "WANDB_" in Path(setup).read_text(errors="replace")
    except (OSError, RuntimeError, UnicodeDecodeError, netrc.NetrcParseError):
        return False
