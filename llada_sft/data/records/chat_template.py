"""A tokenizer's chat template: turns -> text; what it would leave out is noticed.

The official chat template ends every render with an assistant header. After a prompt that is what
is wanted; after an answer it would be spurious. So a learned answer that is text is not rendered.
One that is more (calls of tools, reasoning) is what the template writes after its prompt, up to
what closes a turn.
"""

import os.path
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llada_sft.data.records.conversation import CALLS, FLAGS, REASONING, WEIGHT, Turn
from llada_sft.data.records.turns import is_plain
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
# Tokens that close a turn, of the members of the family.
ENDS_OF_TURN = ("<|eot_id|>", "<|role_end|>", "<|im_end|>")
# What a role is called for a template that does not know its word.
_COMMON_ROLES = {
    "developer": "system",
    "function": "tool",
    "observation": "tool",
    "environment": "tool",
    "ipython": "tool",
    "tool_response": "tool",
}
_NOT_RENDERED = {*FLAGS, WEIGHT}
_MORE_THAN_TEXT = (*CALLS, *REASONING)
# Makes a text another one.
_MORE_TEXT = "and more"
_REMEDY = (
    "is dropped by the model's chat template; use a template that knows it, remove it, or name it"
    " in data.ignore_fields"
)


def template_of(tokenizer: Any, with_tools: bool = False) -> str:
    """Return the text of a tokenizer's chat template; LLaDA's if it has none.

    Raises:
        DataError: It has several, and none is the default one.
    """
    template = tokenizer.chat_template
    if not template:
        return LLADA_CHAT_TEMPLATE
    if isinstance(template, str):
        return template
    if not isinstance(template, Mapping):
        template = {one["name"]: one["template"] for one in template}
    name = "tool_use" if with_tools and "tool_use" in template else "default"
    if name not in template:
        names = ", ".join(map(repr, template))
        raise DataError(f"the tokenizer's chat_template has {names} and no 'default'; name one so")
    chosen: str = template[name]
    return chosen


class ChatTemplate:
    """One template of a tokenizer.

    Args:
        tokenizer: It renders.
        source: The template's text.

    Attributes:
        words: The fields, roles and variables that it speaks of, among others.
    """

    def __init__(self, tokenizer: Any, source: str) -> None:
        self._tokenizer, self.source = tokenizer, source
        self._is_lladas = source in (LLADA_CHAT_TEMPLATE, OFFICIAL_CHAT_TEMPLATE)
        self.words = frozenset(re.findall(r"\w+", source))
        self._known: set[str] = set()

    def prompt(self, turns: Sequence[Turn], tools: list[Any] | None = None) -> str:
        """Render a prompt: turns, at least one, and the assistant's header.

        Raises:
            DataError: The template refuses them, or would leave something out.
        """
        if self._is_lladas:
            return self._prompt_of_llada(turns, tools)
        self._check(turns, tools)
        return self._render(turns, tools, prompt=True)

    def answer(
        self, turns: Sequence[Turn], number: int, tools: list[Any] | None, prompt: str
    ) -> str:
        """Render what the assistant says in a turn: text, reasoning and calls.

        Args:
            turns: The conversation.
            number: Of the turn.
            tools: What may be called.
            prompt: What the turns before it are rendered to.

        Raises:
            DataError: The template refuses them, or would leave something out.
        """
        if is_plain(turns[number]):
            text: str = turns[number]["content"]
            return text
        if self._is_lladas:
            raise _dropped(number, next(_more_than_text(turns[number])))
        before = turns[:number]
        self._check([*before, turns[number]], tools)
        whole = self._after(prompt, [*before, turns[number]], tools, number)
        plain = [self._after(prompt, [*before, _said(text)], tools, number) for text in "01"]
        return whole.removesuffix(_common_end(*plain))

    def _prompt_of_llada(self, turns: Sequence[Turn], tools: list[Any] | None) -> str:
        """Return what Jinja makes of LLaDA's templates, in a twentieth of its time."""
        if tools:
            raise DataError(f"'tools' {_REMEDY}")
        for number, turn in enumerate(turns):
            if not is_plain(turn):
                raise _dropped(number, next(_more_than_text(turn)))
        said = [
            f"<|start_header_id|>{_COMMON_ROLES.get(turn['role'], turn['role'])}<|end_header_id|>"
            f"\n\n{turn['content'].strip()}<|eot_id|>"
            for turn in turns
        ]
        header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
        return f"{self._tokenizer.bos_token or ''}{''.join(said)}{header}"

    def _after(
        self, prompt: str, turns: Sequence[Turn], tools: list[Any] | None, number: int
    ) -> str:
        rendered = self._render(turns, tools, prompt=False)
        if not rendered.startswith(prompt):
            raise DataError(
                f"the chat template renders what precedes turn {number} differently once that turn"
                " follows; the turn cannot be learned as the template shows it"
            )
        return rendered.removeprefix(prompt)

    def _render(self, turns: Sequence[Turn], tools: list[Any] | None, prompt: bool) -> str:
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                [self._for_template(turn) for turn in turns],
                **({"tools": tools} if tools else {}),
                chat_template=self.source,
                add_generation_prompt=prompt,
                tokenize=False,
            )
        except Exception as error:
            what = " ".join(str(error).split())
            raise DataError(
                f"the chat template cannot render this conversation: {type(error).__name__}: {what}"
            ) from None
        return rendered

    def _for_template(self, turn: Turn) -> Turn:
        shown = {
            name: value
            for name, value in turn.items()
            if name not in _NOT_RENDERED
            and not (name in _MORE_THAN_TEXT and not value)
            and not (name != "content" and value is None)
        }
        role = turn["role"]
        if role in _COMMON_ROLES and role not in self.words:
            shown["role"] = _COMMON_ROLES[role]
        call = turn.get("function_call")
        if call and "function_call" not in self.words and "tool_calls" in self.words:
            del shown["function_call"]
            shown["tool_calls"] = [{"type": "function", "function": call}]
        return shown

    def _check(self, turns: Sequence[Turn], tools: list[Any] | None) -> None:
        """Notice what the template leaves out; what it has rendered once, it knows.

        Raises:
            DataError: A field or a turn is dropped.
        """
        if tools and "tools" not in self._known:
            if not self._differs(turns, tools, turns, None):
                raise DataError(f"'tools' {_REMEDY}")
            self._known.add("tools")
        for number, turn in enumerate(turns):
            for name in _more_than_text(turn):
                self._check_field(turns, number, name, tools)
            role, where = turn["role"], f"'messages[{number}]"
            if role != "assistant" and f"role {role}" not in self._known:
                self._check_text(turns, number, tools, f"{where}', a turn of role {role!r},")
                self._known.add(f"role {role}")
            if turn["content"] and any(turn.get(name) for name in CALLS):
                self._check_text(turns, number, tools, f"{where}.content', next to a call,")

    def _differs(
        self,
        turns: Sequence[Turn],
        tools: list[Any] | None,
        others: Sequence[Turn],
        other_tools: list[Any] | None,
    ) -> bool:
        """Return whether two conversations are rendered differently."""
        rendered = self._render(turns, tools, prompt=False)
        try:
            return rendered != self._render(others, other_tools, prompt=False)
        except DataError:
            # The other one, which lacks something, cannot even be rendered.
            return True

    def _check_field(
        self, turns: Sequence[Turn], number: int, name: str, tools: list[Any] | None
    ) -> None:
        if name in self._known:
            return
        turn, before = turns[number], turns[:number]
        without = {key: value for key, value in turn.items() if key != name}
        without["content"] = turn["content"] or ""
        if not self._differs([*before, turn], tools, [*before, without], tools):
            raise _dropped(number, name)
        self._known.add(name)

    def _check_text(
        self, turns: Sequence[Turn], number: int, tools: list[Any] | None, what: str
    ) -> None:
        turn, before = turns[number], turns[:number]
        other = turn | {"content": f"{turn['content']} {_MORE_TEXT}"}
        if not self._differs([*before, turn], tools, [*before, other], tools):
            raise DataError(f"{what} {_REMEDY}")


def end_of_turn(tokenizer: Any) -> int | None:
    """Return the token that closes a turn; None: the tokenizer has none."""
    known = tokenizer.get_vocab()
    return next((known[name] for name in ENDS_OF_TURN if name in known), None)


def _said(text: str) -> Turn:
    return {"role": "assistant", "content": text}


def _common_end(one: str, other: str) -> str:
    """Return the end that two texts share: what closes a turn, whatever is said in it."""
    return os.path.commonprefix([one[::-1], other[::-1]])[::-1]  # noqa: RUF071 (no paths)


def _more_than_text(turn: Turn) -> Iterator[str]:
    return (name for name in _MORE_THAN_TEXT if turn.get(name))


def _dropped(number: int, name: str) -> DataError:
    return DataError(f"'messages[{number}].{name}' {_REMEDY}")
