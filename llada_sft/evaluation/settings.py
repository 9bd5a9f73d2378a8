"""What an evaluation is asked for: a file of config/eval/ -> settings, checked without torch.

Settings at the top are those of every task. `tasks` names tasks, in their order, with what differs
for each: that is how a file holds the settings of a paper's whole table.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, StringConstraints

from llada_sft.choices import SAMPLERS, Remasking, SamplerName
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
from llada_sft.generation.settings import LARGEST, SamplerSettings

# A task, group or tag of lm-evaluation-harness. It is part of the names of files.
TaskName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,=+-]*$")]
Guidance = Annotated[float, Field(ge=0, le=LARGEST["cfg_scale"])]
SectionT = TypeVar("SectionT", bound=Section)


class LikelihoodSection(Section):
    """How given answers are scored."""

    # Masks of each answer, at most; short answers need fewer for an exact bound.
    num_draws: PositiveInt = 128
    # Strength of classifier-free guidance; 0 = none, and half the work.
    cfg_scale: Guidance = 0.0
    # Of the masks.
    seed: NonNegativeInt = 0
    # Whether it is computed if the model would give an answer: one forward pass for each token.
    # null = for tasks whose metrics ask for it, as LAMBADA's accuracy does
    check_greedy: bool | None = None
    # Tokens of a forward pass. The result does not depend on it.
    max_tokens: PositiveInt = 8192


class GenerationSection(Section):
    """How answers are decoded: the settings of a sampler, and what ends an answer."""

    # docs/samplers.md says which one is for what.
    sampler: SamplerName = "official"
    # Forward passes in all, of samplers with a fixed number; null = gen_length.
    steps: PositiveInt | None = None
    # Tokens of an answer, at most.
    gen_length: PositiveInt = 256
    # Tokens of a block. null = 256; of llada2 and llada21, whose blocks are those of the training,
    # 32.
    block_length: PositiveInt | None = None
    # Tokens of at least this probability are written together. null = the sampler's default.
    threshold: Fraction | None = None
    # Of the sampler factor, and of caches. null = the sampler's default.
    factor: NonNegativeFloat | None = None
    # Of the sampler entropy, and of caches, in nats. null = the sampler's default.
    entropy_bound: NonNegativeFloat | None = None
    # 0 takes the most likely token.
    temperature: Annotated[float, Field(ge=0, le=LARGEST["temperature"])] = 0.0
    # Strength of classifier-free guidance; 0 = none, and half the work.
    cfg_scale: Guidance = 0.0
    # Which predictions a fixed number of steps keeps.
    remasking: Remasking = "low_confidence"
    # Whether an answer ends at its first EOS. null = unless the sampler is official or verify.
    eos_early_stop: bool | None = None
    # As in the official code: EOS is never written.
    logits_eos_inf: bool = False
    # As in the official code: EOS and the end of a turn are written last.
    confidence_eos_eot_inf: bool = False
    # Of llada2: at most gen_length // this steps for each block.
    minimal_topk: PositiveInt | None = None
    # Of llada21: from this probability on another token replaces a written one.
    editing_threshold: Fraction | None = None
    # Of llada21: passes over a block that is written, at most.
    max_post_steps: NonNegativeInt | None = None
    # Of llada21: mask tokens that a step writes, at least.
    num_to_transfer: PositiveInt | None = None
    # Tokens of the canvas at first; it grows up to gen_length while no EOS is probable.
    start_length: PositiveInt | None = None
    # Of all random draws.
    seed: NonNegativeInt = 0
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
        if self.block_length is None:
            own["block_length"] = 32 if SAMPLERS[self.sampler].in_blocks else 256
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
