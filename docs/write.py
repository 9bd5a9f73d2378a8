"""The pages that are made from the code.

    python docs/write.py    # or: make docs-pages

    write_config.py       config.md and eval-config.md, from the schemas
    write_commands.py     commands.md, from the parsers
    write_messages.py     messages.md, from what message_templates.py reads in the sources

A test fails if one of them is stale. conf.py makes a site of all pages.
"""

from collections.abc import Callable
from pathlib import Path

import write_commands
import write_config
import write_messages

PAGES: dict[str, Callable[[], str]] = {
    "config.md": write_config.reference,
    "eval-config.md": write_config.eval_reference,
    "commands.md": write_commands.reference,
    "messages.md": write_messages.reference,
}


def main() -> None:
    """Write each page that is stale, and say which."""
    for name, reference in PAGES.items():
        path, text = Path(__file__).parent / name, reference()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"written: docs/{name}")


if __name__ == "__main__":
    main()
