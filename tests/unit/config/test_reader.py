"""The reader: a table of bad files with the exact messages, and what YAML 1.2 means."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llada_sft.config import Config, dump_config, load_config, resolve_paths
from llada_sft.config.reader import load_as
from llada_sft.config.sections.slurm import check_range
from llada_sft.config.values import Section
from llada_sft.errors import ConfigError

INT_64 = st.integers(-(2**63), 2**63 - 1)
MINIMAL = "run: {name: a}\nmodel: {path: m}\ndata: {train: d}\n"
# Lines 1 to 3 are MINIMAL; the mistake begins on line 4.
BAD_FILES = {
    "unknown key": (
        "train:\n  max_setps: 3",
        "a.yaml:5: train.max_setps: unknown key; did you mean 'max_steps'?",
    ),
    "initials": (
        "optim:\n  learning_rate: 3",
        "a.yaml:5: optim.learning_rate: unknown key; did you mean 'lr'?",
    ),
    "another section": (
        "train:\n  lr: 3",
        "a.yaml:5: train.lr: unknown key; did you mean 'optim.lr'?",
    ),
    "like nothing": (
        "log:\n  qqqqq: 3",
        "a.yaml:5: log.qqqqq: unknown key; the keys here are"
        " level, every_n_steps, tensorboard, csv, wandb_project",
    ),
    "unknown section": ("trian: {}", "a.yaml:4: trian: unknown key; did you mean 'train'?"),
    "not a number": (
        "optim:\n\n  lr: fast",
        "a.yaml:6: optim.lr: must be a number, got 'fast'",
    ),
    "not whole": (
        "train: {epochs: 1.5}",
        "a.yaml:4: train.epochs: must be a whole number, got 1.5",
    ),
    "not a bool": ("log: {csv: yes}", "a.yaml:4: log.csv: must be true or false, got 'yes'"),
    "not a string": (
        "log: {wandb_project: 5}",
        "a.yaml:4: log.wandb_project: must be a string, got 5",
    ),
    "too small": ("train: {epochs: 0}", "a.yaml:4: train.epochs: must be at least 1, got 0"),
    "not positive": ("optim: {lr: 0}", "a.yaml:4: optim.lr: must be greater than 0, got 0"),
    "too large": (
        "optim: {decay_fraction: 2}",
        "a.yaml:4: optim.decay_fraction: must be at most 1, got 2",
    ),
    "not below": ("objective: {eps: 1}", "a.yaml:4: objective.eps: must be less than 1, got 1"),
    "more than fp32 has": (
        "optim: {gradient_clip: 1e39}",
        "a.yaml:4: optim.gradient_clip: must be at most 1e+37, got 1e+39",
    ),
    "0 in fp32": (
        "optim: {eps: 1e-50}",
        "a.yaml:4: optim.eps: must be at least 1e-37, got 1e-50",
    ),
    "first beta of 1": (
        "optim: {betas: [1.0, 0.95]}",
        "a.yaml:4: optim.betas.0: must be less than 1, got 1.0",
    ),
    "second beta of 1": (
        "optim: {betas: [0.9, 1]}",
        "a.yaml:4: optim.betas.1: must be less than 1, got 1",
    ),
    "threads": (
        "train: {threads_per_rank: 100000}",
        "a.yaml:4: train.threads_per_rank: must be at most 1024, got 100000",
    ),
    "a wait past all clocks": (
        "deepspeed: {timeout_min: 9000000000}",
        "a.yaml:4: deepspeed.timeout_min: must be at most 527040, got 9000000000",
    ),
    "a buffer past all memory": (
        "deepspeed: {reduce_bucket_size: 9000000000000}",
        "a.yaml:4: deepspeed.reduce_bucket_size: must be at most 1000000000000, got 9000000000000",
    ),
    "infinite": ("optim: {lr: .inf}", "a.yaml:4: optim.lr: must be a finite number, got inf"),
    "empty string": (
        "log: {wandb_project: ''}",
        "a.yaml:4: log.wandb_project: must be a string that is not empty, got ''",
    ),
    "choice": (
        "train: {precision: fp16}",
        "a.yaml:4: train.precision: must be 'bf16' or 'fp32', got 'fp16'",
    ),
    "not a list": ("optim: {betas: 0.9}", "a.yaml:4: optim.betas: must be a list, got 0.9"),
    "list too long": (
        "optim: {betas: [0.9, 0.95, 1]}",
        "a.yaml:4: optim.betas: must be a list of 2, got a list",
    ),
    "list too short": (
        "optim: {betas: [0.9]}",
        "a.yaml:4: optim.betas.1: missing; the list is too short",
    ),
    "inside a list": (
        "optim:\n  betas:\n  - 0.9\n  - x",
        "a.yaml:7: optim.betas.1: must be a number, got 'x'",
    ),
    "not a section": ("train: 5", "a.yaml:4: train: must be a section of keys, got 5"),
    "empty section": ("train:", "a.yaml:4: train: must be a section of keys, got null"),
    "not a mapping": ("slurm: {extra: x}", "a.yaml:4: slurm.extra: must be a mapping, got 'x'"),
    "blank in an sbatch value": (
        "slurm: {account: a b}",
        "a.yaml:4: slurm.account: must be a match of ^[A-Za-z0-9_.,:@%+/=&|!*\\[\\]()-]+$,"
        " got 'a b'",
    ),
    "union": (
        "slurm: {extra: {nice: [1]}}",
        "a.yaml:4: slurm.extra.nice: must be a string or a whole number or true or false, got a"
        " list",
    ),
    "key of a mapping": (
        "slurm: {extra: {Nice: 1}}",
        "a.yaml:4: slurm.extra.Nice: must be a match of ^[a-z][a-z0-9-]*$, got 'Nice'",
    ),
    "duplicate key": (
        "train:\n  epochs: 1\n  epochs: 2",
        "a.yaml:6: train.epochs: given twice, first on line 5; keep one",
    ),
    "duplicate section": (
        "log: {}\nlog: {}",
        "a.yaml:5: log: given twice, first on line 4; keep one",
    ),
    "key that is a list": ("log:\n  [a]: 1", "a.yaml:5: log: a key must be one word"),
    "unsafe tag": (
        "log: {wandb_project: !!python/name:os.system x}",
        "a.yaml:4: log.wandb_project: the tag 'tag:yaml.org,2002:python/name:os.system' is not"
        " allowed; write a plain value",
    ),
    "tag that does not fit": (
        "train: {epochs: !!int x}",
        "a.yaml:4: train.epochs: 'x' does not fit its tag int",
    ),
    "alias to itself": (
        "slurm: &a {extra: *a}",
        "a.yaml:4: slurm.extra: an alias to itself is not allowed",
    ),
    "not YAML": (
        "train: [1, 2",
        "a.yaml:5: not YAML: while parsing a flow sequence expected ',' or ']',"
        " but got '<stream end>'",
    ),
    "merge key": (
        "log: &a {}\ntrain:\n  <<: *a",
        "a.yaml:6: train: a merge key (<<) is not allowed; write the keys themselves",
    ),
    "more than 64 bits": (
        "train: {epochs: 9223372036854775808}",
        "a.yaml:4: train.epochs: a whole number must fit into 64 bits",
    ),
    "thousands of digits": (
        f"train: {{epochs: {'9' * 5000}}}",
        "a.yaml:4: train.epochs: a whole number must fit into 64 bits",
    ),
    "thousands of hexadecimal digits": (
        f"train: {{epochs: 0x{'f' * 5000}}}",
        "a.yaml:4: train.epochs: a whole number must fit into 64 bits",
    ),
    "two documents": (
        "---\na: 1",
        "a.yaml:4: not YAML: expected a single document in the stream but found another document",
    ),
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str, *overrides: str) -> Config:
    Path("a.yaml").write_text(text, encoding="utf-8")
    return load_config("a.yaml", overrides)


def problems_of(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return str(caught.value)


@pytest.mark.parametrize(("mistake", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_mistake_is_named_with_its_line(mistake: str, message: str) -> None:
    assert problems_of(f"{MINIMAL}{mistake}\n") == message


BAD_TRAIN = {
    "neither": (
        "3",
        "a.yaml:3: data.train: must be a path, a list of paths, or sources by name, got 3",
    ),
    "an empty list": (
        "[]",
        "a.yaml:3: data.train: must be not empty, got a list",
    ),
    "no path": (
        "[a, 3]",
        "a.yaml:3: data.train.1: must be a string, got 3",
    ),
    "unknown key of a source": (
        "{chat: {path: a, weigth: 1.0}}",
        "a.yaml:3: data.train.chat.weigth: unknown key; did you mean 'weight'?",
    ),
    "a name with a slash": (
        "{a/b: {path: a}}",
        "a.yaml:3: data.train.a/b: must be a match of ^[A-Za-z0-9][A-Za-z0-9_.-]*$, got 'a/b'",
    ),
    "a source without a path": (
        "{chat: {weight: 1.0}}",
        "a.yaml:3: data.train.chat.path: missing; add 'path:' under 'data.train.chat:'",
    ),
    "fields of another format": (
        "{chat: {path: a, format: text, fields: {prompt: q}}}",
        "a.yaml:3: data.train.chat.fields: 'prompt' is not a field of format: text, which are text;"
        " write {field of the format: field of your rows}",
    ),
}


@pytest.mark.parametrize(("train", "message"), BAD_TRAIN.values(), ids=BAD_TRAIN)
def test_data_that_can_be_written_in_three_ways(train: str, message: str) -> None:
    text = f"run: {{name: a}}\nmodel: {{path: m}}\ndata: {{train: {train}}}\n"
    assert problems_of(text) == message


def test_every_mistake_is_reported_at_once_in_the_order_of_the_file() -> None:
    text = "model:\n  init: x\ntrain:\n  epochs: 0\n  epochs: 0\nrun: {name: a}\n"
    assert problems_of(text, "optim.lrr=1", "nothing").splitlines() == [
        "a.yaml:1: model.path: missing; add 'path:' under 'model:'",
        "a.yaml:1: data: missing; add 'data:'",
        "a.yaml:2: model.init: must be 'pretrained' or 'random', got 'x'",
        "a.yaml:5: train.epochs: given twice, first on line 4; keep one",
        "a.yaml:5: train.epochs: must be at least 1, got 0",
        "override 'nothing': must be section.key=value",
        "override 'optim.lrr=1': optim.lrr: unknown key; did you mean 'lr'?",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.yaml: empty; write the sections run, model and data"),
        ("# nothing\n", "a.yaml: empty; write the sections run, model and data"),
        ("\n- 1\n", "a.yaml:2: must be a mapping of sections, got a list"),
        (
            "a: \x01",
            "a.yaml: not YAML: unacceptable character #x0001: special characters are not allowed",
        ),
        ("[" * 5000, "a.yaml: not a config: nested too deeply"),
        ("[" * 40 + "]" * 40, "a.yaml: not a config: nested too deeply"),
        ("- " * 5000 + "a", "a.yaml: not a config: nested too deeply"),
        # Deep by its aliases alone.
        (
            "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 900)),
            "a.yaml: not a config: nested too deeply",
        ),
        # Nine lines, a billion values.
        (
            "a0: &a0 [x]\n"
            + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)),
            "a.yaml: not a config: more than 10,000 values",
        ),
        (
            "a0: &a0 {x: y}\n"
            + "".join(f"a{i}: &a{i} {{b: *a{i - 1}, c: *a{i - 1}}}\n" for i in range(1, 30)),
            "a.yaml: not a config: more than 10,000 values",
        ),
        ("a: [" + "1, " * 10_000 + "]", "a.yaml: not a config: more than 10,000 values"),
        ("#" * 262_145, "a.yaml: not a config: larger than 262,144 bytes"),
    ],
)
def test_a_file_that_is_no_config(text: str, message: str) -> None:
    assert problems_of(text) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=" + "[" * 5000, "the value is not YAML; quote it"),
        (".".join(["a"] * 2000) + "=1", "must be section.key=value"),
        ("data.train=" + "[" * 40 + "]" * 40, "not a config: nested too deeply"),
        ("data.train=[" + "a, " * 10_000 + "]", "not a config: more than 10,000 values"),
        ("run.seed=" + "9" * 100_000, "run.seed: a whole number must fit into 64 bits"),
    ],
)
def test_a_value_without_measure_in_an_override(override: str, message: str) -> None:
    assert problems_of(MINIMAL, override) == f"override {override!r}: {message}"


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match=r"^/dev/zero: not a config: larger than"):
        load_config("/dev/zero")


def test_no_more_than_some_problems_are_shown() -> None:
    *lines, last = problems_of(MINIMAL + "".join(f"k{i}: 1\n" for i in range(9000))).splitlines()
    assert (len(lines), last) == (50, "further problems are not shown")


def test_a_file_that_cannot_be_read() -> None:
    with pytest.raises(ConfigError, match=r"^b\.yaml: cannot be read: No such file or directory$"):
        load_config("b.yaml")
    Path("b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"^b\.yaml: not UTF-8 text$"):
        load_config("b.yaml")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{path: m, init: random}", "a.yaml:1: model: init: random needs model.size"),
        (
            "{path: m, size: {d_model: 8, n_layers: 1, n_heads: 2, mlp_hidden_size: 8}}",
            "a.yaml:1: model: size is read from the checkpoint; remove it, or set init: random",
        ),
        (
            "{path: m, init: random,"
            " size: {d_model: 9, n_layers: 1, n_heads: 2, mlp_hidden_size: 8}}",
            "a.yaml:1: model.size: d_model / n_heads must be an even whole number, got 9 / 2",
        ),
        (
            "{path: m, init: random,"
            " size: {d_modle: 8, n_layers: 1, n_heads: 2, mlp_hidden_size: 8}}",
            "a.yaml:1: model.size.d_model: missing; add 'd_model:' under 'model.size:'\n"
            "a.yaml:1: model.size.d_modle: unknown key; did you mean 'd_model'?",
        ),
    ],
)
def test_rules_of_the_schema(section: str, message: str) -> None:
    assert problems_of(f"model: {section}\nrun: {{name: a}}\ndata: {{train: d}}\n") == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr", "override 'optim.lr': must be section.key=value"),
        ("=1", "override '=1': must be section.key=value"),
        ("optim.lr=[", "override 'optim.lr=[': the value is not YAML; quote it"),
        ("optim.lr=x", "override 'optim.lr=x': optim.lr: must be a number, got 'x'"),
        ("optim.lrr=1", "override 'optim.lrr=1': optim.lrr: unknown key; did you mean 'lr'?"),
        ("run.name.x=1", "override 'run.name.x=1': run.name is not a section"),
        (
            "optim.betas.0=0.8",
            "override 'optim.betas.0=0.8': optim.betas: must be a list, got a mapping",
        ),
        (
            "run.root=a #b",
            "override 'run.root=a #b': '#' begins a comment in YAML; quote the value",
        ),
        (
            "data.train=#1/*.jsonl",
            "override 'data.train=#1/*.jsonl': '#' begins a comment in YAML; quote the value",
        ),
        (
            "run.root=a\udcff",
            "override 'run.root=a\\udcff': must be UTF-8 text, got 'run.root=a\\udcff'",
        ),
        (
            'run.root="\\ud800"',
            "override 'run.root=\"\\\\ud800\"': run.root: must be UTF-8 text, got '\\ud800'",
        ),
        (
            "run.root=s3://bucket/runs",
            "override 'run.root=s3://bucket/runs': run.root: must be a path of this machine, not a"
            " URL, got 's3://bucket/runs'",
        ),
        (
            "model.path=hf://a/b",
            "override 'model.path=hf://a/b': model.path: must be a path of this machine, not a URL,"
            " got 'hf://a/b'",
        ),
        (
            "train={epochs: 0}",
            "override 'train={epochs: 0}': train.epochs: must be at least 1, got 0",
        ),
        (
            "log={csv: true, csv: false}",
            "override 'log={csv: true, csv: false}': log.csv: given twice, first on line 1;"
            " keep one",
        ),
    ],
)
def test_a_mistake_in_an_override_is_named(override: str, message: str) -> None:
    assert problems_of(MINIMAL, override) == message


def test_an_override_fills_a_section_that_is_null() -> None:
    text = "run: {name: a}\nmodel: {path: m}\ndata: {train: d}\ntrain:\nlora: null\n"
    config = load(text, "train.epochs=2", "lora.rank=4")
    assert config.lora is not None
    assert (config.train.epochs, config.lora.rank) == (2, 4)
    assert problems_of(text) == "a.yaml:4: train: must be a section of keys, got null"


def test_what_is_quoted_in_an_override_is_no_comment() -> None:
    config = load(MINIMAL, "run.root='a #b'", "data.train=[a#b, c]", "optim.lr=1e-5 ")
    assert (config.run.root, config.data.train, config.optim.lr) == ("a #b", ("a#b", "c"), 1e-5)


def test_surrogate_pairs_are_characters_as_in_json() -> None:
    text = '{"run": {"name": "a", "root": "\\ud83d\\ude00"}, "model": {"path": "m"}}'
    assert load(text, "data.train=d").run.root == "\U0001f600"
    assert problems_of(MINIMAL + '"\\ud83d": 1\n').endswith(
        ": a key must be UTF-8 text, got '\\ud83d'"
    )


@pytest.mark.parametrize(
    ("value", "tag"),
    [
        ("!mine {epochs: 1}", "!mine"),
        ("!!seq {epochs: 1}", "tag:yaml.org,2002:seq"),
        ("!!map [1]", "tag:yaml.org,2002:map"),
        ("!!set {epochs}", "tag:yaml.org,2002:set"),
        ("!!python/tuple [1]", "tag:yaml.org,2002:python/tuple"),
    ],
)
def test_a_collection_has_no_tag_but_its_own(value: str, tag: str) -> None:
    override = f"train={value}"
    problem = f"train: the tag {tag!r} is not allowed; write a plain value"
    assert problems_of(MINIMAL, override) == f"override {override!r}: {problem}"
    assert load(MINIMAL, "train=!!map {epochs: !!int 1}").train.epochs == 1


def test_overrides_win_in_their_order() -> None:
    config = load(
        MINIMAL + "train: {epochs: 7}\n",
        "optim.lr=1e-5",
        "optim.betas=[0.8, 0.9]",
        "train.epochs=2",
        "train.epochs=4",
        "slurm.extra={reservation: week42}",
        "slurm.setup=",
        "data.train=a=b",
    )
    assert (config.optim.lr, config.optim.betas) == (1e-5, (0.8, 0.9))
    assert (config.train.epochs, config.data.train) == (4, "a=b")
    assert (config.slurm.extra, config.slurm.setup) == ({"reservation": "week42"}, None)


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-4", 3e-4), ("1e-5", 1e-5), ("1.5E3", 1500.0), ("2", 2.0), (".5", 0.5), ("0o17", 15.0)],
)
def test_numbers_are_those_of_yaml_1_2(text: str, value: float) -> None:
    assert load(MINIMAL + f"optim: {{lr: {text}}}").optim.lr == value


@pytest.mark.parametrize("text", ["12:00:00", "on", "off", "yes", "no", "y", "1_000", "2024-01-01"])
def test_strings_are_those_of_yaml_1_2(text: str) -> None:
    assert load(MINIMAL + f"log: {{wandb_project: {text}}}").log.wandb_project == text


def test_the_name_of_a_run_is_short() -> None:
    text = MINIMAL.replace("name: a", f"name: {'a' * 81}")
    line = "a.yaml:1: run.name: must be at most 80 characters long, got 'aaa"
    assert problems_of(text).startswith(line)


def test_an_example_fits_the_network() -> None:
    size = "{d_model: 8, n_layers: 1, n_heads: 1, mlp_hidden_size: 8, max_sequence_length: 64}"
    model = f"model: {{path: m, init: random, size: {size}}}"
    assert problems_of(f"run: {{name: a}}\n{model}\ndata: {{train: d, max_length: 65}}\n") == (
        "a.yaml:1: data.max_length: must be at most model.size.max_sequence_length, 64, got 65"
    )


def test_the_eos_tail_leaves_room() -> None:
    text = "run: {name: a}\nmodel: {path: m}\ndata: {train: d, end: 8, max_length: 8}\n"
    assert problems_of(text) == (
        "a.yaml:3: data: max_length must leave room next to the EOS tail, got 8 for a tail of 8"
    )


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("batching: packed", "batching: packed needs max_tokens, the tokens of a micro-batch"),
        (
            "batching: packed, max_tokens: 4095, end: 1",
            "max_tokens must have room for an example of max_length, got 4095 for 4096",
        ),
        (
            "batching: packed, max_tokens: 4096",
            "batching: packed has no padding that end: batch_max could turn into EOS; "
            "set end to a number, or to void or rainbow",
        ),
        (
            "batching: packed, max_tokens: 8192, end: 1, group_by_length: true",
            "group_by_length is for batching: padded; remove it, or set that",
        ),
        ("max_tokens: 8192", "max_tokens is for batching: packed; remove it, or set that"),
    ],
)
def test_keys_of_packing_go_together(data: str, problem: str) -> None:
    text = f"run: {{name: a}}\nmodel: {{path: m}}\ndata: {{train: d, {data}}}\n"
    assert problems_of(text) == f"a.yaml:3: data: {problem}"


@pytest.mark.parametrize("value", ["1", "batch_max"])
def test_the_old_name_of_a_key_is_answered_by_the_new_one(value: str) -> None:
    line = "data.eos_tail: is called data.end now, with the same values; rename it"
    data = f"data: {{train: d, eos_tail: {value}, batching: packed, max_tokens: 4096}}\n"
    text = "run: {name: a}\nmodel: {path: m}\n" + data
    assert problems_of(text) == f"a.yaml:3: {line}"
    override = f"data.eos_tail={value}"
    assert problems_of(MINIMAL, override) == f"override '{override}': {line}"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("end: 1, end_tokens: 9", "end_tokens is for end: void or rainbow; remove it, or set that"),
        ("void_token_id: 9", "void_token_id is for end: void; remove it, or set that"),
        (
            "end: void, rainbow_token_ids: [8, 9]",
            "rainbow_token_ids is for end: rainbow; remove it, or set that",
        ),
        (
            "end: void, max_length: 1",
            "max_length must leave room next to the EOS tail, got 1 for a tail of 1",
        ),
    ],
)
def test_keys_of_the_end_go_together(data: str, problem: str) -> None:
    text = f"run: {{name: a}}\nmodel: {{path: m}}\ndata: {{train: d, {data}}}\n"
    assert problems_of(text) == f"a.yaml:3: data: {problem}"


def test_what_an_end_may_be() -> None:
    text = "run: {name: a}\nmodel: {path: m}\ndata: {train: d, %s}\n"
    assert load(text % "batching: packed, max_tokens: 4096, end: void").data.end == "void"
    given = load(text % "end: rainbow, rainbow_token_ids: [3, 4], end_tokens: 9").data
    assert (given.end, given.rainbow_token_ids, given.end_tokens) == ("rainbow", (3, 4), 9)
    assert problems_of(text % "end: 0") == (
        "a.yaml:3: data.end: must be 'batch_max', 'void' or 'rainbow' or at least 1, got 0"
    )
    assert problems_of((text % "end: 1") + "objective: {void_weight: 0.5}\n") == (
        "a.yaml:1: objective.void_weight is for data.end: void; remove it, or set that"
    )
    assert load((text % "end: void") + "objective: {void_weight: 0.5}\n").objective


def test_a_packed_micro_batch_is_measured_in_tokens() -> None:
    data = "data: {train: d, batching: packed, max_tokens: 4096, end: 1}\n"
    text = "run: {name: a}\nmodel: {path: m}\n" + data
    config = load(text + "train: {accumulate_grad_batches: 2}\n")
    assert (config.global_batch_size, config.global_batch_unit) == (8 * 2 * 4096, "tokens")
    assert problems_of(text + "train: {micro_batch_size: 4}\n") == (
        "a.yaml:1: train.micro_batch_size: must stay 1 with data.batching: packed, whose "
        "micro-batches are measured in data.max_tokens, got 4"
    )


def test_random_lengths_are_those_of_pieces() -> None:
    text = "run: {name: a}\nmodel: {path: m}\ndata: {train: d, random_length: 0.01%s}\n"
    assert problems_of(text % "") == (
        "a.yaml:3: data: random_length is for pieces of documents: set on_too_long: split, got"
        " clip_response"
    )
    assert load(text % ", on_too_long: split").data.random_length == 0.01


_ONLY_BLOCKS = "is for kind: block, got full; set that, or remove it"
_WITH_BAND = "kind: block, band: [0.3, 0.8]"
# The objective section, and what is wrong with it.
OF_BLOCKS = {
    "block_length: 8": f"objective: block_length: {_ONLY_BLOCKS}",
    "band: [0.3, 0.8]": f"objective: band: {_ONLY_BLOCKS}",
    "edit: {share: 0.1}": f"objective: edit: {_ONLY_BLOCKS}",
    "kind: block, block_length: 0": "objective.block_length: must be at least 1, got 0",
    "kind: block, band: [0.8, 0.3]": (
        "objective: band: must be [lo, hi] with lo < hi, got [0.8, 0.3]"
    ),
    "kind: block, band: [0.3, 1.8]": "objective.band.1: must be at most 1, got 1.8",
    f"{_WITH_BAND}, masking: bernoulli": (
        "objective: masking: bernoulli has its own chances; remove it, or band"
    ),
    f"{_WITH_BAND}, t_density: importance": (
        "objective: t_density: importance is for levels of the bound; remove it, or band"
    ),
    "kind: block, edit: {from: me}": ("objective.edit.from: must be 'random' or 'model', got 'me'"),
    "kind: block, edit: {rate: 1}": (
        "objective.edit.rate: unknown key; the keys here are from, share, weight"
    ),
    "kind: block, block_length: 48": (
        "data.max_length: must be a multiple of objective.block_length, 48, got 64; take 48"
    ),
}


@pytest.mark.parametrize(("text", "problem"), OF_BLOCKS.items())
def test_the_objective_of_blocks(text: str, problem: str) -> None:
    whole = (
        "{run: {name: a}, model: {path: m}, data: {train: d, max_length: 64}, objective: {%s}}\n"
    )
    assert problems_of(whole % text) == f"a.yaml:1: {problem}"
    assert load(whole % _WITH_BAND).objective.band == (0.3, 0.8)


def test_where_replaced_tokens_are_from() -> None:
    text = "{run: {name: a}, model: {path: m}, data: {train: d}, objective: {kind: block, %s}}\n"
    edit = load(text % "edit: {share: 0.1, from: model}").objective.edit
    assert (edit.share, edit.source, edit.weight) == (0.1, "model", 1.0)


def test_pairs_need_room_for_both_twins() -> None:
    text = "run: {name: a}\nmodel: {path: m}\nobjective: {pairs: antithetic}\n"
    padded = text + "data: {train: d}\n"
    assert problems_of(padded) == (
        "a.yaml:1: objective.pairs: antithetic has each example in two rows of a micro-batch: "
        "train.micro_batch_size must be even, got 1"
    )
    assert load(padded + "train: {micro_batch_size: 6}\n").global_batch_size == 8 * 3
    packed = text + "data: {train: d, batching: packed, end: 1, max_tokens: %s}\n"
    assert problems_of(packed % 8191) == (
        "a.yaml:1: objective.pairs: antithetic has each example twice in a micro-batch: "
        "data.max_tokens must be at least twice data.max_length, got 8191 for 4096"
    )
    config = load(packed % 8193)
    assert config.global_batch_size == 8 * 8193
    assert config.in_examples.data.max_tokens == 4096
    assert config.in_examples.train == config.train
    assert load("run: {name: a}\nmodel: {path: m}\ndata: {train: d}\n").objective.draws == 1


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ("[12, 10]", "train: profile: must be [first, last] of at most 100 steps, got [12, 10]"),
        ("[1, 101]", "train: profile: must be [first, last] of at most 100 steps, got [1, 101]"),
        ("[0, 5]", "train.profile.0: must be at least 1, got 0"),
        ("[5]", "train.profile.1: missing; the list is too short"),
    ],
)
def test_steps_to_profile(steps: str, problem: str) -> None:
    text = "run: {name: a}\nmodel: {path: m}\ndata: {train: d}\n"
    assert problems_of(text + f"train: {{profile: {steps}}}\n") == f"a.yaml:4: {problem}"
    assert load(text + "train: {profile: [5, 104]}\n").train.profile == (5, 104)


@pytest.mark.parametrize(
    ("slurm", "accumulate", "problem"),
    [
        (
            "time_min: 5",
            1,
            "slurm: signal_lead_s: must be less than time_min, or the job is signalled to stop when"
            " it has just started: got 300 s for 5 min (300 s)",
        ),
        (
            "signal_lead_s: 3601, time_min: 60",
            1,
            "slurm: signal_lead_s: must be less than time_min, or the job is signalled to stop when"
            " it has just started: got 3601 s for 60 min (3600 s)",
        ),
        ("elastic: [1]", 1, "slurm.elastic.1: missing; the list is too short"),
        ("elastic: [0, 1]", 1, "slurm.elastic.0: must be at least 1, got 0"),
        (
            "elastic: [4, 1], nodes: 2",
            1,
            "slurm: elastic: must be [least, most] with nodes between them, "
            "got [4, 1] for nodes: 2",
        ),
        (
            "elastic: [2, 4]",
            1,
            "slurm: elastic: must be [least, most] with nodes between them, "
            "got [2, 4] for nodes: 1",
        ),
        (
            "elastic: [1, 4], nodes: 4",
            2,
            "slurm.elastic: 3 nodes cannot share out the global batch, slurm.nodes × "
            "train.accumulate_grad_batches = 4 × 2, evenly; use "
            "train.accumulate_grad_batches=3, or slurm.elastic=[4, 4]",
        ),
        (
            "elastic: [1, 5], nodes: 2",
            6,
            "slurm.elastic: 5 nodes cannot share out the global batch, slurm.nodes × "
            "train.accumulate_grad_batches = 2 × 6, evenly; use "
            "train.accumulate_grad_batches=30, or slurm.elastic=[1, 4]",
        ),
        # What all of them could share out has thousands of digits.
        (
            "elastic: [1, 20000]",
            1,
            "slurm.elastic: 2 nodes cannot share out the global batch, slurm.nodes × "
            "train.accumulate_grad_batches = 1 × 1, evenly; use slurm.elastic=[1, 1]",
        ),
    ],
)
def test_elastic_nodes_that_cannot_be(slurm: str, accumulate: int, problem: str) -> None:
    text = (
        "run: {name: a}\nmodel: {path: m}\ndata: {train: d}\n"
        f"train: {{accumulate_grad_batches: {accumulate}}}\nslurm: {{{slurm}}}\n"
    )
    assert problems_of(text).split(": ", 1)[1] == problem


@given(nodes=st.integers(1, 6), accumulate=st.integers(1, 40), data=st.data())
def test_elastic_names_numbers_that_work(nodes: int, accumulate: int, data: st.DataObject) -> None:
    allowed = range(data.draw(st.integers(1, nodes)), data.draw(st.integers(nodes, 8)) + 1)
    try:
        check_range(nodes, accumulate, allowed)
    except ValueError as error:
        fitting, least, most = map(int, re.findall(r"\d+", str(error).rpartition("; use")[2]))
        assert fitting > accumulate
        check_range(nodes, fitting, allowed)
        assert nodes in range(least, most + 1)
        check_range(nodes, accumulate, range(least, most + 1))
    else:
        assert all(nodes * accumulate % count == 0 for count in allowed)


SWAPPED = "write {field of the format: field of your rows}"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (
            "format: chat",
            "format: must be 'auto', 'raw', 'messages', 'sharegpt', 'prompt_response', 'alpaca', "
            "'tokens' or 'text', got 'chat'",
        ),
        ("multi_turn: first", "multi_turn: must be 'random', 'last' or 'all', got 'first'"),
        ("fields: [prompt]", "fields: must be a mapping, got a list"),
        ("fields: {prompt: 5}", "fields.prompt: must be a string, got 5"),
        ("fields: {prompt: ''}", "fields.prompt: must be a string that is not empty, got ''"),
        (
            "fields: {question: prompt}",
            "fields: 'question' is not a field of any format, which are messages, role, content, "
            "system, tools, conversations, from, value, prompt, response, history, instruction, "
            f"output, input, input_ids, labels, attention_mask, text; {SWAPPED}",
        ),
        (
            "format: alpaca, fields: {prompt: question}",
            "fields: 'prompt' is not a field of format: alpaca, which are instruction, output, "
            f"input, system, history, tools; {SWAPPED}",
        ),
        (
            "roles: {bot: robot}",
            "roles.bot: must be 'system', 'user', 'assistant' or 'tool', got 'robot'",
        ),
        ("ignore_fields: id", "ignore_fields: must be a list, got 'id'"),
        (
            "special_tokens_in_text: drop",
            "special_tokens_in_text: must be 'text', 'token' or 'refuse', got 'drop'",
        ),
        (
            "format: raw, fields: {prompt: question}",
            "fields: is for known formats; with format: raw the hook reads every field itself",
        ),
        # One problem at a time: with another format, the fields may be fine.
        (
            "format: chat, fields: {question: prompt}",
            "format: must be 'auto', 'raw', 'messages', 'sharegpt', 'prompt_response', 'alpaca', "
            "'tokens' or 'text', got 'chat'",
        ),
    ],
)
def test_formats_and_their_fields(data: str, problem: str) -> None:
    text = f"run: {{name: a}}\nmodel: {{path: m}}\ndata: {{train: d, {data}}}\n"
    assert problems_of(text) == f"a.yaml:3: data.{problem}"


def test_fields_of_other_names() -> None:
    fields = {"prompt": "question", "response": "answer"}
    for record_format in ("auto", "prompt_response"):
        config = load(MINIMAL, f"data.format={record_format}", f"data.fields={fields}")
        assert config.data.fields == fields
        assert load(dump_config(config)) == config
    assert load(dump_config(load(MINIMAL, "data.format=raw"))).data.format == "raw"


def test_null_and_anchors() -> None:
    config = load("run: {name: &n a}\nmodel: {path: *n}\ndata: {train: d, validation: ~}\n")
    assert (config.model.path, config.data.validation) == ("a", None)


def test_an_override_of_a_section_given_by_an_alias_leaves_the_other_alone() -> None:
    size = "{d_model: 8, n_layers: 1, n_heads: 2, mlp_hidden_size: 8}"
    base = f"run: {{name: a}}\nmodel: {{path: m, init: random, size: {size}}}\ndata: {{train: d}}\n"
    text = base + "train: &t {}\nlog: *t\n"
    config = load(text, "train.epochs=9")
    assert config.train.epochs == 9


words = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t: #'\""), min_size=1
)
tricky = words | st.sampled_from(
    ["1e-5", "on", "null", "0o7", "true", "-", "12:00", " x", "~", "=", ".5"]
)


@pytest.mark.slow
@given(
    path=tricky,
    train=tricky,
    lr=st.floats(min_value=1e-30, max_value=1e30),
    tail=st.integers(1, 4095) | st.just("batch_max"),
    extra=st.dictionaries(st.from_regex(r"[a-z][a-z0-9-]*", fullmatch=True), INT_64),
)
def test_a_dumped_config_reads_back_equal(
    path: str, train: str, lr: float, tail: int | str, extra: dict[str, int]
) -> None:
    config = Config.model_validate(
        {
            "run": {"name": "null"},
            "model": {"path": path},
            "data": {"train": train, "end": tail},
            "optim": {"lr": lr},
            "slurm": {"extra": extra},
        }
    )
    assert load(dump_config(config)) == config


BEST = "train.keep_best: must be one of validation_loss, validation/bound, validation/perplexity"
BAD_VALIDATION = {
    "a number": (
        ["data.validation=3"],
        "data.validation: must be a path, or paths by name, got 3",
    ),
    "no set": (["data.validation={}"], "data.validation: must be not empty, got a mapping"),
    "no mask": (["validation.draws=0"], "validation.draws: must be at least 1, got 0"),
    "nothing to compare": (
        ["train.keep_best=validation_loss"],
        "train.keep_best: needs data.validation, which is null; set it",
    ),
    "a number that is better high": (
        ["data.validation=x", "train.keep_best=validation/accuracy"],
        f"{BEST}, got 'validation/accuracy'",
    ),
    "no patience": (
        ["data.validation=x", "train.early_stop={metric: validation_loss}"],
        "train.early_stop.patience: missing; add 'patience:' under 'train.early_stop:'",
    ),
    "a set that is not there": (
        ["data.validation={dev: x}", "train.early_stop={patience: 2}"],
        "train.early_stop.metric: must be one of validation/dev/loss, validation/dev/bound,"
        " validation/dev/perplexity, got 'validation_loss'",
    ),
}


@pytest.mark.parametrize(("overrides", "problem"), BAD_VALIDATION.values(), ids=BAD_VALIDATION)
def test_what_is_wrong_with_a_validation(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(MINIMAL, *overrides)
    (line,) = str(caught.value).splitlines()
    assert line.endswith(problem)


def test_sets_of_validation_have_paths() -> None:
    config = resolve_paths(load(MINIMAL, "data.validation={dev: a, hard: /b}"), "/base")
    assert config.data.validation_sets == {"dev": "/base/a", "hard": "/b"}


def test_paths_are_resolved_against_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = resolve_paths(load(MINIMAL, "model.path=~/m", "data.train=/x/*.jsonl"), "/base")
    assert (config.run.root, config.model.path) == ("/base/runs", "/home/me/m")
    assert (config.data.train, config.data.validation) == ("/x/*.jsonl", None)
    assert config.data.hook == "/base/utils/process_data.py"
    assert config.slurm.setup == "/base/slurm/setup.sh"


def test_urls_are_no_paths() -> None:
    urls = {"train": "s3://bucket/train/*.jsonl", "validation": "file:///data//x"}
    overrides = [f"data.{key}={url}" for key, url in urls.items()]
    config = resolve_paths(load(MINIMAL, *overrides, "data.cache_dir=cache"), "/base")
    assert (config.data.train, config.data.validation) == tuple(urls.values())
    assert config.data.cache_dir == "/base/cache"


def test_the_home_of_nobody_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = "run: {name: a, root: ~nobody_of_this_name/runs}\nmodel: {path: ~/m}\ndata: {train: d}\n"
    config = resolve_paths(load(text), "/base")
    assert config.run.root == "/base/~nobody_of_this_name/runs"
    assert config.model.path == "/home/me/m"


def test_a_character_that_no_path_can_have_is_refused() -> None:
    assert problems_of('run: {name: a, root: "a\\0b"}\nmodel: {path: m}\ndata: {train: d}\n') == (
        "a.yaml:1: run.root: must not contain the character NUL, which no path or command can have"
    )


def test_8_bit_states_stay_where_they_are() -> None:
    text = "run: {name: a}\nmodel: {path: m}\ndata: {train: d}\noptim: {kind: adamw_8bit}\n"
    assert load(text).optim.kind == "adamw_8bit"
    assert problems_of(f"{text}deepspeed: {{offload_optimizer: cpu}}\n") == (
        "a.yaml:1: optim.kind: adamw_8bit needs deepspeed.offload_optimizer: none, got cpu;"
        " set that, or kind: adamw"
    )
    assert problems_of(f"{text}slurm: {{nodes: 2, elastic: [1, 2]}}\n") == (
        "a.yaml:1: optim.kind: adamw_8bit needs slurm.elastic: null: its states cannot be resumed"
        " on another number of ranks; set that, or kind: adamw"
    )


def test_compiled_blocks_have_no_kernels_inside() -> None:
    text = "run: {name: a}\nmodel: {path: m, compile: %s, rope_kernel: liger}\ndata: {train: d}\n"
    assert load(text % "auto").model.liger_in_blocks == ("rope_kernel",)
    assert problems_of(text % "'on'") == (
        "a.yaml:2: model: rope_kernel: liger needs compile: off or auto, got on: compiled blocks"
        " fuse it themselves; set compile: auto, or this to torch"
    )


def test_compiled_blocks_have_no_hooks_inside() -> None:
    text = "run: {name: a}\nmodel: {path: m, compile: on}\ndata: {train: d}\n"
    for fits in ("leaf_blocks: true", "leaf_blocks: false, stage: 2"):
        load(f"{text}deepspeed: {{{fits}}}\n")
    assert problems_of(f"{text}deepspeed: {{leaf_blocks: false}}\n") == (
        "a.yaml:1: model.compile: on needs deepspeed.leaf_blocks: true; set that, or compile: off"
    )


def test_checkpointing_was_once_true_or_false() -> None:
    for value, name in (("true", "full"), ("false", "none"), ("selective", "selective")):
        model = f"model: {{path: m, activation_checkpointing: {value}}}"
        config = load(f"run: {{name: a}}\n{model}\ndata: {{train: d}}\n")
        assert config.model.activation_checkpointing == name


def test_a_budget_of_activations_goes_with_auto() -> None:
    text = "run: {{name: a}}\nmodel: {{path: m, {0}}}\ndata: {{train: d}}\n"
    config = load(text.format("activation_checkpointing: auto, activation_gb: 12.5"))
    assert config.model.activation_gb == 12.5
    where = "a.yaml:2: model: "
    assert problems_of(text.format("activation_checkpointing: auto")) == (
        f"{where}activation_checkpointing: auto needs model.activation_gb"
    )
    assert problems_of(text.format("activation_gb: 3")) == (
        f"{where}activation_gb needs model.activation_checkpointing: auto"
    )


def test_second_slices_divide_the_ranks() -> None:
    text = "run: {name: a}\nmodel: {path: m}\ndata: {train: d}\n"
    more = "slurm: {nodes: 3, ranks_per_node: 4}\n"
    for fits in (1, 4, 6, 12, 16):
        load(f"{text}{more}deepspeed: {{zero_hpz_partition_size: {fits}}}\n")
    assert problems_of(f"{text}{more}deepspeed: {{zero_hpz_partition_size: 8}}\n") == (
        "a.yaml:1: deepspeed.zero_hpz_partition_size: must divide the number of ranks,"
        " got 8 for 12 ranks; take slurm.ranks_per_node, 4"
    )


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("offload_optimizer", "cpu", "'cpu'"),
        ("offload_param", "cpu", "'cpu'"),
        ("zero_hpz_partition_size", "2", "2"),
        ("zero_quantized_weights", "true", "True"),
        ("zero_quantized_gradients", "true", "True"),
    ],
)
def test_keys_of_stage_3(key: str, value: str, shown: str) -> None:
    text = "run: {name: a}\nmodel: {path: m}\ndata: {train: d}\n"
    load(f"{text}deepspeed: {{{key}: {value}}}\n")
    assert problems_of(f"{text}deepspeed: {{stage: 2, {key}: {value}}}\n") == (
        f"a.yaml:4: deepspeed: {key}: needs stage: 3, got {shown} at stage 2"
    )


def test_lora(tmp_path: Path) -> None:
    """A section that may be null: then all parameters are trained."""
    file = tmp_path / "a.yaml"
    base = "run: {name: a}\nmodel: {path: m}\ndata: {train: d}\n"
    file.write_text(base)
    assert load_config(file).lora is None
    lora = load_config(file, ["lora.rank=4"]).lora
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.targets, lora.base) == (4, 32, None, "full")
    file.write_text(base + "lora: {targets: [q_proj, v_proj]}\n")
    lora = load_config(file).lora
    assert lora is not None
    assert lora.targets == ("q_proj", "v_proj")
    assert load_config(file, ["lora=null"]).lora is None


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["lora.dropout=0.1"], "lora.dropout: must be 0, got 0.1: the mask would be another one"),
        (["lora.targets=[]"], "lora.targets: must be not empty"),
        (["lora.rank=0"], "lora.rank: must be at least 1, got 0"),
        (["lora.r=8"], "lora.r: unknown key"),
        (["lora.base=nf4"], "lora.base: nf4 needs deepspeed.stage: 1 or 2: stage 3 would cut"),
        (
            ["lora.dora=true", "deepspeed.leaf_blocks=false"],
            "lora.dora: needs deepspeed.leaf_blocks: true at stage 3",
        ),
    ],
)
def test_lora_is_refused(overrides: list[str], text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("run: {name: a}\nmodel: {path: m}\ndata: {train: d}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("before", [None, "logfire-plugin"])
def test_no_plugin_of_pydantic_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    from pydantic.plugin import _loader

    class Schema(Section):
        key: int

    monkeypatch.setattr(_loader, "_plugins", None)
    if before is not None:
        monkeypatch.setenv("PYDANTIC_DISABLE_PLUGINS", before)
    assert load_as(Schema, None, ["key=3"]).key == 3
    assert _loader._plugins is None
    # What the user has set is for the ranks.
    assert os.environ.get("PYDANTIC_DISABLE_PLUGINS") == before
