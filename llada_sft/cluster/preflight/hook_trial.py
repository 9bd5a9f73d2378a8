"""The hook on the first rows of each source, on the login node and without torch.

The rows are encoded as a rank would: with the run's tokenizer, format and hook. That happens in
another process, in its own session, because a hook may print, hang, end its process, or leave
processes behind: its output is dropped, its time is limited, and its temporary files are removed.

A hook that fails here fails on the nodes, too, unless it depends on what is only there: then
`data.try_rows: 0` launches without a trial.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llada_sft.cluster.launch.snapshot import redact
from llada_sft.config import Config
from llada_sft.errors import ConfigError, DataError, LladaSftError
from llada_sft.processes import PipedProcess

if TYPE_CHECKING:
    from llada_sft.data.examples.encode import Encoder
    from llada_sft.data.examples.tokenizer import TokenIds
    from llada_sft.data.rows.row import Row
    from llada_sft.data.sources import Source

# Seconds for all sources; a hook that imports torch needs several of them on a slow file system.
LIMIT_S = 30.0
# The rows are the first ones of so many shards.
_SHARDS = 4
# The process ends by itself if its launcher was killed.
_SELF_END_S = 60
_ANYWAY = "data.try_rows=0 launches without a trial"


@dataclass(frozen=True)
class Outcome:
    """What the hook made of the first rows of a source.

    Attributes:
        key: The source, as the config calls it.
        rows: How many rows it got.
        bad: How many of them cannot be used.
        first_bad: Where the first bad one is, and why.
        kept: How many made an example.
        too_long: How many made none because `data.on_too_long` skips what they make.
    """

    key: str
    rows: int
    bad: int = 0
    first_bad: str = ""
    kept: int = 0
    too_long: int = 0


def require(config: Config, limit_s: float = LIMIT_S) -> list[str]:
    """Run the hook on the first rows of each local source.

    Args:
        config: The config, with absolute paths.
        limit_s: The process is killed after so many seconds.

    Returns:
        One line for each thing that may be wrong.

    Raises:
        ConfigError: The hook cannot be loaded, or the run would end at one of these rows.
    """
    if config.data.try_rows == 0:
        return []
    with tempfile.TemporaryDirectory(prefix="llada_sft_", ignore_cleanup_errors=True) as folder:
        answer = _answer(partial(_try, config, folder), limit_s)
    if isinstance(answer, str):
        return [f"warning          data.hook: {config.data.hook}: {redact(answer)}"]
    outcomes, problem = answer
    problems = [problem] if problem else []
    warnings: list[str] = []
    for outcome in outcomes:
        lines = warnings if _may_train(config, outcome) else problems
        lines += _lines(outcome)
    if problems:
        raise ConfigError("\n".join(map(redact, problems)))
    return [f"warning          {redact(line)}" for line in warnings]


def _may_train(config: Config, outcome: Outcome) -> bool:
    """Return whether a run may get past these rows."""
    allowed = config.data.max_bad_fraction
    if outcome.bad and (allowed == 0 or not outcome.key.startswith("data.train")):
        return False
    return outcome.bad < outcome.rows or outcome.rows == 0 or allowed == 1


def _lines(outcome: Outcome) -> Iterator[str]:
    if outcome.bad:
        yield (
            f"{outcome.first_bad}: so are {outcome.bad} of the first {outcome.rows} rows of"
            f" {outcome.key}: correct the row or data.hook, or see data.max_bad_fraction; {_ANYWAY}"
        )
    elif outcome.rows and not outcome.kept:
        why = f"; {outcome.too_long} of them are too long (data.on_too_long)"
        yield (
            f"data.hook: makes no example of the first {outcome.rows} rows of {outcome.key}"
            f"{why if outcome.too_long else ''}: look at them with  llada-sft check"
        )


def _answer(run: "partial[None]", limit_s: float) -> tuple[Sequence[Outcome], str | None] | str:
    """Return what the process sends, or in words why it sends nothing."""
    process = PipedProcess(run, frozenset({signal.SIGINT}))
    try:
        if not process.pipe.poll(limit_s):
            return (
                f"was not done with the first rows after {limit_s:g} s: a hook that hangs would end"
                f" the run; {_ANYWAY}"
            )
        answer: tuple[Sequence[Outcome], str | None] = process.receive()
        return answer
    except EOFError:
        return f"the process that ran it {process.how_it_ended()}; {_ANYWAY}"
    finally:
        process.kill()
        process.join()
        # And what the hook has started. The group has the number of its first process.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.pipe.close()


def _try(config: Config, folder: str, pipe: Connection) -> None:
    os.setsid()
    signal.alarm(_SELF_END_S)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    # No __pycache__ next to the hook.
    sys.dont_write_bytecode = True
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    outcomes: list[Outcome] = []
    try:
        outcomes += _outcomes(config)
    except LladaSftError as error:
        pipe.send((outcomes, f"{error}; {_ANYWAY}"))
        return
    pipe.send((outcomes, None))


def _outcomes(config: Config) -> Iterator[Outcome]:
    from llada_sft.data.examples.encode import build_encoder
    from llada_sft.data.sources import list_sources, list_validation

    encoder = build_encoder(config.data, Path(config.model.path), _token_ids(config))
    for key, sources in (
        ("data.train", list_sources(config.data, config.train.epochs)),
        ("data.validation", list_validation(config.data)),
    ):
        for source in sources:
            name = f"{key}.{source.name}" if source.name else key
            yield _outcome(config, name, source, encoder)


def _outcome(config: Config, key: str, source: "Source", encoder: "Encoder") -> Outcome:
    from llada_sft.data.examples.quarantine import BadRowError
    from llada_sft.data.records.detect import detect_format
    from llada_sft.data.storage.files import RemoteFile

    # Nothing is fetched to a login node.
    if any(isinstance(named.shard, RemoteFile) for named in source.shards):
        return Outcome(key, rows=0)
    format = source.format
    if format == "auto":
        format = detect_format(source, config.data.cache_dir).format or "raw"
    encode = encoder.for_format(format, source.rules)
    rows = bad = kept = too_long = 0
    first_bad = ""
    for row in _rows(source, config.data.try_rows):
        rows += 1
        try:
            encoded = encode(row)
        except BadRowError as error:
            bad += 1
            first_bad = first_bad or str(error.bad_row)
            continue
        kept += bool(encoded.examples)
        too_long += not encoded.examples and encoded.counts.skipped > 0
    return Outcome(key, rows, bad, first_bad, kept, too_long)


def _rows(source: "Source", most: int) -> Iterator["Row"]:
    """Yield the first rows of the first shards: at least one row of each."""
    from llada_sft.data.rows.unindexed import unindexed_rows

    shards = source.shards[: min(_SHARDS, most)]
    for number, named in enumerate(shards):
        # The first shards get what does not divide evenly.
        yield from islice(unindexed_rows(named), (most + len(shards) - 1 - number) // len(shards))


def _token_ids(config: Config) -> "TokenIds":
    """Return what encoding needs to know of the network, as the ranks work it out."""
    from llada_sft.data.examples.tokenizer import TokenIds, load_tokenizer
    from llada_sft.model.families import family_of
    from llada_sft.model.settings import find_mask_token, read_settings

    directory, model = Path(config.model.path), config.model
    block_length = config.objective.block_tokens
    if model.size is None:
        settings = read_settings(directory, model.mask_token)
        family = family_of(settings)
        assert family is not None
        found: Any = family.architecture(settings)
        return TokenIds(
            vocab_size=found.vocab_size,
            eos_token_id=found.eos_token_id,
            mask_token_id=found.mask_token_id,
            chat_template=family.chat_template,
            pad_token_id=found.pad_token_id,
            reserved=found.reserved_token_ids,
            block_length=block_length,
        )
    mask = find_mask_token(directory, model.mask_token)
    tokenizer = load_tokenizer(directory, mask)
    if tokenizer.eos_token_id is None:
        raise DataError(f"{directory}: tokenizer has no EOS token")
    return TokenIds(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        mask_token_id=tokenizer.mask_token_id if mask is None else mask,
        pad_token_id=tokenizer.eos_token_id,
        block_length=block_length,
    )
