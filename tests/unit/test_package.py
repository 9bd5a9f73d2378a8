"""What is installed from the wheel alone: `llada-sft init`, and a first run of the new project."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from llada_sft.commands.new_project import STARTER, init
from llada_sft.errors import ConfigError

ROOT = Path(__file__).parents[2]


def call(*command: str | Path, cwd: Path) -> str:
    """Run a command without this checkout, and return what it prints."""
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=without, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build sdist and wheel, and install the wheel; only the dependencies are those of the tests.

    Returns:
        The folder of the environment's programs.
    """
    made, env = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("env")
    # The wheel is built from the sdist: what the sdist lacks is missing in both.
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", made, ROOT, cwd=made)
    (wheel,) = made.glob("*.whl")
    call(sys.executable, "-m", "venv", "--without-pip", env, cwd=env)
    pip = [sys.executable, "-m", "pip", "--python", env / "bin/python"]
    call(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=env)
    # Of a folder that is named in a .pth file, .pth files are not read: not this checkout's.
    (site,) = env.glob("lib/python3.*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return env / "bin"


@pytest.mark.slow
def test_a_new_project_is_checked_and_trained(installed: Path, tmp_path: Path) -> None:
    python, llada_sft = installed / "python", installed / "llada-sft"
    where = call(python, "-c", "import llada_sft; print(llada_sft.__path__[0])", cwd=tmp_path)
    assert where.startswith(str(installed.parent))
    assert "llada-sft check config/mine.yaml" in call(llada_sft, "init", "mine", cwd=tmp_path)
    project = tmp_path / "mine"
    assert {path.name for path in project.iterdir()} == set(STARTER)
    call(python, "-m", "llada_sft.demo.data", cwd=project)
    assert "steps" in call(llada_sft, "check", "config/demo.yaml", cwd=project)
    few = ["train.max_steps=2", "log.every_n_steps=1", "slurm.ranks_per_node=1"]
    launch = ["--config", "config/demo.yaml", "--local", *few]
    assert "step 2" in call(llada_sft, "launch", *launch, cwd=project)
    run = project / "runs/demo"
    assert "finished" in call(llada_sft, "status", "runs/demo", cwd=project)
    assert f"cd {project} && llada-sft launch --config" in (run / "command.txt").read_text()
    # It has the hook and the templates of the wheel, and its own copy of the package.
    assert (run / "code/llada_sft/cli.py").is_file()
    page = Path(call(llada_sft, "report", "runs/demo", cwd=project).strip())
    assert "uPlot" in (project / page).read_text()
    assert "submitted" not in call(
        python, "launch.py", "--config", "config/demo.yaml", "--dry-run", cwd=project
    )


@pytest.mark.slow
def test_the_package_has_its_types_and_no_other_package(installed: Path) -> None:
    (site,) = installed.parent.glob("lib/python3.*/site-packages")
    top = {path.name for path in site.iterdir()} - {"dependencies.pth"}
    assert {name for name in top if "dist-info" not in name} == {"llada_sft"}
    assert (site / "llada_sft/py.typed").is_file()


def test_the_first_steps_of_a_new_project_can_be_typed(tmp_path: Path) -> None:
    steps = [line.strip() for line in init(tmp_path / "my project")[2:]]
    assert [step.split()[0] for step in steps] == ["cd", "cp", "llada-sft", "llada-sft"]
    subprocess.run(["bash", "-ec", "\n".join(steps[:2])], cwd=tmp_path, check=True)
    assert (tmp_path / "my project/config/mine.yaml").is_file()


def test_a_new_project_has_each_file_of_the_checkout(tmp_path: Path) -> None:
    init(tmp_path / "new")
    for name in STARTER:
        source = ROOT / name
        files = source.rglob("*") if source.is_dir() else [source]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                copy = tmp_path / "new" / file.relative_to(ROOT)
                assert copy.read_bytes() == file.read_bytes()


def test_the_files_of_the_wheel_are_those_of_a_new_project() -> None:
    import tomllib

    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"][
        "targets"
    ]
    assert targets["wheel"]["hooks"]["custom"]["starter"] == list(STARTER)
    assert {f"/{name}" for name in STARTER} <= set(targets["sdist"]["include"])


@pytest.mark.slow
def test_an_editable_install_has_no_folder_of_the_package(tmp_path: Path) -> None:
    """A folder in site-packages would be found before the checkout."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    call(*pip, "--target", tmp_path / "site", "--editable", ROOT, cwd=tmp_path)
    assert not (tmp_path / "site/llada_sft").exists()
    # The dependencies' folder on the path alone: the .pth file of this checkout is not read.
    paths = f"sys.path.append({sysconfig.get_path('purelib')!r})"
    site = f"site.addsitedir({str(tmp_path / 'site')!r})"
    load = f"import site, sys; {paths}; {site}; import llada_sft.cluster, llada_sft.cli"
    call(sys.executable, "-S", "-c", load, cwd=tmp_path)


def test_what_is_there_stays(tmp_path: Path) -> None:
    init(tmp_path)
    assert init(tmp_path)[0].startswith(f"{tmp_path}: ")
    mine = tmp_path / "config/zero3.yaml"
    mine.write_text(yaml.safe_dump({"run": {"name": "mine"}}))
    (tmp_path / "launch.py").unlink()
    with pytest.raises(ConfigError) as found:
        init(tmp_path)
    assert str(found.value) == (
        f"{tmp_path}: has other files of these names: config/zero3.yaml;"
        " nothing was written: choose another folder, or move them away"
    )
    assert "mine" in mine.read_text() and not (tmp_path / "launch.py").exists()


def test_many_other_files_are_counted(tmp_path: Path) -> None:
    init(tmp_path)
    for file in (tmp_path / "config").glob("*.yaml"):
        file.write_text("")
    with pytest.raises(ConfigError, match=r"config/\S+, config/\S+ and \d more; nothing"):
        init(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("")
    with pytest.raises(ConfigError, match=r"config\S*: cannot be written: "):
        init(tmp_path)
