"""A survey as text for people, and as JSON for machines. docs/check.md documents the keys."""

from collections.abc import Iterator, Sequence
from typing import Any

from llada_sft.check.epoch_plan import RankEpoch
from llada_sft.check.findings import (
    Finding,
    eos_share_of_loss,
    idle_share,
    too_long_share,
)
from llada_sft.check.lengths import Lengths
from llada_sft.check.rendering import legend, lines_of
from llada_sft.check.survey import Dataset, Survey
from llada_sft.data.records.unread import listed_unread

VERSION = 1
_LABEL = 17
_BAR = 30
# With more ranks, only some of them are shown.
_ALL_RANKS = 8


def as_json(survey: Survey, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return everything under stable keys."""
    train, validation = survey.train, survey.validation
    return {
        "version": VERSION,
        "ok": not any(finding.level == "problem" for finding in findings),
        "estimated": survey.estimated,
        "ranks": survey.request.ranks,
        "train": {
            **_dataset_json(train),
            "duplicates": {"rows": survey.repeats, "first": survey.first_repeats},
        },
        "validation": validation
        and {
            **_dataset_json(validation),
            "in_train": survey.leaked,
        },
        "train_rows_in_validation": {"rows": survey.leaks, "first": survey.first_leaks},
        "epoch": _epoch_json(survey) if survey.epoch else None,
        "per_rank": [
            {
                "rank": number,
                "rows": rank.rows,
                "examples": rank.examples,
                "tokens": rank.tokens,
                "steps": rank.steps,
            }
            for number, rank in enumerate(survey.epoch)
        ],
        "findings": [
            {"level": finding.level, "code": finding.code, "message": finding.message}
            for finding in findings
        ],
        "examples": [
            {
                "where": example.where,
                "pieces": [{"kind": k, "text": text} for k, text in example.pieces],
            }
            for example in survey.shown
        ],
    }


def _dataset_json(data: Dataset) -> dict[str, Any]:
    counts = data.counts
    return {
        "path": data.path,
        "sources": [
            {
                "name": source.source.name,
                "path": source.source.path,
                "format": source.format,
                "shards": len(source.source.shards),
                "rows": source.num_rows,
            }
            for source in data.sources
        ],
        "shards": len(data.num_rows),
        "rows": sum(data.num_rows),
        "rows_read": counts.rows,
        "examples": data.examples,
        "bad_rows": {
            "rows": counts.num_bad,
            "by_reason": dict(sorted(counts.bad.items())),
            "first": [row.to_json() for row in data.first_bad],
        },
        "left_out_rows": counts.left_out,
        "not_learned_rows": counts.not_learned,
        "special_token_rows": counts.special_tokens,
        "already_rendered_rows": counts.already_rendered,
        "unread_fields": dict(sorted(counts.unread.items())),
        "too_long": {
            "clipped": counts.clipped,
            "skipped": counts.skipped,
            "share": too_long_share(counts, data.examples),
        },
        "prompt_tokens": _lengths_json(data.prompts),
        "response_tokens": _lengths_json(data.responses),
    }


def _lengths_json(lengths: Lengths | None) -> dict[str, Any] | None:
    if lengths is None:
        return None
    return {
        "mean": lengths.mean,
        **{f"p{share}": length for share, length in lengths.percentiles.items()},
        "max": lengths.longest,
        "histogram": [{"up_to": end, "count": count} for end, count in lengths.histogram],
    }


def _epoch_json(survey: Survey) -> dict[str, Any]:
    epoch = survey.epoch
    steps, tokens = max(rank.steps for rank in epoch), sum(rank.tokens for rank in epoch)
    positions, objective = all_positions(survey), survey.request.config.objective
    response, eos = sum(r.response_tokens for r in epoch), sum(r.eos_tokens for r in epoch)
    return {
        "steps": steps,
        "examples": sum(rank.examples for rank in epoch),
        "tokens": tokens,
        "all_tokens": positions,
        "network_positions": positions * objective.draws * objective.halves,
        "fill": tokens / max(positions, 1),
        "response_tokens": response,
        "eos_tokens": eos,
        "eos_share": eos / max(response, 1),
        "eos_share_of_loss": eos_share_of_loss(survey),
        "void_tokens": sum(rank.void_tokens for rank in epoch),
        "idle_share": idle_share(survey),
        "tokens_max_over_mean": _max_over_mean([rank.tokens for rank in epoch]),
    }


def all_positions(survey: Survey) -> int:
    """Count all tokens that the network runs on, also of the ranks that wait for others."""
    epoch = survey.epoch
    steps = max(rank.steps for rank in epoch)
    # An empty micro-batch is one token.
    empty = survey.request.config.train.accumulate_grad_batches
    return sum(rank.positions + (steps - rank.steps) * empty for rank in epoch)


def _max_over_mean(values: Sequence[int]) -> float:
    return max(values) * len(values) / max(sum(values), 1)


def as_text(survey: Survey, findings: Sequence[Finding], colour: bool) -> str:
    """Lay everything out for people."""
    lines = [*_examples(survey, colour), *_dataset(survey.train, "data.train")]
    lines.append(_line("duplicates", _repeats(survey)))
    lines += _named(survey.first_repeats, "again")
    if survey.validation is not None:
        lines += ["", *_dataset(survey.validation, "data.validation")]
        lines.append(_line("in training", _of(survey.leaked, survey.validation.counts.rows)))
        lines += _named(survey.first_leaks, "is also")
    lines += ["", *_epoch(survey), ""]
    lines += [f"{finding.level}: {finding.message}" for finding in findings]
    if not findings:
        lines.append("nothing would stop or spoil the run")
    return "\n".join(lines)


def _examples(survey: Survey, colour: bool) -> Iterator[str]:
    if not survey.shown:
        return
    yield legend(colour)
    for shown in survey.shown:
        yield from lines_of(shown, colour)
    yield ""


def _dataset(data: Dataset, name: str) -> Iterator[str]:
    counts, rows = data.counts, sum(data.num_rows)
    yield _line(name, data.path)
    for source in data.sources:
        name = f"{source.source.name}: {source.num_rows:,} rows, " if source.source.name else ""
        yield _line("format", name + source.format)
    read = "" if counts.rows == rows else f", of which {counts.rows:,} were read"
    shards = "shard" if len(data.num_rows) == 1 else "shards"
    yield _line("rows", f"{rows:,} in {len(data.num_rows):,} {shards}{read}")
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.bad.items()))
    yield _line("bad rows", _of(counts.num_bad, counts.rows) + (f": {reasons}" if reasons else ""))
    yield from (f"{'':<{_LABEL}}{row}" for row in data.first_bad)
    if counts.dropped_by_hook:
        yield _line("dropped", f"{_of(counts.dropped_by_hook, counts.rows)} by the hook")
    if counts.not_learned:
        skipped = _of(counts.not_learned, counts.rows)
        yield _line("skipped", f"{skipped}: no turn of theirs is to be learned")
    if counts.special_tokens:
        rows_with = _of(counts.special_tokens, counts.rows)
        yield _line("special tokens", f"in the text of {rows_with} rows")
    if counts.unread:
        yield _line("not read", listed_unread(counts.unread))
    yield _line("examples", f"{data.examples:,}")
    share = too_long_share(counts, data.examples)
    yield _line("too long", f"{counts.clipped:,} cut, {counts.skipped:,} skipped ({share:.2%})")
    yield from _lengths("prompt tokens", data.prompts)
    yield from _lengths("response tokens", data.responses)


def _lengths(name: str, lengths: Lengths | None) -> Iterator[str]:
    if lengths is None:
        return
    shares = ", ".join(f"{share} % ≤ {n:,}" for share, n in lengths.percentiles.items())
    yield _line(name, f"mean {lengths.mean:,.1f}, {shares}, longest {lengths.longest:,}")
    most = max(count for _, count in lengths.histogram)
    for end, count in lengths.histogram:
        bar = "█" * -(-_BAR * count // most)
        yield f"{f'≤ {end:,}':>{_LABEL + 8}} {bar:<{_BAR}} {count:,}"


def _repeats(survey: Survey) -> str:
    return f"{_of(survey.repeats, survey.train.counts.rows)} repeat another row"


def _named(pairs: Sequence[tuple[str, str]], word: str) -> Iterator[str]:
    yield from (f"{'':<{_LABEL}}{first} {word} {second}" for first, second in pairs)


def _epoch(survey: Survey) -> Iterator[str]:
    if not survey.epoch:
        return
    about = "≈ " if survey.estimated else ""
    numbers = _epoch_json(survey)
    why = f", estimated from {survey.train.counts.rows:,} rows" if survey.estimated else ""
    mixed = any(source.source.name for source in survey.train.sources)
    yield _line("all epochs" if mixed else "epoch 1", f"{survey.request.ranks:,} ranks{why}")
    yield _line("steps", f"{about}{numbers['steps']:,}")
    yield _line("tokens", f"{about}{numbers['tokens']:,} (fill {numbers['fill']:.1%})")
    if survey.request.config.objective.halves > 1:
        computed = f"{about}{numbers['network_positions']:,}"
        yield _line("positions", f"{computed}: the network runs on noisy and clean ones of each")
    yield _line(
        "EOS tail",
        f"{about}{numbers['eos_share']:.1%} of the response tokens,"
        f" {numbers['eos_share_of_loss']:.1%} of the loss",
    )
    if numbers["void_tokens"]:
        share = numbers["void_tokens"] / max(numbers["tokens"], 1)
        yield _line("void tokens", f"{about}{numbers['void_tokens']:,} ({share:.1%} of the tokens)")
    yield _line(
        "imbalance",
        f"{about}{numbers['idle_share']:.1%} of the ranks' steps are empty; the busiest has"
        f" {numbers['tokens_max_over_mean']:.2f} times the mean tokens",
    )
    for number, rank in _some_ranks(survey.epoch):
        yield _line(
            f"  rank {number}",
            f"{about}{rank.tokens:,} tokens, {rank.examples:,} examples, {rank.steps:,} steps",
        )


def _some_ranks(epoch: Sequence[RankEpoch]) -> list[tuple[int, RankEpoch]]:
    """Choose all ranks, or those with most, middle and least to do."""
    ranks = list(enumerate(epoch))
    if len(ranks) <= _ALL_RANKS:
        return ranks
    ranks.sort(key=lambda rank: -rank[1].tokens)
    return [ranks[0], ranks[len(ranks) // 2], ranks[-1]]


def _line(name: str, value: str) -> str:
    return f"{name:<{_LABEL}}{value}"


def _of(part: int, whole: int) -> str:
    return f"{part:,} ({part / max(whole, 1):.2%})"
