"""Rows that were half done at a checkpoint, if the way their examples are made has changed since.

A checkpoint knows a hash of the hook's text and of the keys that decide which examples a row
becomes (`examples_key`). If that hash differs now, the number of an example within its row is
meaningless: a row of which some examples were trained, or wait to be packed, starts again with all
examples that it makes now. No row is lost, and only these rows may be trained twice.
"""

from collections.abc import Callable, Mapping
from typing import Any

from llada_sft.config.sections.data import DataConfig
from llada_sft.data.examples.hook import examples_key
from llada_sft.data.steps.dataset import StepDataset
from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint.data_state import DataState
from llada_sft.training.consensus import Consensus


def restart_half_done_rows(
    dataset: StepDataset,
    config: DataConfig,
    state: DataState | None,
    run: RunDir,
    consensus: Consensus,
    note: Callable[[Mapping[str, object]], None] | None,
) -> None:
    """Let half-done rows start again if their examples have changed; every rank must call this.

    Args:
        dataset: This rank's dataset.
        config: The data section.
        state: The data state of the checkpoint, if there is one.
        run: The run directory.
        consensus: The agreement of the ranks.
        note: Writes to the journal; None except on rank 0, which also prints the line.
    """
    changed = state is not None and trained_key(state, config, run) != examples_key(config)
    # Rank 0 decides: a rank that still sees another version of the hook must not do this alone.
    if not consensus.gather(changed)[0]:
        return
    counts: Any = consensus.gather(dataset.encode_again())
    if note is None:
        return
    rows = sum(counts)
    detail = (
        "the hook, or how its examples are cut, changed since the checkpoint:"
        f" {rows:,} half-done {'row starts' if rows == 1 else 'rows start'} again"
    )
    print(detail, flush=True)
    note({"event": "changed", "detail": detail})


def trained_key(state: DataState, config: DataConfig, run: RunDir) -> str:
    """Return the key of the examples that a checkpoint was trained with.

    Earlier versions did not record it. Then the first copy of the code that an update set aside has
    the hook of that version; without a copy, nothing has changed.
    """
    if state.examples_key:
        return state.examples_key
    kept = run.kept_code()
    hook = kept[0] / run.hook.name if kept else run.hook
    return examples_key(config.model_copy(update={"hook": str(hook)}))
