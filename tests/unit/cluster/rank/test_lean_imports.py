"""The stand-ins of lean imports: light while nobody needs the library, whole as soon as one does.

Each test imports in a process of its own: what a process has imported, it keeps. That a rank makes
its first step without these libraries is tested in tests/distributed/test_lean_rank.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
LEAN = """
import sys
from llada_sft.cluster.rank.lean_imports import lean_imports
with lean_imports():
    import lightning.pytorch
"""


def run(script: str) -> list[str]:
    """Run a script in a process whose imports are lean, and return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", LEAN + script],
        cwd=ROOT,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("= ")]


@pytest.mark.slow
def test_metrics_are_whole_for_a_hook_and_of_the_class_that_lightning_knows() -> None:
    assert run(
        "from lightning.pytorch.core.module import Metric\n"
        "print('=', 'torchmetrics.functional' in sys.modules)\n"
        "import torchmetrics.aggregation\n"
        "import torch, torchmetrics\n"
        "from torchmetrics.utilities import imports, plot\n"
        "mean = torchmetrics.MeanMetric(); mean.update(torch.tensor([1.0, 3.0]))\n"
        "print('=', isinstance(mean, Metric), float(mean.compute()))\n"
        "print('=', type(mean) is sys.modules['torchmetrics.aggregation'].MeanMetric)\n"
        "print('=', bool(imports._MATPLOTLIB_AVAILABLE) == hasattr(plot, 'plt'))"
    ) == ["= False", "= True 2.0", "= True", "= True"]


@pytest.mark.slow
def test_a_network_is_compiled_and_what_is_not_to_be_compiled_is_not() -> None:
    assert run(
        "import torch\n"
        "from lightning.fabric.wrappers import OptimizedModule\n"
        "from torch.nn.attention.varlen import varlen_attn\n"
        "compiling = []\n"
        "@torch.compiler.disable\n"
        "def hidden(x):\n"
        "    compiling.append(torch.compiler.is_compiling()); return x + 1\n"
        "class Twice(torch.nn.Module):\n"
        "    def forward(self, x): return hidden(x * 2) * 2\n"
        "graphs = []\n"
        "def backend(graph, inputs): graphs.append(graph); return graph.forward\n"
        "print('=', float(hidden(torch.zeros(()))), isinstance(Twice(), OptimizedModule))\n"
        "print('=', 'torch._dynamo.config' in sys.modules)\n"
        "compiled = torch.compile(Twice(), backend=backend)\n"
        "print('=', isinstance(compiled, OptimizedModule), isinstance(Twice(), OptimizedModule))\n"
        "print('=', float(compiled(torch.ones(()))), len(graphs), compiling)\n"
        "print('=', hasattr(torch._dynamo, '_marks'), torch._dynamo.graph_break.__module__)"
    ) == [
        "= 1.0 False",
        "= False",
        "= True False",
        "= 6.0 2 [False, False]",
        "= False torch._dynamo.decorators",
    ]


@pytest.mark.slow
def test_dynamo_is_run_once_also_if_one_of_its_modules_is_imported_first() -> None:
    assert run(
        "import torch\nimport torch._dynamo.eval_frame as frame\n"
        "print('=', torch._dynamo.OptimizedModule is frame.OptimizedModule)\n"
        "print('=', frame.__spec__.origin.rpartition('/')[2])"
    ) == ["= True", "= eval_frame.py"]


def test_muon_is_given_to_the_compiler_when_it_is_called() -> None:
    assert run(
        "with lean_imports(): import deepspeed\n"
        "import torch\n"
        "from deepspeed.runtime import compiler\n"
        "from deepspeed.runtime.zero.muon import original_muon as muon\n"
        "asked = []\n"
        "torch.compile = lambda function: asked.append(function) or function\n"
        "print('=', compiler.compile() is torch.compile)\n"
        "update = muon.zeropower_via_newtonschulz5(torch.eye(3), 5)\n"
        "print('=', tuple(update.shape), [function.__name__ for function in asked])"
    ) == ["= True", "= (3, 3) ['zeropower_via_newtonschulz5']"]


@pytest.mark.slow
def test_transformers_knows_the_same_models_as_after_reading_them_twice() -> None:
    assert run(
        "import transformers\n"
        "from transformers.utils import import_utils\n"
        "from pathlib import Path\n"
        "models = sys.modules['transformers.models']\n"
        "lean = dict(models._class_to_module)\n"
        "structure = import_utils.define_import_structure(models.__file__)\n"
        "whole = {name: module for modules in structure.values()"
        " for module, names in modules.items() for name in names}\n"
        "print('=', len(whole) > 1000, lean.keys() >= whole.keys())\n"
        "print('=', import_utils.define_import_structure.__module__)\n"
        "print('=', all(lean[name] == module for name, module in whole.items()))\n"
        "print('=', transformers.LlamaConfig is models.llama.LlamaConfig)"
    ) == ["= True True", "= transformers.utils.import_utils", "= True", "= True"]


def test_scipy_is_whole_once_a_function_of_it_is_called() -> None:
    pytest.importorskip("scipy")
    assert run(
        "from transformers.loss.loss_for_object_detection import linear_sum_assignment as assign\n"
        "print('=', 'scipy' in sys.modules)\n"
        "print('=', [list(map(int, part)) for part in assign([[4, 1], [2, 8]])])\n"
        "import scipy.optimize\n"
        "print('=', scipy.optimize.minimize.__module__, 'scipy' in sys.modules)\n"
    ) == ["= False", "= [[0, 1], [1, 0]]", "= scipy.optimize._minimize True"]
