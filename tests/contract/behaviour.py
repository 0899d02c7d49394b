"""What every backend must do. A backend's own file says how it is reached and what it calls its states."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import shlex
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import pytest

from execute_batch_scheduler import BadUsage, Job, JobCancelled, JobFailed, submit_script
from execute_batch_scheduler.adapters import process
from tests.services.processes import alive

from psij import JobState

PATIENCE = 60.0


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What the condition gives once it holds."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s")
        time.sleep(0.02)
    return value


class Behaviour:
    wlm: str
    host: Optional[str] = None
    completed: Optional[str] = None  # the scheduler's own word for it, where its executor knows that

    @pytest.fixture(autouse=True)
    def _service(self) -> None:
        """Overridden where a backend needs one."""

    def submit(self, script: str, flags: Any = (), **options: Any) -> Job:
        return submit_script(script, flags, wlm=self.wlm, host=self.host, **options)

    def set_variables(self, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the submit command runs."""
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    # ends

    def test_a_script_completes(self) -> None:
        job = self.submit("echo out; echo err >&2")
        assert job.result(PATIENCE) == "out\n"
        assert job.get_output() == ("out\n", "err\n")
        assert (job.state, job.exit_code, job.done(), job.cancelled()) == (JobState.COMPLETED, 0, True, False)
        assert job.native_state == self.completed
        assert job.exception() is None
        assert job.started is not None
        assert job.ended is not None
        assert job.started <= job.ended

    @pytest.mark.parametrize(
        ("ending", "code"),
        [("exit 3", 3), ("exit 137", 137), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143)],
    )
    def test_a_failure_keeps_its_exit_code(self, ending: str, code: int) -> None:
        job = self.submit(f"echo out; echo trouble >&2; {ending}")
        with pytest.raises(JobFailed) as caught:
            job.result(PATIENCE)
        assert (job.state, job.exit_code) == (JobState.FAILED, code)
        assert job.get_output() == ("out\n", "trouble\n")
        message = str(caught.value)
        assert f"exit code {code}" in message
        assert "trouble" in message
        assert str(job.paths.stderr) in message
        assert caught.value.job is job

    def test_a_missing_interpreter_is_a_failure_that_says_so(self) -> None:
        job = self.submit("#!/no/such/shell\ntrue")
        assert job.wait(PATIENCE)
        assert job.state is JobState.FAILED
        assert job.exit_code in (126, 127)
        assert "/no/such/shell, which is to run the script, cannot be run on" in job.stderr()

    def test_a_background_child_does_not_hold_the_job(self) -> None:
        job = self.submit("sleep 50 & echo $!")
        pid = job.result(20).strip()
        Path(f"/proc/{pid}").exists() and os.kill(int(pid), 9)  # no scheduler, no one else ends it

    # output

    def test_output_comes_while_the_job_runs(self, tmp_path: Path) -> None:
        """The job goes on only after its first line, and a part of a line, were seen here."""
        first, second = tmp_path / "first", tmp_path / "second"
        job = self.submit(
            f"echo one; until [ -e '{first}' ]; do sleep 0.05; done\n"
            f"printf 'half'; until [ -e '{second}' ]; do sleep 0.05; done; echo ' line'; echo err >&2"
        )
        seen = {"stdout": "", "stderr": ""}
        for stream, text in job.follow():
            seen[stream] += text
            if seen["stdout"] == "one\n":
                assert not job.done()
                first.touch()
            if seen["stdout"] == "one\nhalf":
                second.touch()
        assert seen == {"stdout": "one\nhalf line\n", "stderr": "err\n"}

    def test_nothing_of_much_output_is_lost_or_repeated(self) -> None:
        job = self.submit("#!/usr/bin/env python3\nfor i in range(200000): print(i, 'äöü€😀')")
        text = "".join(text for stream, text in job.follow() if stream == "stdout")
        assert text == "".join(f"{i} äöü€😀\n" for i in range(200000))
        assert job.result(PATIENCE) == text

    def test_bytes_that_are_no_text_do_no_harm(self) -> None:
        job = self.submit(r"printf '\xff\xfe\x00a\xe2\x82'")
        assert "".join(text for _, text in job.follow()) == "��\x00a�"

    def test_head_and_tail_of_much_output(self) -> None:
        job = self.submit("seq 100000")
        text = "".join(text for _, text in job.follow(most=1000))
        assert text.startswith("1\n2\n3\n")
        assert text.endswith("99999\n100000\n")
        assert str(job.paths.stdout) in text
        assert len(text) < 2500

    # what the script finds

    def test_the_script_is_run_by_what_it_asks_for(self) -> None:
        assert self.submit("#!/usr/bin/env -S python3 -u\nprint(1 + 1)").result(PATIENCE) == "2\n"
        assert self.submit("print(1 + 1)", shell="python3 -u").result(PATIENCE) == "2\n"
        assert self.submit("#!/bin/sh\nprint(1 + 1)", shell="/usr/bin/env python3").result(PATIENCE) == "2\n"
        assert self.submit("echo $BASH_VERSION").result(PATIENCE) != "\n"

    def test_a_file_is_a_script_too(self, tmp_path: Path) -> None:
        file = tmp_path / "train it.sh"
        file.write_text("#!/bin/bash\necho from a file")
        assert submit_script(file, wlm=self.wlm, host=self.host).result(PATIENCE) == "from a file\n"

    def test_environment_reaches_the_script_and_nobody_else(self) -> None:
        value = 'it\'s "a" $secret\nof two lines'
        job = self.submit("printf %s \"$TOKEN\"; ps -eo args | grep -c '[s]ecret'", environment={"TOKEN": value})
        assert job.wait(PATIENCE)
        assert job.stdout() == value + "0\n"

    def test_functions_of_the_shell_travel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As environment modules need it: ``module`` is an exported function."""
        self.set_variables({"BASH_FUNC_module%%": "() { echo loaded $1; }"}, monkeypatch)
        assert self.submit("#!/bin/bash\nmodule gcc").result(PATIENCE) == "loaded gcc\n"

    def test_signals_are_as_a_script_expects_them(self) -> None:
        out = self.submit("#!/usr/bin/env python3\nprint(open('/proc/self/status').read())").result(PATIENCE)
        ignored = int(next(line.split()[1] for line in out.splitlines() if line.startswith("SigIgn")), 16)
        assert ignored & (1 << 1) == 0  # SIGINT
        assert ignored & (1 << 2) == 0  # SIGQUIT
        assert ignored & (1 << 14) == 0  # SIGTERM

    def test_it_runs_where_it_is_told_to(self, tmp_path: Path) -> None:
        place = tmp_path / "here"
        place.mkdir()
        assert self.submit("pwd", directory=place).result(PATIENCE) == f"{place}\n"
        with pytest.raises(BadUsage, match="directory= and --chdir"):
            self.submit("pwd", "--chdir=/", directory=place)

    # cancelling

    def test_cancel_ends_the_script_and_its_children(self) -> None:
        job = self.submit("echo $$; sleep 1000 & echo $!; wait")
        pids = until(lambda: job.stdout().split()[1:] and job.stdout().split())
        assert job.cancel()
        with pytest.raises(JobCancelled) as caught:
            job.result(PATIENCE)
        assert isinstance(caught.value, concurrent.futures.CancelledError)
        assert (job.state, job.cancelled(), job.cancel()) == (JobState.CANCELED, True, False)
        until(lambda: not any(alive(pid) for pid in pids))

    # the handle

    def test_the_handle_is_a_future(self) -> None:
        jobs = [self.submit(f"sleep 0.{n}; echo {n}; exit {n // 2}") for n in (0, 1, 2)]
        called: list[Job] = []
        jobs[0].add_done_callback(called.append)
        by_future = {job.future: job for job in jobs}
        ended = [by_future[future] for future in concurrent.futures.as_completed(by_future, PATIENCE)]
        assert sorted(map(str, ended)) == sorted(map(str, jobs))
        assert jobs[0].future.result() == "0\n"
        assert isinstance(jobs[2].future.exception(), JobFailed)
        until(lambda: called == [jobs[0]])

    def test_a_callback_may_wait_for_other_jobs(self) -> None:
        results: list[str] = []
        first = self.submit("echo one")
        first.add_done_callback(lambda _: results.append(self.submit("echo two").result(PATIENCE)))
        assert first.result(PATIENCE) == "one\n"
        until(lambda: results == ["two\n"])

    def test_the_handle_can_be_awaited(self) -> None:
        async def both() -> list[Any]:
            return await asyncio.gather(self.submit("echo a"), self.submit("exit 4"), return_exceptions=True)

        good, bad = asyncio.run(both())
        assert good == "a\n"
        assert isinstance(bad, JobFailed)

    def test_waiting_has_a_limit(self, tmp_path: Path) -> None:
        job = self.submit(f"until [ -e '{tmp_path}/go' ]; do sleep 0.05; done")
        assert not job.wait(0.05)
        with pytest.raises(concurrent.futures.TimeoutError):
            job.result(0.05)
        (tmp_path / "go").touch()
        assert job.wait(PATIENCE)

    def test_the_handle_tells_what_it_is(self) -> None:
        job = self.submit("true")
        assert job.native_id in repr(job)
        assert str(job) == job.id == job.native_id == job.psij_job.native_id
        assert (job.wlm, job.host, len(job.key)) == (self.wlm, self.host, 36)
        assert "<table>" in job._repr_html_()
        assert job.wait(PATIENCE)
        assert job.spec.arguments is not None
        assert job.spec.arguments[-1] == f"{job.paths.directory}/run"

    # many, and private

    def test_many_jobs_at_once(self) -> None:
        jobs = [self.submit(f"echo {n}") for n in range(30)]
        assert [job.result(PATIENCE) for job in jobs] == [f"{n}\n" for n in range(30)]

    def test_files_are_private(self, job_root: Path) -> None:
        job = self.submit("true")
        assert job.wait(PATIENCE)
        for path in [job_root, *job_root.rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


class OurBehaviour(Behaviour):
    """What our own executors do beside that; PSI/J's hand on what they have, and refuse such flags by name."""

    completed = "COMPLETED"

    def test_variables_of_the_kernel_do_not_travel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kernels = ("SLURM_JOB_NAME", "PMI_RANK", "MPLBACKEND", "JPY_PARENT_PID", "FORCE_COLOR", "PAGER")
        self.set_variables({**dict.fromkeys(kernels, "from the kernel"), "MINE": "travels"}, monkeypatch)
        job = self.submit("env")
        out = job.result(PATIENCE)
        assert "from the kernel" not in out
        assert "MINE=travels\n" in out

    def test_paths_with_spaces_and_signs(self, tmp_path: Path) -> None:
        place = tmp_path / "a b'c$d"
        place.mkdir()
        (place / "in put").write_text("from the file\n")
        job = self.submit("cat; pwd", [f"--chdir={place}", "--input=in put", "--output=out put.%j", "--job-name=a b"])
        assert job.result(PATIENCE) == f"from the file\n{place}\n"
        assert job.paths.stdout == f"{place}/out put.{job.native_id}"

    def test_output_alone_takes_stderr_too(self, tmp_path: Path) -> None:
        job = self.submit("echo out; echo err >&2", f"--output={tmp_path}/both")
        assert job.result(PATIENCE) == "out\nerr\n"
        assert job.stderr() == ""
        assert (tmp_path / "both").read_text() == "out\nerr\n"


class WithoutScheduler:
    """What only processes without a scheduler do, here or on another machine."""

    submit: Callable[..., Job]

    def test_a_cancellation_ends_what_is_in_groups_of_its_own(self) -> None:
        job = self.submit("timeout 1000 sleep 1000 & echo $!; set -m; sleep 1000 & echo $!; wait")
        pids = until(lambda: job.stdout().split()[1:] and job.stdout().split())
        assert job.cancel()
        assert job.wait(PATIENCE)
        assert job.cancelled()
        until(lambda: not any(alive(pid) for pid in pids))

    def test_a_cancellation_ends_what_has_lost_its_wrapper(self) -> None:
        job = self.submit("sleep 1000 & echo $!; wait")
        child = until(lambda: job.stdout().split())
        os.kill(int(job.native_id), signal.SIGKILL)
        assert job.cancel()  # before somebody has looked whether it lives
        until(lambda: not alive(child[0]))
        assert job.wait(PATIENCE)

    def test_a_cancellation_that_is_ignored_keeps_nobody_waiting(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(process, "_KILL_AFTER", 300)
        job = self.submit(f"trap '' TERM; echo ready; until [ -e {tmp_path}/go ]; do sleep 0.05; done")
        until(lambda: job.stdout() == "ready\n")
        began = time.monotonic()
        assert job.cancel()
        assert time.monotonic() - began < 30
        (tmp_path / "go").touch()
        assert job.wait(PATIENCE)
        assert job.cancelled()

    def test_a_time_limit_lets_what_is_in_groups_of_its_own_tidy_up(self, tmp_path: Path) -> None:
        saving = f"trap 'sleep 0.5; echo saved >{tmp_path}/saved; exit' TERM; sleep 1000 & wait"
        job = self.submit(f"timeout 1000 bash -c {shlex.quote(saving)}", "--time=0:01")
        assert job.wait(PATIENCE)
        assert job.native_state == "TIMEOUT"
        until(lambda: (tmp_path / "saved").exists())

    @pytest.mark.parametrize(
        ("flag", "message"),
        [
            ("--time=1h", "--time=1h is no time"),
            ("--time=1:2:3:4", "is no time"),
            ("-t -5", "is no time"),
            ("--output=", "--output= names nothing"),
            ("--output=/dev/stdout", "would be a file of ours"),
            ("--error=/dev//stderr", "would be a file of ours"),
            ("--error=/proc/self/fd/1", "would be a file of ours"),
            ("--input=/dev/stdin", "would be a file of ours, not of the job: a job has no terminal"),
        ],
    )
    def test_what_would_not_be_as_it_is_meant_is_refused(self, flag: str, message: str) -> None:
        with pytest.raises(BadUsage, match=message):
            self.submit("true", flag)

    @pytest.mark.parametrize("time", ["0", "UNLIMITED", "infinite", "0:00", "1-0"])
    def test_no_limit(self, time: str) -> None:
        assert self.submit("echo done", f"--time={time}").result(PATIENCE) == "done\n"

    def test_an_output_that_has_no_end(self) -> None:
        job = self.submit("echo lost 2>/dev/null", "--output=/dev/full")
        assert "".join(text for _, text in job.follow()) == ""
        assert job.stdout() == ""

    def test_an_output_that_is_a_pipe_is_left_to_its_reader(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDWR)  # which does not wait for who writes
        try:
            job = self.submit("echo for the reader; exit 3", f"--output={pipe}")
            with pytest.raises(JobFailed, match="exit code 3"):
                job.result(PATIENCE)
            assert os.read(reader, 100) == b"for the reader\n"
        finally:
            os.close(reader)
