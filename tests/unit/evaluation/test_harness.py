"""The model `llada_sft` as lm-evaluation-harness sees it."""

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def harness(model_dir: Path) -> Any:
    from lm_eval.api.registry import get_model

    import llada_sft.evaluation.harness.model  # noqa: F401

    return get_model("llada_sft").create_from_arg_obj(
        {"pretrained": str(model_dir)}, {"device": "cpu", "batch_size": 1}
    )


def instance(kind: str, *args: object) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=args, idx=0)  # type: ignore[arg-type]


class Hook:
    """Stands for the cache of lm-evaluation-harness."""

    def __init__(self) -> None:
        self.added: list[tuple[str, tuple[object, ...], object]] = []

    def add_partial(self, kind: str, args: tuple[object, ...], answer: object) -> None:
        self.added.append((kind, args, answer))


def test_each_answer_is_given_to_the_cache_hook(harness: Any) -> None:
    hook = Hook()
    harness.set_cache_hook(hook)
    prompt = harness.apply_chat_template([{"role": "user", "content": "abc"}])
    scored = harness.loglikelihood([instance("loglikelihood", prompt, "cba")])
    whole = harness.loglikelihood_rolling([instance("loglikelihood_rolling", "abc")])
    assert hook.added == [
        ("loglikelihood", (prompt, "cba"), scored[0]),
        ("loglikelihood_rolling", ("abc",), whole[0]),
    ]
    assert scored[0][0] < 0
    assert isinstance(scored[0][1], bool)
    assert whole[0] < 0


def test_results_name_the_model(harness: Any, model_dir: Path) -> None:
    assert harness.get_model_info()["model_args"] == f"pretrained={model_dir}"
    assert harness.tokenizer_name.endswith("__model")
    assert "start_header_id" in harness.chat_template(True)


def test_it_is_one_of_the_models_of_the_harness(harness: Any) -> None:
    from lm_eval.api.model import LM

    assert isinstance(harness, LM)
    assert (harness.rank, harness.world_size) == (0, 1)
