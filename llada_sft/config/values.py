"""The types of values in a config, with their limits; what all sections share; and URLs."""

import os
import re
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
)

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
# Larger numbers would be infinite in fp32.
PositiveFloat = Annotated[float, Field(gt=0, le=1e37)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=1e37)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# The decay of a moving average: with 1 it would never move, and Adam divides by 1 - beta.
Beta = Annotated[float, Field(ge=0, lt=1)]
# Waits of more than a year would overflow in the libraries.
Seconds = Annotated[int, Field(le=366 * 24 * 3600)]
Minutes = Annotated[int, Field(ge=1, le=366 * 24 * 60)]
# More nodes, ranks or threads than any cluster has.
Count = Annotated[int, Field(ge=1, le=100_000)]
# Elements of a buffer: more than any GPU holds.
Elements = Annotated[int, Field(le=10**12)]
# What an `#SBATCH --key=value` line may contain: no spaces, quotes or newlines.
SbatchValue = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.,:@%+/=&|!*\[\]()-]+$")]
SbatchKey = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]
# sbatch's buffer for one option has 8,192 bytes; a quote or a backslash takes up to five of them.
MAX_OPTION_BYTES = 1_600
# Of pydantic: which plugins it is not to load.
_NO_PLUGINS = "PYDANTIC_DISABLE_PLUGINS"
# Control characters, and what Unicode takes for the end of a line.
_NOT_IN_A_LINE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")
RunName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.=-]*$", max_length=80)]
NonEmptyStr = Annotated[str, StringConstraints(min_length=1)]
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Part of the names of files: no slash.
SourceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


def is_url(path: str) -> bool:
    """Return whether a path is a URL: `s3://bucket/train`, `memory://x`."""
    return _URL.match(path) is not None


def require_local(path: str) -> str:
    """Return a path that is not a URL: as a path, that would be a folder named `s3:`.

    Raises:
        ValueError: It is one.
    """
    if is_url(path):
        raise ValueError(f"must be a path of this machine, not a URL, got {path!r}")
    return path


# Where only a local file or folder will do.
LocalPath = Annotated[NonEmptyStr, AfterValidator(require_local)]


def require_line(text: str) -> str:
    """Return a text that fits on one line of a batch script.

    Raises:
        ValueError: It is empty, too long, or has newlines or other control characters.
    """
    if not text or _NOT_IN_A_LINE.search(text):
        raise ValueError(f"must be one line of text without control characters, got {text[:60]!r}")
    if len(text.encode()) > MAX_OPTION_BYTES:
        raise ValueError(f"must have at most {MAX_OPTION_BYTES:,} bytes, got {text[:60]!r}...")
    return text


# The value of an option: spaces, quotes and # reach the command as they are.
OptionText = Annotated[str, AfterValidator(require_line)]


class Section(BaseModel):
    # Validators are built when first used: one for the whole config, not one for each section.
    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True
    )


def build_validators(schema: type[BaseModel]) -> None:
    """Build the validators of a schema, once, without pydantic's plugins.

    A config needs none, and pydantic would look for them among all installed packages: a twentieth
    of the time of a dry run (benchmarks/login_node.py).
    """
    before = os.environ.get(_NO_PLUGINS)
    os.environ[_NO_PLUGINS] = "__all__"
    try:
        schema.model_rebuild()
    finally:
        if before is None:
            del os.environ[_NO_PLUGINS]
        else:
            os.environ[_NO_PLUGINS] = before
