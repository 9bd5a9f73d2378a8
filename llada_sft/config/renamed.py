"""Keys that had another name in older versions; their values mean the same.

A config that somebody writes gets one line that names the new key. The config.yaml of a run is read
with either name: a run of an older version can be resumed, exported and looked at. Its own code
knows the old name alone, so the file keeps it until the run gets the present code.
"""

from collections.abc import Mapping
from typing import Any

# (section, old key): the new key of the same section.
RENAMED: Mapping[tuple[str, str], str] = {("data", "eos_tail"): "end"}


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
