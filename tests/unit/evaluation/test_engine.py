"""Requests of lm-evaluation-harness -> answers: the official ones, each computed once."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from llada_sft.errors import CheckpointError, ConfigError
from llada_sft.evaluation import engine as engine_module
from llada_sft.evaluation.answer_cache import AnswerCache, Entry
from llada_sft.evaluation.engine import GENERATE, ROLLING, Asked, Engine
from llada_sft.evaluation.loaded import LoadedModel
from llada_sft.evaluation.scoring import AnswerInContext, ScoringSettings, log_likelihoods
from llada_sft.evaluation.settings import EvalConfig, load_eval_config

LIKELIHOOD = "loglikelihood"
PAIRS = [("w5 w6", " w7 w8"), ("w5 w6", " w9"), ("w1 w2 w3", " w4 w4 w4 w4 w4 w4 w4 w4")]


def engine_of(
    model: LoadedModel, *overrides: str, chat: bool = False, cache: AnswerCache | None = None
) -> Engine:
    config = load_eval_config(None, overrides)
    return Engine(model, config, chat, AnswerCache(None) if cache is None else cache)


def test_contexts_and_answers_are_encoded_as_the_official_code_does(
    golden_model: LoadedModel, official: dict[str, Any]
) -> None:
    engine = engine_of(golden_model)
    for case in official["encode_pair"]:
        pair = engine.encode_pair(case["context"], case["continuation"])
        assert list(pair) == case["result"]


def test_answers_are_the_official_ones(golden_model: LoadedModel, official: dict[str, Any]) -> None:
    for case in official["generate_until"]:
        lengths = [
            f"generation.{name}={case[name]}" for name in ("steps", "gen_length", "block_length")
        ]
        engine = engine_of(golden_model, *lengths)
        asked = engine.asked(GENERATE, [(case["question"], {"until": case["until"]})])
        (entry,) = engine.entries(asked)
        assert entry["text"] == case["output"]
        assert entry["uncut"] == case["output_without_stops"]
        assert list(entry["until"]) == case["until"]
        assert entry["num_passes"] == case["steps"]


def test_likelihoods_are_those_of_the_tokens(golden_model: LoadedModel) -> None:
    engine = engine_of(golden_model, "likelihood.check_greedy=true")
    entries = engine.entries(engine.asked(LIKELIHOOD, PAIRS))
    tokens = [
        AnswerInContext((5, 6), (7, 8)),
        AnswerInContext((5, 6), (9,)),
        AnswerInContext((1, 2, 3), (4,) * 8),
    ]
    bounds = log_likelihoods(golden_model.network, tokens, ScoringSettings())
    assert [entry["value"] for entry in entries] == pytest.approx(
        [b.value for b in bounds], rel=1e-6
    )
    assert [entry["standard_error"] for entry in entries] == pytest.approx(
        [bound.standard_error for bound in bounds], rel=1e-5
    )
    assert [entry["num_tokens"] for entry in entries] == [2, 1, 8]


def test_greedy_is_said_of_each_request(
    golden_model: LoadedModel, official: dict[str, Any]
) -> None:
    engine = engine_of(golden_model, "likelihood.check_greedy=true")
    cases = [case for case in official["loglikelihood"] if case["cfg"] == 0]

    def words(ids: list[int]) -> str:
        return " ".join(f"w{token}" for token in ids)

    pairs = [(words(case["prefix"]), " " + words(case["target"])) for case in cases]
    entries = engine.entries(engine.asked(LIKELIHOOD, pairs))
    assert [entry["is_greedy"] for entry in entries] == [case["is_greedy"] for case in cases]


def test_a_long_text_is_a_sum_over_pieces(golden_model: LoadedModel) -> None:
    golden_model.max_length = 8
    engine = engine_of(golden_model, "likelihood.num_draws=15")
    ids = tuple(range(10, 22))
    text = " ".join(f"w{number}" for number in ids)
    (entry,) = engine.entries(engine.asked(ROLLING, [(text,)]))
    pieces = [((), ids[:4]), (ids[:4], ids[4:8]), (ids[4:8], ids[8:])]
    bounds = log_likelihoods(
        golden_model.network, [AnswerInContext(*piece) for piece in pieces], ScoringSettings(15)
    )
    assert entry["value"] == pytest.approx(sum(bound.value for bound in bounds), rel=1e-6)
    assert entry["num_tokens"] == 12


def test_what_is_too_long_loses_its_start_and_is_counted(golden_model: LoadedModel) -> None:
    golden_model.max_length = 6
    engine = engine_of(golden_model, "generation.gen_length=4", "generation.block_length=4")
    whole, cut = engine.entries(
        engine.asked(LIKELIHOOD, [("w3 w4 w5 w6", " w7 w8"), ("w1 w2 w3 w4 w5 w6", " w7 w8")])
    )
    assert whole["value"] == pytest.approx(cut["value"], rel=1e-6)
    assert engine.num_truncated == 1
    short, long = engine.entries(engine.asked(GENERATE, [("w5 w6", {}), ("w4 w5 w6", {})]))
    assert short["text"] == long["text"]
    assert engine.num_truncated == 2


def test_answers_as_long_as_the_model_are_refused(golden_model: LoadedModel) -> None:
    """They would leave one token of the prompt, at positions that the model does not know."""
    engine = engine_of(golden_model, "generation.gen_length=256")
    with pytest.raises(ConfigError) as error:
        engine.entries(engine.asked(GENERATE, [("w5 w6", {})]))
    assert str(error.value) == (
        f"generation.gen_length: must be below the 256 positions that {golden_model.directory}"
        " knows, got 256: there is no room for a prompt"
    )


def test_a_model_without_eos_is_one_line_where_it_is_needed(golden_model: LoadedModel) -> None:
    golden_model.eos_token_id = None
    lengths = ("generation.gen_length=4", "generation.block_length=4")
    engine = engine_of(golden_model, *lengths, "generation.logits_eos_inf=true")
    with pytest.raises(CheckpointError) as error:
        engine.entries(engine.asked(GENERATE, [("w5 w6", {})]))
    path = golden_model.directory / "config.json"
    assert str(error.value) == f"{path}: eos_token_id: must be given, got null: answers need it"
    engine = engine_of(golden_model, *lengths)
    assert len(engine.entries(engine.asked(GENERATE, [("w5 w6", {})]))) == 1


def test_a_bos_that_the_tokenizer_adds_is_context_not_answer(golden_model: LoadedModel) -> None:
    golden_model.tokenizer = copy.deepcopy(golden_model.tokenizer)
    golden_model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="w504 $A", special_tokens=[("w504", 504)]
    )
    engine = engine_of(golden_model)
    assert engine.encode_pair("", "w7 w8") == ([504], [7, 8])
    assert engine.encode_pair("w5", " w7") == ([504, 5], [7])


def test_the_task_s_stop_strings_end_answers_without_a_template_only(
    golden_model: LoadedModel,
) -> None:
    task = {"until": ["w1", "w2"]}
    assert engine_of(golden_model).until(task) == ("w1", "w2")
    assert engine_of(golden_model, chat=True).until(task) == ()
    assert engine_of(golden_model, "generation.until=task", chat=True).until(task) == ("w1", "w2")
    assert engine_of(golden_model, "generation.until=end_of_turn").until(task) == ()
    assert engine_of(golden_model).until({"until": "w3"}) == ("w3",)
    assert engine_of(golden_model).until({}) == ()


class Counting(Engine):
    """Counts the requests that are computed."""

    computed = 0

    def _score(self, chunk: Any) -> list[tuple[Asked, Entry]]:
        Counting.computed += len(chunk)
        return super()._score(chunk)


def test_a_killed_evaluation_continues_with_the_rest(
    golden_model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk of each request; it dies after the second, with half a line on the disk."""
    monkeypatch.setattr(engine_module, "_PASSES_OF_CHUNK", 0)
    monkeypatch.setattr(Counting, "computed", 0)

    def counting() -> Counting:
        return Counting(golden_model, EvalConfig(), False, AnswerCache(tmp_path))

    first = counting()
    first.on_answer = lambda *_: die() if Counting.computed == 2 else None
    with pytest.raises(KeyboardInterrupt):
        first.entries(first.asked(LIKELIHOOD, PAIRS))
    first.cache.close()
    with next(tmp_path.iterdir()).open("a") as file:
        file.write('{"key": "5')
    second = counting()
    assert len(second.entries(second.asked(LIKELIHOOD, PAIRS))) == 3
    second.cache.close()
    assert Counting.computed == 3


def die() -> None:
    raise KeyboardInterrupt


def test_ranks_compute_each_request_once(
    golden_model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a request that is made twice; other numbers of ranks find all of it."""
    monkeypatch.setattr(Counting, "computed", 0)
    requests = [*PAIRS, PAIRS[0]]
    for rank in range(2):
        engine = Counting(golden_model, EvalConfig(), False, AnswerCache(tmp_path, rank, 2))
        engine.compute_share(engine.asked(LIKELIHOOD, requests), rank, 2)
        engine.cache.close()
    assert Counting.computed == 3
    for world_size in (1, 3):
        engine = Counting(golden_model, EvalConfig(), False, AnswerCache(tmp_path, 0, world_size))
        entries = engine.entries(engine.asked(LIKELIHOOD, requests))
        assert entries[0] == entries[3]
    assert Counting.computed == 3


def test_random_answers_are_the_same_in_any_batch_and_differ_in_repeats(
    golden_model: LoadedModel,
) -> None:
    lengths = ["generation.gen_length=4", "generation.block_length=4", "generation.temperature=1"]
    engine = engine_of(golden_model, *lengths)
    requests = [(f"w{number} w2", {}) for number in range(3)]
    twice = engine.entries(engine.asked(GENERATE, [requests[0], *requests]))
    assert twice[0]["text"] != twice[1]["text"]
    alone = engine_of(golden_model, *lengths)
    torch.manual_seed(7)
    (entry,) = alone.entries(alone.asked(GENERATE, [requests[2]]))
    assert entry["text"] == twice[3]["text"]
    other = engine_of(golden_model, *lengths, "generation.seed=1")
    assert other.entries(other.asked(GENERATE, [requests[2]]))[0]["text"] != entry["text"]


def test_what_needs_another_attention_is_refused(golden_model: LoadedModel) -> None:
    golden_model.decodes_in_blocks = True
    engine = engine_of(golden_model)
    with pytest.raises(ConfigError) as error:
        engine.entries(engine.asked(GENERATE, [("w5 w6", {"until": []})]))
    assert str(error.value) == (
        "generation.sampler: must be one of llada2, llada21, got 'official': this network attends"
        " in blocks"
    )
    engine = engine_of(golden_model, "generation.sampler=llada2")
    with pytest.raises(ConfigError, match="attends in blocks, and likelihoods are computed with"):
        engine.entries(engine.asked(LIKELIHOOD, PAIRS))
