"""The ranks in a container: the command lines as they arrive, and what the container must hold."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.cluster.batch import container
from llada_sft.cluster.batch.directives import sbatch_text
from llada_sft.cluster.batch.refused import check_extra
from llada_sft.cluster.batch.submit import submit
from llada_sft.cluster.launch import prepare
from llada_sft.config import Config, load_config, load_run_config, resolve_paths
from llada_sft.errors import ConfigError
from llada_sft.run_dir import RunDir

FakeTool = Callable[[str, str], None]
ROOT = Path(__file__).parents[4]
GOLDEN = ROOT / "tests/golden"
JOB = {"SLURM_JOB_ID": "42", "SLURM_JOB_NUM_NODES": "2"}
# srun, of which only the program that it starts is real.
SRUN = """
import json, os, sys
words = sys.argv[1:]
start = next(i for i, word in enumerate(words) if not word.startswith("-"))
with open({file!r}, "w") as file:
    json.dump({{"srun": words[:start], "rank": words[start:]}}, file)
os.execvp(words[start], words[start:])
"""
HOSTILE = [
    "$(touch pwned)",
    "`touch pwned`",
    "a; touch pwned",
    "a'; touch pwned; '",
    '"; touch pwned; "',
    "a\\",
    "a b # c",
    "-x",
    "%j",
    "ä 日本",
    "a\u00a0b",
    "#SBATCH --nodes=9",
    "a && touch pwned",
    "${IFS}touch pwned",
    "a\nb",
    "a\u2028#SBATCH --nodes=9",
    "a\u0085b",
    "\ttouch pwned",
]


def config_of(kind: str, *overrides: str) -> Config:
    image = {"pyxis": "nvcr.io#nvidia/pytorch:25.01-py3", "apptainer": "/images/train.sif"}[kind]
    given = f"{{kind: {kind}, image: '{image}', mounts: [/lustre, '/a:/b:ro']}}"
    config = load_config(ROOT / "config/zero3.yaml", [f"slurm.container={given}", *overrides])
    return resolve_paths(config, "/shared")


@pytest.mark.parametrize("kind", ["pyxis", "apptainer"])
def test_the_scripts_are_the_golden_ones(kind: str) -> None:
    run = RunDir(Path("/shared/runs/llada-8b-sft"))
    text = sbatch_text(config_of(kind), run, "/shared/env/bin/python")
    assert text == (GOLDEN / f"{kind}.sbatch").read_text()


def test_the_libraries_of_a_driver_are_mounted_only_where_there_are_gpus() -> None:
    run = RunDir(Path("/r"))
    for override, mounted in (("slurm.gpus_per_node=8", True), ("slurm.gpus_per_node=0", False)):
        words = container.rank_words(config_of("apptainer", override), run, "python")
        assert ("--nv" in words) == mounted


def launched(
    tmp_path: Path, fake_tool: FakeTool, config: Config, run: RunDir
) -> dict[str, list[str]]:
    """Run a batch script with stand-ins; return what srun, the rank and apptainer got."""
    run.slurm.mkdir(parents=True)
    seen = tmp_path / "seen.json"
    (tmp_path / "srun.py").write_text(SRUN.format(file=str(seen)))
    fake_tool("srun", f'exec {sys.executable} {shlex.quote(str(tmp_path))}/srun.py "$@"')
    show = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['PYTHONPATH']]))"
    fake_tool("apptainer", f'exec {sys.executable} -c "{show}" "$@"')
    fake_tool("python3", f'exec {sys.executable} -c "{show}" "$@"')
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\ntrue\n")
    python.chmod(0o755)
    script = sbatch_text(config, run, str(python))
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, **JOB, "PYTHONPATH": "/of/the/host"},
        capture_output=True,
        text=True,
        check=True,
    )
    arguments, path = json.loads(done.stdout)
    return {**json.loads(seen.read_text()), "inside": arguments, "path": [path]}


def test_a_rank_is_started_in_pyxis(tmp_path: Path, fake_tool: FakeTool) -> None:
    run = RunDir(tmp_path / "run")
    seen = launched(tmp_path, fake_tool, config_of("pyxis", "slurm.container.workdir=/work"), run)
    assert seen["srun"][-3:] == [
        "--container-image=nvcr.io#nvidia/pytorch:25.01-py3",
        f"--container-mounts=/lustre:/lustre,/a:/b:ro,{run.path}:{run.path}",
        "--container-workdir=/work",
    ]
    # The image's Python, with the run's code and nothing of the host's.
    assert seen["rank"][0] == "env"
    assert seen["inside"] == ["-u", "-m", "llada_sft.cluster", "rank", str(run.path)]
    assert seen["path"] == [str(run.code)]


def test_a_rank_is_started_in_apptainer(tmp_path: Path, fake_tool: FakeTool) -> None:
    run = RunDir(tmp_path / "a b")
    config = config_of("apptainer", "slurm.container.python=/opt/env/bin/python")
    seen = launched(tmp_path, fake_tool, config, run)
    assert not [word for word in seen["srun"] if word.startswith("--container")]
    assert seen["inside"] == [
        *("exec", "--nv", "--bind", "/lustre:/lustre", "--bind", "/a:/b:ro"),
        *("--bind", f"{run.path}:{run.path}", "--pwd", str(run.path), "/images/train.sif"),
        *("env", f"PYTHONPATH={run.code}", "PYTHONSAFEPATH=1", "PYTHONNOUSERSITE=1"),
        *("/opt/env/bin/python", "-u", "-m", "llada_sft.cluster", "rank", str(run.path)),
    ]


KEYS = {
    "slurm.extra.comment": "comment",
    "slurm.srun_args.comment": "srun",
    "slurm.container.image": "inside",
    "slurm.container.workdir": "inside",
    "slurm.container.python": "inside",
    "slurm.container.mounts": "inside",
    "slurm.partition": "",
    "slurm.account": "",
    "slurm.qos": "",
    "slurm.constraint": "",
    "slurm.exclude": "",
    "slurm.setup": "",
}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("key", KEYS)
def test_a_hostile_text_is_refused_or_one_argument(
    tmp_path: Path, fake_tool: FakeTool, key: str, text: str
) -> None:
    value: object = f"/{text}" if key.endswith(("workdir", "mounts", "image")) else text
    given = json.dumps([value] if key.endswith("mounts") else value)
    plain = len(sbatch_text(config_of("apptainer"), RunDir(tmp_path), "p").splitlines())
    try:
        config = config_of("apptainer", f"{key}={given}")
        check_extra(config)
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    run = RunDir(tmp_path / "run")
    more = int("setup" not in key and "container" not in key)
    lines = sbatch_text(config, run, "p").splitlines()
    assert len(lines) <= plain + more
    assert not [line for line in lines if line.startswith("#SBATCH --nodes=9")]
    seen = launched(tmp_path, fake_tool, config, run)
    words = seen.get(KEYS[key], [])
    assert not KEYS[key] or KEYS[key] == "comment" or any(str(value) in word for word in words)
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    ("mount", "said"),
    [
        ("/a:/b:ro:/c", "must be SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro, of paths without"),
        ("/a:/b:rx", "must be SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro, of paths without"),
        ("/a,/b", "must be SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro, of paths without"),
        (":/b", "must be SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro, of paths without"),
        ("/a:b", "the path in the container must be absolute, got '/a:b'"),
    ],
)
def test_mounts_that_no_tool_knows(mount: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of("pyxis", f"slurm.container.mounts=['{mount}']")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("slurm.container.workdir=here", "workdir: must be an absolute path of the container"),
        ("slurm.container.python=-c", "python: must be a path or a name, got '-c'"),
        ("slurm.container.python='A=b'", "python: must be a path or a name, got 'A=b'"),
        ("slurm.container.kind=docker", "must be 'pyxis' or 'apptainer', got 'docker'"),
        ("slurm.container.image=docker://me:secret@x/y", "must not hold a password"),
    ],
)
def test_mistakes_in_the_section(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        config_of("apptainer", override)
    assert len(str(caught.value).splitlines()) == 1


def test_relative_paths_of_the_host_start_at_the_current_folder(tmp_path: Path) -> None:
    given = "slurm.container={kind: apptainer, image: a.sif, mounts: [data, 'b:/c:ro']}"
    config = resolve_paths(load_config(ROOT / "config/zero3.yaml", [given]), tmp_path)
    assert config.slurm.container is not None
    assert config.slurm.container.image == f"{tmp_path}/a.sif"
    assert config.slurm.container.mounts == (
        f"{tmp_path}/data:{tmp_path}/data:rw",
        f"{tmp_path}/b:/c:ro",
    )
    # What a registry has is no path.
    for kind, image in (("apptainer", "docker://a/b"), ("pyxis", "a/b")):
        config = resolve_paths(config_of(kind, f"slurm.container.image={image}"), tmp_path)
        assert config.slurm.container is not None
        assert config.slurm.container.image == image


def problems(project: Path, kind: str, *mounts: str, image: str = "docker://a") -> list[str]:
    given = json.dumps({"kind": kind, "image": image, "mounts": mounts})
    config = load_config("a.yaml", [f"slurm.container={given}"])
    return list(container.problems(resolve_paths(config, project)))


def test_data_and_model_must_be_in_the_container(project: Path) -> None:
    assert problems(project, "apptainer", str(project)) == []
    assert problems(project, "apptainer", "shards", f"{project}/model:/m") == [
        f"model.path: {project}/model is not in the container; add it to slurm.container.mounts"
    ]
    assert problems(project, "apptainer", str(project), "x", image="y.sif") == [
        f"slurm.container.mounts: {project}/x: no such file or folder",
        f"slurm.container.image: {project}/y.sif: no such file",
    ]


def test_a_path_that_a_tool_cannot_mount(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = project / "a b"
    blank.mkdir()
    assert problems(project, "apptainer", str(project), "a b") == []
    assert problems(project, "pyxis", str(project), "a b") == [
        f"slurm.container.mounts: pyxis cannot mount '{blank}:{blank}:rw'; rename it"
    ]
    config = load_config("a.yaml", ["run.root=a,b", "slurm.container={kind: apptainer, image: a}"])
    found = list(container.problems(resolve_paths(config, project)))
    assert found[0] == (
        f"run.root: apptainer cannot mount such a path, got {project}/a,b/a; take another"
    )


def test_nothing_of_the_environment_is_kept_with_the_run(
    project: Path, fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REGISTRY_AUTH", "APPTAINER_DOCKER_PASSWORD", "SLURM_JWT", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "hidden-value-of-mine")
    given = ["slurm.container={kind: apptainer, image: 'docker://a'}", "slurm.srun_args={mpi: x}"]
    run, _ = prepare.create(load_config("a.yaml", given), project, ["launch.py", *given])
    fake_tool("srun", "exit 1")
    fake_tool("sbatch", "echo Submitted batch job 42")
    submit(load_run_config(run.config), run)
    for file in run.path.rglob("*"):
        assert not file.is_file() or b"hidden-value" not in file.read_bytes()
