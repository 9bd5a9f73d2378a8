"""What would stop or spoil the run (`Problem`, exit code 1), and what is only worth a look.

docs/check.md lists them for users.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from llada_sft.check.survey import Survey
from llada_sft.data.examples.row_counts import RowCounts
from llada_sft.data.records.unread import listed_unread
from llada_sft.errors import ConfigError

# Above the first it is worth a look, above the second a problem.
IDLE_WARNING, IDLE_PROBLEM = 0.1, 0.5
LEAK_PROBLEM = 0.01
REPEATS_WARNING = 0.01
TOO_LONG_WARNING = 0.1
EOS_WARNING = 0.5
RENDERED_PROBLEM = 0.01


@dataclass(frozen=True)
class Finding:
    """One line of what was found; `code` is for machines and stays."""

    level: Literal["problem", "warning"]
    code: str
    message: str


def findings_of(survey: Survey) -> list[Finding]:
    """Judge a survey; problems come first."""
    checks: tuple[Callable[[Survey], Iterator[Finding]], ...] = (
        _shards,
        _examples,
        _bad_rows,
        _validation,
        _too_long,
        _special_tokens,
        _already_rendered,
        _unread,
        _not_given_back,
        _leaks,
        _imbalance,
        _repeats,
        _eos,
    )
    findings = [finding for check in checks for finding in check(survey)]
    return sorted(findings, key=lambda finding: finding.level != "problem")


def idle_share(survey: Survey) -> float:
    """Work out the share of the ranks' steps in which a rank has no rows left."""
    steps = [rank.steps for rank in survey.epoch]
    longest = max(steps, default=0)
    return 1 - sum(steps) / (len(steps) * longest) if longest else 0.0


def eos_share_of_loss(survey: Survey) -> float:
    """Work out what share of the loss's weight is on the tails of EOS."""
    if survey.request.config.objective.normalization == "token":
        eos = sum(rank.eos_tokens for rank in survey.epoch)
        return eos / max(sum(rank.response_tokens for rank in survey.epoch), 1)
    examples = sum(rank.examples for rank in survey.epoch)
    return sum(rank.eos_weight for rank in survey.epoch) / max(examples, 1)


def too_long_share(counts: RowCounts, examples: int) -> float:
    """Work out the share of examples that were cut or skipped for their length."""
    return counts.too_long / max(examples + counts.skipped, 1)


def _problem(code: str, message: str) -> Finding:
    return Finding("problem", code, message)


def _warning(code: str, message: str) -> Finding:
    return Finding("warning", code, message)


def _shards(survey: Survey) -> Iterator[Finding]:
    for source in survey.train.sources:
        try:
            source.source.of_rank(0, survey.request.ranks)
        except ConfigError as error:
            yield _problem("too_few_shards", str(error))


def _examples(survey: Survey) -> Iterator[Finding]:
    if not survey.train.examples:
        yield _problem(
            "no_examples",
            f"{survey.train.path}: no row makes an example that could be learned"
            f" ({survey.train.counts}): see data.format, data.hook and data.max_length",
        )


def _bad_rows(survey: Survey) -> Iterator[Finding]:
    allowed = survey.request.config.data.max_bad_fraction
    remedy = f"data.max_bad_fraction allows {allowed:g}: fix them, or allow more"
    for rank, epoch in enumerate(survey.epoch):
        if epoch.stopped_by is not None:
            yield _problem("bad_rows", f"rank {rank}: {epoch.stopped_by}, {remedy}")
            return
    counts = survey.train.counts
    judged = survey.epoch and not survey.estimated
    if not judged and counts.num_bad > allowed * counts.rows:
        yield _problem("bad_rows", f"{counts.num_bad:,} of {counts.rows:,} rows are bad, {remedy}")


def _validation(survey: Survey) -> Iterator[Finding]:
    if survey.validation is not None and survey.validation.counts.num_bad:
        yield _problem(
            "bad_validation_rows",
            f"{survey.validation.path}: {survey.validation.counts.num_bad:,} bad rows, and the"
            " first ends the run: fix or remove them",
        )


def _too_long(survey: Survey) -> Iterator[Finding]:
    counts, data = survey.train.counts, survey.request.config.data
    share = too_long_share(counts, survey.train.examples)
    message = (
        f"{share:.1%} of the examples are longer than data.max_length ({data.max_length:,}):"
        f" {counts.clipped:,} cut, {counts.skipped:,} skipped"
    )
    if share == 1:
        yield _problem("all_too_long", f"{message}; raise it")
    elif share > TOO_LONG_WARNING:
        yield _warning("too_long", message)
    elif counts.clipped and data.on_too_long != "clip_prompt" and not data.eos_after_cut:
        yield _warning("cut_answers", f"{message}; no EOS follows them (data.eos_after_cut)")


def _special_tokens(survey: Survey) -> Iterator[Finding]:
    in_text = survey.request.config.data.special_tokens_in_text
    becomes = "the tokens themselves" if in_text == "token" else "the characters they are"
    if rows := survey.train.counts.special_tokens:
        yield _warning(
            "special_tokens",
            f"{rows:,} rows have special tokens in their text; they are encoded as {becomes}"
            f" (data.special_tokens_in_text: {in_text})",
        )


def _already_rendered(survey: Survey) -> Iterator[Finding]:
    counts = survey.train.counts
    if not counts.already_rendered:
        return
    message = (
        f"{counts.already_rendered:,} rows begin with BOS or a header, as if a chat template had"
        " rendered them, and are rendered once more: store what was rendered as"
        " data.format: text with data.special_tokens_in_text: token, or store the turns"
    )
    make = _problem if counts.already_rendered > RENDERED_PROBLEM * counts.rows else _warning
    yield make("already_rendered", message)


def _unread(survey: Survey) -> Iterator[Finding]:
    unread = Counter(survey.train.counts.unread)
    if survey.validation is not None:
        unread += Counter(survey.validation.counts.unread)
    if unread:
        yield _warning(
            "unread_fields", f"fields that the format does not read: {listed_unread(unread)}"
        )


def _not_given_back(survey: Survey) -> Iterator[Finding]:
    for text, decoded in survey.train.not_given_back[:1]:
        yield _warning(
            "lossy_tokenizer",
            f"the tokenizer does not give back every text that it encodes: {text!r} becomes"
            f" {decoded!r}",
        )


def _leaks(survey: Survey) -> Iterator[Finding]:
    if survey.validation is None or not survey.leaked:
        return
    rows = survey.validation.counts.rows
    message = (
        f"{survey.leaked:,} of {rows:,} rows of {survey.validation.path} are trained on:"
        " the validation loss is too low by them; remove them from one of the two"
    )
    make = _problem if survey.leaked > LEAK_PROBLEM * rows else _warning
    yield make("leakage", message)


def _imbalance(survey: Survey) -> Iterator[Finding]:
    share = idle_share(survey)
    if share <= IDLE_WARNING:
        return
    message = (
        f"ranks have no rows left in {share:.0%} of their steps: write the rows into shards of"
        " one size with  llada-sft shard"
    )
    make = _problem if share > IDLE_PROBLEM else _warning
    yield make("imbalance", message)


def _repeats(survey: Survey) -> Iterator[Finding]:
    rows = survey.train.counts.rows
    if survey.repeats > REPEATS_WARNING * rows:
        yield _warning(
            "duplicates",
            f"{survey.repeats:,} of {rows:,} rows repeat another: they are learned as often",
        )


def _eos(survey: Survey) -> Iterator[Finding]:
    share = eos_share_of_loss(survey)
    if share > EOS_WARNING:
        remedy = "set data.end to a small number, or use smaller micro-batches"
        if survey.request.config.data.end == "rainbow":
            remedy = "set data.end_tokens to fewer, or data.end to void"
        yield _warning("eos", f"{share:.0%} of the loss is learning the end padding: {remedy}")
