"""Draws from what several files have left, against a sum over all of them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llada_sft.data.draws import RowsLeft


@given(left=st.lists(st.integers(0, 5), min_size=1, max_size=9), data=st.data())
def test_a_row_is_of_the_file_that_its_number_falls_in(
    left: list[int], data: st.DataObject
) -> None:
    rows = RowsLeft(left)
    while total := sum(left):
        assert rows.total == total
        number = data.draw(st.integers(0, total - 1))
        chosen = rows.take(number)
        assert chosen == np.searchsorted(np.cumsum(left), number, side="right")
        left[chosen] -= 1
    assert rows.total == 0


def test_no_files_have_no_rows() -> None:
    assert RowsLeft([]).total == 0
