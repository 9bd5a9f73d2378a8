"""Verifies checkpoints: each rank examines the files that it reads before any file is loaded.

1. checkpoint.json is compared with its own checksum.
2. Size and checksum of the rank's files are compared with checkpoint.json. A checkpoint of an older
   version has sizes only.
3. Each torch file is opened without running code: it must belong to this number of ranks, and to
   this network.

What was read for its checksum is in the page cache, from which a GPU's rank loads it
(`shard_writer.py`): the disk is read once.

A damaged checkpoint is skipped and renamed. A checkpoint that cannot be read now may be readable
later, and is only skipped. A checkpoint that holds code was made by a person, and is refused.
"""

import errno
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import ceil, prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llada_sft.model.safe_load import load_data, what_is_held
from llada_sft.training.checkpoint.checksums import record_of_file
from llada_sft.training.checkpoint.data_state import DATA_STATE, read_data_state
from llada_sft.training.checkpoint.folder import DEEPSPEED_TAG, shards_due
from llada_sft.training.checkpoint.manifest import (
    MANIFEST,
    ManifestError,
    read_manifest,
    records_of,
)

Shapes = Mapping[str, tuple[int, ...]]
# At stages 1 and 2 the model's file is that of all ranks, and has no number of a rank.
_OF_RANK = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_\d+_(model|optim)_states\.pt$")
_MOST_NAMED = 3
_THREADS = 8


class Defect(NamedTuple):
    """Something wrong with one file.

    Attributes:
        kind: `damaged`; `unreadable`, which may pass; `network`: it belongs to another network than
            the config's; `base`: its adapters do; `code`: loading it would run code.
        text: The file within the checkpoint, and what is wrong with it, in one line.
    """

    kind: Literal["damaged", "unreadable", "network", "base", "code"]
    text: str


class Share(NamedTuple):
    """The part of the files that one of several ranks examines."""

    rank: int
    world_size: int

    def has(self, name: str) -> bool:
        """Return whether this rank examines a file; every rank reads the small common files."""
        of_rank = _OF_RANK.search(name)
        return of_rank is None or int(of_rank[1] or 0) % self.world_size == self.rank


def examine(
    checkpoint: Path,
    share: Share,
    network: Shapes,
    pulse: Callable[[], None] = lambda: None,
    base: str = "",
) -> list[Defect]:
    """Examine the files that one rank reads.

    Args:
        checkpoint: `step_N`.
        share: Which files.
        network: Shape of each trained parameter of the config's network; empty skips that check.
        pulse: Called now and then, because examining may take long.
        base: Identifies the weights that adapters are trained on; empty: there are no adapters.
    """
    try:
        if not checkpoint.is_dir():
            return [Defect("unreadable", "is not a folder, or its disk is not there")]
        manifest = read_manifest(checkpoint)
    except FileNotFoundError:
        return [_missing(MANIFEST, share)]
    except OSError as error:
        return [Defect("unreadable", f"{MANIFEST} cannot be read: {error.strerror}")]
    except ManifestError as error:
        return [Defect("damaged", f"{MANIFEST} {error}")]
    if base and (other := manifest.get("adapters", {}).get("base_weights", base)) != base:
        return [Defect("base", f"is of adapters for other weights of the network: {other}")]
    records = records_of(manifest)
    defects = list(_whole(checkpoint, manifest)) if share.rank == 0 else []
    mine = [name for name in records if share.has(name)]
    numbers = manifest["step"], manifest["world_size"]
    part = _Part(checkpoint, share, *numbers, network, pulse)
    # A missing file would otherwise be reported twice by rank 0.
    known = {defect.text for defect in defects}
    with ThreadPoolExecutor(min(_THREADS, max(1, len(mine)))) as pool:
        changed = pool.map(lambda name: part.bytes_of(name, *records[name]), mine)
        wrong = dict(zip(mine, changed, strict=True))
    # One after another: torch's list of allowed types belongs to the process.
    for name in mine:
        defect = wrong[name] or part.content(name, records[name][1] is not None)
        if defect is not None and defect.text not in known:
            defects.append(defect)
    return defects


def has_checksums(checkpoint: Path) -> bool:
    """Return whether a checkpoint was written by a version that writes checksums."""
    return "checksums" in read_manifest(checkpoint)


def summary(findings: Iterable[Defect]) -> str:
    """Put findings into one line; those beyond the first few are only counted."""
    texts = list(dict.fromkeys(finding.text for finding in findings))
    more = [f"and {len(texts) - _MOST_NAMED} more"] if len(texts) > _MOST_NAMED else []
    return "; ".join([*texts[:_MOST_NAMED], *more])


class _Part(NamedTuple):
    """What every file of a rank's share is compared with."""

    checkpoint: Path
    share: Share
    step: int
    world_size: int
    network: Shapes
    pulse: Callable[[], None]

    def bytes_of(self, name: str, size: int, checksum: str | None) -> Defect | None:
        """Compare size and checksum of one file."""
        path = self.checkpoint / name
        try:
            if (there := path.stat().st_size) != size:
                return Defect("damaged", f"{name} has {there} bytes, {size} were written")
            if checksum is not None and (text := self._changed(path, checksum)):
                return Defect("damaged", f"{name} {text}")
        except FileNotFoundError:
            return _missing(name, self.share)
        except OSError as error:
            return Defect("unreadable", f"{name} cannot be read: {error.strerror}")
        return None

    def _changed(self, path: Path, checksum: str) -> str:
        record, zeros = record_of_file(path, self.pulse)
        if record.checksum == checksum:
            return ""
        return (
            "holds nothing but zeros" if zeros else "is not what was written: its checksum differs"
        )

    def content(self, name: str, proved: bool) -> Defect | None:
        """Open a file without running code from it, and check what it belongs to.

        Args:
            name: The file.
            proved: Whether its checksum was verified.
        """
        if not (of_rank := _OF_RANK.search(name)):
            return self._small(name)
        look = _look_at_model if of_rank[2] == "model" else _look_at_optimizer
        try:
            wrong = look(load_data(self.checkpoint / name, "cpu", mmap=True), self)
        except pickle.UnpicklingError as error:
            held = what_is_held(error)
            # Without a checksum, a file that names no function may also be torn.
            is_code = proved or held.startswith("code")
            return Defect("code" if is_code else "damaged", f"{name} holds {held}")
        except OSError as error:
            return Defect("unreadable", f"{name} cannot be read: {error.strerror}")
        except Exception as error:
            text = str(error).strip().partition("\n")[0]
            if isinstance(error, MemoryError) or os.strerror(errno.ENOMEM) in text:
                # Either this machine has too little memory, or a forged file asks for too much.
                return Defect("unreadable", f"{name} cannot be read: not enough memory")
            # With the right checksum the file is not damaged: somebody made it like this.
            kind: Literal["code", "damaged"] = "code" if proved else "damaged"
            return Defect(kind, f"{name} is not a file of tensors: {type(error).__name__}: {text}")
        return None if wrong is None else Defect(wrong.kind, f"{name} {wrong.text}")

    def _small(self, name: str) -> Defect | None:
        """Read a small common file: without a checksum, only its content can show damage."""
        try:
            if name == DATA_STATE:
                read_data_state(self.checkpoint)
            elif name == "latest" and (self.checkpoint / name).read_text() != DEEPSPEED_TAG:
                return Defect("damaged", f"{name} does not name the folder {DEEPSPEED_TAG}")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            return Defect("damaged", f"{name} is not what was written: {type(error).__name__}")
        except OSError as error:
            return Defect("unreadable", f"{name} cannot be read: {error.strerror}")
        return None


def _look_at_model(state: Any, part: _Part) -> Defect | None:
    if (ranks := state["dp_world_size"]) != part.world_size:
        return Defect("damaged", f"was written by {ranks} ranks, the others by {part.world_size}")
    # Lightning's count; without a checksum, nothing else identifies a file of another step.
    if (step := state.get("global_step", part.step)) != part.step:
        return Defect("damaged", f"is of step {step}")
    shapes = {
        name.partition(".")[2]: tuple(shape)
        for group in state["param_shapes"]
        for name, shape in group.items()
    }
    if part.network and (text := _difference(shapes, part.network)):
        return Defect("network", f"is of another network: {text}")
    return None


def _difference(there: Shapes, here: Shapes) -> str:
    """Describe the first parameter in which two networks differ; empty if there is none."""
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            shapes = (
                list(network[name]) if name in network else "nothing" for network in (there, here)
            )
            return "{} is {} there, {} here".format(name, *shapes)
    return ""


def _look_at_optimizer(state: Any, part: _Part) -> Defect | None:
    zero = state["optimizer_state_dict"]
    # At stages 1 and 2 there is a number for each group of parameters.
    counts = zero["partition_count"]
    ranks = max(counts) if isinstance(counts, list) else counts
    if ranks != part.world_size:
        return Defect("damaged", f"was written by {ranks} ranks, the others by {part.world_size}")
    if isinstance(counts, list):
        # Groups are cut as a whole: which weights a rank has is in the shapes of the model's file.
        return None
    held = sum(flat.numel() for flat in zero["fp32_flat_groups"])
    # Each rank holds an equal slice of each parameter, the last ones padded.
    due = sum(ceil(prod(shape) / part.world_size) for shape in part.network.values())
    if part.network and held != due:
        return Defect("network", f"is of another network: {held} weights there, {due} here")
    return None


def _whole(checkpoint: Path, manifest: Mapping[str, Any]) -> Iterator[Defect]:
    """Examine which files there are; rank 0 only."""
    if checkpoint.name != f"step_{manifest['step']}":
        yield Defect("damaged", f"{MANIFEST} is that of step {manifest['step']}")
    names = manifest["files"].keys()
    for name in sorted(names):
        if not (checkpoint / name).exists():
            yield Defect("damaged", f"{name} is gone")
    shards = [name for name in names if _OF_RANK.search(name)]
    if len(shards) != shards_due(shards, manifest["world_size"]) or DATA_STATE not in names:
        yield Defect("damaged", f"{MANIFEST} does not name two files of each rank")
    for path in sorted((checkpoint / DEEPSPEED_TAG).glob("*.pt")):
        if (name := f"{DEEPSPEED_TAG}/{path.name}") not in names:
            yield Defect("damaged", f"{name} is not of this checkpoint")


def _missing(name: str, share: Share) -> Defect:
    # Another node may see a new file late: only rank 0, which has listed the folder, calls it gone.
    if share.rank == 0:
        return Defect("damaged", f"{name} is gone")
    return Defect("unreadable", f"{name} cannot be found on rank {share.rank}'s node")
