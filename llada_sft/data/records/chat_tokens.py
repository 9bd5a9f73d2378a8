"""What the shipped hook does: a record -> token ids, and which of them are learned.

A prompt is `<|startoftext|><|start_header_id|>user<|end_header_id|>` + two newlines + the text +
`<|eot_id|>` + the assistant's header; then the response. The EOS tail is not added here: the
framework adds it (`data.eos_tail`).

The official chat template ends every render with an assistant header. After a prompt that is what
is wanted; after an answer it would be spurious. So only prompts are rendered, never an answer that
is learned: it is tokenized by itself, and the two meet exactly at the boundary, also where the
tokenizer would have merged characters of both. The ids of a prompt are thus those that the model is
asked with when it is sampled.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from transformers import PreTrainedTokenizerFast

from llada_sft.data.records.formats import Turn, likely_format, read_record
from llada_sft.data.records.turns import LEARN, marked_answers
from llada_sft.errors import DataError

# The layout that LLaDA-Instruct was trained with, for tokenizers that bring no template. Line ends
# are inside expressions: Jinja drops one at the end of a template.
LLADA_CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
# The same layout, as the official tokenizers write it.
OFFICIAL_CHAT_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)


class EncodedRecord(TypedDict):
    input_ids: list[int]
    response_mask: list[bool]


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
    """
    content = _read(record)
    if isinstance(content, str):
        return _encode_text(content, tokenizer)
    answers = marked_answers(content)
    if len(answers) == 1:
        return _encode_answer(content, answers[0], tokenizer)
    return _encode_answers(content, answers, tokenizer)


def _read(record: object) -> list[Turn] | str:
    record_format = likely_format(record, {})
    content = read_record(record, record_format, {})
    if record_format == "messages":
        assert isinstance(record, Mapping) and isinstance(content, list)
        # A field `system` has become one turn more.
        for turn, message in zip(reversed(content), reversed(record["messages"]), strict=False):
            if message.get(LEARN) is True:
                turn[LEARN] = True
    return content


def _encode_answer(turns: Sequence[Turn], number: int, tokenizer: Any) -> EncodedRecord:
    prompt_ids = encode_prompt(turns[:number], tokenizer)
    response_ids = _tokenize(turns[number]["content"], tokenizer)
    return {
        "input_ids": prompt_ids + response_ids,
        "response_mask": [False] * len(prompt_ids) + [True] * len(response_ids),
    }


def _encode_answers(turns: Sequence[Turn], answers: Sequence[int], tokenizer: Any) -> EncodedRecord:
    """Encode a conversation of which several answers are learned.

    All but the last are taken as the template renders them between other turns; what closes them
    there belongs to the template and is not learned.
    """
    prompts = [_render(turns[:number], tokenizer) for number in answers]
    input_ids: list[int] = []
    response_mask: list[bool] = []
    begin = ""
    for place, number in enumerate(answers):
        prompt, response = prompts[place], turns[number]["content"]
        prompt_ids = _tokenize(prompt.removeprefix(begin), tokenizer)
        if place + 1 < len(answers):
            response = _as_rendered(response, prompt, prompts[place + 1], number)
        response_ids = _tokenize(response, tokenizer)
        input_ids += prompt_ids + response_ids
        response_mask += [False] * len(prompt_ids) + [True] * len(response_ids)
        begin = prompt + response
    return {"input_ids": input_ids, "response_mask": response_mask}


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
    ids = _tokenize(text, tokenizer)
    bos = tokenizer.bos_token_id
    # Some texts start with it already.
    if bos is not None and ids[:1] != [bos]:
        ids = [bos, *ids]
    return {"input_ids": ids, "response_mask": [bos is None, *[True] * (len(ids) - 1)]}


def encode_prompt(turns: Sequence[Turn], tokenizer: Any) -> list[int]:
    """Render the turns of a prompt with the tokenizer's chat template and tokenize them."""
    return _tokenize(_render(turns, tokenizer), tokenizer)


def _render(turns: Sequence[Turn], tokenizer: Any) -> str:
    """Render a prompt: turns, at least one, and the assistant's header."""
    template = tokenizer.chat_template or LLADA_CHAT_TEMPLATE
    if template in (LLADA_CHAT_TEMPLATE, OFFICIAL_CHAT_TEMPLATE):
        # What Jinja makes of these, in a twentieth of its time.
        said = [
            f"<|start_header_id|>{turn['role']}<|end_header_id|>\n\n"
            f"{turn['content'].strip()}<|eot_id|>"
            for turn in turns
        ]
        header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
        return f"{tokenizer.bos_token or ''}{''.join(said)}{header}"
    rendered: str = tokenizer.apply_chat_template(
        [{"role": turn["role"], "content": turn["content"]} for turn in turns],
        chat_template=template,
        add_generation_prompt=True,
        tokenize=False,
    )
    return rendered


def _tokenize(text: str, tokenizer: Any) -> list[int]:
    ids: list[int]
    if type(tokenizer) is not PreTrainedTokenizerFast:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
    # The same as calling the tokenizer, which also makes lists and offsets.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    (encoding,) = backend.encode_batch_fast([text], add_special_tokens=False)
    ids = encoding.ids
    return ids
