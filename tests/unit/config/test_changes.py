"""What may change within a run: each key has a rule, which the docs say; and what is a change."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from llada_sft.config import load_config, resolve_paths
from llada_sft.config.changes import (
    RULES,
    Change,
    Kind,
    batch_lines,
    change_lines,
    find_changes,
    refuse_changes,
)
from llada_sft.config.schema import Config
from llada_sft.config.sections.data import SourceConfig
from llada_sft.errors import ConfigError

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs/slurm-jobs.md").read_text()
Changed = Callable[..., list[Change]]
RUN = "run: {name: a}\nmodel: {path: model}\n"
RANDOM = """\
run: {name: a}
model:
  path: model
  init: random
  size: {d_model: 8, n_layers: 2, n_heads: 2, mlp_hidden_size: 8}
data: {train: shards}
"""
MIXED = RUN + "data: {train: {a: {path: x, weight: 0.5}, b: {path: y}}}\n"


def keys_of_the_schema() -> set[str]:
    # A section that may be null is a key by itself, too.
    keys = set()
    for name, one in Config.model_fields.items():
        kinds = get_args(one.annotation) or (one.annotation,)
        keys |= {name} if type(None) in kinds else set()
        section: Any = kinds[0]
        keys |= {f"{name}.{key}" for key in section.model_fields}
    # `name` is which sources there are.
    return keys | {f"data.train.{key}" for key in ("name", *SourceConfig.model_fields)}


@pytest.fixture
def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Changed:
    """List the changes that overrides make of a config's text."""
    monkeypatch.chdir(tmp_path)

    def run(text: str, *overrides: str) -> list[Change]:
        Path("a.yaml").write_text(text)
        one, other = load_config("a.yaml"), load_config("a.yaml", overrides)
        return find_changes(resolve_paths(one, tmp_path), resolve_paths(other, tmp_path))

    return run


def test_every_key_has_a_rule_and_every_rule_a_key() -> None:
    assert set(RULES) == keys_of_the_schema()


def test_what_is_not_free_says_why_and_what_to_do() -> None:
    for key, rule in RULES.items():
        assert rule.kind in get_args(Kind), key
        assert bool(rule.why) == (rule.kind != "free"), key
        assert rule.do, key


def test_the_docs_have_the_same_table() -> None:
    table = DOCS.partition("## What may change on resume")[2].partition("\n## ")[0]
    documented = {}
    for kind, cells in re.findall(r"^\| (free|stated|trained|fixed) \| ([^|]+) \|", table, re.M):
        for name in re.findall(r"`([a-z0-9_.*]+)`", cells):
            prefix = name.removesuffix("*")
            names = [key for key in RULES if key.startswith(prefix)] if prefix != name else [name]
            documented |= dict.fromkeys(names, kind)
    assert documented == {key: rule.kind for key, rule in RULES.items()}


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim.lr=0.000025", "optim.final_lr=25e-7"],
        ["optim.weight_decay=1e-1", "optim.betas=[9e-1, 0.95]"],
        ["data.train=./shards", "model.path=model/"],
        ["data.train=[shards]"],
        ["train.max_steps=~", "slurm.nodes=0x1"],
        ["optim.lr=1", "optim.lr=2.5e-5"],
    ],
)
def test_the_same_value_written_otherwise_is_no_change(
    changed: Changed, overrides: list[str]
) -> None:
    assert changed(RANDOM, *overrides) == []


def test_an_absolute_path_is_the_relative_one(changed: Changed, tmp_path: Path) -> None:
    assert changed(RANDOM, f"data.train={tmp_path}/shards", f"run.root={tmp_path}/runs") == []


@pytest.mark.parametrize(
    ("text", "override", "line", "kind"),
    [
        (RANDOM, "optim.lr=1e-3", "optim.lr: 2.5e-05 -> 0.001", "free"),
        (RANDOM, "optim.betas=[0.8, 0.9]", "optim.betas: [0.9, 0.95] -> [0.8, 0.9]", "free"),
        (RANDOM, "model.size.n_layers=3", "model.size.n_layers: 2 -> 3", "trained"),
        (RANDOM, "train.precision=fp32", 'train.precision: "bf16" -> "fp32"', "trained"),
        (RANDOM, "run.seed=1", "run.seed: 0 -> 1", "trained"),
        (MIXED, "data.train.a.weight=2", "data.train.a.weight: 0.5 -> 2.0", "stated"),
        (MIXED, "data.train.b.epochs=2", "data.train.b.epochs: null -> 2", "stated"),
        (MIXED, "data.train.b.format=alpaca", 'data.train.b.format: null -> "alpaca"', "trained"),
        (MIXED, "data.train.c={path: z}", 'data.train: ["a", "b"] -> ["a", "b", "c"]', "trained"),
        (
            MIXED,
            "data.train={b: {path: y}, a: {path: x, weight: 0.5}}",
            'data.train: ["a", "b"] -> ["b", "a"]',
            "trained",
        ),
    ],
)
def test_each_change_is_one_line(
    changed: Changed, text: str, override: str, line: str, kind: Kind
) -> None:
    (change,) = changed(text, override)
    assert (str(change), RULES[change.rule].kind) == (line, kind)


def test_one_dataset_does_not_become_a_mixture(changed: Changed, tmp_path: Path) -> None:
    (change,) = changed(MIXED, "data.train=x")
    assert change.rule == "data.train.name"
    (change,) = changed(RANDOM, "data.train=[shards, more]")
    assert change.rule == "data.train"
    assert change.new == [f"{tmp_path}/shards", f"{tmp_path}/more"]


def test_all_that_may_not_change_is_refused_at_once(changed: Changed) -> None:
    changes = changed(RANDOM, "run.seed=1", "optim.lr=1", "data.shuffle=false", "run.name=b")
    with pytest.raises(ConfigError) as caught:
        refuse_changes(changes, trained=True)
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["run.name", "run.seed", "data.shuffle"]
    assert lines[1] == (
        "run.seed: 0 -> 1: cannot change within a run: it keys the noise and the order of the rows;"
        " launch a new run; to keep what was learned, export this one (llada-sft export RUN OUT)"
        " and give the new run model.path=OUT"
    )


def test_before_the_first_checkpoint_only_the_run_itself_is_fixed(changed: Changed) -> None:
    changes = changed(RANDOM, "run.seed=1", "data.format=alpaca", "model.size.d_model=16")
    refuse_changes(changes, trained=False)
    with pytest.raises(ConfigError, match=r"^run\.root: [^\n]*$"):
        refuse_changes(changed(RANDOM, "run.seed=1", "run.root=x"), trained=False)


def test_a_consequence_is_said_once_there_is_something_to_lose(changed: Changed) -> None:
    changes = changed(RANDOM, "data.max_length=8", "optim.lr=1")
    assert change_lines(changes, trained=False) == [
        "changed          data.max_length: 4096 -> 8",
        "changed          optim.lr: 2.5e-05 -> 1.0",
    ]
    assert change_lines(changes, trained=True)[0] == (
        "changed          data.max_length: 4096 -> 8: rows from here on are encoded with it;"
        " rows that are half done start again"
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (["slurm.nodes=4"], ["slurm.nodes=2"], "16 -> 8 examples, with the number of ranks: {2}"),
        (["slurm.nodes=2"], ["slurm.nodes=4"], "8 -> 16 examples, with the number of ranks"),
        (["slurm.ranks_per_node=3"], [], "3 -> 4 examples, with the number of ranks"),
        (["slurm.nodes=4"], ["slurm.nodes=2", "train.accumulate_grad_batches=2"], ""),
        # That is the change that was asked for.
        ([], ["train.micro_batch_size=2"], ""),
        (["log.level=debug"], [], ""),
    ],
)
def test_another_number_of_ranks_changes_the_batch(
    tmp_path: Path, old: list[str], new: list[str], said: str
) -> None:
    (tmp_path / "a.yaml").write_text(RANDOM)
    before, after = (
        load_config(tmp_path / "a.yaml", ["slurm.ranks_per_node=4", *overrides])
        for overrides in (old, new)
    )
    keep = "train.accumulate_grad_batches=2 keeps it"
    lines = [f"changed          global batch: {said.replace('{2}', keep)}"] if said else []
    assert batch_lines(before, after) == lines
