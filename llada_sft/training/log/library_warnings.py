"""Keeps the log of a rank to what its user can act on."""

import logging
import warnings


def quiet_libraries() -> None:
    """Silence notices of libraries about themselves; their warnings about this run stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for category, message in (
        # DeepSpeed's calls of torch, at every collective
        (FutureWarning, r"`torch\.distributed\.\w+` is deprecated"),
        (Warning, r".*LeafSpec.* is deprecated"),
        # ranks are started by us, whether srun is there or not
        (Warning, r"The `srun` command is available"),
        # one background process is what keeps the order of rows
        (Warning, r"The '\w+_dataloader' does not have many workers"),
        # each rank saves its shard: that is what a checkpoint is
        (Warning, r"When saving the DeepSpeed Stage 3 checkpoint"),
    ):
        warnings.filterwarnings("ignore", message=message, category=category)
