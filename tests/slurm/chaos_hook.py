"""The hook of a run under chaos: the repository's own, and faults inside a rank.

With data.prefetch_steps=0 a hook runs in the rank's process. This one reads the plan of a folder
(LLADA_SFT_CHAOS), notes every step that was made there, slows the steps after the planned one, so
that a fault from outside hits the attempt that it is meant for, and brings about the faults that
must hit one moment of a checkpoint. Without the variable it does nothing of this.
"""

import functools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from llada_sft.data.records import encode_record

FOLDER = os.environ.get("LLADA_SFT_CHAOS")
RANK = int(os.environ.get("SLURM_PROCID", "0"))
ATTEMPT = int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def process_data(record, tokenizer, max_length):
    return encode_record(record, tokenizer)


class Chaos:
    """The faults of this rank in this attempt."""

    def __init__(self, folder):
        self.folder = folder
        plan = json.loads((folder / "plan.json").read_text())
        self.planned = dict(enumerate(plan)).get(ATTEMPT)
        self.steps = os.open(
            folder / f"attempt_{ATTEMPT}_rank_{RANK}.steps", os.O_CREAT | os.O_APPEND | os.O_WRONLY
        )
        self.made = 0

    def has_loaded(self, checkpoint):
        name = "" if checkpoint is None else Path(checkpoint).name
        (self.folder / f"attempt_{ATTEMPT}_rank_{RANK}.loaded").write_text(name)

    def step_made(self, step):
        os.write(self.steps, f"{step}\n".encode())
        self.made += 1
        if self.planned is None:
            return
        if self.is_due("exception on a rank"):
            raise RuntimeError(f"chaos at step {step}")
        if self.is_due("hang of a rank"):
            time.sleep(3600)
        if self.is_due("a damaged newest checkpoint"):
            damage(newest_checkpoint(), random.Random(ATTEMPT))
            os.kill(os.getpid(), signal.SIGKILL)
        late = self.made - self.planned["after"]
        if late >= 0 and RANK == 0:
            # Slower and slower: SLURM may take its time, and the run must not end meanwhile.
            time.sleep(0.1 if late < 3 else 1 if late < 10 else 3)

    def is_due(self, fault):
        planned = self.planned
        if planned is None or self.made < planned["after"]:
            return False
        return (planned["fault"], planned["rank"]) == (fault, RANK)

    def saved(self, folder):
        """Die with half of this rank's shards written."""
        if self.is_due("kill -9 in a save"):
            for shard in Path(folder).rglob(f"*zero_pp_rank_{RANK}_*"):
                os.truncate(shard, shard.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def renamed(self, source, target):
        """Die when a checkpoint is complete and `latest` still names the one before."""
        completes = Path(source).suffix == ".partial" and Path(target).suffix != ".partial"
        if completes and self.is_due("kill -9 before latest"):
            os.kill(os.getpid(), signal.SIGKILL)


def newest_checkpoint():
    # The hook lies in RUN/code.
    folder = Path(__file__).parents[1] / "checkpoints"
    complete = [path for path in folder.glob("step_*") if path.name[5:].isdecimal()]
    return max(complete, key=lambda path: int(path.name[5:]))


def damage(checkpoint, generator):
    """Change one bit of one file; nothing else tells that it is not what was written."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    file = generator.choice(files)
    content = bytearray(file.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    file.write_bytes(content)


def install(chaos):
    import lightning.pytorch as pl

    from llada_sft.training.callbacks.checkpoint_saver import CheckpointSaver

    end_step = CheckpointSaver.on_train_batch_end

    @functools.wraps(end_step)
    def on_train_batch_end(self, trainer, *arguments):
        if not chaos.made:
            # This hook is loaded with the first row, when the checkpoint is loaded already.
            chaos.has_loaded(trainer.ckpt_path)
        chaos.step_made(trainer.global_step)
        end_step(self, trainer, *arguments)

    CheckpointSaver.on_train_batch_end = on_train_batch_end
    save, rename = pl.Trainer.save_checkpoint, Path.rename

    @functools.wraps(save)
    def save_checkpoint(self, path, *arguments, **options):
        save(self, path, *arguments, **options)
        chaos.saved(path)

    @functools.wraps(rename)
    def rename_path(self, target):
        renamed = rename(self, target)
        if self.name.startswith("step_"):
            chaos.renamed(self, target)
        return renamed

    pl.Trainer.save_checkpoint = save_checkpoint
    Path.rename = rename_path


# Not where the launcher looks at the hook.
if FOLDER and "llada_sft.training.trainer" in sys.modules:
    install(Chaos(Path(FOLDER)))
