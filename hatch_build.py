"""Copies the files of a new project into the wheel: `llada-sft init` writes them."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StarterFiles(BuildHookInterface[Any]):
    """Adds them to a wheel, and not to an editable install, which reads those of the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files, if the wheel is a whole one."""
        if version == "standard":
            names = self.config["starter"]
            build_data["force_include"] |= {
                name: f"llada_sft/starter_files/{name}" for name in names
            }
