"""Data and models that do not fit the checkpoint are refused before config.yaml is replaced."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.cluster import journal
from llada_sft.cluster.launch import local, prepare
from llada_sft.cluster.launch.launcher import resume
from llada_sft.cluster.resume import fitting
from llada_sft.config import load_config
from llada_sft.config.changes import Change
from llada_sft.errors import ConfigError
from llada_sft.run_dir import RunDir

Resume = Callable[..., int]


@pytest.fixture
def run(project: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run with a checkpoint of both shards; ranks are not started."""
    monkeypatch.setattr(local, "run_local", lambda path, config: 0)
    found, _ = prepare.create(load_config("a.yaml"), project, ["launch.py"])
    journal.append(found.journal, {"event": "started", "attempt": 1})
    for step, files in ((3, {}), (12, {"0.jsonl": {}, "1.jsonl": {}})):
        folder = found.checkpoints / f"step_{step}"
        folder.mkdir(parents=True)
        (folder / "data_state.json").write_text(json.dumps({"files": files}))
    return found


def again(run: RunDir, *overrides: str) -> int:
    return resume(run, overrides, local=True, follow=False)


def test_the_same_files_in_another_folder(run: RunDir, project: Path) -> None:
    shutil.copytree(project / "shards", project / "moved")
    assert again(run, "data.train=moved") == 0


def test_files_that_are_not_those_of_the_checkpoint(run: RunDir, project: Path) -> None:
    (project / "others").mkdir()
    for name in ("1.jsonl", "2.jsonl"):
        (project / "others" / name).write_text('{"prompt": "a"}\n')
    before = run.config.read_text()
    with pytest.raises(ConfigError) as caught:
        again(run, "data.train=others")
    assert str(caught.value) == (
        "data.train: 1 of the 2 files that the checkpoint knows are not there, the first 0.jsonl:"
        " name the folder that has them, or set data.on_changed_file: restart_file"
    )
    assert run.config.read_text() == before
    assert again(run, "data.train=others", "data.on_changed_file=restart_file") == 0


def test_another_model_is_named_key_by_key(run: RunDir, project: Path) -> None:
    shutil.copytree(project / "model", project / "other")
    assert again(run, "model.path=other") == 0
    assert again(run, "model.path=model") == 0
    path = project / "other/config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"n_layers": 99, "mask_token_id": 5}))
    before = run.config.read_text()
    with pytest.raises(ConfigError) as caught:
        again(run, "model.path=other")
    assert [line.split(" is ")[0] for line in str(caught.value).splitlines()] == [
        f"model.path: {project}/other/config.json: mask_token_id",
        f"model.path: {project}/other/config.json: n_layers",
    ]
    assert run.config.read_text() == before


@pytest.mark.parametrize("text", [None, "", "[]", '{"files": 3}'])
def test_what_cannot_be_read_is_for_the_ranks_to_judge(run: RunDir, text: str | None) -> None:
    state = run.checkpoints / "step_12/data_state.json"
    state.unlink() if text is None else state.write_text(text)
    config = load_config(run.config)
    fitting.require(run, config, config, [Change("data.train", "a", "b", "data.train")])
