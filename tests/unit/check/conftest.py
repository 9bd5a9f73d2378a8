"""The fixtures of tests/unit/data."""

from tests.unit.data.conftest import (  # noqa: F401
    _own_cache,
    no_tokenizer,
    public_folder,
    tokenizer,
    without_privileges,
)
