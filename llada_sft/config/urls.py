"""What is a URL and no path: `s3://bucket/train`, `memory://x`."""

import re

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(path: str) -> bool:
    return _URL.match(path) is not None
