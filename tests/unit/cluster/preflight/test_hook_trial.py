"""The hook on the first rows of each source: what it does wrong is one line, and leaves nothing."""

import gzip
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.cluster.preflight import hook_trial
from llada_sft.config import Config, load_config, resolve_paths
from llada_sft.demo.data import write_demo
from llada_sft.errors import ConfigError

CONFIG = """\
run: {name: a}
model:
  path: tokenizer
  init: random
  size: {d_model: 8, n_layers: 1, n_heads: 2, mlp_hidden_size: 8}
data: {train: data/train, hook: hook.py}
slurm: {ranks_per_node: 2, setup: null}
"""
GOOD = """\
from llada_sft.data.records import encode_record
def process_data(record, tokenizer, max_length):
    FAULT
    return encode_record(record, tokenizer)
"""
ANYWAY = "data.try_rows=0 launches without a trial"
REMEDY = f"correct the row or data.hook, or see data.max_bad_fraction; {ANYWAY}"
Made = Callable[..., Config]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the demo's data and tokenizer."""
    folder = tmp_path_factory.mktemp("trial")
    write_demo(folder)
    (folder / "a.yaml").write_text(CONFIG)
    return folder


@pytest.fixture
def made(folder: Path) -> Made:
    """Write a hook with a fault, and return the config."""

    def make(fault: str = "pass", *overrides: str, hook: str = GOOD) -> Config:
        (folder / "hook.py").write_text(hook.replace("FAULT", fault))
        return resolve_paths(load_config(folder / "a.yaml", overrides), folder)

    return make


def problem(config: Config, limit_s: float = hook_trial.LIMIT_S) -> str:
    with pytest.raises(ConfigError) as error:
        hook_trial.require(config, limit_s)
    return str(error.value)


def test_a_good_hook_says_nothing_and_leaves_nothing(
    made: Made,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Neither output nor __pycache__, nor what it writes to its temporary folder."""
    noisy = (
        "import subprocess, tempfile; print('out'); subprocess.run(['echo', 'more']);"
        " tempfile.NamedTemporaryFile(delete=False)"
    )
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = made(noisy, "data.validation=data/heldout")
    before = sorted(folder.rglob("*"))
    assert hook_trial.require(config) == []
    assert sorted(folder.rglob("*")) == before
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_hook_that_raises(made: Made, folder: Path) -> None:
    config = made("record['nothing']")
    shard = sorted((folder / "data/train").iterdir())[0]
    assert problem(config) == (
        f"{shard}:1 (byte 0): hook raised KeyError: 'nothing' (hook.py line 3): so are 16 of the"
        f" first 16 rows of data.train: {REMEDY}"
    )
    # With some bad rows allowed, only all of them are too many.
    assert "so are 16 of the first 16 rows" in problem(made("record['x']", *_allowed(0.5)))
    assert hook_trial.require(made("record['x']", *_allowed(1))) != []
    rarely = "import zlib; assert zlib.crc32(repr(record).encode()) % 3"
    (line,) = hook_trial.require(made(rarely, *_allowed(0.9)))
    assert line.startswith("warning          ") and "hook raised AssertionError" in line


def _allowed(fraction: float) -> list[str]:
    return [f"data.max_bad_fraction={fraction}"]


def test_a_bad_row_of_a_validation_set_ends_a_run_whatever_is_allowed(made: Made) -> None:
    config = made("record['x']", "data.validation={dev: data/heldout}", *_allowed(1))
    assert " rows of data.validation.dev: correct the row" in problem(config)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("return {'input_ids': [1]}", "hook returned"),
        ("return 'text'", "hook returned"),
        ("return {'input_ids': [10**9], 'response_mask': [True]}", "input_ids"),
        ("raise SystemExit(3)", "hook raised SystemExit: 3 (hook.py line 3)"),
    ],
)
def test_a_hook_that_returns_nonsense(made: Made, fault: str, said: str) -> None:
    message = problem(made(fault))
    assert said in message
    assert "so are 16 of the first 16 rows of data.train" in message


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("import nowhere\ndef process_data(a, b, c): ...", "No module named 'nowhere'"),
        ("1 / 0\ndef process_data(a, b, c): ...", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_hook_that_cannot_be_imported(made: Made, folder: Path, hook: str, said: str) -> None:
    message = problem(made(hook=hook))
    assert message.startswith(f"{folder}/hook.py: the hook raised on import: ")
    assert said in message and message.endswith(f"(hook.py line 1); {ANYWAY}")


def test_a_hook_that_drops_every_row_is_a_warning(made: Made) -> None:
    line = (
        "warning          data.hook: makes no example of the first 16 rows of data.train: look at"
        " them with  llada-sft check"
    )
    assert hook_trial.require(made("return None")) == [line]
    (line,) = hook_trial.require(made("pass", "data.max_length=2", "data.on_too_long=skip"))
    assert "; 16 of them are too long (data.on_too_long): look at them" in line


def test_a_hook_that_hangs_is_ended_with_all_that_it_started(made: Made, folder: Path) -> None:
    hang = (
        f"import subprocess, time; child = subprocess.Popen(['sleep', '600']);"
        f" open({str(folder / 'child')!r}, 'w').write(str(child.pid)); time.sleep(600)"
    )
    (line,) = hook_trial.require(made(hang), limit_s=6)
    assert line == (
        f"warning          data.hook: {folder}/hook.py: was not done with the first rows after 6"
        f" s: a hook that hangs would end the run; {ANYWAY}"
    )
    child = Path("/proc") / (folder / "child").read_text() / "stat"
    (folder / "child").unlink()
    for _ in range(50):
        if not child.exists() or ") Z " in child.read_text():
            return
        time.sleep(0.1)
    pytest.fail("the hook's child process is still there")


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("import os; os._exit(7)", "ended by itself with exit code 7"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
    ],
)
def test_a_hook_that_ends_its_process(made: Made, folder: Path, end: str, how: str) -> None:
    assert hook_trial.require(made(end)) == [
        f"warning          data.hook: {folder}/hook.py: the process that ran it {how}; {ANYWAY}"
    ]


def test_no_secret_is_printed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_TOKEN", "s3cr3t-s3cr3t")
    message = problem(made("import os; raise ValueError(os.environ['SOME_API_TOKEN'])"))
    assert "ValueError: ***" in message and "s3cr3t" not in message


def test_rows_of_several_shards_and_sources(made: Made, folder: Path) -> None:
    """Compressed ones, too; what is not JSON is named by its own line; nothing is indexed."""
    for name in ("one", "two"):
        (folder / name).mkdir(exist_ok=True)
    rows = [json.dumps({"prompt": "a", "response": "b"})] * 3
    with gzip.open(folder / "one/0.jsonl.gz", "wt") as file:
        file.write("\n".join(rows))
    (folder / "two/0.jsonl").write_text("\ufeff" + "\n\n".join(rows) + "\n{broken\n")
    sources = "data.train={one: {path: one}, two: {path: two}}"
    message = problem(made("pass", sources, "data.try_rows=4"))
    assert message.startswith(f"{folder}/two/0.jsonl:6 (byte 104): not JSON: ")
    assert "so are 1 of the first 4 rows of data.train.two" in message
    assert hook_trial.require(made("pass", sources, "data.try_rows=3")) == []
    assert hook_trial.require(made("record['x']", sources, "data.try_rows=0")) == []
