"""Which checkpoint a run resumes from: all ranks choose it together, and verify it before use.

Every rank examines the files that it reads (`verify.py`). If any rank finds damage, all ranks take
the previous checkpoint; the damaged one is reported, journalled, and renamed, so that no later
attempt examines it again. A run whose checkpoints are all damaged stops: it never starts again from
step 0 by itself.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from llada_sft.data.rows.position import Positions
from llada_sft.errors import CheckpointError, PeerFailedError
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint.data_state import DataState, read_data_state
from llada_sft.training.checkpoint.folder import (
    clean_partial,
    list_checkpoints,
    list_damaged,
    list_named,
    point_to,
    set_aside,
    universal_path,
)
from llada_sft.training.checkpoint.manifest import ManifestError, read_manifest
from llada_sft.training.checkpoint.universal import Conversion, ShownProgress
from llada_sft.training.checkpoint.verify import (
    Defect,
    Shapes,
    Share,
    examine,
    has_checksums,
    summary,
)
from llada_sft.training.consensus import Consensus
from llada_sft.training.host import Host
from llada_sft.training.masks.level_losses import LevelState
from llada_sft.training.nonfinite import SkippedSteps
from llada_sft.training.schedule.plan import Planned
from llada_sft.training.validation.best import ValidationState

# How often the ranks exchange the state of a conversion.
_POLL_S = 1.0


@dataclass(frozen=True)
class Resume:
    """Where a run resumes; a fresh run starts from step 0.

    Attributes:
        checkpoint: What to load, if anything.
        step: Optimizer steps that were made.
        data: The position of the data.
        universal: Whether `checkpoint` was converted from another number of ranks.
        stopped: The ranks were signalled to stop during the conversion: there is nothing to load.
        planned: The checkpoint's schedule; None if there is none.
        world_size: The number of ranks that wrote the checkpoint.
        skipped: Steps that were skipped because their loss or gradient was not finite.
        levels: The losses by noise level.
        validation: The best validation so far.
    """

    checkpoint: Path | None
    step: int
    data: DataState | None
    universal: bool = False
    stopped: bool = False
    planned: Planned | None = None
    world_size: int | None = None
    skipped: SkippedSteps = SkippedSteps()  # noqa: RUF009 (frozen)
    levels: LevelState = LevelState()  # noqa: RUF009 (frozen)
    validation: ValidationState = ValidationState()  # noqa: RUF009 (frozen)

    @property
    def positions(self) -> Positions | None:
        """Where the data continues; on another number of ranks, shares start at zero."""
        if self.data is None or not self.universal:
            return None if self.data is None else self.data.positions
        return {
            name: position._replace(examples=0, tokens=0)
            for name, position in self.data.positions.items()
        }


def find_resume(
    run: RunDir,
    placement: Placement,
    consensus: Consensus,
    host: Host | None = None,
    network: Shapes | None = None,
    max_steps: int | None = None,
    base: str = "",
    other_ranks: bool = True,
) -> Resume:
    """Find the newest checkpoint that is not damaged; every rank must call this.

    Args:
        run: The run directory.
        placement: This rank.
        consensus: The agreement of the ranks.
        host: Writes the journal, and knows whether to stop.
        network: Shape of each parameter that is trained; None skips that check.
        max_steps: A checkpoint of this many steps is not converted: nothing is left to do.
        base: Identifies the weights that adapters are trained on; empty: there are no adapters.
        other_ranks: Whether the optimizer's states can be converted to another number of ranks.

    Raises:
        CheckpointError: There are checkpoints, and none can be used; or one holds code.
        PeerFailedError: Rank 0 could not convert it.
    """
    host = host or Host()
    if placement.rank == 0:
        host.require_owner()
        clean_partial(run.checkpoints)
    look = partial(examine, network=network or {}, base=base)
    checkpoint = _choose(run.checkpoints, placement, consensus, host, look)
    if checkpoint is None:
        return Resume(None, 0, None)
    manifest, data = read_manifest(checkpoint), read_data_state(checkpoint)
    if placement.rank == 0:
        print(f"resuming from {checkpoint}", flush=True)
    resume = Resume(
        checkpoint,
        manifest["step"],
        data,
        planned=Planned.from_json(manifest.get("schedule")),
        world_size=manifest["world_size"],
        skipped=SkippedSteps(**manifest.get("skipped_steps", {})),
        levels=LevelState.from_json(manifest.get("levels")),
        validation=_with_best_there(
            ValidationState.from_json(manifest.get("validation")), run.checkpoints, consensus
        ),
    )
    is_done = max_steps is not None and resume.step >= max_steps
    if manifest["world_size"] == placement.world_size or is_done:
        return resume
    if not other_ranks:
        raise CheckpointError(
            f"{checkpoint}: its 8-bit optimizer states are of {manifest['world_size']} ranks, and"
            f" cannot be resumed on {placement.world_size}: resume on as many, or export the run"
            " (llada-sft export RUN OUT) and give a new one model.path=OUT"
        )
    if placement.rank == 0:
        print(
            f"converting it from {manifest['world_size']} to {placement.world_size} ranks",
            flush=True,
        )
    host.phase("conversion", None)
    pulse = partial(host.pulse, "start", resume.step)
    if not _convert(checkpoint, placement, consensus, host.stop_requested, pulse):
        return replace(resume, checkpoint=None, stopped=True)
    return replace(resume, checkpoint=universal_path(checkpoint), universal=True)


def _with_best_there(state: ValidationState, folder: Path, consensus: Consensus) -> ValidationState:
    """Forget the best checkpoint if it is gone: a later one would never replace it."""
    steps = cast(list[int], consensus.gather([step for step, _ in list_checkpoints(folder)])[0])
    gone = state.best is not None and state.best.step not in steps
    return replace(state, best=None) if gone else state


def _choose(
    folder: Path,
    placement: Placement,
    consensus: Consensus,
    host: Host,
    look: Callable[..., list[Defect]],
) -> Path | None:
    """Return the newest checkpoint in which no rank finds anything wrong by `look`."""
    there = [path for _, path in reversed(list_named(folder))]
    of_rank_0 = consensus.gather((there, list_damaged(folder), _unreadable(folder)))[0]
    named, damaged, unreadable = cast(tuple[list[Path], list[Path], str], of_rank_0)
    if unreadable:
        raise CheckpointError(unreadable)
    share = Share(placement.rank, placement.world_size)
    lines = [f"{path}: was found damaged before" for path in damaged]
    for checkpoint, before in zip(named, [*named, None][1:], strict=True):
        mine = look(checkpoint, share, pulse=lambda: host.pulse("start", 0))
        of_ranks = cast(list[list[Defect]], consensus.gather(mine))
        findings = [finding for of_rank in of_ranks for finding in of_rank]
        if not findings:
            if placement.rank == 0 and checkpoint != named[0]:
                host.require_owner()
                with suppress(OSError):
                    point_to(checkpoint)
            if placement.rank == 0 and not has_checksums(checkpoint):
                print(f"{checkpoint}: of an older version, without checksums: only sizes are known")
            return checkpoint
        lines.append(_judge(checkpoint, findings))
        if placement.rank == 0:
            _pass_over(checkpoint, findings, before, lines[-1], host)
    if lines:
        kinds = ("is of another network", "is of adapters for other weights")
        other = any(kind in line for line in lines for kind in kinds)
        raise CheckpointError("\n".join([*lines, _none_left(folder, other)]))
    return None


def _unreadable(folder: Path) -> str:
    """Return why the checkpoints cannot be listed; empty if they can, or if there are none."""
    try:
        next(folder.iterdir(), None)
    except FileNotFoundError:
        why = "is a broken link" if folder.is_symlink() else ""
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
    else:
        why = ""
    rule = "a run does not start again from step 0 by itself: make it readable"
    return f"{folder}: {why}; {rule}" if why else ""


def _none_left(folder: Path, other_network: bool) -> str:
    """Return what to do if there are checkpoints and none can be used."""
    first = (
        "give the run the network that they were trained with"
        if other_network
        else "put back a copy of one under its name step_N"
    )
    return (
        f"{folder}: no checkpoint can be used, and a run does not start again from step 0 by"
        f" itself: {first}, start a new run, or remove {folder} to train from step 0"
    )


def _judge(checkpoint: Path, findings: list[Defect]) -> str:
    """Return one line about what is wrong with a checkpoint.

    Raises:
        CheckpointError: It holds code: a person must look at it before the run can continue.
    """
    if hostile := [finding for finding in findings if finding.kind == "code"]:
        raise CheckpointError(
            f"{checkpoint}: {summary(hostile)}: not loaded, and nothing of it was run;"
            " find out who wrote it, then remove it to resume from the one before"
        )
    if not is_damaged(checkpoint, findings):
        return f"{checkpoint}: passed over: {summary(findings)}"
    # Without what other ranks cannot find: rank 0 has named those files as gone.
    return f"{checkpoint}: damaged: " + summary(
        finding for finding in findings if finding.kind != "unreadable"
    )


def is_damaged(checkpoint: Path, findings: list[Defect]) -> bool:
    """Return whether the checkpoint itself is damaged, so that it can never be used.

    Files of another network count as damage if some model file belongs to the right network. If all
    files belong to another network, the config does not fit the checkpoint.
    """
    kinds = {finding.kind for finding in findings}
    if "damaged" in kinds or "network" not in kinds:
        return "damaged" in kinds
    others = {
        finding.text
        for finding in findings
        if finding.kind == "network" and "_model_" in finding.text
    }
    try:
        return len(others) < int(read_manifest(checkpoint)["world_size"])
    except (OSError, ManifestError):
        return False


def _pass_over(
    checkpoint: Path, findings: list[Defect], before: Path | None, line: str, host: Host
) -> None:
    """Report a checkpoint that cannot be used, and rename a damaged one; rank 0 only."""
    host.require_owner()
    if is_damaged(checkpoint, findings):
        # If it cannot be renamed, the next attempt finds the damage again.
        with suppress(OSError):
            line = f"{line}; renamed to {set_aside(checkpoint).name}"
    if before is not None:
        line = f"{line}; the one before is {before.name}"
    print(line, flush=True)
    host.note({"event": "damaged", "detail": line})


def _convert(
    checkpoint: Path,
    placement: Placement,
    consensus: Consensus,
    stop_requested: Callable[[], bool],
    pulse: Callable[[], None],
) -> bool:
    """Let rank 0 convert a checkpoint, while all ranks watch for a signal.

    Returns:
        True when it is converted; False if a rank was signalled to stop.

    Raises:
        LladaSftError: The conversion failed; ranks other than 0 raise PeerFailedError.
    """
    conversion = Conversion(checkpoint) if placement.rank == 0 else None
    shown = ShownProgress(conversion)
    before = None
    try:
        while True:
            ended = conversion is not None and conversion.ended(_POLL_S)
            error = conversion.error() if conversion is not None and ended else None
            states: Any = consensus.gather(
                (ended, error is not None, stop_requested(), shown.progress())
            )
            ended, failed, _, progress = states[0]
            # A conversion may take as long as it likes, but one that stands still is a hang.
            if progress is None or progress != before:
                pulse()
            before = progress
            if error is not None:
                raise error
            if failed:
                raise PeerFailedError(f"{checkpoint}: rank 0 could not convert it; see its line")
            if ended:
                return True
            if any(stop for _, _, stop, _ in states):
                if conversion is not None:
                    conversion.cancel()
                return False
    except BaseException:
        if conversion is not None:
            conversion.cancel()
        raise
