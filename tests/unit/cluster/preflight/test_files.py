"""Each thing that preflight finds, with its exact message; and all of them at once."""

import json
from pathlib import Path

import fsspec
import pytest

from llada_sft.cluster.launch.look.preview import count_rows_of_run
from llada_sft.cluster.preflight import files
from llada_sft.cluster.preflight.files import find_problems, require
from llada_sft.config import load_config, resolve_paths
from llada_sft.errors import ConfigError
from llada_sft.model import adapter_plan
from llada_sft.model.families import llada2
from llada_sft.model.kernels import choice
from llada_sft.model.settings import architecture_of
from tests.unit.cluster.conftest import MODEL, write_weights

SIZE = "model.size={d_model: 8, n_layers: 1, n_heads: 2, mlp_hidden_size: 8}"
RANDOM = ("model.init=random", SIZE)


def problems(project: Path, *overrides: str) -> list[str]:
    found = find_problems(resolve_paths(load_config("a.yaml", overrides), project))
    return [line.replace(f"{project}/", "") for line in found]


def test_a_good_project_has_none(project: Path) -> None:
    assert problems(project) == []
    require(resolve_paths(load_config("a.yaml"), project))


# What is done to the project: (file, its new text; None removes it), and the problem.
BROKEN = {
    "a shard too few": (
        ("shards/1.jsonl", None),
        "1 shards for 2 ranks in shards: use at most 1 ranks,"
        " or run  llada-sft shard shards shards_2 --num-shards 2",
    ),
    "no hook": (
        ("hook.py", None),
        "hook.py: cannot be read: No such file or directory; set data.hook",
    ),
    "syntax error": (("hook.py", "def process_data(:\n"), "hook.py:1: not Python: invalid syntax"),
    "null byte": (
        ("hook.py", "\0"),
        "hook.py: not Python: source code string cannot contain null bytes",
    ),
    "no function": (
        ("hook.py", "process = 1\n"),
        "hook.py: defines no function process_data(record, tokenizer, max_length)",
    ),
    "no setup script": (
        ("setup.sh", None),
        "setup.sh: no such file; set slurm.setup, or slurm.setup=null",
    ),
    "no settings": (
        ("model/config.json", "{}"),
        "model/config.json: model_type: no network that is implemented here"
        " (LLaDA-MoE, LLaDA, LLaDA2, Dream), got None, architectures None",
    ),
    "no JSON": (
        ("model/tokenizer.json", "{\n  x"),
        "model/tokenizer.json:2: not JSON: unexpected character, expected a string key",
    ),
    "no object": (("model/tokenizer.json", "[]"), "model/tokenizer.json: must be a JSON object"),
    "a network of another kind": (
        ("model/config.json", json.dumps(MODEL | {"alibi": True, "n_heads": 4})),
        "model/config.json: alibi: only false is implemented, got true",
    ),
    "odd heads": (
        ("model/config.json", json.dumps(MODEL | {"n_heads": 4})),
        "model/config.json: d_model / n_heads: must be an even whole number, got 4 / 4",
    ),
    "no end of sequence": (
        ("model/config.json", json.dumps(MODEL | {"eos_token_id": None})),
        "model/config.json: eos_token_id: must be given, got null",
    ),
    "a network of another size": (
        ("model/config.json", json.dumps(MODEL | {"embedding_size": 9})),
        "model: model.transformer.wte.weight: config.json asks for shape [9, 4], got [8, 4] in"
        " model.safetensors\n"
        "model: model.transformer.ff_out.weight: config.json asks for shape [9, 4], got [8, 4] in"
        " model.safetensors",
    ),
    "examples longer than the network": (
        ("model/config.json", json.dumps(MODEL | {"max_sequence_length": 2048})),
        "data.max_length: must be at most the context of model/config.json, 2048, got 4096",
    ),
    "weights of another format": (
        ("model/model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
        "model/model.safetensors: truncated: 43 bytes do not hold its header; download it again",
    ),
    "an index of something else": (
        ("model/model.safetensors.index.json", '{"weight_map": {"a": 1}}'),
        "model/model.safetensors.index.json: not a safetensors index; download it again",
    ),
    "no weights": (
        ("model/model.safetensors", None),
        "model: no *.safetensors files; other formats are not read",
    ),
    "a weight file is missing": (
        ("model/model.safetensors.index.json", '{"weight_map": {"a": "1.st", "b": "2.st"}}'),
        "model/1.st: missing, though model.safetensors.index.json names it; download it\n"
        "model/2.st: missing, though model.safetensors.index.json names it; download it",
    ),
    "no tokenizer": (
        ("model/tokenizer.json", None),
        "model/tokenizer.json: cannot be read: No such file or directory; set model.path",
    ),
    "no mask token": (
        ("model/tokenizer.json", '{"added_tokens": [{"id": 6}], "model": {"vocab": {"a": 1}}}'),
        "model/tokenizer.json: tokenizer has no mask token; no token has the id 7 of config.json:"
        " take the model's own",
    ),
}


@pytest.mark.parametrize(("change", "problem"), BROKEN.values(), ids=BROKEN)
def test_a_problem_is_named(project: Path, change: tuple[str, str | None], problem: str) -> None:
    file, text = project / change[0], change[1]
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    assert problems(project) == [problem]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (
            [],
            "data.end: void: no token is known that this network's tokenizer reserves; set"
            " data.void_token_id to ids that no text has",
        ),
        (
            ["data.void_token_id=6"],
            "data.void_token_id: 6 is the EOS token; take an id that nothing uses",
        ),
        (
            ["data.void_token_id=8"],
            "data.void_token_id: must be below vocab_size, 8, got 8",
        ),
        (["data.void_token_id=5"], None),
    ],
)
def test_tokens_that_end_answers(project: Path, keys: list[str], problem: str | None) -> None:
    assert problems(project, "data.end=void", *keys) == ([] if problem is None else [problem])


@pytest.mark.parametrize(
    "tokenizer",
    ['{"model": {"vocab": {"<mask>": 7}}}', '{"model": {"vocab": [1, 2, 3, 4, 5, 6, 7, 8]}}'],
)
def test_a_mask_token_of_the_vocabulary_counts(project: Path, tokenizer: str) -> None:
    (project / "model/tokenizer.json").write_text(tokenizer)
    assert problems(project) == []


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (None, "model/config.json: mask_token_id: must be given, got null, and the tokenizer names"
         " no mask token; set model.mask_token to its text or its id"),
        (7, None),
        ("<m>", None),
        (9, "model.mask_token: model/tokenizer.json has no token of this id, got 9"),
        ("<x>", "model.mask_token: model/tokenizer.json has no such token, got '<x>'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stacked", [False, True])
def test_a_network_whose_files_name_no_mask_token(
    project: Path, given: str | int | None, problem: str | None, stacked: bool
) -> None:
    """In both layouts of its files."""
    sizes = {
        "vocab_size": 10,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "moe_intermediate_size": 4,
        "attention_dropout": 0,
        "eos_token_id": 6,
        "pad_token_id": 6,
    }
    values = llada2.FAMILY.config_json(**sizes)
    (project / "model/config.json").write_text(json.dumps(values))
    shapes = architecture_of(values).tensor_shapes(stacked)
    write_weights(project / "model/model.safetensors", shapes)
    tokenizer = {"added_tokens": [{"id": 7, "content": "<m>"}]}
    (project / "model/tokenizer.json").write_text(json.dumps(tokenizer))
    keys = [] if given is None else [f"model.mask_token={given}"]
    found = problems(project, "objective.kind=block", *keys)
    assert found == ([] if problem is None else [problem])
    # It decodes in blocks: full attention has to be asked for.
    refused = (
        "objective.kind: model decodes in blocks and never sees a later one, got full; set it to"
        " block (docs/recipes.md), or set objective.allow_mismatch: true"
    )
    # A name that means nothing is all that is said: the rest depends on it.
    expected = found if given == "<x>" else [*found, refused]
    assert set(problems(project, *keys)) == set(expected)
    assert problems(project, "objective.allow_mismatch=true", *keys) == found


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        (
            "more.safetensors",
            {"lm_head.weight": (1,)},
            "lm_head.weight: unexpected, in more.safetensors; the network has no such parameter",
        ),
        (
            "model.safetensors",
            {"model.transformer.ln_f.weight": None},
            "model.transformer.ln_f.weight: missing; config.json asks for shape [4]",
        ),
    ],
)
def test_stray_and_missing_tensors(
    project: Path, file: str, change: dict[str, tuple[int, ...] | None], problem: str
) -> None:
    shapes = architecture_of(MODEL).tensor_shapes() if file == "model.safetensors" else {}
    wanted = {name: shape for name, shape in (shapes | change).items() if shape is not None}
    write_weights(project / "model" / file, wanted)
    assert problems(project) == [f"model: {problem}"]


@pytest.mark.parametrize("text", ["", "\n", " \n\n\t\n"])
def test_data_without_rows(project: Path, text: str) -> None:
    for folder in ("shards", "held_out"):
        (project / folder).mkdir(exist_ok=True)
        for i in range(2):
            (project / folder / f"{i}.jsonl").write_text(text)
    named = "data.train={a: {path: shards}, b: {path: held_out}}"
    held_out = "held_out: no rows in 2 files: fill it, or set data.validation=null"
    assert problems(project, "data.validation=held_out") == ["shards: no rows in 2 files", held_out]
    assert problems(project, named) == [
        "data.train.a: shards: no rows in 2 files",
        "data.train.b: held_out: no rows in 2 files",
    ]
    # One row of any file will do.
    for folder in ("shards", "held_out"):
        (project / folder / "1.jsonl").write_text(text + '\n{"prompt": "a"}')
    assert problems(project, "data.validation=held_out") == []


def test_random_weights_need_the_tokenizer_only(project: Path) -> None:
    (project / "model/config.json").unlink()
    (project / "model/model.safetensors").unlink()
    settings = project / "model/tokenizer_config.json"
    missing = "model/tokenizer_config.json: cannot be read: No such file or directory"
    assert problems(project, *RANDOM) == [f"{missing}; set model.path"]
    settings.write_text('{"eos_token": "<eos>"}')
    assert problems(project, *RANDOM) == [
        "model/tokenizer.json: tokenizer has no mask token;"
        " add it as mask_token to tokenizer_config.json"
    ]
    settings.write_text('{"mask_token": "<mask>"}')
    assert problems(project, *RANDOM) == [
        "model: tokenizer has no EOS token; name it in tokenizer_config.json ('eos_token')"
    ]
    settings.write_text('{"mask_token": "<mask>", "eos_token": "<eos>"}')
    assert problems(project, *RANDOM) == []


def test_an_imported_hook_counts(project: Path) -> None:
    (project / "hook.py").write_text("from somewhere import other as process_data\n")
    assert problems(project) == []


def test_each_set_of_validation_is_looked_at(project: Path) -> None:
    (project / "empty").mkdir()
    (project / "empty/a.jsonl").write_text("")
    assert problems(project, "data.validation={dev: held_out, hard: empty}") == [
        "held_out: no such folder or file",
        "empty: no rows in 1 files: fill it, or remove the set hard",
    ]


def test_validation_files_are_looked_for(project: Path) -> None:
    assert problems(project, "data.validation=held_out") == ["held_out: no such folder or file"]


def test_remote_shards_are_listed_and_not_fetched(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/preflight/a.jsonl", b"{}\n")
    fs.pipe_file("/preflight/b.jsonl", b"{}\n")
    monkeypatch.setattr(fs, "get_file", None)
    monkeypatch.setattr(fs, "open", None)
    train = "data.train=memory://preflight"
    assert problems(project, train) == []
    assert count_rows_of_run(resolve_paths(load_config("a.yaml", [train]), project)) is None
    assert problems(project, "data.train=memory://nothing") == [
        "memory://nothing: cannot be listed: /nothing"
    ]


def test_everything_is_reported_at_once(project: Path) -> None:
    overrides = ("data.train=x", "data.hook=y", "model.path=z", "slurm.setup=w")
    with pytest.raises(ConfigError) as caught:
        require(resolve_paths(load_config("a.yaml", overrides), project))
    assert str(caught.value).replace(f"{project}/", "").splitlines() == [
        "x: no such folder or file",
        "y: cannot be read: No such file or directory; set data.hook",
        "w: no such file; set slurm.setup, or slurm.setup=null",
        "z: no config.json; a model is a directory in Hugging Face's layout",
        "z/tokenizer.json: cannot be read: No such file or directory; set model.path",
    ]


def test_the_shards_must_do_for_the_most_nodes(project: Path) -> None:
    elastic = ["slurm.elastic=[1, 2]", "train.accumulate_grad_batches=2"]
    assert problems(project, *elastic) == [
        "2 shards for 4 ranks in shards: use at most 2 ranks,"
        " or run  llada-sft shard shards shards_4 --num-shards 4"
    ]


NO_KEY = (
    "log.wandb_project: no key for W&B: run  wandb login, or set WANDB_API_KEY,"
    " or WANDB_MODE=offline, or log.wandb_project=null"
)
NETRC = "machine {} login user password x\n"


@pytest.mark.parametrize(
    ("variables", "netrc", "found"),
    [
        ({}, None, [NO_KEY]),
        ({"WANDB_API_KEY": "x"}, None, []),
        ({"WANDB_MODE": "offline"}, None, []),
        ({"WANDB_MODE": "disabled"}, None, []),
        ({}, NETRC.format("api.wandb.ai"), []),
        ({}, NETRC.format("example.com"), [NO_KEY]),
        ({}, "not a netrc", [NO_KEY]),
        ({"WANDB_BASE_URL": "https://w.example.com:8080/"}, NETRC.format("w.example.com"), []),
        ({"WANDB_BASE_URL": "https://w.example.com"}, NETRC.format("api.wandb.ai"), [NO_KEY]),
    ],
)
def test_wandb_needs_a_key(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    netrc: str | None,
    found: list[str],
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(project))
    if netrc is not None:
        (project / ".netrc").write_text(netrc)
    assert problems(project, "log.wandb_project=p") == found
    assert problems(project) == []


def test_a_key_that_the_setup_script_sets_is_taken_on_trust(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(project))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (project / "setup.sh").write_text("export WANDB_API_KEY=$(cat /secrets/wandb)\n")
    assert problems(project, "log.wandb_project=p") == []


def test_wandb_must_be_installed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    assert problems(project, "log.wandb_project=p") == [
        "log.wandb_project: the package wandb is not installed:"
        " run  pip install 'llada-sft[wandb]'  or set log.wandb_project=null"
    ]


def test_targets_of_lora_that_match_nothing(project: Path) -> None:
    assert problems(project, "lora.targets=[q_proj]") == []
    (line,) = problems(project, "lora.targets=[q_proj, query]")
    assert line.startswith("lora.targets: 'query': matches no matrix; there are q_proj, k_proj, ")


def test_packages_of_kernels_that_are_not_installed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    (line,) = problems(project, "model.norm_kernel=liger")
    assert line.startswith("model.norm_kernel: liger: the package liger-kernel is not installed")


def test_packages_of_lora_that_are_not_installed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_plan, "find_spec", lambda name: None)
    found = problems(project, "lora.base=nf4", "deepspeed.stage=2")
    assert [line.partition(" is not installed")[0] for line in found] == [
        "lora: the package peft",
        "lora.base: nf4: the package bitsandbytes",
    ]
