"""Loads the user's hook by its path: never `import utils`, a name that anyone may own."""

import ast
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llada_sft.errors import DataError

HookFunction = Callable[[Any, Any, int], object]
FUNCTION = "process_data"
_MODULE_NAME = "_llada_sft_user_hook"


def check_hook(path: Path) -> None:
    """Check that a file defines the hook, without running it.

    Raises:
        DataError: Unreadable, not Python, or without the function.
    """
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; set data.hook") from None
    except SyntaxError as error:
        line = f":{error.lineno}" if error.lineno else ""
        raise DataError(f"{path}{line}: not Python: {error.msg}") from None
    except ValueError as error:
        raise DataError(f"{path}: not Python: {error}") from None
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    if FUNCTION not in names | imported:
        raise DataError(f"{path}: defines no function {FUNCTION}(record, tokenizer, max_length)")


def load_hook(path: Path) -> HookFunction:
    """Import the hook's file under a private name and return its function.

    Raises:
        DataError: The file cannot be read, does not define the function, or raises on import.
    """
    check_hook(path)
    spec = importlib.util.spec_from_file_location(_MODULE_NAME, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE_NAME] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise DataError(f"{path}: the hook raised on import: {describe(error, path)}") from None
    function: HookFunction = getattr(module, FUNCTION)
    return function


def describe(error: BaseException, hook_path: Path) -> str:
    """Say what an exception of the hook was, and at which line of the hook, in one line."""
    line, trace = None, error.__traceback__
    while trace is not None:
        # Python made the path absolute when it loaded the hook.
        if Path(trace.tb_frame.f_code.co_filename) == hook_path.absolute():
            line = trace.tb_lineno
        trace = trace.tb_next
    message = " ".join(str(error).split())
    place = f" ({hook_path.name} line {line})" if line else ""
    return f"{type(error).__name__}: {message}{place}" if message else type(error).__name__ + place
