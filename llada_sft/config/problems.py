"""What pydantic found, in our words: `unknown key; did you mean 'max_steps'?`; and renamed keys.

One problem per key: pydantic reports each arm of a union by itself, and its locations go below the
key (`end.literal['batch_max']`); here they are joined again.

Keys that had another name in older versions mean the same. A config that somebody writes gets one
line that names the new key. The config.yaml of a run is read with either name: a run of an older
version can be resumed, exported and looked at. Its own code knows the old name alone, so the file
keeps it until the run gets the present code.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

KeyPath = tuple[str | int, ...]
# (section, old key): the new key of the same section.
RENAMED: Mapping[tuple[str, str], str] = {("data", "eos_tail"): "end"}


class Problem(NamedTuple):
    path: KeyPath
    text: str


def describe_problems(
    error: ValidationError, data: dict[str, Any], schema: type[BaseModel]
) -> Iterator[Problem]:
    """Yield one problem for each key that does not fit into a schema."""
    by_path: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        by_path.setdefault(_key_path(detail, data), []).append(detail)
    for path, details in by_path.items():
        yield Problem(path, _text(path, details, schema))


def shown(value: Any) -> str:
    """Show a value as it would be written in YAML, in a few characters."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _key_path(detail: ErrorDetails, data: Any) -> KeyPath:
    """Cut a location below the key: parts that are not keys of the data come from pydantic."""
    # The tag of a union's arm may also be above the key.
    location = tuple(part for part in detail["loc"] if str(part)[:1] != "(")
    if detail["type"] == "missing":
        return location
    path: list[str | int] = []
    for part in location:
        inside = isinstance(data, dict) and part in data
        inside |= isinstance(data, list) and isinstance(part, int) and part < len(data)
        if not inside:
            break
        path.append(part)
        data = data[part]
    return tuple(path)


def _text(path: KeyPath, details: list[ErrorDetails], schema: type[BaseModel]) -> str:
    first = details[0]
    match first["type"]:
        case "missing":
            return _missing(path)
        case "extra_forbidden":
            return _renamed(path) or f"unknown key; {_suggestion(path, schema)}"
        case "value_error":
            return str(first["ctx"]["error"])
    expected = " or ".join(dict.fromkeys(_expected(detail) for detail in details))
    return f"must be {expected}, got {shown(first['input'])}"


def _renamed(path: KeyPath) -> str | None:
    """Return what to write instead of the key of an older version; None if it never was one."""
    new = RENAMED.get((str(path[0]), str(path[-1]))) if len(path) == 2 else None
    return new and f"is called {path[0]}.{new} now, with the same values; rename it"


def _missing(path: KeyPath) -> str:
    *section, key = path
    if isinstance(key, int):
        return "missing; the list is too short"
    inside = f" under '{'.'.join(map(str, section))}:'" if section else ""
    return f"missing; add '{key}:'{inside}"


def _expected(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "int_type" | "int_parsing" | "int_from_float":
            return "a whole number"
        case "float_type":
            return "a number"
        case "finite_number":
            return "a finite number"
        case "string_type":
            return "a string"
        case "bool_type":
            return "true or false"
        case "literal_error":
            return str(context["expected"])
        case "greater_than_equal":
            return f"at least {_number(context['ge'])}"
        case "greater_than":
            return f"greater than {_number(context['gt'])}"
        case "less_than_equal":
            return f"at most {_number(context['le'])}"
        case "less_than":
            return f"less than {_number(context['lt'])}"
        case "string_too_short":
            return "a string that is not empty"
        case "string_too_long":
            return f"at most {context['max_length']} characters long"
        case "string_pattern_mismatch":
            return f"a match of {context['pattern']}"
        case "model_type":
            return "a section of keys"
        case "dict_type":
            return "a mapping"
        case "tuple_type":
            return "a list"
        case "too_short":
            return "not empty"
        case "form":
            return detail["msg"]
        case "too_long":
            return f"a list of {context['max_length']}"
        case other:
            # A kind of pydantic error that the schema has not needed yet: its own words.
            return f"valid ({other}: {detail['msg']})"


def _number(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _suggestion(path: KeyPath, schema: type[BaseModel]) -> str:
    *section, key = path
    known = list(_fields_at(tuple(section), schema))
    elsewhere = [".".join((*where, name)) for where, name in _all_keys(schema) if name == key]
    if similar := [name for name in known if _alike(str(key), name)]:
        return f"did you mean {_closest(str(key), similar)!r}?"
    if elsewhere:
        return f"did you mean {elsewhere[0]!r}?"
    return f"the keys here are {', '.join(known)}"


def _closest(key: str, names: list[str]) -> str:
    from difflib import SequenceMatcher

    return max(names, key=lambda name: SequenceMatcher(None, key, name).ratio())


def _alike(key: str, name: str) -> bool:
    """Return whether `key` may be meant for `name`: a slip, or `learning_rate` for `lr`."""
    from difflib import get_close_matches

    if get_close_matches(key, [name]):
        return True
    return _initials(key) == name or _initials(name) == key


def _initials(words: str) -> str:
    return "".join(word[:1] for word in words.split("_"))


def _model_at(section: KeyPath, schema: type[BaseModel]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = schema
    for key in section:
        # The name of a source is not a field: every source has the same section below its name.
        if model is not None and key in model.model_fields:
            model = next(_models_in(model.model_fields[str(key)].annotation), None)
    return model


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the sections that a type names, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _fields_at(section: KeyPath, schema: type[BaseModel]) -> Iterator[str]:
    model = _model_at(section, schema)
    return iter(model.model_fields if model else ())


def _all_keys(schema: type[BaseModel]) -> Iterator[tuple[tuple[str, ...], str]]:
    for section in schema.model_fields:
        for name in _fields_at((section,), schema):
            yield (section,), name


def under_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a config with old keys under their new names.

    A key that is there under both names stays, so that the reader reports the old one.
    """
    sections = dict(values)
    for (section, old), new in RENAMED.items():
        keys = sections.get(section)
        if isinstance(keys, dict) and old in keys and new not in keys:
            sections[section] = {new if key == old else key: keys[key] for key in keys}
    return sections


def under_old_names(values: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a config with the names that a file of an older version has.

    Args:
        values: The sections, under the new names.
        written: The sections of that file.
    """
    sections = dict(values)
    for (section, old), new in RENAMED.items():
        before, keys = written.get(section), sections.get(section)
        if isinstance(before, dict) and old in before and isinstance(keys, dict):
            sections[section] = {old if key == new else key: keys[key] for key in keys}
    return sections
