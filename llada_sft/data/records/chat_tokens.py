"""What the shipped hook does: a record -> token ids, and which of them are learned.

A prompt is `<|startoftext|><|start_header_id|>user<|end_header_id|>` + two newlines + the text +
`<|eot_id|>` + the assistant's header; then the response. The EOS tail is not added here: the
framework adds it (`data.end`).

An answer is encoded by itself, and the two meet exactly at the boundary, also where the tokenizer
would have merged characters of both. The ids of a prompt are thus those that the model is asked
with when it is sampled.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, NotRequired, TypedDict

from llada_sft.config.record_formats import OF_CONVERSATIONS, KnownFormat, SpecialTokensInText
from llada_sft.data.records.chat_template import ChatTemplate, template_of
from llada_sft.data.records.conversation import SAID, Turn
from llada_sft.data.records.formats import RecordRules, likely_format
from llada_sft.data.records.read import Conversation, Tokenized, read_record
from llada_sft.data.records.special_tokens import SpecialTokens, texts_of
from llada_sft.data.records.turns import answers_to_learn, loss_weights
from llada_sft.errors import DataError

_NO_RULES = RecordRules()
# Kept at the tokenizer: that is all that a hook passes on.
_LAYOUT = "_llada_sft_layout"
_OF_MESSAGES = {"messages", *OF_CONVERSATIONS}
_OF_TOKENS = {"input_ids", "response_mask", "attention_mask"}
# A text that templates write as it is.
_PROBE = "probe"
# Ids, and what their loss is multiplied by: 0 for a prompt.
Piece = tuple[list[int], float]


class EncodedRecord(TypedDict):
    """Ids of prompt and response.

    Attributes:
        input_ids: Prompt and response in one list.
        response_mask: Which of them are the response.
        loss_weights: What the loss of each token is multiplied by; missing if all are 1.
    """

    input_ids: list[int]
    response_mask: list[bool]
    loss_weights: NotRequired[list[float]]


class ChatLayout:
    """How a tokenizer's conversations become ids: its chat template and its special tokens.

    Args:
        tokenizer: A transformers tokenizer.
        in_text: `data.special_tokens_in_text`.
        mask_token: Of the model; None asks the tokenizer.
    """

    def __init__(
        self,
        tokenizer: Any,
        in_text: SpecialTokensInText = "text",
        mask_token: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.special = SpecialTokens(tokenizer, in_text, mask_token)
        self._templates: dict[str, ChatTemplate] = {}

    def template(self, tools: object = None) -> ChatTemplate:
        """Return the tokenizer's template; it may have been set to another one."""
        source = template_of(self._tokenizer, with_tools=bool(tools))
        if source not in self._templates:
            self._templates[source] = ChatTemplate(self._tokenizer, source)
        return self._templates[source]

    def notice(self, record: object) -> tuple[bool, bool]:
        """Tell whether texts of a record have special tokens, and whether the first is rendered.

        Args:
            record: What a hook gets.
        """
        texts = texts_that_are_read(record)
        if isinstance(record, Mapping) and "text" in record and "messages" not in record:
            texts = list(map(self._without_ends, texts))
        if not any(map(self.special.find, texts)):
            return False, False
        return True, texts[0].lstrip().startswith(self._beginnings)

    def _without_ends(self, text: str) -> str:
        """Take BOS and EOS away from plain text, where they are what they seem."""
        bos, eos = self._tokenizer.bos_token or "", self._tokenizer.eos_token or ""
        return text.removeprefix(bos).removesuffix(eos)

    @cached_property
    def _beginnings(self) -> tuple[str, ...]:
        """How a text begins that the chat template has already rendered."""
        bos = self._tokenizer.bos_token or ""
        try:
            prompt = self.template().prompt([{"role": "user", "content": _PROBE}])
        except DataError:
            # Each row says why.
            prompt = _PROBE
        header = prompt.partition(_PROBE)[0].removeprefix(bos).strip()
        beginnings = (bos, self.special.find(header) or header)
        return tuple(beginning for beginning in beginnings if beginning)


def texts_that_are_read(record: object) -> list[str]:
    """Return the texts of a record that a hook gets: what is said in its turns, or its text."""
    if not isinstance(record, Mapping):
        return []
    if isinstance(turns := record.get("messages"), list):
        said = [
            turn[name]
            for turn in turns
            if isinstance(turn, Mapping)
            for name in SAID
            if name in turn
        ]
        return [text for value in said for text in texts_of(value)]
    return texts_of(record["text"]) if "text" in record else texts_of(list(record.values()))


def set_layout(tokenizer: Any, layout: ChatLayout) -> None:
    """Encode with a layout whatever a tokenizer encodes from now on."""
    vars(tokenizer)[_LAYOUT] = layout


def layout_of(tokenizer: Any) -> ChatLayout:
    """Return the layout that was set for a tokenizer, or the usual one."""
    layout = vars(tokenizer).get(_LAYOUT)
    if layout is None:
        layout = ChatLayout(tokenizer)
        set_layout(tokenizer, layout)
    assert isinstance(layout, ChatLayout)
    return layout


def encode_record(record: object, tokenizer: Any) -> EncodedRecord:
    """Encode one record.

    Args:
        record: `{"messages": [{"role", "content"}, ...]}`: the last answer is learned, or those
            turns that have `"learn": True`. `{"text": str}`: all of it is. Or a record of another
            known format, with the usual names of its fields.
        tokenizer: A transformers tokenizer.

    Returns:
        `input_ids` of prompt and response, and which of them are the response.

    Raises:
        DataError: What is wrong with the record.
        NothingToLearnError: No turn of it is to be learned; the row is skipped.
    """
    content = read_record(*_to_read(record), _NO_RULES)
    if isinstance(content, Tokenized):
        return {"input_ids": content.input_ids, "response_mask": content.response_mask}
    if isinstance(content, str):
        return _encode_text(content, tokenizer)
    return _encode_conversation(content, tokenizer)


def _to_read(record: object) -> tuple[object, KnownFormat]:
    """Return what is read of a record, and its format.

    A row that was read already has its other fields as well: they are not read a second time.
    """
    if isinstance(record, Mapping):
        if isinstance(record.get("messages"), list):
            return _only(record, _OF_MESSAGES), "messages"
        if all(isinstance(record.get(name), list) for name in ("input_ids", "response_mask")):
            return _only(record, _OF_TOKENS), "tokens"
    return record, likely_format(record, {})


def _only(record: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name in names}


def encode_prompt(
    turns: Sequence[Turn], tokenizer: Any, tools: list[Any] | None = None
) -> list[int]:
    """Render the turns of a prompt with the tokenizer's chat template and encode them.

    Args:
        turns: At least one.
        tokenizer: A transformers tokenizer.
        tools: What the assistant may call, for templates that know them.

    Raises:
        DataError: The template cannot render them, or leaves something out.
    """
    layout = layout_of(tokenizer)
    (turns, tools), hidden = layout.special.hide([list(turns), tools])
    return layout.special.encode(layout.template(tools).prompt(turns, tools), hidden)


def _encode_conversation(content: Conversation, tokenizer: Any) -> EncodedRecord:
    """Encode a conversation of which one answer is learned, or several.

    All but the last are taken as the template renders them between other turns; what closes them
    there belongs to the template and is not learned.
    """
    answers = answers_to_learn(content.turns)
    turns, tools = content.turns[: answers[-1] + 1], content.tools
    weights = loss_weights(turns)
    layout, hidden = layout_of(tokenizer), None
    if layout.special.are_in_turns(turns) or layout.special.are_in(tools):
        _check_texts(turns, answers, layout)
        (turns, tools), hidden = layout.special.hide([turns, tools])
    template = layout.template(tools)
    prompts = [template.prompt(turns[:number], tools) for number in answers]
    pieces: list[Piece] = []
    begin = ""
    for place, number in enumerate(answers):
        prompt = prompts[place]
        response = template.answer(turns, number, tools, prompt)
        if place + 1 < len(answers):
            response = _as_rendered(response, prompt, prompts[place + 1], number)
        pieces.append((layout.special.encode(prompt.removeprefix(begin), hidden), 0))
        pieces.append((layout.special.encode(response, hidden), weights[number]))
        begin = prompt + response
    return _joined(pieces)


def _check_texts(turns: Sequence[Turn], answers: Sequence[int], layout: ChatLayout) -> None:
    for number, turn in enumerate(turns):
        for name in SAID:
            for text in texts_of(turn.get(name)):
                layout.special.check(text, f"messages[{number}].{name}", number in answers)


def _as_rendered(response: str, prompt: str, following: str, number: int) -> str:
    """Find how the prompt that follows an answer renders it: as it is, or without outer spaces."""
    for rendered in (response, response.strip()):
        if following.startswith(prompt + rendered):
            return rendered
    raise DataError(
        f"the chat template renders turn {number} of the conversation differently once others "
        "follow; set data.multi_turn to random or last"
    )


def _encode_text(text: str, tokenizer: Any) -> EncodedRecord:
    """Encode plain text: after BOS, as in pretraining, all of it is learned."""
    special = layout_of(tokenizer).special
    special.check(text, "text", learned=True)
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    begin = "" if bos is None else bos
    # Some texts begin and end with them already.
    inner = text.removeprefix(begin)
    end = eos if eos and inner.endswith(eos) else ""
    inner = inner.removesuffix(end)
    ids = special.encode_text(inner) + (special.encode(end) if end else [])
    if not begin:
        return _joined([(ids, 1)])
    return _joined([(special.encode(begin), 0), (ids, 1)])


def _joined(pieces: Sequence[Piece]) -> EncodedRecord:
    input_ids: list[int] = []
    response_mask: list[bool] = []
    for ids, weight in pieces:
        input_ids += ids
        response_mask += [weight > 0] * len(ids)
    record: EncodedRecord = {"input_ids": input_ids, "response_mask": response_mask}
    if any(weight not in (0, 1) for _, weight in pieces):
        record["loss_weights"] = [float(weight) for ids, weight in pieces for _ in ids]
    return record
