"""The names of the files of a run, in one place.

runs/<name>/
  config.yaml       the resolved config: the only thing a rank reads
  command.txt       how the run was launched
  job.sbatch        the exact text given to sbatch (SLURM only)
  versions.json     package versions of the launching environment
  code/             the package, the hook and git's state at launch; ranks run from here
  code.N/           the code that the N-th `llada-sft resume RUN --update-code` replaced
  update/           an update that was interrupted: the next resume or launch finishes it
  slurm/            the submitted script, the log of each rank, and srun's own messages
  checkpoints/      step_N/ (complete), step_N.partial/ (being written), step_N.damaged/ (found
                    damaged by a resume), latest
  logs/             metrics.csv, TensorBoard, rank_N.log of a local run; answers.jsonl: answers to
                    held-out prompts (with validation.answers)
  profile/          rank_0_steps_N_to_M.json: a trace for chrome://tracing (with train.profile)
  quarantine/       rank_N.jsonl: the bad rows of a rank, each once, with place and reason
  journal.jsonl     what happened: attempts, checkpoints, signals, and why each attempt ended
  report.html       the page that `llada-sft report` writes
  wandb_id.txt      the run at Weights & Biases, the same for all attempts (with log.wandb_project)
  owner.N           who owns the run: the highest N; see cluster/owner/owner_files.py
  failures/         rank_N.json: the failure report of a rank that failed
  phases/           rank_N: what each rank does until its first step
  stacks/           attempt_K_rank_N.txt: where each rank was when the watchdog detected a hang;
                    attempt_K_call.txt: the first rank that detects a hang calls the others with it
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

# SLURM replaces % in the names of log files, and the others do not survive its own unquoting.
_UNSAFE_IN_PATH = re.compile(r"[%'\"\\\n\r]")


@dataclass(frozen=True)
class RunDir:
    path: Path

    def shell_command(self, verb: str, *arguments: str) -> str:
        """Return a `llada-sft` command for this run that can be pasted into a shell."""
        return shlex.join(["llada-sft", verb, str(self.path), *arguments])

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def command(self) -> Path:
        return self.path / "command.txt"

    @property
    def sbatch(self) -> Path:
        return self.path / "job.sbatch"

    @property
    def versions(self) -> Path:
        return self.path / "versions.json"

    @property
    def code(self) -> Path:
        return self.path / "code"

    @property
    def hook(self) -> Path:
        return self.code / "process_data.py"

    @property
    def setup(self) -> Path:
        return self.code / "setup.sh"

    @property
    def origin(self) -> Path:
        """The record of where the hook and setup.sh were copied from."""
        return self.code / "origin.json"

    @property
    def update(self) -> Path:
        return self.path / "update"

    @property
    def slurm(self) -> Path:
        return self.path / "slurm"

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def metrics(self) -> Path:
        return self.logs / "metrics.csv"

    @property
    def answers(self) -> Path:
        return self.logs / "answers.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def wandb_id(self) -> Path:
        return self.path / "wandb_id.txt"

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def failures(self) -> Path:
        return self.path / "failures"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine"

    @property
    def phases(self) -> Path:
        return self.path / "phases"

    @property
    def stacks(self) -> Path:
        return self.path / "stacks"

    def kept_code(self) -> list[Path]:
        """Return the copies of earlier code, oldest first."""
        copies = [path for path in self.path.glob("code.*") if path.suffix[1:].isdecimal()]
        return sorted(copies, key=lambda path: int(path.suffix[1:]))

    def rank_log(self, rank: int) -> Path:
        return self.logs / f"rank_{rank}.log"

    def srun_log(self, job_id: str, restarts: int) -> Path:
        """Return the file with srun's own messages of one attempt of a job."""
        return self.slurm / f"{job_id}_{restarts}_srun.log"

    def setup_log(self, job_id: str, restarts: int) -> Path:
        """Return the file with the output of setup.sh in one attempt of a job."""
        return self.slurm / f"{job_id}_{restarts}_setup.log"

    def rank_quarantine(self, rank: int) -> Path:
        return self.quarantine / f"rank_{rank}.jsonl"

    def failure(self, rank: int) -> Path:
        return self.failures / f"rank_{rank}.json"

    def rank_phase(self, rank: int) -> Path:
        return self.phases / f"rank_{rank}"

    def rank_stacks(self, attempt: int, rank: int) -> Path:
        return self.stacks / f"attempt_{attempt}_rank_{rank}.txt"

    def hang_call(self, attempt: int) -> Path:
        """Return the file with which the first rank that detects a hang calls the others."""
        return self.stacks / f"attempt_{attempt}_call.txt"


def path_problem(path: Path) -> str:
    """Return why SLURM, or a config, cannot name a path; empty if both can."""
    if _UNSAFE_IN_PATH.search(str(path)):
        return "must not contain %, quotes or backslashes"
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return "must be UTF-8"
    return ""
