"""The behaviour suite on a real Slurm."""

from __future__ import annotations

import pytest

from tests.contract.behaviour import OurBehaviour


class TestSlurm(OurBehaviour):
    wlm = "slurm"

    @pytest.fixture(autouse=True)
    def _service(self, slurm: object) -> None:
        pass


class TestSlurmWithAccounting(OurBehaviour):
    wlm = "slurm"

    @pytest.fixture(autouse=True)
    def _service(self, slurm_with_accounting: object) -> None:
        pass
