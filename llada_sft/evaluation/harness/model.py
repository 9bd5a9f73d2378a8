"""The model `llada_sft` of lm-evaluation-harness.

Importing this module registers it: `simple_evaluate(model="llada_sft", model_args={"pretrained":
...})` then works. (lm-evaluation-harness 0.4 looks for no models in other packages.) It is one
process for lm-evaluation-harness; `llada-sft eval` has several ranks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from llada_sft.errors import ConfigError
from llada_sft.evaluation.answer_cache import AnswerCache, Entry
from llada_sft.evaluation.engine import GENERATE, ROLLING, Asked, Engine
from llada_sft.evaluation.loaded import LoadedModel
from llada_sft.evaluation.settings import load_eval_config

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


@register_model("llada_sft")
class HarnessModel(LM):  # type: ignore[misc]
    """A mask predictor behind the methods that tasks call.

    Args:
        pretrained: A model directory.
        config: A file of config/eval/; None: the defaults.
        batch_size, max_batch_size: What lm-evaluation-harness passes; the config has its own.
        device: None: a GPU if there is one.
        engine: Answers the requests instead, and the other arguments are not used.
    """

    def __init__(
        self,
        pretrained: str = "",
        config: str | None = None,
        batch_size: object = None,
        max_batch_size: object = None,
        device: str | None = None,
        engine: Engine | None = None,
    ) -> None:
        super().__init__()
        if engine is None:
            settings = load_eval_config(None if config is None else Path(config))
            model = LoadedModel(Path(pretrained), settings.dtype, device)
            chat = model.has_template if settings.chat is None else settings.chat
            engine = Engine(model, settings, chat, AnswerCache(None))
        self.engine = engine
        self.tokenizer = engine.texts.tokenizer
        self.max_length = engine.model.max_length
        self.eot_token_id = engine.texts.tokenizer.eos_token_id
        engine.on_answer = self._to_cache_hook

    def loglikelihood(self, requests: Sequence["Instance"]) -> list[tuple[float, bool]]:
        """Return lower bounds of log p(continuation | context), nats, and whether it is greedy."""
        return [
            (entry["value"], entry["is_greedy"]) for entry in self._ask("loglikelihood", requests)
        ]

    def loglikelihood_rolling(self, requests: Sequence["Instance"]) -> list[float]:
        """Return lower bounds of log p(text), nats: perplexities of these are upper bounds.

        The text has no context, not even a first token; what is longer than the model allows is a
        sum over pieces, each after as much of the text before as fits.
        """
        return [entry["value"] for entry in self._ask(ROLLING, requests)]

    def generate_until(self, requests: Sequence["Instance"]) -> list[str]:
        """Return answers, up to their end or the first of the stop strings."""
        return [entry["text"] for entry in self._ask(GENERATE, requests)]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render the turns of a prompt as they are rendered for training."""
        if not self.engine.texts.chat:
            raise ConfigError("chat: is false, but a chat template is to be applied; set chat=true")
        return self.engine.texts.prompt(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the text of the chat template, for the results."""
        return self.engine.texts.template or ""

    @property
    def tokenizer_name(self) -> str:
        """Name the tokenizer, for the caches of requests."""
        return str(self.engine.model.directory.resolve()).replace("/", "__")

    def get_model_info(self) -> dict[str, str]:
        """Return what the results say of the model."""
        model = self.engine.model
        return {
            "model": "llada_sft",
            "model_args": f"pretrained={model.directory}",
            "model_dtype": model.dtype,
            "model_sha": model.weights,
        }

    def _ask(self, kind: str, requests: Sequence["Instance"]) -> list[Entry]:
        asked = self.engine.asked(kind, [request.args for request in requests])
        return self.engine.entries(asked)

    def _to_cache_hook(self, asked: Asked, entry: Entry) -> None:
        if asked.kind == GENERATE:
            answer: Any = entry["text"]
        elif asked.kind == ROLLING:
            answer = entry["value"]
        else:
            answer = (entry["value"], entry["is_greedy"])
        self.cache_hook.add_partial(asked.kind, asked.args, answer)
