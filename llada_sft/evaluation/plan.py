"""What one evaluation is: passed to each of its processes as one argument, in JSON.

A rank, the process that writes the results, and a job in the queue know nothing else: a config file
that is edited meanwhile changes nothing.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from llada_sft.evaluation.settings import EvalConfig


@dataclass(frozen=True)
class EvalPlan:
    """An evaluation.

    Attributes:
        model: The model directory, absolute.
        results: The folder of answers and results, absolute.
        tasks: Tasks, groups or tags of lm-evaluation-harness.
        include_paths: Folders with tasks of one's own, absolute.
        config: The settings, overrides included.
    """

    model: Path
    results: Path
    tasks: tuple[str, ...]
    include_paths: tuple[Path, ...]
    config: EvalConfig

    def to_json(self) -> str:
        """Return the plan as one argument."""
        return json.dumps(
            {
                "model": str(self.model),
                "results": str(self.results),
                "tasks": self.tasks,
                "include_paths": [str(path) for path in self.include_paths],
                "config": self.config.model_dump(mode="json", exclude_unset=True),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return cls(
            model=Path(values["model"]),
            results=Path(values["results"]),
            tasks=tuple(values["tasks"]),
            include_paths=tuple(map(Path, values["include_paths"])),
            config=EvalConfig.model_validate_json(json.dumps(values["config"])),
        )
