"""What every sampler promises, for networks of each family in float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from llada_sft.generation import Answer, SamplerSettings, generate
from llada_sft.generation.canvas import Canvas
from llada_sft.generation.predictor import Predictor
from llada_sft.model import Network
from tests.unit.generation.counting import counted

MASK = 510
WAYS: list[dict[str, Any]] = [
    {"sampler": "official"},
    {"sampler": "official", "eos_early_stop": True},
    {"sampler": "verify"},
    {"sampler": "threshold", "threshold": 0.025},
    {"sampler": "factor", "factor": 2.9},
    {"sampler": "entropy", "entropy_bound": 12.0},
    {"sampler": "prefix_cache"},
    {"sampler": "prefix_cache", "factor": 2.9},
    {"sampler": "dual_cache"},
    {"sampler": "dual_cache", "threshold": 0.025},
    {"sampler": "dual_cache", "entropy_bound": 12.0, "cfg_scale": 0.5},
]
# Without the two that give what the official code gives.
NOT_EXACT = [way for way in WAYS if not SamplerSettings(**way).exact]


def name(way: dict[str, Any]) -> str:
    return "-".join(str(value) for value in way.values())


every_way = pytest.mark.parametrize("way", WAYS, ids=name)
every_other_way = pytest.mark.parametrize("way", NOT_EXACT, ids=name)


def settings_of(way: dict[str, Any], **more: Any) -> SamplerSettings:
    sizes = {"gen_length": 12, "block_length": 4, "mask_token_id": MASK}
    return SamplerSettings(**(sizes | way | more))


def prompts_of(*lengths: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(0, 500, (length,), generator=draw).tolist() for length in lengths]


@contextmanager
def changed_logits(model: Network, change: Any) -> Iterator[None]:
    """Let `change(logits, places)` return what the network predicts at places of rows, [M, V]."""

    def hook(_: object, args: tuple[Tensor, ...], kwargs: Any, output: Any) -> Any:
        ids, positions, computed = args[0], kwargs["positions"], kwargs["places"]
        if computed is None:
            computed = torch.arange(ids.shape[1]).expand_as(ids)
        output.logits = change(output.logits, computed.flatten()[positions])
        return output

    handle = model.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@every_way
def test_a_batch_gives_what_its_prompts_give_alone(of_family: Network, way: dict[str, Any]) -> None:
    prompts, settings = prompts_of(5, 1, 9, 0), settings_of(way, eos_token_id=131)
    together = generate(of_family, prompts, settings)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = generate(of_family, [prompt], settings)
        assert answer.ids == alone.ids
        assert (answer.num_passes, answer.num_rows) == (alone.num_passes, alone.num_rows)
    assert [answer.batch_size for answer in together] == [4] * 4
    assert {answer.device for answer in together} == {"cpu"}


@torch.no_grad()
def test_each_row_of_an_uneven_batch_has_the_logits_of_its_single_run(of_family: Network) -> None:
    def logits(*prompts: list[int]) -> list[Tensor]:
        canvas = Canvas(
            prompts,
            lengths=[4] * len(prompts),
            max_length=4,
            block_length=4,
            mask_token_id=MASK,
            eos_token_id=None,
            device=torch.device("cpu"),
        )
        rows = torch.arange(len(prompts))
        wanted = canvas.open_in_block(rows, 0)
        return list(Predictor(of_family, canvas, 1.5).logits(canvas.ids, rows, wanted).split(4))

    prompts = prompts_of(3, 8, 0)
    for together, prompt in zip(logits(*prompts), prompts, strict=True):
        torch.testing.assert_close(together, logits(prompt)[0], atol=1e-5, rtol=0)


@every_way
def test_constant_logits_end(golden: Network, way: dict[str, Any]) -> None:
    """Below every threshold, and all candidates equal: one token at least with each pass."""
    with changed_logits(golden, lambda logits, *_: torch.zeros_like(logits)):
        answers = generate(golden, prompts_of(3, 6), settings_of(way))
    for answer in answers:
        assert len(answer.ids) == 12 and MASK not in answer.ids
        assert answer.num_passes <= 12


@every_other_way
def test_a_step_writes_one_token_at_least(golden: Network, way: dict[str, Any]) -> None:
    with counted(golden) as passes:
        generate(golden, prompts_of(4), settings_of(way, cfg_scale=0.0))
    whole = [ids for ids in passes if ids.shape[1] == 16]
    num_masks = [int((ids == MASK).sum()) for ids in whole]
    assert all(before > after for before, after in pairwise(num_masks))


@every_other_way
def test_a_network_that_predicts_the_mask_token_ends_without_it(
    golden: Network, way: dict[str, Any]
) -> None:
    def mask_token_first(logits: Tensor, *_: object) -> Tensor:
        return logits.index_add(1, torch.tensor([MASK]), torch.full_like(logits[:, :1], 50.0))

    with changed_logits(golden, mask_token_first):
        answers = generate(golden, prompts_of(3, 6), settings_of(way, eos_token_id=MASK))
    assert all(len(answer.ids) == 12 and MASK not in answer.ids for answer in answers)


def test_the_official_sampler_ends_as_its_code_does_where_the_mask_token_is_predicted(
    golden: Network,
) -> None:
    def only_mask_token(logits: Tensor, *_: object) -> Tensor:
        return torch.zeros_like(logits).index_fill(1, torch.tensor([MASK]), 1.0)

    with changed_logits(golden, only_mask_token):
        for sampler in ("official", "verify"):
            (answer,) = generate(golden, prompts_of(3), settings_of({"sampler": sampler}))
            assert answer.ids == [MASK] * 12


@every_other_way
def test_banned_tokens_never_appear(
    golden: Network, way: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, settings = prompts_of(3, 6), settings_of(way)
    banned = {token for answer in generate(golden, prompts, settings) for token in answer.ids}
    monkeypatch.setattr(golden.config, "suppress_tokens", sorted(banned))
    for answer in generate(golden, prompts, settings):
        assert not banned & set(answer.ids)


@every_other_way
def test_an_answer_ends_at_its_first_eos_and_costs_nothing_more(
    golden: Network, way: dict[str, Any]
) -> None:
    whole = generate(golden, prompts_of(5, 7), settings_of(way, eos_token_id=MASK))
    eos = whole[0].ids[1]
    with counted(golden) as passes:
        answers = generate(golden, prompts_of(5, 7), settings_of(way, eos_token_id=eos))
    for answer, uncut in zip(answers, whole, strict=True):
        end = uncut.ids.index(eos) + 1 if eos in uncut.ids else 12
        assert answer.ids == uncut.ids[:end]
        assert answer.num_passes <= uncut.num_passes
    assert answers[0].num_passes < whole[0].num_passes
    # A row that has ended is in no pass.
    assert sum(len(ids) for ids in passes) == sum(answer.num_rows for answer in answers)


@every_way
def test_tokens_once_written_never_change_and_blocks_are_filled_in_order(
    golden: Network, way: dict[str, Any]
) -> None:
    with counted(golden) as passes:
        (answer,) = generate(golden, prompts_of(4), settings_of(way, cfg_scale=0.0))
    states = [ids[0, 4:] for ids in passes if ids.shape[1] == 16]
    for before, after in zip(states, [*states[1:], torch.tensor(answer.ids)], strict=True):
        written = before != MASK
        assert torch.equal(before[written[: len(before)]], after[written])
        blocks = written.view(3, 4)
        for earlier, later in pairwise(blocks):
            assert earlier.all() or not later.any()


@torch.no_grad()
@pytest.mark.parametrize("remainder", [0, 1, 3])
@pytest.mark.parametrize("num_prompts", [1, 4])
@pytest.mark.parametrize("sampler", ["prefix_cache", "dual_cache"])
def test_a_cache_refreshed_at_each_step_equals_none(
    of_family: Network, remainder: int, num_prompts: int, sampler: Any
) -> None:
    """A block of one token is one step, and each block refreshes the cache."""
    prompts = prompts_of(*[8 + remainder + 4 * number for number in range(num_prompts)])
    steps = settings_of({"sampler": sampler}, block_length=1)
    without = settings_of({"sampler": "official", "eos_early_stop": True}, block_length=1)
    answers = generate(of_family, prompts, steps)
    assert [answer.ids for answer in answers] == [
        answer.ids for answer in generate(of_family, prompts, without)
    ]
    assert all(len(answer.ids) == 12 for answer in answers)


@torch.no_grad()
@pytest.mark.parametrize("remainder", [0, 1, 3])
@pytest.mark.parametrize("num_prompts", [1, 4])
@pytest.mark.parametrize("num_computed", [4, 8], ids=["dual", "prefix"])
def test_a_fresh_cache_gives_the_logits_of_a_whole_pass(
    of_family: Network, remainder: int, num_prompts: int, num_computed: int
) -> None:
    prompts = prompts_of(*[8 + remainder + 4 * number for number in range(num_prompts)])
    canvas = Canvas(
        prompts,
        lengths=[12] * len(prompts),
        max_length=12,
        block_length=4,
        mask_token_id=MASK,
        eos_token_id=None,
        device=torch.device("cpu"),
    )
    predictor, rows = Predictor(of_family, canvas, 0.5), torch.arange(num_prompts)
    wanted = canvas.open_in_block(rows, 1)
    cache = predictor.new_cache()
    whole = predictor.logits(canvas.ids, rows, wanted, cache)
    firsts = (canvas.starts + 4 - predictor.lead)[:, None]
    places = firsts + torch.arange(num_computed + predictor.lead)
    part = predictor.logits(canvas.ids, rows, wanted, cache, places)
    torch.testing.assert_close(part, whole, atol=1e-9, rtol=0)


@every_way
@pytest.mark.parametrize("length", [0, 7, 8, 9])
def test_answers_have_exactly_gen_length_tokens(
    of_family: Network, way: dict[str, Any], length: int
) -> None:
    settings = settings_of(way, eos_token_id=MASK)
    for answer in generate(of_family, prompts_of(length, 4), settings):
        assert len(answer.ids) == 12


def test_a_dual_cache_may_run_out_of_steps(golden: Network) -> None:
    """As in its authors' code; without `steps` there is one for each token."""
    way = {"sampler": "dual_cache", "threshold": 1.0}
    (answer,) = generate(golden, prompts_of(3), settings_of(way, steps=6))
    assert answer.ids.count(MASK) > 0 and answer.num_passes == 6
    (answer,) = generate(golden, prompts_of(3), settings_of(way))
    assert answer.ids.count(MASK) == 0 and answer.num_passes == 12


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_draws_of_a_row_do_not_depend_on_the_others(
    golden: Network, remasking: str, temperature: float
) -> None:
    prompts = prompts_of(5, 7, 4)
    way = {"sampler": "official", "eos_early_stop": True, "temperature": temperature}
    settings = settings_of(way, remasking=remasking, seed=3, eos_token_id=137)
    answers = generate(golden, prompts, settings)
    assert generate(golden, prompts, settings) == answers
    assert generate(golden, [prompts[0]], settings)[0].ids == answers[0].ids
    others = generate(golden, [prompts[0], [1], [2, 3]], settings)
    assert others[0].ids == answers[0].ids
    if temperature:
        again = generate(golden, prompts, settings_of(way, seed=4, eos_token_id=137))
        assert [answer.ids for answer in again] != [answer.ids for answer in answers]


def test_without_a_seed_draws_follow_torchs_global_generator(golden: Network) -> None:
    settings = settings_of({"sampler": "threshold", "temperature": 1.0})

    def drawn() -> list[Answer]:
        torch.manual_seed(0)
        return generate(golden, prompts_of(5), settings)

    assert drawn() == drawn()
    assert generate(golden, prompts_of(5), settings) != drawn()


def test_noise_samples_the_softmax(golden: Network) -> None:
    scores = torch.full((512,), -torch.inf, dtype=torch.float64)
    scores[:3] = torch.tensor([0.6, 0.3, 0.1]).log()
    way = {"sampler": "threshold", "temperature": 1.0, "seed": 0}
    # One candidate at a time: among several, the likely tokens would be kept first.
    settings = settings_of(way, gen_length=4, block_length=1)
    with changed_logits(golden, lambda logits, *_: scores.repeat(len(logits), 1)):
        answers = generate(golden, [[]] * 1000, settings)
    shares = torch.tensor([answer.ids for answer in answers]).flatten().bincount(minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.3, 0.1]), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("ends_at", "canvases"), [(2, [8]), (6, [8]), (7, [8]), (9, [8, 12]), (50, [8, 12, 16])]
)
@pytest.mark.parametrize("sampler", ["threshold", "dual_cache", "verify"])
def test_a_canvas_grows_while_eos_is_not_probable_in_its_last_block(
    golden: Network, sampler: Any, ends_at: int, canvases: list[int]
) -> None:
    """The network is certain of EOS from a position on, and of token 7 before it."""
    eos, seen = 505, set()

    def certain(logits: Tensor, places: Tensor) -> Tensor:
        is_end = places - 3 >= ends_at
        scores = torch.zeros_like(logits)
        scores[torch.arange(len(scores)), torch.where(is_end, eos, 7)] = 30.0
        return scores

    def watch(_: object, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        if kwargs["places"] is None:
            seen.add(args[0].shape[1] - 3)

    settings = SamplerSettings(
        sampler=sampler,
        gen_length=16,
        block_length=4,
        start_length=8,
        eos_early_stop=True,
        eos_token_id=eos,
    )
    watching = golden.register_forward_pre_hook(watch, with_kwargs=True)
    with changed_logits(golden, certain):
        (answer,) = generate(golden, prompts_of(3), settings)
    watching.remove()
    assert answer.ids == ([7] * ends_at + [eos])[:16]
    assert sorted(seen) == canvases


@pytest.mark.parametrize("sampler", ["threshold", "prefix_cache", "dual_cache"])
def test_a_row_grows_by_itself(of_family: Network, sampler: str) -> None:
    settings = settings_of({"sampler": sampler}, start_length=4, eos_token_id=137)
    prompts = prompts_of(5, 7, 0)
    together = generate(of_family, prompts, settings)
    assert [answer.ids for answer in together] == [
        generate(of_family, [prompt], settings)[0].ids for prompt in prompts
    ]


def test_growing_needs_an_eos_token(golden: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden.config, "eos_token_id", None)
    with pytest.raises(ValueError) as error:
        generate(golden, [[1]], settings_of({"sampler": "threshold"}, start_length=4))
    expected = "eos_token_id must be given: the model's config.json does not name it"
    assert str(error.value) == expected


@pytest.mark.parametrize("sampler", ["official", "prefix_cache", "dual_cache"])
def test_a_row_leaves_in_the_middle_of_its_block(golden: Network, sampler: str) -> None:
    """The network is the surer the further left, and certain of EOS at the second position."""

    def from_the_left(logits: Tensor, places: Tensor) -> Tensor:
        scores = torch.zeros_like(logits)
        tokens = torch.where(places - 3 == 1, 505, 7)
        scores[torch.arange(len(scores)), tokens] = 30.0 - places.double()
        return scores

    with changed_logits(golden, from_the_left):
        way = {"sampler": sampler, "eos_early_stop": True}
        (answer,) = generate(golden, prompts_of(3), settings_of(way))
    assert (answer.ids, answer.num_passes) == ([7, 505], 2)
