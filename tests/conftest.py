"""Services and a private home for all tests. Nothing outside of it is touched."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# The end of the path: the installed package counts, the checkout gives the tests' own modules.
sys.path.append(str(Path(__file__).resolve().parents[1]))

_HOME = tempfile.TemporaryDirectory(prefix="home-")
os.environ["HOME"] = _HOME.name  # before PSI/J is imported: it remembers the home directory
for _name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SQUEUE_", "EXECUTE_"))]:
    del os.environ[_name]
os.environ.pop("XDG_CONFIG_HOME", None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of commands that a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["EXECUTE_SITE_CONFIG"] = os.devnull  # this machine's own settings are no part of the tests

pytest.register_assert_rewrite("tests.contract.behaviour", "tests.contract.ssh_client")  # to show what they compare
from tests.services import slurm as slurm_service, sshd as sshd_service  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real services on a shared machine can be late: a test on one that fails is run once more, and listed as RERUN."""
    for item in items:
        if "unit" not in item.path.parts:
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say why they failed at first: a test that is listed often wants to be looked into."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.write_sep("_", f"failed at first: {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)


def _needs(missing: list[str], what: str) -> None:
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{what} is not installed: {', '.join(missing)}", pytrace=False)
    if missing:
        pytest.skip(f"NOT EXERCISED: {what} is not installed: {', '.join(missing)}")


@pytest.fixture(scope="session")
def slurm_daemons() -> Iterator[slurm_service.Slurm]:
    _needs(slurm_service.missing(), "Slurm")
    with slurm_service.running() as slurm:
        yield slurm


@pytest.fixture
def slurm(slurm_daemons: slurm_service.Slurm, monkeypatch: pytest.MonkeyPatch) -> slurm_service.Slurm:
    """A private Slurm without accounting, shared by all tests of the session."""
    for name, value in slurm_daemons.environment.items():
        monkeypatch.setenv(name, value)
    return slurm_daemons


@pytest.fixture(scope="session")
def accounting_daemons() -> Iterator[slurm_service.Slurm]:
    _needs(slurm_service.missing(accounting=True), "Slurm with accounting")
    with slurm_service.running(accounting=True, min_job_age=2) as slurm:
        yield slurm


@pytest.fixture
def slurm_with_accounting(
    accounting_daemons: slurm_service.Slurm, monkeypatch: pytest.MonkeyPatch
) -> slurm_service.Slurm:
    """A private Slurm with accounting, that forgets ended jobs after two seconds."""
    for name, value in accounting_daemons.environment.items():
        monkeypatch.setenv(name, value)
    return accounting_daemons


@pytest.fixture(scope="session")
def sshd_daemon() -> Iterator[sshd_service.Sshd]:
    _needs(sshd_service.missing(), "OpenSSH")
    with sshd_service.running() as sshd:
        yield sshd


@pytest.fixture
def sshd(sshd_daemon: sshd_service.Sshd, monkeypatch: pytest.MonkeyPatch) -> sshd_service.Sshd:
    """A private OpenSSH server, shared by all tests of the session; `ssh` knows it by its name."""
    for name, value in sshd_daemon.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return sshd_daemon


@pytest.fixture(autouse=True)
def job_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Job directories of a test lie in its own temporary directory."""
    root = tmp_path / "root"
    monkeypatch.setenv("EXECUTE_JOB_DIRECTORY", str(root))
    return root


@pytest.fixture(autouse=True)
def no_login_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test's PATH has no scheduler, there is none: what this machine's login shells find does not count."""
    from execute_batch_scheduler import backend

    monkeypatch.setattr(backend, "_login_sbatch", lambda: None)
