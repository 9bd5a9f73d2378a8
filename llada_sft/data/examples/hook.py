"""Loads the user's hook by its path: never `import utils`, a name that anyone may own."""

import ast
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from llada_sft.config.sections.data import DataConfig
from llada_sft.errors import DataError
from llada_sft.keys import digest

HookFunction = Callable[[Any, Any, int], object]
FUNCTION = "process_data"
_PARAMETERS = "(record, tokenizer, max_length)"
_MODULE_NAME = "_llada_sft_user_hook"


def hook_hash(path: Path) -> str:
    """Return a hash of a hook's text; an unreadable hook counts as empty."""
    try:
        text = path.read_bytes()
    except OSError:
        text = b""
    return digest(text, 16).hex()


def examples_key(config: DataConfig) -> str:
    """Return a hash of what decides which examples a row makes: the hook, and these keys."""
    keys = {
        "hook": hook_hash(Path(config.hook)),
        "max_length": config.max_length,
        "on_too_long": config.on_too_long,
        # As the key was called in older versions.
        "eos_tail": config.end,
        "format": config.format,
        "fields": config.fields,
        "multi_turn": config.multi_turn,
        # Keys that came later: with their defaults, the hash is that of older checkpoints.
        **({"roles": config.roles} if config.roles else {}),
        **({"ignore_fields": config.ignore_fields} if config.ignore_fields else {}),
        **(
            {"special_tokens": config.special_tokens_in_text}
            if config.special_tokens_in_text != "text"
            else {}
        ),
        **({"eos_after_cut": True} if config.eos_after_cut else {}),
        **({"random_length": config.random_length} if config.random_length else {}),
        **({"end_tokens": _end_tokens(config)} if config.end in ("void", "rainbow") else {}),
    }
    return digest(json.dumps(keys, sort_keys=True).encode(), 16).hex()


def _end_tokens(config: DataConfig) -> list[object]:
    return [config.end_tokens, config.void_token_id, config.rainbow_token_ids]


def check_hook(path: Path) -> None:
    """Check that a file defines the hook, without running it.

    Raises:
        DataError: Unreadable, not Python, or without such a function.
    """
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; set data.hook") from None
    except SyntaxError as error:
        line = f":{error.lineno}" if error.lineno else ""
        raise DataError(f"{path}{line}: not Python: {error.msg}") from None
    except (ValueError, MemoryError, RecursionError) as error:
        # The last two: nested too deeply, by the parser's own limit or by Python's.
        what = str(error) or "nested too deeply"
        raise DataError(f"{path}: not Python: {what}") from None
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    if FUNCTION not in functions.keys() | imported:
        raise DataError(f"{path}: defines no function {FUNCTION}{_PARAMETERS}")
    function = functions.get(FUNCTION)
    # What a decorator makes of it, only loading it can tell.
    if function and not function.decorator_list and not _takes_three(function.args):
        given = f"({ast.unparse(function.args)})"
        raise DataError(f"{path}:{function.lineno}: {_wrong_parameters(given)}")


def _takes_three(arguments: ast.arguments) -> bool:
    positional = len(arguments.posonlyargs) + len(arguments.args)
    enough = positional >= 3 or arguments.vararg is not None
    required = positional - len(arguments.defaults)
    return enough and required <= 3 and None not in arguments.kw_defaults


def _wrong_parameters(given: str) -> str:
    return f"{FUNCTION}{given} cannot take three arguments; define {FUNCTION}{_PARAMETERS}"


def load_hook(path: Path) -> HookFunction:
    """Import the hook's file under a private name and return its function.

    Raises:
        DataError: The file cannot be read, does not define the function, defines another kind of
            thing by that name, or raises on import.
    """
    check_hook(path)
    spec = importlib.util.spec_from_file_location(_MODULE_NAME, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE_NAME] = module
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, or of the user's own
        raise DataError(
            f"{path}: the hook raised on import: {describe_exception(error, path)}"
        ) from None
    # It may have been imported, or bound again.
    function = getattr(module, FUNCTION, None)
    _check_callable(path, function)
    return cast("HookFunction", function)


def _check_callable(path: Path, function: object) -> None:
    if not callable(function):
        raise DataError(f"{path}: {FUNCTION} is of type {type(function).__name__}, not a function")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Some functions that are written in C do not tell theirs.
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        raise DataError(f"{path}: {_wrong_parameters(str(signature))}") from None


def describe_exception(error: BaseException, hook_path: Path) -> str:
    """Return what an exception of the hook was, and at which line of the hook, in one line."""
    line, trace = None, error.__traceback__
    while trace is not None:
        # Python made the path absolute when it loaded the hook.
        if Path(trace.tb_frame.f_code.co_filename) == hook_path.absolute():
            line = trace.tb_lineno
        trace = trace.tb_next
    try:
        message = " ".join(str(error).split())
    except Exception:  # a class of the user's
        message = ""
    place = f" ({hook_path.name} line {line})" if line else ""
    return f"{type(error).__name__}: {message}{place}" if message else type(error).__name__ + place
