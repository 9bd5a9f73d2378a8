"""data_state.json: the position of the data that a checkpoint holds, one for all ranks."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llada_sft.data.rows.position import FilePosition, Positions

DATA_STATE = "data_state.json"


@dataclass(frozen=True)
class DataState:
    """The position of the data on all ranks: the fingerprint and the position of each file.

    `examples_key` is a hash of what decides which examples a row makes; empty in a checkpoint of an
    older version.
    """

    epoch: int
    positions: Positions
    fingerprints: Mapping[str, str]
    examples_key: str = ""

    def to_json(self) -> dict[str, Any]:
        files = {
            name: {**position._asdict(), "fingerprint": self.fingerprints[name]}
            for name, position in sorted(self.positions.items())
        }
        return {"epoch": self.epoch, "examples_key": self.examples_key, "files": files}

    @staticmethod
    def from_json(state: Mapping[str, Any]) -> "DataState":
        files = state["files"]
        return DataState(
            epoch=state["epoch"],
            positions={name: FilePosition.from_json(entry) for name, entry in files.items()},
            fingerprints={name: entry["fingerprint"] for name, entry in files.items()},
            examples_key=state.get("examples_key", ""),
        )

    @staticmethod
    def merge(
        epoch: int,
        ranks: Iterable[tuple[Positions, Mapping[str, str]]],
        examples_key: str = "",
    ) -> "DataState":
        """Put the states of all ranks together; each file belongs to one of them."""
        positions: Positions = {}
        fingerprints: dict[str, str] = {}
        for rank_positions, rank_fingerprints in ranks:
            positions |= rank_positions
            fingerprints |= rank_fingerprints
        return DataState(epoch, positions, fingerprints, examples_key)

    def changed(self, fingerprints: Mapping[str, str]) -> list[str]:
        """Return which of a rank's files have changed; an added file has not changed."""
        return [
            name
            for name, value in sorted(fingerprints.items())
            if self.fingerprints.get(name, value) != value
        ]

    def gone(self, names: Iterable[str]) -> list[str]:
        """Return the files of the checkpoint that are not among `names`, the present files."""
        return sorted(self.positions.keys() - set(names))


def read_data_state(checkpoint: Path) -> DataState:
    return DataState.from_json(json.loads((checkpoint / DATA_STATE).read_text()))
