"""Draws from what several files have left, against a sum over all of them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llada_sft.data.rows.file_draws import draw_files


@given(left=st.lists(st.integers(0, 5), min_size=1, max_size=9), data=st.data())
def test_a_row_is_of_the_file_that_its_number_falls_in(
    left: list[int], data: st.DataObject
) -> None:
    tickets = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=sum(left), max_size=sum(left)))
    drawn = list(draw_files(left, tickets))
    for ticket, chosen in zip(tickets, drawn, strict=True):
        assert chosen == np.searchsorted(np.cumsum(left), ticket % sum(left), side="right")
        left[chosen] -= 1
    assert sum(left) == 0


def test_no_files_have_no_rows() -> None:
    assert list(draw_files([], [])) == []
