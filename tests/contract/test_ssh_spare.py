"""Jobs that begin at once: the behaviour suite where a spare waits over there, and what may go wrong with one."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from execute_batch_scheduler.adapters.process import ProcessExecutor

from execute_batch_scheduler import BadUsage, Job, JobFailed, SubmissionFailed, submit_script
from execute_batch_scheduler.adapters import ssh
from execute_batch_scheduler.submit import executor_for
from tests.contract.behaviour import PATIENCE, until
from tests.contract.test_ssh import TestSSH as OverSSH
from tests.services import sshd as sshd_service
from tests.services.processes import alive
from tests.services.sshd import Sshd

HOST = "adistantmachine"
URL = f"ssh://{HOST}"


def executor() -> ProcessExecutor:
    _, found = executor_for("ssh", url=URL)
    assert isinstance(found, ProcessExecutor)
    return found


def waiting() -> tuple[str, int]:
    """The name and process id of the spare, when there is one."""

    def spare() -> Any:
        starter = executor()._starter
        session = starter and starter._session
        if session is None or not executor().transport.uses(session.connection):  # type: ignore[attr-defined]
            submit_script("true", host=HOST).result(PATIENCE)
            return None
        if session.spare is None and time.monotonic() > session.renew_at:  # one of another test was lost
            submit_script("true", host=HOST).result(PATIENCE)
        return session.spare

    name, pid = until(spare, 2 * PATIENCE)
    return name, pid


def began_at_once(job: Job, name: str) -> bool:
    return str(job.paths.directory).endswith(f"/{name}")


class TestSpare(OverSSH):
    def submit(self, script: str, flags: Any = (), **options: Any) -> Job:
        name, pid = waiting()
        job = super().submit(script, flags, **options)
        plain = "--output" not in str(flags) and len(script) < 60_000
        assert began_at_once(job, name) == plain
        if plain:
            assert job.native_id == str(pid)
        return job


@pytest.fixture(autouse=True)
def _server(sshd: Sshd) -> None:
    """The server of these tests."""


def cost(action: Callable[[], object]) -> int:
    """Questions that are asked meanwhile, at least: jobs of other tests may be asked about too."""
    transport, costs = ssh.transport(URL), []
    for _ in range(5):
        waiting()
        before = transport.turns
        action()
        costs.append(transport.turns - before)
    return min(costs)


def test_it_costs_one_question_and_its_end_none() -> None:
    def good() -> None:
        job = submit_script("echo hello; echo and more >&2", host=HOST)
        assert sorted(job.follow()) == [("stderr", "and more\n"), ("stdout", "hello\n")]
        assert job.result(PATIENCE) == "hello\n"

    def bad() -> None:
        with pytest.raises(JobFailed, match=r"exit code 3(.|\n)*why\n +it failed"):
            submit_script("echo why >&2; echo it failed >&2; exit 3", host=HOST).result(PATIENCE)

    assert (cost(good), cost(bad)) == (1, 1)


@pytest.mark.parametrize("where", ["", ">&2"])
def test_output_that_is_long_or_follows_slowly_is_all_there(where: str) -> None:
    waiting()
    script = r"for n in {1..300}; do printf '%d \303\274 \n' $n; sleep 0.001; done"
    job = submit_script(f"exec {where}\n{script}", host=HOST)
    assert "".join(piece for _, piece in job.follow()) == "".join(f"{n} ü \n" for n in range(1, 301))
    waiting()
    job = submit_script(f"exec {where}\nprintf 'a\\303'; sleep 0.2; printf '\\274b\\n'", host=HOST)
    assert "".join(piece for _, piece in job.follow()) == "aüb\n"


def test_where_there_is_none_it_costs_one_too(tmp_path: Path) -> None:
    assert cost(lambda: submit_script("true", f"--output={tmp_path}/out", host=HOST)) == 1


@pytest.mark.parametrize("how", ["killed", "removed", "starter killed"])
def test_a_spare_that_is_lost_loses_no_job(how: str) -> None:
    name, pid = waiting()
    if how == "killed":
        os.killpg(pid, signal.SIGKILL)
        until(lambda: not subprocess.run(["pgrep", "-s", str(pid), "-r", "S,R,D"], capture_output=True).stdout)
    elif how == "removed":
        executor().transport.remove([f"{executor()._starter.root}/jobs/{name}"])  # type: ignore[union-attr]
    else:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)
        until(lambda: executor()._starter._session is None)  # type: ignore[union-attr]
    job = submit_script("echo $((6 * 7)); exit 3", host=HOST)
    assert job.wait(PATIENCE)
    assert (job.exit_code, job.stdout()) == (3, "42\n")


def test_a_starter_that_is_killed_while_a_job_of_its_runs_is_found_out() -> None:
    """Although the job holds the channel's output."""
    waiting()
    running = submit_script("sleep 60; echo done", host=HOST)
    name, pid = waiting()
    starter = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(starter, signal.SIGKILL)
    time.sleep(13)
    job = submit_script("echo next", host=HOST)
    assert not began_at_once(job, name)
    assert job.result(PATIENCE) == "next\n"
    assert waiting()[0] != name
    assert running.cancel()
    assert running.wait(PATIENCE)
    assert running.cancelled()


def test_a_script_that_removes_itself_gets_its_signals_all_the_same() -> None:
    waiting()
    script = """trap 'echo got it; exit 3' USR1; rm -- "$0"; echo ready; while :; do sleep 0.1; done"""
    job = submit_script(script, host=HOST)
    until(lambda: job.stdout() == "ready\n")
    os.kill(int(job.native_id), signal.SIGUSR1)
    assert job.wait(PATIENCE)
    assert (job.exit_code, job.stdout()) == (3, "ready\ngot it\n")


def test_nothing_stays_of_it_when_the_connection_is_let_go() -> None:
    name, pid = waiting()
    root = executor()._starter.root  # type: ignore[union-attr]
    ssh.logout(URL)
    until(lambda: not Path(root, "jobs", name).exists())
    until(lambda: not alive(pid))


def test_a_connection_that_is_let_go_at_once_does_not_put_it_off() -> None:
    for pause in (0.0, 0.01, 0.03, 0.1, 0.2):
        ssh.logout(URL)
        submit_script("true", host=HOST).result(PATIENCE)
        time.sleep(pause)
        ssh.logout(URL)
    began = time.monotonic()
    waiting()
    assert time.monotonic() - began < 30  # it would be minutes


def test_it_is_no_job_before_it_is_one() -> None:
    _, pid = waiting()
    assert str(pid) not in executor().list()
    job = submit_script("echo ready; sleep 1000", host=HOST)
    assert job.native_id == str(pid)
    until(lambda: job.stdout() == "ready\n")
    listed = executor().list()
    assert listed.count(str(pid)) == 1
    assert all(Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[3] == one for one in listed)
    assert job.cancel()
    assert job.wait(PATIENCE)
    assert job.cancelled()


def test_refusals_and_dry_runs_do_not_use_it_up() -> None:
    name, _ = waiting()
    assert Path(str(submit_script("true", host=HOST, dry_run=True).spec.stdout_path)).parent.name != name
    with pytest.raises(BadUsage):
        submit_script("", host=HOST)
    with pytest.raises(BadUsage, match="native"):
        submit_script("true", host=HOST, native=["--x"])
    with pytest.raises(BadUsage, match="no such option"):
        submit_script("true", "--timme=3", host=HOST)
    assert waiting()[0] == name
    with pytest.raises(SubmissionFailed, match="No such file or directory"):
        submit_script("true", "--chdir=/no/such/place", host=HOST)
    name, _ = waiting()
    job = submit_script("echo fine", host=HOST)
    assert (began_at_once(job, name), job.result(PATIENCE)) == (True, "fine\n")


def test_a_spare_that_was_promised_and_not_used_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    name, _ = waiting()
    monkeypatch.setattr("execute_batch_scheduler.adapters.starter._LOST", 0.2)
    executor().directory(executor()._starter.root, "promised")  # type: ignore[union-attr]
    assert submit_script("echo other", host=HOST).result(PATIENCE) == "other\n"
    time.sleep(0.3)
    assert submit_script("echo other", host=HOST).result(PATIENCE) == "other\n"
    replaced, _ = waiting()
    assert replaced != name
    assert began_at_once(submit_script("true", host=HOST), replaced)


def test_those_who_come_at_once_share_none() -> None:
    waiting()
    jobs: list[Job] = []
    threads = [
        threading.Thread(target=lambda n=n: jobs.append(submit_script(f"echo {n}", host=HOST)))  # type: ignore[misc]
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(job.result(PATIENCE)) for job in jobs) == [*range(12)]
    assert len({job.paths.directory for job in jobs}) == len({job.native_id for job in jobs}) == 12


def test_the_environment_is_that_of_other_jobs(tmp_path: Path) -> None:
    script = f"env -0 | sort -z | tr '\\0' '\\n' >{tmp_path}/$1; ulimit -a; umask; pwd; trap; set -o; tty; nice"
    waiting()
    first = submit_script(f"set -- spare\n{script}", host=HOST).result(PATIENCE)
    other = submit_script(f"set -- other\n{script}", f"--output={tmp_path}/out", host=HOST).result(PATIENCE)
    assert first == other
    assert (tmp_path / "spare").read_text() == (tmp_path / "other").read_text()


def test_what_a_child_prints_later_is_in_the_output_and_not_in_the_result(tmp_path: Path) -> None:
    """The result is what was printed when the job ended."""
    waiting()
    go = tmp_path / "go"
    job = submit_script(f"(until [ -e {go} ]; do sleep 0.05; done; echo later) & echo now", host=HOST)
    assert job.result(PATIENCE) == "now\n"
    go.touch()
    until(lambda: job.stdout() == "now\nlater\n")


@pytest.mark.parametrize("sessions", [2, 3])
def test_where_sessions_are_few_jobs_run_without_one(sessions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One each for questions and for what is new; a spare comes last."""
    with sshd_service.running(name="narrow", options=[f"MaxSessions {sessions}"]) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        try:
            for number in range(4):
                assert submit_script(f"echo {number}", host="narrow").result(PATIENCE) == f"{number}\n"
                time.sleep(0.2)
            jobs = [submit_script(f"sleep 0.3; echo {number}", host="narrow") for number in range(8)]
            assert [job.result(PATIENCE) for job in jobs] == [f"{number}\n" for number in range(8)]
        finally:
            ssh.logout("ssh://narrow")
