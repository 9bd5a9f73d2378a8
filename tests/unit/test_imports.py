"""Who may know whom: the imports of every file are walked, and go down only."""

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([ROOT / "launch.py", *(ROOT / "llada_sft").rglob("*.py")])
GROUND = {
    "config",
    "run_dir",
    "placement",
    "local_ranks",
    "choices",
    "errors",
    "versions",
    "keys",
    "atomic",
    "processes",
}
# What each part may import of the package, besides itself.
MAY_KNOW = {
    "launch": {"cluster"},
    "__main__": {"cli"},
    "cli": GROUND
    | {
        "entry",
        "commands",
        "cluster",
        "training",
        "answering",
        "evaluation",
        "report",
        "check",
        "sharding",
    }
    | {"paths"},
    "commands": GROUND | {"cluster", "training", "report", "paths"},
    "entry": {"errors"},
    "paths": GROUND | {"data", "model", "training"},
    "answering": GROUND | {"entry", "generation", "model", "data"},
    "demo": GROUND | {"answering", "generation", "training", "data", "model"},
    # Of the training only what needs no torch: see below.
    "report": GROUND | {"entry", "cluster", "training"},
    "cluster": GROUND | {"entry", "training", "data", "model", "plan"},
    "plan": GROUND | {"data", "model"},
    "training": GROUND | {"data", "model", "diffusion", "generation"},
    "generation": {"model", "diffusion", "choices", "keys"},
    "evaluation": GROUND | {"entry", "model", "diffusion", "generation", "data"},
    "check": GROUND | {"data"},
    "sharding": GROUND | {"data"},
    "data": GROUND,
    # The samplers only when a network is asked to generate.
    "model": GROUND | {"diffusion", "generation"},
    "diffusion": {"choices", "keys"},
    "config": {"choices", "errors"},
    "run_dir": set(),
    "placement": set(),
    "local_ranks": set(),
    "choices": set(),
    "versions": set(),
    "processes": set(),
    "errors": set(),
    "keys": set(),
    "atomic": set(),
    "llada_sft": set(),
}


def part_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "llada_sft":
        return parts[0]
    return "llada_sft" if parts[1] == "__init__" else parts[1]


def imported(tree: ast.AST) -> Iterator[str]:
    """Give the dotted names that are imported anywhere below a node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import_time(tree: ast.Module) -> ast.Module:
    """Leave out the bodies of functions, also of methods, and what only a type checker runs."""

    class WithoutFunctions(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

        def visit_If(self, node: ast.If) -> ast.If | None:
            return None if ast.unparse(node.test) == "TYPE_CHECKING" else node

    return ast.fix_missing_locations(WithoutFunctions().visit(tree))


def parts_in(names: Iterator[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("llada_sft.")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down_only(file: Path) -> None:
    part = part_of(file)
    known = parts_in(imported(ast.parse(file.read_text())))
    assert known <= MAY_KNOW[part] | {part, "__version__"}


RANK_FILES = sorted((ROOT / "llada_sft/cluster/rank").rglob("*.py"))


@pytest.mark.parametrize("file", RANK_FILES, ids=lambda file: file.name)
def test_a_rank_knows_neither_the_login_node_nor_the_batch_script(file: Path) -> None:
    forbidden = tuple(
        f"llada_sft.cluster.{room}" for room in ("attempt", "batch", "launch", "preflight", "sweep")
    )
    for name in imported(ast.parse(file.read_text())):
        assert not f"{name}.".startswith(tuple(f"{room}." for room in forbidden)), name


@pytest.mark.parametrize("file", [f for f in FILES if part_of(f) == "data"], ids=lambda f: f.name)
def test_the_data_of_a_run_knows_no_tool(file: Path) -> None:
    assert not parts_in(imported(ast.parse(file.read_text()))) & {"check", "sharding"}


@pytest.mark.parametrize(
    "file", [f for f in FILES if part_of(f) in ("cluster", "cli", "launch", "entry")], ids=str
)
def test_the_job_knows_training_only_inside_functions(file: Path) -> None:
    names = list(imported(at_import_time(ast.parse(file.read_text()))))
    assert not parts_in(iter(names)) & {
        "training",
        "model",
        "diffusion",
        "generation",
        "evaluation",
        "answering",
    }
    assert "torch" not in {name.split(".")[0] for name in names}


@pytest.mark.parametrize("file", [f for f in FILES if part_of(f) == "model"], ids=lambda f: f.name)
def test_the_network_knows_its_samplers_only_inside_functions(file: Path) -> None:
    names = imported(at_import_time(ast.parse(file.read_text())))
    assert "generation" not in parts_in(names)


@pytest.mark.parametrize(
    "script",
    [
        "import launch",
        "from llada_sft.cli import main; sys.argv = ['llada-sft', 'status', '--help']; main()",
        "from llada_sft.sharding import csv_rows, json_array, parquet, shuffle",
        "from llada_sft.model import index, settings",
        "from llada_sft.generation import settings",
        "from llada_sft import paths",
        "from llada_sft.evaluation import command, job, plan, settings",
        "from llada_sft.cluster.launch import launcher, local; import submitit",
        "from llada_sft.cluster.preflight import hook_trial, storage, submission",
        "from llada_sft.data.examples import encode",
        "from llada_sft.cluster.watch import logs, status",
        "from llada_sft.report import command, options",
        "from llada_sft.cluster.attempt import supervisor",
        "from llada_sft.cluster.rank import main",
    ],
)
def test_a_login_node_never_imports_torch(script: str) -> None:
    check = "\nfinally: sys.stderr.write(str('torch' in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\ntry: {script}\nexcept SystemExit: pass{check}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "False"


@pytest.mark.slow
def test_a_dry_run_answers_at_once() -> None:
    """Much sooner than torch alone would be imported, on any machine and under any load."""
    dry_run = ["launch.py", "--config", "config/zero3.yaml", "--nodes", "4", "--dry-run"]
    assert cpu_s(*dry_run) < 0.5 * cpu_s("-c", "import torch")


def cpu_s(*arguments: str) -> float:
    """Measure the seconds of CPU that a command of Python takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False)
    # 2: the model and the data of the config are not on this machine.
    assert done.returncode in (0, 2), done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
