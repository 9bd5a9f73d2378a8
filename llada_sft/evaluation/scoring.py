"""Answers in their contexts -> likelihoods, many of them together.

All masked copies of all answers are rows of one stream. As many as fit share a forward pass as one
packed row: they may be of any length, none is padded, and none looks at another. The head runs at
masked positions only.

What is masked depends on the seed, on the context and on the length of the answer: not on other
requests, their order, the batch or the rank. Numbers differ between batches by rounding alone.
Answers of one length to one context share their masks, which lowers the variance of the differences
that decide a multiple choice; answers of different lengths are independent.

Shapes: M masked positions of a forward pass, V rows of the head.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor

from llada_sft.diffusion.generate import probability_of
from llada_sft.diffusion.likelihood import summed_cross_entropies
from llada_sft.diffusion.strata import Likelihood, combine, draw_strata
from llada_sft.keys import hashed
from llada_sft.model.layers.attention import Sequences
from llada_sft.model.network import Network

# The logits of a forward pass have this size at most, in fp32; those of one row may have more.
_LOGITS_BYTES = 512 << 20
T = TypeVar("T")


@dataclass(frozen=True)
class AnswerInContext:
    """Token ids of a context, which may be empty, and of the answer whose likelihood is asked."""

    context: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class ScoringSettings:
    """How answers are scored.

    Attributes:
        num_draws: At most so many masks for each answer; the paper uses 128.
        cfg_scale: Strength of unsupervised classifier-free guidance; 0 is none, and half the work.
        seed: Of the masks.
        max_tokens: Tokens of a forward pass, at most; a longer row is alone.
        mask_token_id: None: the model's.
    """

    num_draws: int = 128
    cfg_scale: float = 0.0
    seed: int = 0
    max_tokens: int = 8192
    mask_token_id: int | None = None


@dataclass(frozen=True)
class _MaskedRow:
    """A row of the network.

    Attributes:
        ids: [L] int64, with mask tokens.
        without_context: [L] int64, with the context masked, too.
        context_length: Tokens before the answer.
        positions: [m] int64, the masked ones.
    """

    ids: Tensor
    without_context: Tensor
    context_length: int
    positions: Tensor


@torch.no_grad()
def log_likelihoods(
    model: Network, requests: Sequence[AnswerInContext], settings: ScoringSettings
) -> list[Likelihood]:
    """Estimate lower bounds of log p(answer | context), in nats.

    Args:
        model: In evaluation mode.
        requests: What is scored; an empty answer is certain.
        settings: For all of them.

    Raises:
        ValueError: Neither the settings nor the model name the mask token.

    Source: LLaDA (arXiv 2502.09992), eq. 6 and 14, algorithm 3; `diffusion/strata.py`.
    """
    answered = [request for request in requests if request.answer]
    strata = [
        draw_strata(
            len(request.answer), settings.num_draws, hashed(settings.seed, *request.context)
        )
        for request in answered
    ]
    masks = [[mask for stratum in each for mask in stratum.masks] for each in strata]
    mask_token_id = _mask_token_id(model, settings)
    rows = (
        (_masked_row(request, mask, mask_token_id), torch.tensor(request.answer)[mask])
        for request, own in zip(answered, masks, strict=True)
        for mask in own
    )
    losses = chain.from_iterable(
        _losses(model, batch, settings.cfg_scale) for batch in _batches(model, rows, settings)
    )
    bounds = (
        combine(len(request.answer), each, [next(losses) for _ in own])
        for request, each, own in zip(answered, strata, masks, strict=True)
    )
    return [next(bounds) if request.answer else Likelihood(0.0, 0.0) for request in requests]


@torch.no_grad()
def are_greedy(
    model: Network, requests: Sequence[AnswerInContext], settings: ScoringSettings
) -> list[bool]:
    """Return for each answer whether the model would give it.

    It starts fully masked. Each step writes the most confident masked token; the first one that is
    not the answer's ends it: what is written never changes.

    Args:
        model: In evaluation mode.
        requests: What is asked; an empty answer is given.
        settings: `num_draws` and `seed` are not used.

    Raises:
        ValueError: Neither the settings nor the model name the mask token.

    Source: the official eval_llada.py, `suffix_greedy_prediction`.
    """
    mask_token_id = _mask_token_id(model, settings)
    masked = {i: torch.ones(len(r.answer), dtype=torch.bool) for i, r in enumerate(requests)}
    greedy = [True] * len(requests)
    active = [i for i, request in enumerate(requests) if request.answer]
    while active:
        rows = ((_masked_row(requests[i], masked[i], mask_token_id), i) for i in active)
        for batch in _batches(model, rows, settings):
            logits = _masked_logits(model, [row for row, _ in batch], settings.cfg_scale)
            parts = torch.split(logits, [len(row.positions) for row, _ in batch])
            for (row, i), part in zip(batch, parts, strict=True):
                predicted = part.argmax(dim=-1)
                best = int(probability_of(part, predicted).argmax())
                place = int(row.positions[best]) - row.context_length
                masked[i][place] = False
                greedy[i] = int(predicted[best]) == requests[i].answer[place]
        active = [i for i in active if greedy[i] and masked[i].any()]
    return greedy


def _mask_token_id(model: Network, settings: ScoringSettings) -> int:
    chosen = settings.mask_token_id
    if chosen is None:
        chosen = model.architecture.mask_token_id
    if chosen is None:
        raise ValueError("mask_token_id must be given: the model's config.json does not name it")
    return chosen


def _masked_row(request: AnswerInContext, mask: Tensor, mask_token_id: int) -> _MaskedRow:
    num_context = len(request.context)
    answer = torch.tensor(request.answer).masked_fill(mask, mask_token_id)
    ids = torch.cat([torch.tensor(request.context, dtype=torch.int64), answer])
    without = ids.index_fill(0, torch.arange(num_context), mask_token_id)
    return _MaskedRow(ids, without, num_context, num_context + mask.nonzero().squeeze(1))


def _batches(
    model: Network, rows: Iterable[tuple[_MaskedRow, T]], settings: ScoringSettings
) -> Iterator[list[tuple[_MaskedRow, T]]]:
    """Yield as many rows as fit into one forward pass, each with what belongs to it."""
    copies = 1 if settings.cfg_scale == 0 else 2
    most_masked = _LOGITS_BYTES // (4 * model.architecture.num_embeddings)
    batch: list[tuple[_MaskedRow, T]] = []
    num_tokens = num_masked = 0
    for row, other in rows:
        own_tokens, own_masked = copies * len(row.ids), copies * len(row.positions)
        too_long = num_tokens + own_tokens > settings.max_tokens
        if batch and (too_long or num_masked + own_masked > most_masked):
            yield batch
            batch, num_tokens, num_masked = [], 0, 0
        batch.append((row, other))
        num_tokens, num_masked = num_tokens + own_tokens, num_masked + own_masked
    if batch:
        yield batch


def _losses(
    model: Network, batch: Sequence[tuple[_MaskedRow, Tensor]], cfg_scale: float
) -> list[float]:
    """Return Σ_masked CE of each row."""
    logits = _masked_logits(model, [row for row, _ in batch], cfg_scale)
    numbers = torch.tensor([len(row.positions) for row, _ in batch])
    rows = torch.arange(len(batch)).repeat_interleave(numbers).to(logits.device)
    targets = torch.cat([targets for _, targets in batch]).to(logits.device)
    sums: list[float] = summed_cross_entropies(logits, targets, rows, len(batch)).tolist()
    return sums


def _masked_logits(model: Network, rows: Sequence[_MaskedRow], cfg_scale: float) -> Tensor:
    """Return the logits at the masked positions of all rows, [M, V].

    Source: Nie et al., "Scaling up Masked Diffusion Models on Text" (arXiv 2410.18514), eq. 8, for
    guidance: contexts are masked in a second copy of the rows.
    """
    if cfg_scale == 0:
        return _packed_logits(model, [row.ids for row in rows], [row.positions for row in rows])
    copies = [row.ids for row in rows] + [row.without_context for row in rows]
    both = _packed_logits(model, copies, [row.positions for row in rows] * 2)
    logits, unconditional = both.chunk(2)
    return unconditional + (cfg_scale + 1) * (logits - unconditional)


def _packed_logits(model: Network, ids: Sequence[Tensor], positions: Sequence[Tensor]) -> Tensor:
    lengths = [len(row) for row in ids]
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0).tolist()
    wanted = torch.cat([own + start for own, start in zip(positions, starts, strict=True)])
    logits: Tensor = model(
        torch.cat(list(ids))[None].to(model.device),
        positions=wanted.to(model.device),
        sequences=Sequences(lengths),
    ).logits
    return logits
