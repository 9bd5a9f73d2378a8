"""Keys of random draws, and digests: each is a function of what it is made from, on any machine.

No generator has a state that a checkpoint must keep: a resumed run, or a run with another number of
ranks, derives the same keys again. The keys are not secrets.
"""

from hashlib import blake2b


def hashed(*parts: int | str) -> int:
    """Return a 64-bit key that depends on every part and on their order."""
    content = "\0".join(str(part) for part in parts).encode()
    return int.from_bytes(digest(content, 8), "little")


def digest(content: bytes, num_bytes: int) -> bytes:
    """Return a digest of 1 to 64 bytes; a shorter one is not the start of a longer one."""
    return blake2b(content, digest_size=num_bytes).digest()
