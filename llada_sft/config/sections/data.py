"""The section `data`: what is read, and how rows become examples and micro-batches."""

from typing import Annotated, Literal

from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from llada_sft.config.record_formats import (
    MultiTurn,
    RecordFormat,
    Role,
    SpecialTokensInText,
    check_fields,
)
from llada_sft.config.values import (
    Fraction,
    LocalPath,
    NonEmptyStr,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    SourceName,
)


class SourceConfig(Section):
    """One of several named sources of `data.train`."""

    # A folder, a glob or a URL, as data.train may be.
    path: NonEmptyStr
    # Its share of what is trained on, in proportion to the other sources' weights.
    weight: PositiveFloat = 1.0
    # How often each of its rows comes; null = train.epochs.
    epochs: PositiveInt | None = None
    # As in data, and where null, those of data.
    format: RecordFormat | None = None
    # The same.
    fields: dict[str, NonEmptyStr] | None = None

    @field_validator("fields")
    @classmethod
    def _of_the_format(
        cls, fields: dict[str, str] | None, info: ValidationInfo
    ) -> dict[str, str] | None:
        if fields and info.data.get("format"):
            check_fields(info.data["format"], fields)
        return fields


def _form_of_train(value: object) -> str | None:
    match value:
        case str():
            return "(path)"
        case list() | tuple():
            return "(list)"
        case dict():
            return "(sources)"
    return None


# The tags appear in the locations of pydantic's errors; the brackets mark them as not keys.
TrainData = Annotated[
    Annotated[NonEmptyStr, Tag("(path)")]
    | Annotated[tuple[NonEmptyStr, ...], Field(min_length=1), Tag("(list)")]
    | Annotated[dict[SourceName, SourceConfig], Field(min_length=1), Tag("(sources)")],
    Discriminator(
        _form_of_train,
        custom_error_type="form",
        custom_error_message="a path, a list of paths, or sources by name",
    ),
]


# The keys of `data.end` and what each may be.
End = Literal["batch_max", "void", "rainbow"] | PositiveInt
# `data.end_tokens` where it is not given.
DEFAULT_END_TOKENS = 64


def fewest_end_tokens(end: End) -> int:
    """Return the tokens that follow each answer at least: EOS, whatever its micro-batch is."""
    return end if isinstance(end, int) else 1


def _form_of_validation(value: object) -> str | None:
    match value:
        case str():
            return "(path)"
        case dict():
            return "(sets)"
    return None


ValidationData = Annotated[
    Annotated[NonEmptyStr, Tag("(path)")]
    | Annotated[dict[SourceName, NonEmptyStr], Field(min_length=1), Tag("(sets)")],
    Discriminator(
        _form_of_validation,
        custom_error_type="form",
        custom_error_message="a path, or paths by name",
    ),
]


class DataConfig(Section):
    # A folder of .jsonl, .jsonl.gz or .jsonl.zst shards, or a glob of them; or the URL of one.
    # Or a list of these, read as one. Or named sources, mixed by weight (docs/data.md):
    # {chat: {path: data/chat, weight: 0.7}, code: {path: data/code, weight: 0.3, epochs: 2}}.
    train: TrainData
    # What the weights of named sources share out: examples, or their tokens.
    mix_by: Literal["examples", "tokens"] = "examples"
    # Held-out rows: a path as data.train may be. Or several sets by name, each with its own numbers
    # (docs/validation.md): {dev: data/dev, hard: data/hard}.
    validation: ValidationData | None = None
    # What a row is (docs/data.md): a known format; auto = detected in the first rows, and printed;
    # raw = the hook gets each record as it is.
    format: RecordFormat = "auto"
    # Where the rows have other names: {field of the format: field of your rows}.
    fields: dict[str, NonEmptyStr] = Field({})
    # Words for roles that are not known: {narrator: system, Alice: user}.
    roles: dict[str, Role] = Field({})
    # Fields of rows and of their turns that are not read, and not reported either.
    ignore_fields: tuple[NonEmptyStr, ...] = ()
    # Special tokens that somebody typed in a text: text = encoded as the characters they are;
    # token = as the tokens, which may end a turn or begin another; refuse = a bad row.
    special_tokens_in_text: SpecialTokensInText = "text"
    # Which answer of a conversation is learned: random = one, drawn again each epoch (the paper's);
    # last = the last; all = every one, in one example.
    multi_turn: MultiTurn = "random"
    # The Python file with `process_data(record, tokenizer, max_length)`.
    hook: LocalPath = "utils/process_data.py"
    # Rows of each source that the launcher gives the hook before it submits a job; 0 = none.
    try_rows: Annotated[int, Field(ge=0, le=1000)] = 16
    # Tokens of prompt and response together.
    max_length: PositiveInt = 4096
    # An example longer than max_length: skip it, or cut its prompt or its response. split = a
    # document (all of it is learned) becomes several examples, which together are all of it; the
    # response of any other example is cut.
    on_too_long: Literal["skip", "clip_prompt", "clip_response", "split"] = "clip_response"
    # With split: the share of pieces that have a random length, 1 to max_length, drawn again each
    # epoch; the next piece continues there. LLaDA's pre-training: 0.01.
    random_length: Fraction = 0.0
    # Whether a response that was cut is followed by EOS, as if it ended there.
    eos_after_cut: bool = False
    # A row that cannot be used is written to quarantine/ in the run directory; more than this share
    # of a rank's rows ends the run: judged from its 100th row on and at the end of an epoch, with 0
    # at once. A bad row of data.validation always ends it.
    max_bad_fraction: Fraction = 0.0
    # What follows each response, and is learned (docs/data.md):
    #   a number   that many EOS
    #   batch_max  EOS up to the longest example of the micro-batch, as in the official recipe. In
    #              validation it is one EOS: losses do not depend on how examples meet. Not packed.
    #   void       one EOS, then 0 to end_tokens void tokens; the EOS and these are always masked,
    #              and the void tokens have a loss of their own (objective.void_weight)
    #   rainbow    one EOS, then 0 to end_tokens tokens of a cycle of reserved ones
    # Samplers never write the void token or those of the cycle, and an answer ends at its EOS.
    end: End = "batch_max"
    # With void and rainbow: the most tokens after the EOS. How many there are is drawn for each
    # example and epoch. It should reach over what is left of the longest canvas that answers will
    # be written on (gen_length); longer examples cost time: half as many tokens, on average.
    end_tokens: PositiveInt = DEFAULT_END_TOKENS
    # Ids of tokens that no text has; null = those that the network's tokenizer reserves.
    void_token_id: NonNegativeInt | None = None
    # At least two, which follow one another in a cycle.
    rainbow_token_ids: Annotated[tuple[NonNegativeInt, ...], Field(min_length=2)] | None = None
    # padded: micro-batches of train.micro_batch_size examples, brought to one length;
    # packed: examples one after the other in one row of at most max_tokens tokens.
    batching: Literal["padded", "packed"] = "padded"
    # Packed only: the most tokens of a micro-batch; at least max_length. It may be more than the
    # model's max_sequence_length, which limits max_length: positions start again with each example.
    max_tokens: PositiveInt | None = None
    # Padded only: examples of similar length share a micro-batch (docs/data.md). It includes
    # costliest_first. With end: batch_max the learned tails become shorter.
    group_by_length: bool = False
    # The micro-batches of a step from the one with the most work to the one with the least, so that
    # ranks, which wait for one another in each, run equal ones together.
    costliest_first: bool = False
    # Packed, or grouped by length: examples read ahead, to choose from.
    pack_buffer: PositiveInt = 32
    # Files that changed or are gone since the checkpoint: refuse ends the run and names them;
    # restart_file reads a changed file's epoch again and skips a missing file, with a warning.
    on_changed_file: Literal["refuse", "restart_file"] = "refuse"
    # Where line indexes, decompressed shards and fetched objects are kept (docs/data.md); null = a
    # folder of the user's in the system's temporary folder.
    cache_dir: LocalPath | None = None
    # Rows of a shard in a random order that is keyed by (seed, epoch, shard).
    shuffle: bool = True
    # Optimizer steps that a background process prepares ahead; 0 = in the training process itself.
    prefetch_steps: NonNegativeInt = 4

    @property
    def fixed_end(self) -> End:
        """What follows each response whatever the micro-batch: the end of validation."""
        return 1 if self.end == "batch_max" else self.end

    @property
    def sorts_steps(self) -> bool:
        """Whether the micro-batches of a step are sorted by their work."""
        return self.group_by_length or self.costliest_first

    @property
    def validation_sets(self) -> dict[str, str]:
        """The paths of `validation` by name; the name is empty where there is only one."""
        if self.validation is None:
            return {}
        return {"": self.validation} if isinstance(self.validation, str) else self.validation

    @property
    def train_paths(self) -> list[str]:
        """All paths of `train`."""
        if isinstance(self.train, str):
            return [self.train]
        if isinstance(self.train, tuple):
            return list(self.train)
        return [source.path for source in self.train.values()]

    @field_validator("fields")
    @classmethod
    def _of_the_format(cls, fields: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        # Without a format that is valid, that is the problem to report.
        if "format" in info.data:
            check_fields(info.data["format"], fields)
        return fields

    @model_validator(mode="after")
    def _random_pieces_of_documents(self) -> "DataConfig":
        if self.random_length and self.on_too_long != "split":
            raise ValueError(
                "random_length is for pieces of documents: set on_too_long: split, got"
                f" {self.on_too_long}"
            )
        return self

    @model_validator(mode="after")
    def _end_leaves_room(self) -> "DataConfig":
        fewest = fewest_end_tokens(self.end)
        if fewest >= self.max_length:
            raise ValueError(
                f"max_length must leave room next to the EOS tail, got {self.max_length} "
                f"for a tail of {fewest}"
            )
        return self

    @model_validator(mode="after")
    def _keys_of_the_end(self) -> "DataConfig":
        for key, ends in _KEYS_OF_ENDS.items():
            value = getattr(self, key)
            if value != type(self).model_fields[key].default and self.end not in ends:
                raise ValueError(f"{key} is for end: {' or '.join(ends)}; remove it, or set that")
        return self

    @model_validator(mode="after")
    def _packed_or_padded(self) -> "DataConfig":
        if self.batching == "padded":
            if self.max_tokens is not None:
                raise ValueError("max_tokens is for batching: packed; remove it, or set that")
            return self
        if self.group_by_length:
            raise ValueError("group_by_length is for batching: padded; remove it, or set that")
        if self.max_tokens is None:
            raise ValueError("batching: packed needs max_tokens, the tokens of a micro-batch")
        if self.max_tokens < self.max_length:
            raise ValueError(
                "max_tokens must have room for an example of max_length, "
                f"got {self.max_tokens} for {self.max_length}"
            )
        if self.end == "batch_max":
            raise ValueError(
                "batching: packed has no padding that end: batch_max could turn into EOS; "
                "set end to a number, or to void or rainbow"
            )
        return self


_KEYS_OF_ENDS = {
    "end_tokens": ("void", "rainbow"),
    "void_token_id": ("void",),
    "rainbow_token_ids": ("rainbow",),
}
