"""The fake platform keeps the promises of a real one."""

from __future__ import annotations

import pytest
from builders import INV, charge
from contracts_platform import PlatformContract, Stage
from fakes import FakePlatform, lost

from worker.errors import PlatformRefused, ReconcilerError


class TestFakePlatform(PlatformContract):
    """The fake against the contract."""

    @pytest.fixture(name="stage")
    def _stage(self) -> Stage:
        ids = ("CHG-1", "CHG-2")
        platform = FakePlatform(charges={one: charge(id=one) for one in ids})

        def fail(error: ReconcilerError) -> None:
            platform.failures |= {step: [error] for step in ("write CHG-1", "issue")}

        return Stage(
            platform=platform,
            invoice=platform.invoices[INV],
            charge_ids=ids,
            refuse_next=lambda: fail(PlatformRefused("400 no more")),
            lose_next=lambda: fail(lost("it")),
            secret="none is used",
        )
