"""Options of sbatch and srun that a config must not give, and why.

sbatch and srun accept abbreviations: `arr` is refused as `array` is.
"""

from collections.abc import Callable, Iterator, Mapping

from llada_sft.cluster.batch.options import Options
from llada_sft.config import Config
from llada_sft.config.yaml12 import KeyPath
from llada_sft.errors import ConfigError

# The keys of an option within `slurm`, and what is wrong with it.
_Problem = tuple[tuple[str, str], str]

# Options that other keys of the config set, or on which submitting depends: not for `slurm.extra`.
TAKEN_OPTIONS = frozenset(
    {"job-name", "nodes", "ntasks", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem"}
    | {"time", "partition", "account", "qos", "constraint", "exclude", "signal", "output"}
    | {"mincpus", "error", "open-mode", "requeue", "no-requeue", "wrap"}
    # Several tasks would write into one run.
    | {"array"}
    # scontrol and scancel, here and in the job, would not find the jobs of another cluster.
    | {"clusters"}
    # The batch script itself runs on the host.
    | {"container-image", "container-mounts", "container-workdir"}
    # With these sbatch does not submit, does not return, or does not print the job's number.
    | {"help", "usage", "version", "test-only", "wait", "parsable", "quiet"}
)
_CONTAINER = "would put the batch script into a container, too; use slurm.container"
_TAKEN = "is set by the launcher; use the key of its own in slurm, or remove it"
_WHY = {
    # SLURM 25.11 would hold a job whose attempt fails (REQUEUE_HOLD); `end` requeues it instead.
    "requeue": "is set by the launcher, and never to 'expedite', which holds a job after an attempt"
    " that failed; remove it",
    "array": "starts several jobs that would write into one run directory: remove it,"
    " and launch one run for each, with another run.name",
    "clusters": "is ignored by the commands that look for the job: remove it,"
    " and set the variable SLURM_CLUSTERS in the shell instead",
    **dict.fromkeys(["container-image", "container-mounts", "container-workdir"], _CONTAINER),
}
# sbatch accepts abbreviations of options; but these keys are options themselves.
_WHOLE = frozenset({"gpus", "container"})

_USE_CONTAINER = "is set by the launcher; use slurm.container, or remove it"
# Options of srun that the batch script sets, or on which it depends.
_SET_BY_THE_SCRIPT = (
    *("jobid", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "export", "unbuffered"),
    *("kill-on-bad-exit", "open-mode", "output", "error"),
)
_TAKEN_BY_STEP: Mapping[str, str] = {
    **dict.fromkeys(_SET_BY_THE_SCRIPT, "is set by the batch script; remove it"),
    **dict.fromkeys(["container-image", "container-mounts", "container-workdir"], _USE_CONTAINER),
    **dict.fromkeys(
        ["help", "usage", "version", "test-only", "no-allocate", "multi-prog", "pty"],
        "would not start the ranks; remove it",
    ),
    "quiet": "hides which rank was killed; remove it",
    "preserve-env": "would let variables of another job set options; remove it",
    "clusters": "is not for the ranks of a job; remove it",
    "signal": "is for the job; use slurm.signal_lead_s",
    "time": "would end the ranks before the job; use slurm.time_min",
}
# srun accepts abbreviations of options; but this key is an option itself.
_WHOLE_OF_STEP = frozenset({"container"})


def check_extra(config: Config, origin: Callable[[KeyPath], str] | None = None) -> None:
    """Refuse options of `slurm` that would contradict the rest of the batch script.

    Args:
        config: The config.
        origin: Returns the file and line of a key; None if it is not known.

    Raises:
        ConfigError: It has one line for each such option.
    """
    problems = [*_extra_problems(config), *_srun_problems(config.slurm.srun_args)]
    if problems:
        lines = (_placed(("slurm", *problem), text, origin) for problem, text in problems)
        raise ConfigError("\n".join(lines))


def _extra_problems(config: Config) -> Iterator[_Problem]:
    extra = config.slurm.extra
    for key in sorted(extra):
        if option := _taken(key):
            short = "" if key == option else f"short for {option}, which "
            yield ("extra", key), f"{short}{_WHY.get(option, _TAKEN)}"
    export = extra.get("export", False)
    if export is not False and not str(export).startswith("ALL"):
        yield (
            ("extra", "export"),
            f"must start with ALL, got {export!r}: the ranks run the"
            " Python of the shell that launches; change its variables in slurm.setup",
        )


def _placed(key: KeyPath, text: str, origin: Callable[[KeyPath], str] | None) -> str:
    """Return a problem as the reader would write it."""
    where = "" if origin is None else f"{origin(key)}: "
    return f"{where}{'.'.join(map(str, key))}: {text}"


def _taken(key: str) -> str | None:
    """Return the refused option for which sbatch would take a key."""
    if key in TAKEN_OPTIONS or key in _WHOLE:
        return key if key in TAKEN_OPTIONS else None
    return next((option for option in sorted(TAKEN_OPTIONS) if option.startswith(key)), None)


def _srun_problems(options: Options) -> Iterator[_Problem]:
    """Yield the options that `slurm.srun_args` must not have, and why."""
    for key in sorted(options):
        names = [key] if key in _TAKEN_BY_STEP or key in _WHOLE_OF_STEP else sorted(_TAKEN_BY_STEP)
        option = next((name for name in names if name.startswith(key)), "")
        if option in _TAKEN_BY_STEP:
            short = "" if option == key else f"short for {option}, which "
            yield ("srun_args", key), f"{short}{_TAKEN_BY_STEP[option]}"
