"""What became of a write is known: an answer, or an error, never neither."""

from __future__ import annotations

import pytest
from builders import charge, invoice

from worker.errors import OutcomeUnknown
from worker.writes import ChargeWrite, IssueWrite

LOST = OutcomeUnknown("no answer")


def test_a_write_of_which_nothing_is_known_is_refused() -> None:
    """It would pass for one that was applied; nor can one have failed and been answered."""
    for charged, issued in ((None, None), (charge(), invoice())):
        error = None if charged is None else LOST
        with pytest.raises(ValueError, match="either an answer or an error"):
            ChargeWrite(charge_id="CHG-1", charge=charged, error=error)
        with pytest.raises(ValueError, match="either an answer or an error"):
            IssueWrite(invoice=issued, error=error)
    assert ChargeWrite(charge_id="CHG-1", error=LOST).charge is None
    assert IssueWrite(invoice=invoice()).error is None
