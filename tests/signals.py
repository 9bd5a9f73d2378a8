"""What processes of tests inherit from whatever runs the tests."""

import signal


def heed_ctrl_c() -> None:
    """Heed SIGINT again: what a shell starts in the background ignores it, and its children too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
