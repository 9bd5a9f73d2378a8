"""docs/config.md and docs/eval-config.md: every key with its type, default and meaning.

    python docs/write.py

Types, limits and defaults are pydantic's; the meaning is the comment above the key.
"""

import ast
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic.fields import FieldInfo

from llada_sft.config.schema import Config
from llada_sft.config.values import Section
from llada_sft.evaluation.settings import EvalConfig

_HEAD = """\
# Every key of a config

Written by `python docs/write.py`, from the schema: do not edit it. A key
without a default must be given. `null` is YAML's word for nothing. Any key can be changed on the
command line: `optim.lr=1e-5`. What may change when a run is resumed:
[slurm-jobs.md](slurm-jobs.md).
"""
_EVAL_HEAD = """\
# Every key of an evaluation

Written by `python docs/write.py`, from the schema: do not edit it. The keys of a file of
`config/eval/`, and of the overrides of `llada-sft eval` ([Scores](evaluate.md)). `null` is YAML's
word for nothing. `tasks.NAME` has `num_fewshot`, `likelihood` and `generation` of one task: keys of
these sections that differ there.
"""
_LIMITS = (
    ("minimum", "≥"),
    ("exclusiveMinimum", ">"),
    ("maximum", "≤"),
    ("exclusiveMaximum", "<"),
)
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "null": "null"}


def reference() -> str:
    """Return the text of docs/config.md."""
    return "\n".join([_HEAD, *_lines(Config, "")]) + "\n"


def eval_reference() -> str:
    """Return the text of docs/eval-config.md."""
    return "\n".join([_EVAL_HEAD, *_lines(EvalConfig, "")]) + "\n"


def _lines(section: type[Section], path: str) -> Iterator[str]:
    """Give the tables of a section and of those inside it."""
    about, comments = _about(section)
    inner = []
    schema = section.model_json_schema()
    rows = []
    for name, field in section.model_fields.items():
        if name == "tasks":
            # The same sections again.
            continue
        of_field = _section_in(field.annotation)
        where = f"{path}.{name}" if path else name
        if of_field is not None:
            inner.append((where, of_field))
        if of_field is None or path:
            kind = _type(schema["properties"][name], schema.get("$defs", {}))
            meaning = comments.get(name) or field.description or ""
            rows.append(f"| `{name}` | {kind} | {_default(field)} | {meaning} |")
    if rows:
        yield f"\n## {path or 'At the top'}\n"
        yield from [f"{about}\n"] if about else []
        yield from ["| key | type | default | meaning |", "|---|---|---|---|", *rows]
    for where, of_field in inner:
        yield from _lines(of_field, where)


def _section_in(annotation: Any) -> type[Section] | None:
    """Return the section that a key holds, perhaps among other types."""
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return annotation
    found = (_section_in(one) for one in get_args(annotation))
    return next((one for one in found if one is not None), None)


def _about(section: type[Section]) -> tuple[str | None, dict[str, str]]:
    """Return the docstring of a section, and the comment above each key, as one line."""
    source = inspect.getsource(section)
    lines, found = source.splitlines(), {}
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ClassDef)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            first = statement.lineno - 1
            above: list[str] = []
            while lines[first - 1].strip().startswith("# "):
                first -= 1
                above.insert(0, lines[first].strip().removeprefix("# "))
            found[statement.target.id] = " ".join(above).replace("|", "\\|")
    return ast.get_docstring(node), found


def _type(schema: Mapping[str, Any], sections: Mapping[str, Any]) -> str:
    """Say in words what values a JSON schema allows."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return _type(sections[name], sections) if "properties" not in sections[name] else "section"
    if "anyOf" in schema:
        return " or ".join(_type(one, sections) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value).strip(chr(34))}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type")
    if kind == "boolean":
        return "`true`, `false`"
    if kind == "array":
        items = schema.get("prefixItems")
        if items:
            return f"list: {', '.join(_type(one, sections) for one in items)}"
        return f"list of {_type(schema.get('items', {}), sections)}"
    if kind == "object":
        values = schema.get("additionalProperties") or next(
            iter(schema.get("patternProperties", {}).values()), {}
        )
        return f"names: {_type(values, sections)}"
    # Beyond a billion a limit is that of a data type.
    given = ((sign, schema[key]) for key, sign in _LIMITS if schema.get(key, 1e10) <= 1e9)
    limits = " and ".join(f"{sign} {limit:,g}" for sign, limit in given)
    return f"{_TYPES.get(str(kind), 'any')} {limits}".strip()


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Section):
        return ""
    text = json.dumps(list(value) if isinstance(value, tuple) else value)
    return f"`{text.strip(chr(34))}`"


if __name__ == "__main__":
    print(reference(), end="")
