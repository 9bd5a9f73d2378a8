"""What may change when a run is resumed: a rule for each key, and the changes of a config.

    free      applies from the next step on
    stated    applies from the next step on, with a consequence that is printed
    trained   refused once the run has a checkpoint; before that it is free
    fixed     refused at any time

The table in docs/slurm-jobs.md says the same; a test compares the two.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from llada_sft.config.schema import Config
from llada_sft.errors import ConfigError

Kind = Literal["free", "stated", "trained", "fixed"]
_SHOWN_CHARACTERS = 120
_NEW_RUN = (
    "launch a new run; to keep what was learned, export this one (llada-sft export RUN OUT)"
    " and give the new run model.path=OUT"
)


class Rule(NamedTuple):
    """What happens when a key changes.

    Attributes:
        kind: See above.
        why: The consequence, or the reason for the refusal.
        do: What to do instead, if the change is refused.
    """

    kind: Kind
    why: str = ""
    do: str = _NEW_RUN


class Change(NamedTuple):
    """A key with two values, as they are in YAML; `rule` is the key of RULES."""

    key: str
    old: Any
    new: Any
    rule: str

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.old)} -> {_shown(self.new)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def _free(section: str, *keys: str) -> dict[str, Rule]:
    return {f"{section}.{key}": Rule("free") for key in keys}


def _stated(why: str, section: str, *keys: str) -> dict[str, Rule]:
    return {f"{section}.{key}": Rule("stated", why) for key in keys}


def _trained(why: str, section: str, *keys: str) -> dict[str, Rule]:
    return {f"{section}.{key}": Rule("trained", why) for key in keys}


_OWN_COPY = "the run has its own copy of the hook"
_LOSS = "losses before and after could not be compared"
_POSITIONS = "the checkpoint's positions in the data depend on it"
_EXAMPLES = "rows from here on are encoded with it; rows that are half done start again"
_FILES = "files are compared with the checkpoint's by name and content"
_SHARES = "the shares of everything trained so far move to it"
_LENGTH = "the learning rate continues as if the training had had this length from its first step"
_BATCH = "the global batch changes; the learning rate continues from where it is"
_GROUPS = "other examples share a micro-batch; tails of end: batch_max have other lengths"
_NOISE = "examples of a step have another order, and so other noise"
_ADAPTERS = "the checkpoint's adapters were trained with it"
_LAST_BITS = "losses may differ in the last bits from those of an unchanged run"
_QUANTIZED = "steps before and after are of another precision"

RULES: Mapping[str, Rule] = {
    "run.name": Rule("fixed", "it is the name of the run directory", "rename the directory"),
    "run.root": Rule("fixed", "it is where the run directory is", "move the directory"),
    **_trained("it keys the noise and the order of the rows", "run", "seed"),
    **_free("run", "owner_timeout_s"),
    **_stated(
        "it must be the same model: config.json and the tokenizer are read from it, the weights"
        " come from the checkpoint",
        "model",
        "path",
    ),
    **_trained("the checkpoint's weights belong to this network", "model", "init", "size"),
    **_trained("the checkpoint was trained with this mask token", "model", "mask_token"),
    **_free("model", "activation_checkpointing", "activation_gb", "compile"),
    **_stated(_LAST_BITS, "model", "norm_kernel", "swiglu_kernel", "rope_kernel", "loss_kernel"),
    **_stated(_LAST_BITS, "model", "attention_kernel"),
    **_free("model", "router_balance_weight", "router_z_weight"),
    **_stated(_FILES, "data", "train", "train.path"),
    **_trained("the checkpoint's positions belong to these sources", "data", "train.name"),
    **_stated(_SHARES, "data", "train.weight", "mix_by"),
    **_stated(_LENGTH, "data", "train.epochs"),
    **_trained(_POSITIONS, "data", "train.format", "train.fields"),
    **_stated("validation losses before and after are of other rows", "data", "validation"),
    **_trained(_POSITIONS, "data", "format", "fields", "multi_turn", "batching", "shuffle"),
    "data.hook": Rule("fixed", _OWN_COPY, "llada-sft resume RUN --update-code data.hook=FILE"),
    **_stated(_EXAMPLES, "data", "max_length", "on_too_long", "eos_after_cut", "end"),
    **_stated(_EXAMPLES, "data", "end_tokens", "void_token_id", "rainbow_token_ids"),
    **_stated(_EXAMPLES, "data", "random_length"),
    **_stated(_EXAMPLES, "data", "roles", "ignore_fields", "special_tokens_in_text"),
    **_stated(_BATCH, "data", "max_tokens"),
    **_stated(_GROUPS, "data", "group_by_length"),
    **_stated(_NOISE, "data", "costliest_first"),
    **_free("data", "max_bad_fraction", "pack_buffer", "on_changed_file", "cache_dir"),
    **_free("data", "prefetch_steps", "try_rows"),
    **_trained(_LOSS, "objective", "kind", "block_length", "band", "edit"),
    **_free("objective", "allow_mismatch"),
    **_trained(_LOSS, "objective", "masking", "t_sampling", "pairs", "t_density"),
    **_trained(_LOSS, "objective", "confidence_weight", "void_weight", "normalization", "eps"),
    **_trained("the checkpoint's optimizer states are of this kind", "optim", "kind"),
    **_free("optim", "lr", "final_lr", "betas", "eps", "weight_decay", "schedule"),
    **_free("optim", "warmup_steps", "decay_fraction", "gradient_clip"),
    "lora": Rule("trained", "the checkpoint's weights are the network's, or adapters alone"),
    **_trained(_ADAPTERS, "lora", "rank", "alpha", "targets", "dropout", "rslora", "dora", "base"),
    **_stated(_BATCH, "train", "micro_batch_size", "accumulate_grad_batches"),
    **_stated(_LENGTH, "train", "epochs", "max_steps"),
    **_trained("the checkpoint's optimizer states are of this precision", "train", "precision"),
    **_stated(_LAST_BITS, "train", "accelerator", "threads_per_rank"),
    **_stated("validation numbers before and after are of other masks", "validation", "draws"),
    **_free("validation", "answers", "answer_length", "sampler"),
    **_free("train", "validate_every_steps", "validation_max_rows", "checkpoint_every_steps"),
    **_free("train", "keep_best", "early_stop"),
    **_free("train", "keep_checkpoints", "on_failed_save", "on_nonfinite", "max_skipped_steps"),
    **_free("train", "async_checkpoints", "hang_timeout_s", "hang_grace_s", "profile"),
    **_free("train", "preflight", "preflight_timeout_s"),
    **_stated(_LAST_BITS, "deepspeed", "offload_optimizer", "offload_param", "reduce_bucket_size"),
    **_free("deepspeed", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"),
    **_free("deepspeed", "stage3_max_live_parameters", "timeout_min"),
    **_trained("the checkpoint's files are those of this stage", "deepspeed", "stage"),
    **_free("deepspeed", "zero_hpz_partition_size"),
    **_stated(_LAST_BITS, "deepspeed", "leaf_blocks", "overlap_comm", "contiguous_gradients"),
    **_stated(_QUANTIZED, "deepspeed", "zero_quantized_weights", "zero_quantized_gradients"),
    **_stated(_QUANTIZED, "deepspeed", "reduce_dtype"),
    **_free("slurm", "nodes", "ranks_per_node", "gpus_per_node", "cpus_per_rank"),
    **_free(
        "slurm",
        "gpu_mem_gb",
        "mem_gb_per_node",
        "time_min",
        "partition",
        "account",
        "qos",
        "constraint",
    ),
    **_free("slurm", "exclude", "signal_lead_s", "elastic", "node_failure_restarts"),
    **_free("slurm", "attempts_without_progress", "min_steps_per_attempt", "setup", "extra"),
    **_free("slurm", "srun_args", "container"),
    **_free("log", "level", "every_n_steps", "tensorboard", "csv", "wandb_project"),
}


def find_changes(old: Config, new: Config) -> list[Change]:
    """List the keys whose values differ, in the order of the schema; paths must be absolute."""
    a, b = old.model_dump(mode="json"), new.model_dump(mode="json")
    return [change for section in a for change in _of_section(section, a[section], b[section])]


def refuse_changes(changes: Sequence[Change], trained: bool) -> None:
    """Check that a run may continue with these changes.

    Args:
        changes: What `find_changes` found.
        trained: Whether the run has a checkpoint.

    Raises:
        ConfigError: One line for each key that may not change.
    """
    refused = ("fixed", "trained") if trained else ("fixed",)
    lines = [
        f"{change}: cannot change within a run: {rule.why}; {rule.do}"
        for change in changes
        if (rule := RULES[change.rule]).kind in refused
    ]
    if lines:
        raise ConfigError("\n".join(lines))


def change_lines(changes: Sequence[Change], trained: bool) -> list[str]:
    """Return one line for each changed key, with its consequence."""
    return [f"changed          {change}{_consequence(change, trained)}" for change in changes]


def batch_lines(old: Config, new: Config) -> list[str]:
    """Return a line if another number of ranks changes the global batch, and what would keep it."""
    before, after = old.global_batch_size, new.global_batch_size
    if before == after or old.world_size == new.world_size:
        return []
    accumulate, rest = divmod(before * new.train.accumulate_grad_batches, after)
    key = f"train.accumulate_grad_batches={accumulate}"
    keep = f": {key} keeps it" if accumulate and not rest else ""
    return [
        f"changed          global batch: {before:,} -> {after:,} {new.global_batch_unit}, with the"
        f" number of ranks{keep}"
    ]


def _consequence(change: Change, trained: bool) -> str:
    rule = RULES[change.rule]
    return f": {rule.why}" if trained and rule.kind == "stated" else ""


def _of_section(section: str, old: Any, new: Any) -> Iterator[Change]:
    if old is None or new is None:
        if old != new:
            yield Change(section, old, new, section)
        return
    for key in old:
        yield from _changes(f"{section}.{key}", old[key], new[key])


def _changes(key: str, old: Any, new: Any) -> Iterator[Change]:
    if key == "data.train":
        yield from _changes_of_train(old, new)
    elif key == "model.size" and isinstance(old, dict) and isinstance(new, dict):
        for name in old:
            if old[name] != new[name]:
                yield Change(f"{key}.{name}", old[name], new[name], key)
    elif old != new:
        yield Change(key, old, new, key)


def _changes_of_train(old: Any, new: Any) -> Iterator[Change]:
    """Compare one dataset by its paths, and sources by name key by key."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if isinstance(old, dict) or isinstance(new, dict):
            yield Change("data.train", old, new, "data.train.name")
        elif _as_list(old) != _as_list(new):
            yield Change("data.train", old, new, "data.train")
        return
    # Their order decides which of two sources comes first if both are equally far behind.
    if list(old) != list(new):
        yield Change("data.train", list(old), list(new), "data.train.name")
        return
    for name, source in old.items():
        for key in source:
            if source[key] != new[name][key]:
                where = f"data.train.{name}.{key}"
                yield Change(where, source[key], new[name][key], f"data.train.{key}")


def _as_list(paths: str | list[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else paths
