"""What the shipped hook does: prompt/response and chat records -> token ids.

A prompt is `<|startoftext|><|start_header_id|>user<|end_header_id|>` + two line ends + the text +
`<|eot_id|>` + the assistant's header; then the response. The EOS tail is not added here: the
framework adds it (`data.eos_tail`).

The official chat template ends every render with an assistant header. After a prompt that is what
is wanted; after an answer it would be spurious. So only prompts are rendered, the response is
tokenized by itself, and the two meet exactly at the boundary.
"""

from collections.abc import Mapping
from typing import Any, TypedDict

from transformers import PreTrainedTokenizerFast

from llada_sft.errors import DataError

# The layout that LLaDA-Instruct was trained with, for tokenizers that bring no template. Line ends
# stand inside expressions: Jinja drops one at the end of a template.
LLADA_CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
_ROLES = ("system", "user", "assistant")


class EncodedRecord(TypedDict):
    input_ids: list[int]
    response_mask: list[bool]


def split_record(record: object) -> tuple[list[dict[str, str]], str]:
    """Tell the turns that are the prompt from the text that is the response.

    A chat's last assistant turn is the response, everything before it the prompt.

    Raises:
        DataError: The record has neither of the two forms; the message names the field.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"a record must be a JSON object, got {_kind(record)}")
    if "messages" in record:
        return _split_messages(record["messages"])
    prompt, response = _text(record, "prompt"), _text(record, "response")
    return [{"role": "user", "content": prompt}], response


def _split_messages(messages: object) -> tuple[list[dict[str, str]], str]:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"'messages' must be a list of turns, got {_kind(messages)}")
    turns = [_turn(number, turn) for number, turn in enumerate(messages)]
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        raise DataError("'messages' has no assistant turn; a record needs a response")
    response = turns.pop()["content"]
    if not turns:
        raise DataError("'messages' begins with the assistant; a record needs a prompt")
    if not response.strip():
        raise DataError("the last assistant turn is empty; a record needs a response")
    return turns, response


def _turn(number: int, turn: object) -> dict[str, str]:
    if not isinstance(turn, Mapping):
        raise DataError(f"'messages[{number}]' must be an object, got {_kind(turn)}")
    role, content = turn.get("role"), turn.get("content")
    if role not in _ROLES:
        raise DataError(f"'messages[{number}].role' must be one of {_ROLES}, got {role!r}")
    if not isinstance(content, str):
        raise DataError(f"'messages[{number}].content' must be a string, got {_kind(content)}")
    return {"role": role, "content": content}


def _text(record: Mapping[str, object], field: str) -> str:
    if field not in record:
        raise DataError(f"no {field!r}; a record needs 'prompt' and 'response', or 'messages'")
    value = record[field]
    if not isinstance(value, str):
        raise DataError(f"{field!r} must be a string, got {_kind(value)}")
    if not value.strip():
        raise DataError(f"{field!r} is empty")
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return f"an empty {type(value).__name__}" if value in ([], {}, "") else type(value).__name__


def encode_prompt(turns: list[dict[str, str]], tokenizer: Any) -> list[int]:
    """Render the turns of a prompt with the tokenizer's chat template and tokenize them."""
    text = tokenizer.apply_chat_template(
        turns,
        chat_template=tokenizer.chat_template or LLADA_CHAT_TEMPLATE,
        add_generation_prompt=True,
        tokenize=False,
    )
    return _tokenize(text, tokenizer)


def _tokenize(text: str, tokenizer: Any) -> list[int]:
    if type(tokenizer) is not PreTrainedTokenizerFast:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
    # What its call comes to, without the lists that it makes beside the ids.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    fast: list[int] = backend.encode(text, add_special_tokens=False).ids
    return fast


def encode_record(record: object, tokenizer: Any) -> EncodedRecord:
    """Encode one record.

    Args:
        record: `{"prompt": str, "response": str}` or `{"messages": [{"role", "content"}, ...]}`.
        tokenizer: A transformers tokenizer.

    Returns:
        `input_ids` of prompt and response, and which of them are the response.

    Raises:
        DataError: What is wrong with the record.
    """
    turns, response = split_record(record)
    prompt_ids = encode_prompt(turns, tokenizer)
    response_ids = _tokenize(response, tokenizer)
    return {
        "input_ids": prompt_ids + response_ids,
        "response_mask": [False] * len(prompt_ids) + [True] * len(response_ids),
    }
