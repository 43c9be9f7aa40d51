"""The closed forms of proofs.py: what `make prove` prints holds, and what must differ does."""

from collections.abc import Callable

import pytest
from proofs import PROOFS, Row


@pytest.mark.parametrize("proof", PROOFS, ids=lambda proof: proof.__name__)
def test_every_row_holds(proof: Callable[[], list[Row]]) -> None:
    rows = proof()
    assert rows
    assert [row for row in rows if not row.holds] == []


def test_a_row_can_be_missed() -> None:
    assert Row("m", "q", 1.0, 1.05, 0.1).holds and not Row("m", "q", 1.0, 1.2, 0.1).holds
    assert Row("m", "q", 1.0, 1.2, 0.1, differs=True).holds and not Row("m", "q", 1.0, 1.05, 0.1, differs=True).holds
    for differs in (False, True):
        assert not Row("m", "q", 1.0, float("nan"), 0.1, differs=differs).holds
