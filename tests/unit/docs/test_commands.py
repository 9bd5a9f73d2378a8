"""Every command of the documentation is run by a test, or says why none runs it."""

import re

import pytest

from tests.doc_commands import PAGES, ROOT, commands_in, commands_of, read_commands, taken

# Usages and messages, which only look like commands.
OTHERS = {"docs/commands.md", "docs/messages.md", "docs/troubleshooting.md"}
# What a command begins with that a block without a language would hide.
COMMAND = re.compile(
    r"(\$ )?(llada-sft|python|pip|make|sbatch|srun|salloc|scancel|pytest)\b ?[\w./-]"
)
PAGE = """\
# One

```bash
first --a \\
  --b # why

# of nobody
second
```

<!-- not run: needs
     a GPU -->
```bash
third
```

## Two

1. A list:

   ```console
   fourth
   ```

   ```yaml
   fifth: 5
   ```
"""


@pytest.mark.parametrize("page", PAGES)
def test_a_test_takes_every_command_that_has_no_mark(page: str) -> None:
    names = {(take.page, take.section) for take in taken()}
    left = [
        command.text
        for command in commands_in(page)
        if command.reason is None and not {(page, None), (page, command.section)} & names
    ]
    assert left == [], "take them in a test (tests/doc_commands.py), or say why none runs them"


def test_what_tests_take_is_there() -> None:
    assert len(taken()) > 10
    for take in taken():
        assert commands_of(take.page, take.section), take.test


@pytest.mark.parametrize("page", sorted(set(PAGES) - OTHERS))
def test_no_command_is_in_a_block_without_a_language(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    assert [block for block in blocks if COMMAND.match(block.strip())] == []


def test_commands_are_read_as_they_stand_there() -> None:
    found = [(one.section, one.text, one.reason) for one in read_commands("p.md", PAGE)]
    assert found == [
        ("One", "first --a \\\n  --b # why", None),
        ("One", "second", None),
        ("One", "third", "needs a GPU"),
        ("Two", "fourth", None),
    ]


def test_a_mark_that_marks_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"p\.md: 'not run: x' is not before a block of bash"):
        list(read_commands("p.md", "<!-- not run: x -->\n\nSome text.\n\n```bash\na\n```\n"))


def test_a_section_without_commands_is_refused() -> None:
    with pytest.raises(ValueError, match=r"README\.md: no command to run in Nowhere"):
        commands_of("README.md", "Nowhere")
