"""YAML 1.2's core schema on PyYAML: `3e-4` is a number, `on` and `12:00:00` are strings.

PyYAML knows YAML 1.1 only. Here are the rules of 1.2 by which a plain word becomes a value, the
same for reading and for writing, so that what is written reads back equal. Nodes keep their lines;
the reader builds the values from them and reports every mistake with its place.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]
_TAG = "tag:yaml.org,2002:"
# (tag, what it looks like, characters it may start with). Source: YAML 1.2.2, section 10.3.2.
_CORE_SCHEMA = (
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", list("-+0123456789")),
    (
        "float",
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        list("-+.0123456789"),
    ),
)
# Enough for 64 bits with a sign in the longest notation, octal, with some leading zeros.
_MAX_INT_CHARACTERS = 32
_PATTERNS = {tag: re.compile(f"^{pattern}$") for tag, pattern, _ in _CORE_SCHEMA}


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, _, firsts in _CORE_SCHEMA:
        for first in firsts:
            table.setdefault(first, []).append((_TAG + tag, _PATTERNS[tag]))
    return table


class Loader(yaml.SafeLoader):
    """PyYAML's reader with the rules of 1.2."""


class Dumper(yaml.SafeDumper):
    """PyYAML's writer with the rules of 1.2: it quotes what the reader would take for a number."""


def _represent_text(dumper: Dumper, text: str) -> yaml.Node:
    # Within single quotes PyYAML writes this newline so that reading folds it to a space.
    style = '"' if "\x85" in text else None
    return dumper.represent_scalar(_TAG + "str", text, style=style)


Dumper.add_representer(str, _represent_text)
Loader.yaml_implicit_resolvers = Dumper.yaml_implicit_resolvers = _resolvers()


def _int(text: str) -> int:
    # Python refuses thousands of digits, after a while; no library takes more than 64 bits.
    if len(text) <= _MAX_INT_CHARACTERS:
        value = int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if -(2**63) <= value < 2**63:
            return value
    raise ValueError("a whole number must fit into 64 bits")


_SCALARS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "null": lambda _: None,
    "bool": lambda text: text.lower() == "true",
    "int": _int,
    # Python writes infinity without the dot.
    "float": lambda text: float(re.sub(r"\.(?=[inIN])", "", text)),
}


def scalar_value(node: yaml.ScalarNode) -> Any:
    """Return the value of one word.

    Raises:
        ValueError: Its tag is not of the core schema, or does not fit the text.
    """
    kind = node.tag.removeprefix(_TAG)
    if kind not in _SCALARS:
        raise ValueError(f"the tag {node.tag!r} is not allowed; write a plain value")
    if kind in _PATTERNS and not _PATTERNS[kind].match(node.value):
        raise ValueError(f"{node.value!r} does not fit its tag {kind}")
    if "\0" in node.value:
        raise ValueError("must not contain the character NUL, which no path or command can have")
    return _SCALARS[kind](whole_characters(node.value))


def check_tag(node: yaml.Node) -> None:
    """Check the tag of a mapping or a list.

    Raises:
        ValueError: It is not of the core schema, or not of this kind.
    """
    kind = "map" if isinstance(node, yaml.MappingNode) else "seq"
    if node.tag != _TAG + kind:
        raise ValueError(f"the tag {node.tag!r} is not allowed; write a plain value")


def whole_characters(text: str) -> str:
    """Join surrogate pairs, as JSON writes characters beyond 16 bits: `"\\ud83d\\ude00"`.

    Raises:
        ValueError: There is half of a pair, as also bytes that are not UTF-8 give.
    """
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError(f"must be UTF-8 text, got {text!r}") from None


def is_cut_by_a_comment(node: yaml.Node | None, text: str) -> bool:
    """Return whether a comment follows the value that a text was composed to."""
    end = 0 if node is None else node.end_mark.index
    return text[end:].lstrip().startswith("#")


def compose(text: str) -> yaml.Node | None:
    """Read one document into nodes; None when it is empty.

    Raises:
        yaml.YAMLError: The text is not YAML, or more than one document.
    """
    node: yaml.Node | None = yaml.compose(text, Loader=Loader)
    return node


def text_at(node: yaml.Node | None, *keys: str) -> str | None:
    """Return the text at a path of keys, without building any value; None if there is none."""
    for key in keys:
        if not isinstance(node, yaml.MappingNode):
            return None
        node = next((value for name, value in node.value if name.value == key), None)
    return node.value if isinstance(node, yaml.ScalarNode) else None


def dump(data: dict[str, Any]) -> str:
    """Write plain data so that `compose` and `scalar_value` give it back."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def dump_with_comments(data: dict[str, Any], comment: Callable[[KeyPath], str]) -> str:
    """Write plain data as `dump` does, with a comment after each value.

    Args:
        data: What is written.
        comment: Returns the comment of a value, one line; the arguments are its keys.
    """
    text = dump(data)
    root = compose(text)
    assert root is not None
    # From the end, so that the places of those before stay.
    for path, node in reversed(list(_leaves(root, ()))):
        end = text.index("\n", node.end_mark.index)
        text = f"{text[:end]}  # {comment(path)}{text[end:]}"
    return text


def _leaves(node: yaml.Node, path: KeyPath) -> Iterator[tuple[KeyPath, yaml.Node]]:
    """Yield the values that hold no others, with their keys."""
    if isinstance(node, yaml.ScalarNode) or not node.value:
        yield path, node
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _leaves(value, (*path, key.value))
    else:
        for index, value in enumerate(node.value):
            yield from _leaves(value, (*path, index))
