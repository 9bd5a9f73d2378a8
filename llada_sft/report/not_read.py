"""The line of the page about what could not be read of a file."""


def lines_not_read(name: str, count: int) -> str:
    """Say how many lines of a file are damaged."""
    lines = (
        "1 line cannot be read, and is"
        if count == 1
        else f"{count:,} lines cannot be read, and are"
    )
    return f"{name}: {lines} not shown"
