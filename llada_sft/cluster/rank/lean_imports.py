"""Leaves out what a rank's libraries import but its training never uses: seconds of CPU per rank.

    torchmetrics    Lightning needs two classes of it; its `__init__` imports every metric there is,
                    and its plots import matplotlib
    torch._dynamo   Lightning asks whether a module is a compiled one; torch and DeepSpeed mark
                    functions that must not be compiled
    boto3           TensorBoard imports it for S3, where no run directory is
    Muon            DeepSpeed imports this optimizer to ask whether it is the one in use, and hands
                    its functions to torch.compile, which imports torch._inductor
    transformers    its `__init__` reads the files of all of its models, and so does theirs
    scipy.optimize  transformers takes a function of it for the losses of object detection

Nothing is taken away. The first three become packages whose `__init__` has not run yet. They
answer the questions above, and run it when they are asked anything else, or for another of their
modules: by torch.compile, or by a hook that computes metrics. Muon's functions go to torch.compile
at their first call, and the function of scipy.optimize imports it at its first call. If a library
asks something new, its import costs what it cost before: a test of a rank's first step
(tests/distributed/test_lean_rank.py) says so.
"""

import functools
import importlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

_DYNAMO, _METRICS, _BOTO = "torch._dynamo", "torchmetrics", "boto3"
_OPTIMIZE = "scipy.optimize"
# Where Lightning's two names, and what it asks for the version, really are.
_METRICS_HOMES = {
    "Metric": "torchmetrics.metric",
    "MetricCollection": "torchmetrics.collections",
    "__version__": "torchmetrics.__about__",
}
_loading = threading.RLock()


@contextmanager
def lean_imports() -> Iterator[None]:
    """Import a rank's libraries in this context; they stay as lean after it."""
    import torch  # noqa: F401  # _DYNAMO is a part of it

    for name, stand_in in ((_METRICS, _LeanMetrics), (_DYNAMO, _LeanDynamo), (_BOTO, _StandIn)):
        if name not in sys.modules and (spec := find_spec(name)):
            sys.modules[name] = stand_in(spec)
    if _OPTIMIZE not in sys.modules and find_spec(_OPTIMIZE.partition(".")[0]):
        sys.modules[_OPTIMIZE] = _LeanOptimize(_OPTIMIZE)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _import_models()
    yield
    if "deepspeed" in sys.modules:
        _import_muon()


def _import_models() -> None:
    """Import transformers, which reads the 1,600 files of its models, and no second time."""
    from transformers.utils import import_utils

    real = import_utils.define_import_structure
    folder = Path(import_utils.__file__).parents[1] / "models"

    def known(module_path: str, prefix: str | None = None) -> Any:
        if prefix is not None or Path(module_path).parent != folder:
            return real(module_path, prefix)
        # What transformers' own `__init__` has asked for, and has then added its other modules to.
        return {
            needed: {
                name.removeprefix("models."): defined
                for name, defined in modules.items()
                if name.startswith("models.")
            }
            for needed, modules in real(folder, prefix="models").items()
        }

    import_utils.define_import_structure = known
    try:
        importlib.import_module("transformers.models")
    finally:
        import_utils.define_import_structure = real


class _StandIn(ModuleType):
    """A package whose `__init__` has not run yet; `load` runs it, in this same module."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__, self.__loader__, self.__file__ = spec, spec.loader, spec.origin
        self.__package__ = spec.name
        self.__path__ = list(spec.submodule_search_locations or ())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.load()
        return getattr(self, name)

    def finds(self, name: str) -> bool:
        """Return whether one of its modules may be imported without it."""
        return False

    def load(self) -> None:
        with _loading:
            if not isinstance(self, _StandIn):
                return
            spec = self.__spec__
            assert spec is not None and spec.loader is not None
            # From here on it is an ordinary module, which is being imported.
            self.__class__ = ModuleType  # type: ignore[assignment]
            spec._initializing = True  # type: ignore[attr-defined]
            try:
                spec.loader.exec_module(self)
            finally:
                spec._initializing = False  # type: ignore[attr-defined]


class _LeanMetrics(_StandIn):
    """`torchmetrics`, which gives its base classes alone until anything else is asked for."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec)
        self._is_busy, self._logger = False, logging.getLogger(_METRICS)
        self._plots: Any = None

    def __getattr__(self, name: str) -> Any:
        if name not in _METRICS_HOMES:
            return super().__getattr__(name)
        with _loading, self._alone():
            setattr(self, name, getattr(importlib.import_module(_METRICS_HOMES[name]), name))
        return vars(self)[name]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Import some of its modules, for which matplotlib is not installed."""
        self._is_busy = True
        try:
            if self._plots is None:
                self._forbid_plots()
            yield
        finally:
            self._is_busy = False

    def _forbid_plots(self) -> None:
        # The package `utilities` imports the plots: this module of it comes before.
        name = f"{_METRICS}.utilities.imports"
        spec = spec_from_file_location(name, f"{self.__path__[0]}/utilities/imports.py")
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(module)
        self._plots = module._MATPLOTLIB_AVAILABLE
        self._plots.available = False
        # Before what asks for it: they import each other.
        importlib.import_module(f"{_METRICS}.utilities").imports = module  # type: ignore[attr-defined]

    def load(self) -> None:
        with _loading:
            plots = vars(self).pop("_plots", None)
            if plots is not None:
                # It is asked again.
                del plots.available
            super().load()
            if plots is not None:
                # Its functions look up matplotlib here, whoever has imported them.
                importlib.reload(sys.modules[f"{_METRICS}.utilities.plot"])

    def finds(self, name: str) -> bool:
        return self._is_busy


class _AnswersForDynamo(type):
    def __instancecheck__(cls, instance: object) -> bool:
        dynamo = _loaded_dynamo()
        return dynamo is not None and isinstance(instance, dynamo.OptimizedModule)


class _OptimizedModule(metaclass=_AnswersForDynamo):
    """Stands for dynamo's class where Lightning asks for compiled modules: there is none yet."""


def _disable(
    fn: Callable[..., Any] | None = None, recursive: bool = True, **options: Any
) -> Callable[..., Any]:
    """Mark a function as not to be compiled; dynamo marks it, too, once it is loaded."""
    if fn is None:
        return functools.partial(_disable, recursive=recursive, **options)
    function, disabled = fn, None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal disabled
        if disabled is None and (dynamo := _loaded_dynamo()) is not None:
            disabled = dynamo.disable(function, recursive, **options)
        return (disabled or function)(*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    return call


class _LeanDynamo(_StandIn):
    """`torch._dynamo` until something is compiled."""

    OptimizedModule = _OptimizedModule
    disable = staticmethod(_disable)
    # What torch calls of it, with or without anything compiled; without, they do nothing.
    graph_break = staticmethod(lambda msg="": None)
    trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec)
        self._marks: list[tuple[str, Callable[..., Any]]] = []
        # What libraries tell it of their functions while they are imported.
        for name in ("allow_in_graph", "assume_constant_result", "disallow_in_graph"):
            setattr(self, name, functools.partial(self._mark, name))

    def _mark(self, name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        self._marks.append((name, fn))
        return fn

    def load(self) -> None:
        with _loading:
            super().load()
            for name, fn in vars(self).pop("_marks", ()):
                getattr(self, name)(fn)


def _loaded_dynamo() -> Any:
    """Return `torch._dynamo`, or None while it is a stand-in or being imported."""
    module = sys.modules.get(_DYNAMO)
    if module is None or isinstance(module, _StandIn):
        return None
    return None if getattr(module.__spec__, "_initializing", False) else module


class _LeanOptimize(ModuleType):
    """`scipy.optimize`, which is imported when a function of it is called, or another is asked for.

    Whoever has this module keeps it: it answers for the real one.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self._real(), name)

    def linear_sum_assignment(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function of this name."""
        return self._real().linear_sum_assignment(*args, **kwargs)

    def _real(self) -> Any:
        with _loading:
            if sys.modules.get(_OPTIMIZE) is self:
                del sys.modules[_OPTIMIZE]
            return importlib.import_module(_OPTIMIZE)


class _Finder(MetaPathFinder, Loader):
    """Loads a stand-in when one of its modules is imported, and finds what that has imported.

    Python would otherwise run such a module a second time: it looks for it in `sys.modules` before
    it asks, not afterwards.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = sys.modules.get(_DYNAMO if name.startswith("torch.") else name.partition(".")[0])
        if not isinstance(package, _StandIn) or not name.startswith(f"{package.__name__}."):
            return None
        if package.finds(name):
            return None
        package.load()
        if name not in sys.modules:
            return None
        module = sys.modules[name]
        spec = ModuleSpec(name, self, loader_state=module.__spec__)
        # Python would take the one of the module, whose loader runs it.
        module.__spec__ = None
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def _import_muon() -> None:
    """Import DeepSpeed's Muon with functions that are compiled when they are first called."""
    from deepspeed.runtime import compiler

    real = compiler.compile
    compiler.compile = lambda: functools.partial(_compile_later, real)
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = real


def _compile_later(
    factory: Callable[[], Callable[..., Any]], function: Callable[..., Any], **options: Any
) -> Callable[..., Any]:
    compiled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal compiled
        compiled = compiled or factory()(function, **options)
        return compiled(*args, **kwargs)

    return call
