"""A mistyped path is answered before torch is imported: for each command, each kind of path."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.config import load_config, resolve_paths
from llada_sft.errors import ConfigError, LladaSftError
from llada_sft.paths import look_before_check, look_before_export, look_before_sample

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/tiny_llada"
NO_FILE = "cannot be read: No such file or directory"
NO_CONFIG = "no config.json; a model is a directory in Hugging Face's layout"
NO_TOKENIZER = "no such file; the tokenizer belongs next to the model's config.json"
# Runs a command as the shell does, and says what it has imported.
SCRIPT = """
import sys
from llada_sft.cli import main
code = main()
print(code, sorted({"torch", "transformers", "deepspeed"} & sys.modules.keys()))
"""
CONFIG = """
run: {name: typo}
model: {path: model}
data: {train: train, validation: held/*.jsonl, hook: hook.py, max_length: 64}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder in which all paths are right; of the checkpoint there is only the folder."""
    shutil.copytree(GOLDEN, tmp_path / "model")
    (tmp_path / "model/tokenizer.json").write_text("{}")
    for folder in ("train", "held"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jsonl").write_text("{}\n")
    (tmp_path / "hook.py").write_text("def process_data(record, tokenizer, max_length): ...\n")
    (tmp_path / "a.yaml").write_text(CONFIG)
    (tmp_path / "run/checkpoints/step_4").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text(CONFIG)
    (tmp_path / "used").mkdir()
    (tmp_path / "used/precious").write_text("")
    return tmp_path


def run(project: Path, words: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *shlex.split(words)],
        cwd=project,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, done.stderr


def without(name: str) -> Callable[[Path], None]:
    def remove(project: Path) -> None:
        path = project / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def nothing(project: Path) -> None:
    """All that is there stays there."""


@pytest.mark.parametrize(
    ("words", "prepare", "expected"),
    [
        ("check b.yaml", nothing, f"b.yaml: {NO_FILE}"),
        ("check a.yaml model.path=modle", nothing, f"{{}}/modle: {NO_CONFIG}"),
        ("check a.yaml", without("model/config.json"), f"{{}}/model: {NO_CONFIG}"),
        (
            "check a.yaml",
            without("model/tokenizer.json"),
            f"{{}}/model/tokenizer.json: {NO_TOKENIZER}",
        ),
        ("check a.yaml data.hook=hok.py", nothing, f"{{}}/hok.py: {NO_FILE}; set data.hook"),
        ("check a.yaml data.train=trian", nothing, "{}/trian: no such folder or file"),
        ("check a.yaml data.train=[train,trian]", nothing, "{}/trian: no such folder or file"),
        (
            "check a.yaml 'data.train={a: {path: trian}}'",
            nothing,
            "{}/trian: no such folder or file",
        ),
        ("check a.yaml data.validation=hedl/*.jsonl", nothing, "{}/hedl/*.jsonl: no file matches"),
        ("export rnu out", nothing, "rnu: no such run: neither a path, nor a name in runs"),
        ("export run out", without("model"), f"model: {NO_CONFIG}"),
        (
            "export run out",
            without("run/checkpoints"),
            "run/checkpoints: no complete checkpoint; train first",
        ),
        (
            "export run out --step 5",
            nothing,
            "run/checkpoints: no checkpoint of step 5; there are 4",
        ),
        (
            "export run out --average 3",
            nothing,
            "run/checkpoints: 3 checkpoints up to step 4 are needed, there are 4;"
            " train.keep_checkpoints says how many stay",
        ),
        ("export run out --average 0", nothing, "--average: must be at least 1, got 0"),
        (
            "export run out --average 2 --adapter",
            nothing,
            "--average: the mean of adapters is not an adapter of their rank; leave --adapter away",
        ),
        ("export run used", nothing, "used: exists and is not empty; choose another directory"),
        (
            "export run used/precious/out",
            nothing,
            "used/precious/out: {}/used/precious is a file; choose another directory",
        ),
        ("sample modle --prompt a", nothing, f"modle: {NO_CONFIG}"),
        ("chat modle", nothing, f"modle: {NO_CONFIG}"),
        (
            "sample model --input none.jsonl --out a.jsonl",
            nothing,
            "none.jsonl: cannot be read: No such file or directory",
        ),
        (
            "sample model --prompt a --steps 3",
            nothing,
            "--steps: must be a multiple of the number of blocks, got 3 and 4",
        ),
        ("sample model --prompt a", without("model/config.json"), f"model: {NO_CONFIG}"),
        (
            "sample model --prompt a",
            without("model/model-00002-of-00002.safetensors"),
            "model/model-00002-of-00002.safetensors: missing,"
            " though model.safetensors.index.json names it; download it",
        ),
        (
            "sample model --prompt a",
            without("model/tokenizer.json"),
            f"model/tokenizer.json: {NO_TOKENIZER}",
        ),
    ],
)
def test_a_mistyped_path_is_one_line_and_torch_is_not_imported(
    project: Path, words: str, prepare: Callable[[Path], None], expected: str
) -> None:
    prepare(project)
    output, problem = run(project, words)
    assert problem == expected.format(project) + "\n"
    assert output == "2 []\n"


def test_several_mistyped_paths_of_a_config_are_several_lines(project: Path) -> None:
    overrides = ["model.path=modle", "data.train=trian", "data.hook=hok.py"]
    config = resolve_paths(load_config(project / "a.yaml", overrides), project)
    with pytest.raises(ConfigError) as caught:
        look_before_check(config)
    assert str(caught.value).splitlines() == [
        f"{project}/modle: {NO_CONFIG}",
        f"{project}/hok.py: {NO_FILE}; set data.hook",
        f"{project}/trian: no such folder or file",
    ]


def test_with_a_size_the_model_needs_a_tokenizer_alone(project: Path) -> None:
    (project / "model/config.json").unlink()
    sizes = ("d_model", "n_layers", "mlp_hidden_size", "max_sequence_length")
    size = ", ".join(["n_heads: 2", *(f"{name}: 64" for name in sizes)])
    overrides = ["model.init=random", f"model.size={{{size}}}"]
    config = resolve_paths(load_config(project / "a.yaml", overrides), project)
    look_before_check(config)
    (project / "model/tokenizer.json").unlink()
    with pytest.raises(LladaSftError, match=NO_TOKENIZER):
        look_before_check(config)


def test_paths_that_are_right_pass(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a service is not asked: data behind URLs is listed later, once."""
    monkeypatch.chdir(project)
    config = resolve_paths(load_config("a.yaml", ["data.train=[train,s3://none/here]"]), project)
    look_before_check(config)
    look_before_export(Path("run"), Path("new/out"), None)
    look_before_export(Path("run"), Path("run/checkpoints/step_4"), 4)
    assert look_before_export(Path("run"), Path("new/out"), None) == 4
    with pytest.raises(LladaSftError, match="no complete checkpoint; train first"):
        look_before_export(Path("run"), Path("new/out"), None, best=True)
    look_before_sample(Path("model"))
    # What is there of a tokenizer goes along with an export; there may be none.
    Path("model/tokenizer.json").unlink()
    look_before_export(Path("run"), Path("out"), None)
