"""The behaviour suite through PSI/J's own executors, their configuration untouched."""

from __future__ import annotations

import pytest

from execute_batch_scheduler import BadUsage, submit_script
from tests.contract.behaviour import Behaviour


class TestStockLocal(Behaviour):
    wlm = "psij:local"


class TestStockSlurm(Behaviour):
    wlm = "psij:slurm"

    @pytest.fixture(autouse=True)
    def _service(self, slurm: object) -> None:
        pass

    @pytest.mark.parametrize(
        "flags", ["--hold", "-n8", "-N2-4", "-n8 -N3", "--output=x", "--comment='a b'", "--job-name=x", "--nice"]
    )
    def test_what_its_template_renders_wrongly_is_refused_by_name(self, flags: str) -> None:
        name = {"-n8": "ntasks", "-N2-4": "nodes", "-n8 -N3": "(nodes|ntasks)"}.get(
            flags, flags.strip("-").partition("=")[0]
        )
        with pytest.raises(BadUsage, match=rf"executor slurm cannot be given --{name}"):
            submit_script("true", flags, wlm=self.wlm)
