"""A member of the family: how its config.json is read."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llada_sft.model.families.architecture import Architecture


@dataclass(frozen=True)
class Family:
    """One kind of network; a file of this folder makes one.

    Attributes:
        name: As messages say it.
        identity: `model_type` and `architectures` of its official files.
        describes: Whether a config.json is of this kind, by its architectures and keys.
        problems: What of a config.json cannot be: one line for each key.
        architecture: The network that a config.json without problems asks for.
        defaults: The official keys with what they mean where they are missing. An export has them
            all, so that the official code reads what was meant.
        hub_code: `auto_map` of an export whose source has none.
        chat_template: Of a tokenizer that has none; None: the one of LLaDA.
        stacked_model_type: `model_type` of files whose experts of a layer are one tensor; None:
            nobody else reads such files of this kind.
    """

    name: str
    identity: Mapping[str, Any]
    describes: Callable[[Mapping[str, Any]], bool]
    problems: Callable[[Mapping[str, Any]], Iterator[str]]
    architecture: Callable[[Mapping[str, Any]], Architecture]
    defaults: Mapping[str, Any]
    hub_code: Mapping[str, str]
    chat_template: str | None = None
    stacked_model_type: str | None = None

    def config_json(self, **changes: Any) -> dict[str, Any]:
        """Return a config.json of this kind, of the size of `defaults`, with values changed."""
        return {**self.identity, **self.defaults, **changes}
