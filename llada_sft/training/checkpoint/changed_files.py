"""Files that changed, or are gone, since the checkpoint from which a run resumes.

`data.on_changed_file` decides: the run is refused, or continues with a warning for each file. An
added file is never refused: it is read from the next epoch on.
"""

from collections.abc import Collection, Mapping
from typing import Any

from llada_sft.config.sections.data import DataConfig
from llada_sft.errors import DataError
from llada_sft.training.checkpoint.data_state import DataState
from llada_sft.training.consensus import Consensus

_DO = "restore them, start a new run, or set data.on_changed_file: restart_file"


def files_changed(state: DataState, fingerprints: Mapping[str, str], consensus: Consensus) -> bool:
    """Return whether any file of any rank changed, appeared or disappeared since a checkpoint."""
    own_changed = any(state.fingerprints.get(name) != value for name, value in fingerprints.items())
    ranks: Any = consensus.gather((own_changed, len(fingerprints)))
    num_files = sum(count for _, count in ranks)
    return any(changed for changed, _ in ranks) or num_files != len(state.fingerprints)


def files_to_restart(
    config: DataConfig,
    state: DataState,
    names: Collection[str],
    fingerprints: Mapping[str, str],
    consensus: Consensus,
    rank: int,
) -> list[str]:
    """Compare the files with a checkpoint's; every rank must call this.

    Args:
        config: The data section.
        state: The data state of the checkpoint.
        names: Names of all present files.
        fingerprints: Fingerprints of this rank's files.
        consensus: The agreement of the ranks: a rank knows only its own files' fingerprints.
        rank: Rank 0 prints the warnings.

    Returns:
        The changed files of all ranks, if they may start their epoch again.

    Raises:
        DataError: Files changed or are gone, and that is refused; every rank names all of them.
    """
    where = ", ".join(config.train_paths)
    ranks: Any = consensus.gather(state.changed(fingerprints))
    changed = sorted(name for of_rank in ranks for name in of_rank)
    gone = state.gone(names)
    if config.on_changed_file == "refuse":
        problems = {"changed": changed, "gone": gone}
        lines = [
            f"{where}: {what} since the checkpoint: {', '.join(files)}; {_DO}"
            for what, files in problems.items()
            if files
        ]
        if lines:
            raise DataError("\n".join(lines))
    if rank == 0:
        for name in changed:
            print(f"{where}: {name} changed since the checkpoint: it starts its epoch again")
        for name in gone:
            print(f"{where}: {name} is gone since the checkpoint: its rows are skipped")
    return changed
