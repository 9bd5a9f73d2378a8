"""Makes the next block while one is being written."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

from llada_sft.data.sharding.blocks import Block


def ahead(blocks: Iterator[Block]) -> Generator[Block, None, None]:
    """Give the same blocks, but let a thread make the next one meanwhile.

    Reading, finding rows, compressing and writing release the interpreter's lock: two cores share
    the work. Close it to be sure that the thread has ended.
    """
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = thread.submit(next, blocks, None)
            yield block
