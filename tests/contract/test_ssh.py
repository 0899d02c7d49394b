"""The behaviour suite on another machine, reached by a real sshd, and on a real Slurm behind one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from execute_batch_scheduler import attach, jobs, submit_script
from execute_batch_scheduler.adapters import ssh
from execute_batch_scheduler.settings import settings
from tests.contract.behaviour import PATIENCE, OurBehaviour, WithoutScheduler, until
from tests.services import sshd as sshd_service
from tests.services.slurm import Slurm
from tests.services.sshd import Sshd


class OverThere(OurBehaviour):
    """The same suite; its environment and its job directories are those of the machine over there."""

    query = ""

    @property
    def url(self) -> str:
        return f"ssh://{self.host}{self.query}"

    @pytest.fixture
    def server(self) -> Sshd:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def job_root(self, server: Sshd) -> Path:
        self._server = server
        return Path(server.home) / ".execute_batch_scheduler"

    @pytest.fixture(autouse=True)
    def _profile(self, server: Sshd) -> Iterator[None]:
        """What a login shell reads there; after each test that is forgotten."""
        yield
        profile = Path(server.home) / ".bash_profile"
        if profile.exists():
            profile.unlink()
            ssh.logout(self.url)

    def set_variables(self, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        with Path(self._server.home, ".bash_profile").open("w") as file:
            print("echo A banner; echo and more >&2; read answer", file=file)  # as profiles do
            for name, value in variables.items():
                function = re.fullmatch("BASH_FUNC_(.*)%%", name)
                if function:
                    print(f"{function[1]}{value}\nexport -f {function[1]}", file=file)
                else:
                    print(f"export {name}='{value}'", file=file)
        ssh.logout(self.url)

    def test_another_process_comes_back_to_it(self, tmp_path: Path) -> None:
        go = tmp_path / "go"
        script = f"echo one; until [ -e {go} ]; do sleep 0.05; done; echo two; exit 3"
        client = settings.ssh_client
        code = (
            "from execute_batch_scheduler import *\n"
            f"settings.ssh_client = {client!r}\n"
            f"print(submit_script({script!r}, wlm={self.wlm!r}, host={self.host!r}).native_id)"
        )
        number = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
        until(lambda: [entry.native_state for entry in jobs(host=self.host)][-1:] == ["RUNNING"])
        job = attach(number, host=self.host, wlm=self.wlm)
        seen = ""
        for stream, text in job.follow():
            seen += text if stream == "stdout" else ""
            if seen == "one\n":
                go.touch()
        assert (seen, job.exit_code, job.host) == ("one\ntwo\n", 3, self.host)
        again = attach(number, host=self.host, wlm=self.wlm)
        assert (again.done(), again.exit_code, again.stdout()) == (True, 3, "one\ntwo\n")

    def test_a_job_of_another_process_can_be_cancelled(self) -> None:
        job = self.submit("echo ready; exec sleep 1000")
        again = attach(job.native_id, host=self.host, wlm=self.wlm)
        until(lambda: again.stdout() == "ready\n")
        assert again.cancel()
        assert again.wait(PATIENCE)
        assert again.cancelled()
        assert job.wait(PATIENCE)
        assert job.cancelled()


class TestSSH(WithoutScheduler, OverThere):
    wlm = "ssh"
    host = "adistantmachine"

    @pytest.fixture
    def server(self, sshd: Sshd) -> Sshd:
        return sshd


class TestSSHProgram(TestSSH):
    """By the user's ssh program."""

    query = "?client=program"

    @pytest.fixture(autouse=True)
    def _client(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(settings, "ssh_client", "program")


@pytest.fixture(scope="module")
def login(slurm_daemons: Slurm) -> Iterator[Sshd]:
    with sshd_service.running(name="login1", environment=slurm_daemons.environment) as server:
        yield server


class TestSlurmOverSSH(OverThere):
    """Nothing of Slurm is here: no command, no configuration."""

    wlm = "slurm"
    host = "login1"

    @pytest.fixture
    def server(self, login: Sshd, monkeypatch: pytest.MonkeyPatch) -> Sshd:
        for name, value in login.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        monkeypatch.delenv("SLURM_CONF", raising=False)
        return login

    def test_resources_are_slurms(self) -> None:
        job = submit_script('echo "$SLURM_NTASKS"; srun -n 2 echo task', "-n2 -N2", wlm="slurm", host=self.host)
        assert job.result(PATIENCE) == "2\ntask\ntask\n"
