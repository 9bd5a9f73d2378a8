"""Requests of lm-evaluation-harness -> entries of the cache, computed here or read from there.

    requests -> keys -> those that are unknown, the longest first -> chunks -> entries

With several ranks each computes a fixed share of the distinct requests (`compute_share`), whatever
is known already: each request is computed once, by one rank. Afterwards one process asks for all
of them (`entries`), and finds them.

A chunk is on the disk before the next one is computed.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from tqdm import tqdm

from llada_sft.data.records.chat_template import end_of_turn
from llada_sft.errors import ConfigError
from llada_sft.evaluation.answer_cache import AnswerCache, Entry, request_key
from llada_sft.evaluation.loaded import LoadedModel
from llada_sft.evaluation.scoring import (
    AnswerInContext,
    ScoringSettings,
    are_greedy,
    log_likelihoods,
)
from llada_sft.evaluation.settings import EvalConfig
from llada_sft.evaluation.texts import Texts
from llada_sft.generation import generate
from llada_sft.keys import hashed
from llada_sft.model.settings import no_eos

GENERATE = "generate_until"
ROLLING = "loglikelihood_rolling"
# Forward passes of a chunk of likelihoods: a killed process loses no more than these.
_PASSES_OF_CHUNK = 8
# Seeds of torch's generators are below it.
_SEEDS = 1 << 63


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        kind: The method of lm-evaluation-harness's models.
        args: Its arguments: texts, and for an answer to be generated the task's settings.
        until: The strings that end such an answer.
        repeat: Number of the same request among those before it, if answers are random.
    """

    kind: str
    args: tuple[Any, ...]
    until: tuple[str, ...] = ()
    repeat: int = 0

    @property
    def key(self) -> str:
        """Identifies what is asked."""
        texts = [argument for argument in self.args if isinstance(argument, str)]
        return request_key(self.kind, texts, self.until, self.repeat)

    @property
    def length(self) -> int:
        """Characters: an estimate of its cost."""
        return sum(len(argument) for argument in self.args if isinstance(argument, str))


class Engine:
    """Answers requests with one model and one task's settings.

    Args:
        model: The model directory.
        config: Settings of the task.
        chat: Whether prompts are rendered by the chat template.
        cache: What is known.

    Attributes:
        num_truncated: Requests that were too long for the model, and lost the start of their text.
        checks_greedy: Whether it is computed if the model would give an answer.
        shows_progress: Whether a bar is shown, on a terminal.
        on_answer: Called with each request that was computed, and its entry.
    """

    def __init__(
        self, model: LoadedModel, config: EvalConfig, chat: bool, cache: AnswerCache
    ) -> None:
        self.model, self.config, self.cache = model, config, cache
        self.texts = Texts(model.tokenizer, chat, model.eos_token_id)
        self.num_truncated = 0
        self.checks_greedy = config.likelihood.check_greedy is not False
        self.shows_progress = False
        self.on_answer: Callable[[Asked, Entry], None] = lambda asked, entry: None
        section = config.likelihood
        self._scoring = ScoringSettings(
            num_draws=section.num_draws,
            cfg_scale=section.cfg_scale,
            seed=section.seed,
            max_tokens=section.max_tokens,
            mask_token_id=model.mask_token_id,
        )
        self._sampler = config.generation.sampler_settings()
        self._is_random = bool(self._sampler.temperature or self._sampler.remasking == "random")

    def asked(self, kind: str, requests: Sequence[tuple[Any, ...]]) -> list[Asked]:
        """Return requests of one kind with what their answers depend on.

        Args:
            kind: The method of lm-evaluation-harness's models.
            requests: Their arguments.
        """
        if kind != GENERATE:
            return [Asked(kind, args) for args in requests]
        same: Counter[str] = Counter()
        asked = []
        for args in requests:
            request = Asked(kind, args, self.until(args[1]))
            if self._is_random:
                same[request.key] += 1
                request = Asked(kind, args, request.until, same[request.key] - 1)
            asked.append(request)
        return asked

    def until(self, task: dict[str, Any]) -> tuple[str, ...]:
        """Return the strings that end an answer: the task's, or none.

        Args:
            task: The task's settings of generation.
        """
        rule = self.config.generation.until
        if rule == "end_of_turn" or (rule is None and self.texts.chat):
            return ()
        until = task.get("until") or []
        return (until,) if isinstance(until, str) else tuple(until)

    def entries(self, asked: Sequence[Asked]) -> list[Entry]:
        """Return an entry for each request, in their order."""
        self._compute(_distinct(asked))
        return [self.cache[request.key] for request in asked]

    def compute_share(self, asked: Sequence[Asked], rank: int, world_size: int) -> None:
        """Compute what one of several ranks has to."""
        self._compute(_distinct(asked)[rank::world_size])

    def _compute(self, asked: Sequence[Asked]) -> None:
        unknown = [request for request in asked if request.key not in self.cache]
        generated = [request for request in unknown if request.kind == GENERATE]
        scored = [request for request in unknown if request.kind != GENERATE]
        self._require_fitting(bool(generated), bool(scored))
        # None: not where the output is no terminal.
        disable = None if self.shows_progress and unknown else True
        with tqdm(total=len(unknown), desc="answers", disable=disable) as bar:
            for chunk in chain(self._generated(generated), self._scored(scored)):
                self.cache.add(entry for _, entry in chunk)
                for request, entry in chunk:
                    self.on_answer(request, entry)
                bar.update(len(chunk))

    def _require_fitting(self, generates: bool, scores: bool) -> None:
        """Check that the model was trained with the attention and the lengths that are asked for.

        Raises:
            ConfigError: It was not.
            CheckpointError: It has no EOS token, and one is needed.
        """
        in_blocks = self.model.decodes_in_blocks
        mismatch = self._sampler.mismatch(in_blocks)
        if generates and mismatch is not None:
            raise ConfigError(f"generation.{mismatch.replace(' ', ': ', 1)}")
        if generates and self._sampler.lacks_eos(self.model.eos_token_id):
            raise no_eos(self.model.directory)
        gen_length, longest = self.config.generation.gen_length, self.model.max_length
        if generates and gen_length >= longest:
            raise ConfigError(
                f"generation.gen_length: must be below the {longest:,} positions that"
                f" {self.model.directory} knows, got {gen_length:,}: there is no room for a prompt"
            )
        if scores and in_blocks:
            raise ConfigError(
                f"{self.model.directory}: attends in blocks, and likelihoods are computed with full"
                " attention; take tasks that generate"
            )

    def _scored(self, asked: Sequence[Asked]) -> Iterator[list[tuple[Asked, Entry]]]:
        chunk: list[tuple[Asked, list[AnswerInContext]]] = []
        num_tokens = 0
        for request in asked:
            pieces = self._pieces(request)
            chunk.append((request, pieces))
            num_tokens += sum(map(self._num_tokens, pieces))
            if num_tokens >= _PASSES_OF_CHUNK * self._scoring.max_tokens:
                yield self._score(chunk)
                chunk, num_tokens = [], 0
        if chunk:
            yield self._score(chunk)

    def _num_tokens(self, piece: AnswerInContext) -> int:
        """Return the tokens that are computed for an answer, of all of its masks."""
        masks: int = min(self._scoring.num_draws, 2 ** len(piece.answer) - 1)
        return masks * (len(piece.context) + len(piece.answer))

    def _score(
        self, chunk: Sequence[tuple[Asked, list[AnswerInContext]]]
    ) -> list[tuple[Asked, Entry]]:
        pieces = [piece for _, own in chunk for piece in own]
        network = self.model.network
        bounds = iter(log_likelihoods(network, pieces, self._scoring))
        greedy = iter([False] * len(pieces))
        if self.checks_greedy:
            greedy = iter(are_greedy(network, pieces, self._scoring))
        entries = []
        for request, own in chunk:
            parts = [next(bounds) for _ in own]
            are_given = [next(greedy) for _ in own]
            errors = [part.standard_error for part in parts]
            entry = {
                "key": request.key,
                "value": math.fsum(part.value for part in parts),
                "standard_error": None if None in errors else math.hypot(*filter(None, errors)),
                "is_greedy": all(are_given),
                "num_tokens": sum(len(piece.answer) for piece in own),
            }
            entries.append((request, entry))
        return entries

    def _pieces(self, request: Asked) -> list[AnswerInContext]:
        """Return the answers whose likelihoods make up that of a request."""
        if request.kind == ROLLING:
            return self._windows(self.texts.encode(request.args[0]))
        context, answer = self.encode_pair(*request.args)
        kept = max(0, self.model.max_length - len(answer))
        if len(answer) > self.model.max_length or len(context) > kept:
            self.num_truncated += 1
            answer = answer[: self.model.max_length]
            context = context[len(context) - kept :] if kept else []
        return [AnswerInContext(tuple(context), tuple(answer))]

    def _windows(self, ids: list[int]) -> list[AnswerInContext]:
        """Cut a text into pieces, each scored after as much of the text before as fits.

        The chain rule over pieces keeps the sum a lower bound of the text's log-likelihood.
        """
        longest = self.model.max_length
        if len(ids) <= longest:
            return [AnswerInContext((), tuple(ids))]
        stride = longest // 2
        return [
            AnswerInContext(
                tuple(ids[max(0, start - longest + stride) : start]),
                tuple(ids[start : start + stride]),
            )
            for start in range(0, len(ids), stride)
        ]

    def encode_pair(self, context: str, answer: str) -> tuple[list[int], list[int]]:
        """Return the ids of a context and of the answer after it.

        Spaces at the end of the context belong to the answer, and both are encoded together: the
        answer has the tokens that it has after the context. The end of a rendered prompt stays.

        Source: the official eval_llada.py, `_encode_pair`.
        """
        stripped = context if self.texts.chat else context.rstrip()
        answer = context[len(stripped) :] + answer
        # Of an empty context, a tokenizer that begins texts with BOS makes that alone.
        encoded = self.texts.encode(stripped)
        return encoded, self.texts.encode(stripped + answer)[len(encoded) :]

    def _generated(self, asked: Sequence[Asked]) -> Iterator[list[tuple[Asked, Entry]]]:
        # Random draws of a batch would depend on who is in it.
        size = 1 if self._is_random else self.config.generation.batch_size
        for start in range(0, len(asked), size):
            batch = asked[start : start + size]
            yield list(zip(batch, self._generate(batch), strict=True))

    def _generate(self, batch: Sequence[Asked]) -> list[Entry]:
        prompts = [self._prompt(request.args[0]) for request in batch]
        sampler = replace(
            self._sampler,
            seed=hashed(self._sampler.seed or 0, batch[0].key) % _SEEDS,
            mask_token_id=self.model.mask_token_id,
            eot_token_id=end_of_turn(self.model.tokenizer),
        )
        answers = generate(self.model.network, prompts, sampler)
        entries = []
        for request, answer in zip(batch, answers, strict=True):
            cut = self.texts.cut(answer.ids, request.until)
            entries.append(
                {
                    "key": request.key,
                    "text": cut.text,
                    "uncut": cut.uncut,
                    "until": request.until,
                    "num_passes": answer.num_passes,
                    "num_tokens": len(answer.ids),
                }
            )
        return entries

    def _prompt(self, text: str) -> list[int]:
        ids = self.texts.encode(text)
        kept = self.model.max_length - self._sampler.gen_length
        self.num_truncated += len(ids) > kept
        return ids[-kept:]


def _distinct(asked: Sequence[Asked]) -> list[Asked]:
    """Return the distinct requests, the longest first."""
    by_key = {request.key: request for request in asked}
    return sorted(by_key.values(), key=lambda request: (-request.length, request.key))
