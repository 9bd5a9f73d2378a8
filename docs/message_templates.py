"""The messages of the package, read from its sources: a template with its placeholders for each.

A text is a message if it may reach the user: as an argument of one of the errors of
`llada_sft/errors.py`, of a ValueError of a config section, of a finding of `llada-sft check`, or of
a `print` to standard error; or as what a function `..._problems` gives. From there it is followed
backwards: through names, lists, joins, functions that return or yield it, and parameters.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Files whose ValueErrors become lines of a ConfigError.
_OF_CONFIGS = ("config/", "evaluation/settings", "generation/settings")
_PASS_ON = {"dict.fromkeys", "list", "sorted", "tuple", "str", "iter", "next", "chain", "redact"}
_FINDINGS = ("_problem", "_warning", "make", "Problem")
_MAKE_FINDINGS = ("check/findings.py", "config/problems.py")
# Keywords of calls whose text the journal keeps.
_SHOWN_BY_STATUS = ("given_up", "detail", "error")
_METHODS = ("join", "replace", "strip", "rstrip", "items", "values")
# Fewer words are a part of a message, or a name; with fewer than a sentence has, what fills the
# template may say more.
_FEWEST_WORDS, _SENTENCE = 2, 4
_WORD = re.compile(r"[^\W\d_]{2,}")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, order=True)
class Message:
    """What a user may read.

    Attributes:
        file: Where it is written, below llada_sft/.
        template: The text, with `{name}` for what is only known at run time.
    """

    file: str
    template: str


class _Module:
    """A file of the package: its functions, its names, and which function each node is in."""

    def __init__(self, path: Path) -> None:
        self.file = str(path.relative_to(ROOT / "llada_sft"))
        self.name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        # Name here -> where it is from: `llada_sft.data.shards`, `llada_sft.keys.hashed`.
        self.imported: dict[str, str] = {}
        self.function_of: dict[ast.AST, Function | None] = {}
        self.functions: dict[str, list[Function]] = defaultdict(list)
        self._visit(self.tree, None)

    def _visit(self, node: ast.AST, function: Function | None) -> None:
        self.function_of[node] = function
        if isinstance(node, ast.ImportFrom):
            self.imported |= {
                name.asname or name.name: f"{node.module}.{name.name}" for name in node.names
            }
        if isinstance(node, Function):
            self.functions[node.name].append(node)
            function = node
        for child in ast.iter_child_nodes(node):
            self._visit(child, function)

    @cached_property
    def constants(self) -> dict[str, ast.expr]:
        """What the names of the module itself are."""
        return {
            target.id: node.value
            for node in self.tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }


class _Reader:
    """Follows texts backwards from where the user reads them."""

    def __init__(self, modules: list[_Module]) -> None:
        self.modules = {module.name: module for module in modules}
        self.calls: dict[str, list[tuple[_Module, ast.Call]]] = defaultdict(list)
        for module in modules:
            for node in ast.walk(module.tree):
                if isinstance(node, ast.Call):
                    self.calls[_called(node)].append((module, node))
        self.found: set[Message] = set()
        self._followed: set[int] = set()
        # How many templates that were kept the present expression is a part of.
        self._in_frame = 0

    def read(self) -> set[Message]:
        """Return the messages of all modules."""
        errors = _errors(list(self.modules.values()))
        for name, calls in list(self.calls.items()):
            for module, call in calls:
                shown = name == "print" and any(
                    ast.unparse(word.value) == "sys.stderr" for word in call.keywords
                )
                of_config = name == "ValueError" and module.file.startswith(_OF_CONFIGS)
                of_check = name in _FINDINGS and module.file in _MAKE_FINDINGS
                if name in errors or shown or of_config or of_check:
                    self._follow(module, *call.args)
                shown_later = [word.value for word in call.keywords if word.arg in _SHOWN_BY_STATUS]
                self._follow(module, *shown_later)
        for module in self.modules.values():
            for name, functions in module.functions.items():
                for function in functions if "problems" in name else ():
                    self._follow(module, *_results(function))
        return self.found

    def _follow(self, module: _Module, *nodes: ast.expr) -> None:
        """Keep the texts that expressions may be."""
        for node in nodes:
            if id(node) not in self._followed:
                self._followed.add(id(node))
                self._follow_one(module, node)

    def _follow_one(self, module: _Module, node: ast.expr) -> None:
        text = self._text(module, node)
        num_words = 0 if text is None else _num_words(text)
        is_kept = num_words >= (_SENTENCE if self._in_frame else _FEWEST_WORDS)
        if text is not None and is_kept:
            self.found.add(Message(module.file, _one_line(text)))
        if num_words < _SENTENCE:
            self._in_frame += is_kept
            self._follow_parts(module, node)
            self._in_frame -= is_kept

    def _follow_parts(self, module: _Module, node: ast.expr) -> None:
        if isinstance(node, ast.Name):
            self._follow_name(module, node)
        elif isinstance(node, ast.Attribute):
            self._follow(module, *_put_into(module.tree, node.attr))
        elif isinstance(node, ast.Call):
            self._follow_call(module, node)
        else:
            self._follow(module, *_parts(node))

    def _follow_name(self, module: _Module, name: ast.Name) -> None:
        function = module.function_of[name]
        if function is not None:
            self._follow(module, *_bound(function, name.id))
            self._follow_parameter(module, function, name.id)
        if name.id in module.constants:
            self._follow(module, module.constants[name.id])

    def _follow_parameter(self, module: _Module, function: Function, name: str) -> None:
        """Follow what callers pass for a parameter."""
        names = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
        if name not in names or function.name.startswith("__"):
            return
        place = names.index(name) - (names[0] in ("self", "cls"))
        for caller, call in list(self.calls[function.name]):
            if (module, function) in self._functions(caller, call):
                self._follow(caller, *call.args[place : place + 1])
                self._follow(caller, *(word.value for word in call.keywords if word.arg == name))

    def _follow_call(self, module: _Module, call: ast.Call) -> None:
        name = _called(call)
        if name in _METHODS and isinstance(call.func, ast.Attribute):
            self._follow(module, *(call.args if name == "join" else [call.func.value]))
        elif ast.unparse(call.func) in _PASS_ON:
            self._follow(module, *call.args)
        for owner, function in self._functions(module, call):
            self._follow(owner, *_results(function))

    def _functions(self, module: _Module, call: ast.Call) -> list[tuple[_Module, Function]]:
        """Return the functions of the package that a call may be of."""
        name, owner = _called(call), module
        if isinstance(call.func, ast.Attribute):
            before = ast.unparse(call.func.value)
            if before in module.imported:
                owner = self.modules.get(module.imported[before], module)
            elif before not in ("self", "cls"):
                owners = [one for one in self.modules.values() if name in one.functions]
                # Of a method of some object: where one module alone has such a name.
                owner = owners[0] if len(owners) == 1 else module
        elif name in module.imported:
            owner = self.modules.get(module.imported[name].rpartition(".")[0], module)
        return [(owner, function) for function in owner.functions.get(name, [])]

    def _text(self, module: _Module, node: ast.expr) -> str | None:
        """Return an expression as a template; None if it is no text."""
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else None
        if isinstance(node, ast.JoinedStr):
            return "".join(self._piece(module, value) for value in node.values)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            texts = [self._text(module, side) for side in (node.left, node.right)]
            return None if texts == [None, None] else "".join(text or "{more}" for text in texts)
        return None

    def _piece(self, module: _Module, piece: ast.expr) -> str:
        """Return what stands for a piece of an f-string: a text that it always is, or its name."""
        if not isinstance(piece, ast.FormattedValue):
            return str(getattr(piece, "value", ""))
        node = piece.value
        if isinstance(node, ast.Name):
            function = module.function_of[node]
            bound = [] if function is None else list(_bound(function, node.id))
            if not bound and node.id in module.constants:
                bound = [module.constants[node.id]]
            if len(bound) == 1 and (text := self._text(module, bound[0])) is not None:
                return text
        return f"{{{_name(node)}}}"


@cache
def messages() -> tuple[Message, ...]:
    """Return all messages of the package, sorted by file."""
    modules = [_Module(path) for path in sorted((ROOT / "llada_sft").rglob("*.py"))]
    return tuple(sorted(_Reader(modules).read()))


def _errors(modules: list[_Module]) -> set[str]:
    """Return the names of `LladaSftError` and of what derives from it."""
    classes = {
        node.name: {ast.unparse(base) for base in node.bases}
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {"LladaSftError"}
    while more := {name for name, bases in classes.items() if bases & found} - found:
        found |= more
    return found


def _bound(function: Function, name: str) -> Iterator[ast.expr]:
    """Give what a name of a function may be: assigned, appended or looped over."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and any(_names(name, t) for t in node.targets):
            yield node.value
        elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
            if _names(name, node.target) and node.value is not None:
                yield node.value
        elif isinstance(node, ast.For | ast.comprehension) and _names(name, node.target):
            yield node.iter
    yield from _put_into(function, name)


def _put_into(tree: ast.AST, name: str) -> Iterator[ast.expr]:
    """Give what is appended to a list of this name, or to an attribute of this name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value).rpartition(".")[2]
            if owner == name and node.func.attr in ("append", "extend", "insert", "add"):
                yield from node.args


def _results(function: Function) -> Iterator[ast.expr]:
    """Give what a function returns or yields."""
    for node in ast.walk(function):
        if isinstance(node, ast.Return | ast.Yield | ast.YieldFrom) and node.value is not None:
            yield node.value


def _parts(node: ast.expr) -> list[ast.expr]:
    """Return the expressions one of which another one is, or which fill its frame."""
    match node:
        case ast.Lambda(body=body):
            return [body]
        case ast.FormattedValue(value=value) | ast.Starred(value=value):
            return [value]
        case ast.NamedExpr(value=value) | ast.Subscript(value=value):
            return [value]
        case ast.ListComp(elt=element) | ast.GeneratorExp(elt=element) | ast.SetComp(elt=element):
            return [element]
        case ast.IfExp(body=body, orelse=orelse):
            return [body, orelse]
        case ast.JoinedStr(values=values):
            return [value for value in values if isinstance(value, ast.FormattedValue)]
        case ast.BoolOp(values=values) | ast.Dict(values=values):
            return list(values)
        case ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Set(elts=elements):
            return list(elements)
        case ast.BinOp(left=left, right=right):
            return [left, right]
    return []


def _names(name: str, target: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(target))


def _called(call: ast.Call) -> str:
    """Return the last word of what is called."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _num_words(text: str) -> int:
    """Count the words between placeholders; a single one is a name."""
    words = _WORD.findall(re.sub(r"\{\w+\}", " ", text))
    return len(words) if " " in text.strip() else 0


def _one_line(text: str) -> str:
    return text.strip().replace("\n", " ")


def _name(node: ast.expr) -> str:
    """Return the word that stands for an expression in a template."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Call):
        return _name(node.args[0]) if node.args else _name(node.func)
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    return "value"
