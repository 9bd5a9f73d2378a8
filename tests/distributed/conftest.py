"""What several of these tests train on."""

from pathlib import Path

import pytest

from llada_sft.demo.data import write_demo


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the demo's tokenizer and data, which no test changes."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder)
    return folder
