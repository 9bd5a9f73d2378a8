"""What an evaluation is asked for: a file of config/eval/ -> settings, checked without torch.

Settings at the top are those of every task. `tasks` names tasks, in their order, with what differs
for each: that is how a file holds the settings of a paper's whole table.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import Field, StringConstraints, create_model

from llada_sft.choices import SAMPLERS
from llada_sft.config.reader import load_as
from llada_sft.config.values import (
    Count,
    Fraction,
    Minutes,
    NonEmptyStr,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    SbatchValue,
    Section,
)
from llada_sft.errors import ConfigError
from llada_sft.generation.settings import SamplerSettings
from llada_sft.generation.settings_table import SETTINGS, Range

# A task, group or tag of lm-evaluation-harness. It is part of the names of files.
TaskName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,=+-]*$")]
SectionT = TypeVar("SectionT", bound=Section)


class LikelihoodSection(Section):
    """How given answers are scored."""

    # Masks of each answer, at most; short answers need fewer for an exact bound.
    num_draws: PositiveInt = 128
    # Strength of classifier-free guidance; 0 = none, and half the work.
    cfg_scale: NonNegativeFloat = 0.0
    # Of the masks.
    seed: NonNegativeInt = 0
    # Whether it is computed if the model would give an answer: one forward pass for each token.
    # null = for tasks whose metrics ask for it, as LAMBADA's accuracy does
    check_greedy: bool | None = None
    # Tokens of a forward pass. The result does not depend on it.
    max_tokens: PositiveInt = 8192


# What pydantic makes of the ranges of a sampler's settings.
_RANGES: dict[Range, Any] = {
    "count": PositiveInt,
    "count_or_0": NonNegativeInt,
    "amount": NonNegativeFloat,
    "share": Fraction,
}
# Of an evaluation: answers are longer, blocks depend on the network, and draws are the same again.
_OWN_DEFAULTS: dict[str, tuple[Any, Any]] = {
    "gen_length": (PositiveInt, 256),
    "block_length": (PositiveInt | None, None),
    "seed": (NonNegativeInt, 0),
}


def _sampler_keys() -> dict[str, Any]:
    """Return the type of each setting of a sampler that is a key, with its default and meaning."""
    types, keys = get_type_hints(SamplerSettings), {}
    for name, setting in SETTINGS.items():
        values, default = types[name], getattr(SamplerSettings, name)
        if setting.limits is not None:
            number = _RANGES[setting.limits]
            values = number | None if default is None else number
        values, default = _OWN_DEFAULTS.get(name, (values, default))
        if setting.key:
            keys[name] = (values, Field(default, description=setting.key))
    return keys


_SamplerKeys: Any = create_model("_SamplerKeys", __base__=Section, **_sampler_keys())


class GenerationSection(_SamplerKeys):
    """How answers are decoded: the settings of a sampler, and what ends an answer."""

    # What ends an answer: the task's stop strings, or the end of the turn alone. null = end_of_turn
    # with a chat template, else task.
    until: Literal["task", "end_of_turn"] | None = None
    # Prompts that are answered at once.
    batch_size: PositiveInt = 8

    def sampler_settings(self) -> SamplerSettings:
        """Return the part that is the sampler's.

        Raises:
            ValueError: The settings do not fit together.
        """
        own = {name: value for name, value in self if name not in ("until", "batch_size")}
        if own["block_length"] is None:
            own["block_length"] = 32 if SAMPLERS[own["sampler"]].in_blocks else 256
        return SamplerSettings(**own)


class TaskSection(Section):
    """What differs for one task."""

    # Examples before the question; null = what the file says of all tasks.
    num_fewshot: NonNegativeInt | None = None
    likelihood: LikelihoodSection = LikelihoodSection()
    generation: GenerationSection = GenerationSection()


class JobSection(Section):
    """The SLURM job of `--slurm`."""

    # Nodes of the job.
    nodes: Count = 1
    # One for each GPU.
    ranks_per_node: Count = 8
    # GPUs of each node; null = one for each rank, 0 = none.
    gpus_per_node: NonNegativeInt | None = None
    # CPU cores of each rank.
    cpus_per_rank: Count = 8
    # Host memory of each node; null = the partition's default.
    mem_gb_per_node: PositiveInt | None = None
    # At the time limit the job is requeued, and continues.
    time_min: Minutes = 240
    # Options of sbatch; null = the cluster's default.
    partition: SbatchValue | None = None
    # As partition.
    account: SbatchValue | None = None
    # As partition.
    qos: SbatchValue | None = None
    # As partition: features that nodes must have.
    constraint: SbatchValue | None = None
    # Restarts after a failure, as of a node; preemptions and time limits are not counted.
    max_failures: NonNegativeInt = 3
    # A shell script that is sourced first: modules, virtual environment.
    setup: NonEmptyStr | None = None


class EvalConfig(Section):
    """A file of config/eval/."""

    # Whether prompts are rendered by the chat template; null = if the tokenizer has one.
    chat: bool | None = None
    # The system turn before each prompt.
    system_prompt: NonEmptyStr | None = None
    # Whether the examples before a question are turns of a chat.
    fewshot_as_multiturn: bool = True
    # Examples before the question; null = what each task says.
    num_fewshot: NonNegativeInt | None = None
    # Documents of each task; null = all.
    limit: PositiveInt | None = None
    # Of the weights; auto: bf16 on a GPU, else fp32.
    dtype: Literal["bf16", "fp32", "auto"] = "auto"
    # Of the draw of examples before the question.
    fewshot_seed: NonNegativeInt = 1234
    # Tasks such as HumanEval run the code that the model writes.
    run_unsafe_code: bool = False
    likelihood: LikelihoodSection = LikelihoodSection()
    generation: GenerationSection = GenerationSection()
    slurm: JobSection = JobSection()
    tasks: dict[TaskName, TaskSection] = Field({})

    def for_task(self, name: str) -> "EvalConfig":
        """Return the settings of one task, alone."""
        own = self.tasks.get(name, TaskSection())
        return self.model_copy(
            update={
                "num_fewshot": self.num_fewshot if own.num_fewshot is None else own.num_fewshot,
                "likelihood": _changed(self.likelihood, own.likelihood),
                "generation": _changed(self.generation, own.generation),
                "tasks": {},
            }
        )


def _changed(section: SectionT, own: SectionT) -> SectionT:
    """Return a section with the values that another one was given."""
    given = {name: getattr(own, name) for name in own.model_fields_set}
    return section.model_copy(update=given)


def load_eval_config(path: Path | None, overrides: Sequence[str] = ()) -> EvalConfig:
    """Read a file of config/eval/; without one, only overrides.

    Raises:
        ConfigError: One line for every mistake.
    """
    config = load_as(EvalConfig, path, overrides)
    problems, file = [], "the command line" if path is None else path
    for name in ("", *config.tasks):
        try:
            config.for_task(name).generation.sampler_settings()
        except ValueError as error:
            where = f"tasks.{name}.generation" if name else "generation"
            problems.append(f"{file}: {where}: {error}")
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return config


def given_settings(settings: SamplerSettings) -> dict[str, Any]:
    """Return the settings of a sampler that are given."""
    return {name: value for name, value in asdict(settings).items() if value is not None}
