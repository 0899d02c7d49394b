"""%%execute in a real IPython shell, on this machine and on a real Slurm."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from execute_batch_scheduler import Job, JobCancelled, JobFailed, submit_script
from execute_batch_scheduler.settings import Settings, settings
from tests.contract.behaviour import PATIENCE, until


class Shell:
    """A shell whose cells are run as a user's; `out` and `err` hold what the last one printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], config: Any = None) -> None:
        self.ip = InteractiveShell(config=config or Config())
        self.capsys = capsys
        self.out = self.err = ""
        assert self.run("%load_ext execute_batch_scheduler.execute_magic").success

    def run(self, cell: str) -> Any:
        self.capsys.readouterr()
        result = self.ip.run_cell(cell)
        self.out, self.err = self.capsys.readouterr()
        return result

    def execute(self, line: str, body: str = "true") -> Any:
        return self.run(f"%%execute {line}\n{body}")

    def __getitem__(self, name: str) -> Any:
        return self.ip.user_ns[name]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    yield Shell(capsys)
    vars(settings).update(vars(Settings()))


# the transcripts that users know


def test_a_cell_on_slurm(shell: Shell, slurm: object) -> None:
    result = shell.execute("-n8 -N4", "srun -n 8 echo '$SLURMD_NODENAME'")
    assert result.success
    assert result.result is None
    number = re.match(r"Submitted batch job (\d+)\n", shell.out)
    assert number
    lines = shell.out.splitlines()
    assert [line for line in lines if line.startswith("Running .")]
    assert lines[-1] == f"End batch job {number[1]} Status:  COMPLETED"
    assert lines[-9:-1] == ["$SLURMD_NODENAME"] * 8


def test_a_cell_on_this_machine(shell: Shell) -> None:
    assert shell.execute("--wlm=local", "echo hello; echo trouble >&2").success
    assert re.fullmatch(r"Started on this machine with pid: \d+\nRunning \.+\nhello\nDone\n", shell.out)
    assert shell.err == "trouble\n"


def test_without_stream_the_output_comes_after_the_end(shell: Shell, slurm: object) -> None:
    assert shell.execute("-n1 --no-stream", "echo hello").success
    assert re.search(r"Running \.+\nEnd batch job \d+ Status:  COMPLETED\n\nhello\n$", shell.out)


def test_the_other_name_of_the_module_and_of_the_option(shell: Shell) -> None:
    assert shell.run("%unload_ext execute_batch_scheduler.execute_magic\n%load_ext execute_batch_scheduler").success
    assert shell.execute("--workloadmanager=local", "echo hello").success
    assert "hello\n" in shell.out


def test_output_stands_in_the_cell_while_the_job_runs(shell: Shell, tmp_path: Path) -> None:
    """The job waits for a file that is made only after its first line stands in the cell."""
    seen: list[str] = []

    def watch() -> None:
        def looked() -> bool:
            seen.append(shell.capsys.readouterr().out)
            return "line 1" in "".join(seen)

        until(looked)
        (tmp_path / "go").touch()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert shell.execute(
        "--wlm=local", f"echo line 1; until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo line 2"
    ).success
    watcher.join()
    assert "line 2\nDone\n" in shell.out


# failures


def test_a_failed_job_raises_without_our_traceback(shell: Shell) -> None:
    result = shell.execute("--wlm=local", "echo the trouble >&2; exit 3")
    assert isinstance(result.error_in_exec, JobFailed)
    assert "exit code 3" in shell.out
    assert (shell.out + shell.err).count("the trouble") == 1  # it was streamed
    assert "Traceback" not in shell.out + shell.err
    assert re.search(r"End process \d+ Status:  FAILED", shell.out)
    assert shell.execute("--wlm=local --no-raise-error", "exit 3").success


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--wlm=slurm -n {nothing}", r"nothing is not defined, and {nothing} needs it"),
        ("--wlm=slurm -n $nothing", r"nothing is not defined, and \$nothing needs it"),
        (
            "--wlm=local --out=3.txt",
            r"--out wants the name of a variable, and '3.txt' is none; for a file use --output",
        ),
        ("--wlm=local 'unclosed", "No closing quotation"),
        ("--wlm=local stray", "'stray' belongs to no option"),
        ("--wlm=local --array=1-3", "--array makes no sense in a cell: job arrays are not supported yet"),
        ("--wlm=local --bg=1", "--bg takes no value"),
        ("--wlm", "--wlm needs a value"),
        ("--wlm=nope", "there is no backend 'nope'; there are .*local.*slurm"),
        ("--wlm=local --timme=3", "no such option; did you mean --time"),
        ("--wlm=local -- --native", "need a scheduler"),
    ],
)
def test_bad_usage_is_one_line(shell: Shell, line: str, message: str) -> None:
    assert not shell.execute(line).success
    assert re.search(message, shell.out + shell.err)
    assert "Traceback" not in shell.out + shell.err
    assert len((shell.out + shell.err).strip().splitlines()) == 1


def test_an_empty_cell_is_refused(shell: Shell) -> None:
    assert not shell.execute("--wlm=local", "  \n").success
    assert "empty" in shell.out + shell.err


def test_slurm_refuses_in_its_own_words(shell: Shell, slurm: object, job_root: Path) -> None:
    assert not shell.execute("--partition=nope").success
    said = shell.out + shell.err
    assert "Invalid partition name specified" in said
    assert "The command was: sbatch --parsable" in said
    assert "Hint: sinfo -s lists the partitions" in said
    assert "Traceback" not in said
    assert list((job_root / "jobs").iterdir()) == []
    assert not shell.execute("--ntaskss=8").success
    assert "unrecognized option '--ntaskss=8'" in shell.out + shell.err
    assert "did you mean --ntasks" in shell.out + shell.err


def test_what_sbatch_says_of_a_job_that_it_takes_is_shown(
    shell: Shell, slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites let sbatch tell where a job was routed, or that an account is nearly used up."""
    real = shutil.which("sbatch")
    tool = tmp_path / "bin" / "sbatch"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "sbatch: routed to partition normal" >&2\nexec {real} "$@"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    assert shell.execute("-n1 --amgr=job", "echo hello").success
    assert shell.out.startswith("sbatch: routed to partition normal\nSubmitted batch job")
    assert shell["job"].notices == ("sbatch: routed to partition normal",)


def test_without_sbatch_slurm_is_not_available(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert not shell.execute("--wlm=slurm").success
    assert "slurm needs sbatch, and this machine's PATH has none" in shell.out + shell.err


def test_an_unwritable_job_directory_is_said(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXECUTE_JOB_DIRECTORY", "/proc/nowhere")
    assert not shell.execute("--wlm=local").success
    assert "nothing was submitted. Set job_directory" in shell.out + shell.err
    assert "Traceback" not in shell.out + shell.err


def test_a_directory_that_the_node_does_not_see_is_said(
    shell: Shell, slurm: object, monkeypatch: pytest.MonkeyPatch, job_root: Path
) -> None:
    """As it looks to the handle: the job fails, and not one file was written."""
    assert shell.execute("-n1 --hold --bg --amgr=job").success
    job = shell["job"]
    Path(job.paths.directory).rename(job_root / "elsewhere")
    slurm.run("scontrol", "release", job.native_id)  # type: ignore[attr-defined]
    with pytest.raises(JobFailed, match=f"does not see {job.paths.directory}; then set job_directory"):
        job.result(PATIENCE)


# options


def test_handles_and_numbers_are_put_into_variables(shell: Shell, tmp_path: Path) -> None:
    result = shell.execute(
        "--wlm=local --bg --amgr=job --jobid=number --pid=pid",
        f"until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo x",
    )
    job = shell["job"]
    assert isinstance(job, Job)
    assert result.result is job
    assert (shell["number"], shell["pid"]) == (job.native_id, int(job.native_id))
    assert shell.out.startswith(f"Started on this machine with pid: {job.native_id}\n")
    assert not job.done()
    (tmp_path / "go").touch()
    assert job.wait(PATIENCE)
    assert job.get_output() == ("x\n", "")


def test_background_without_a_variable_says_how_to_get_at_it(shell: Shell) -> None:
    result = shell.execute("--wlm=local --bg")
    assert "; its handle is _execute_job, or next time --amgr=VAR\n" in shell.out
    assert shell["_execute_job"] is result.result
    assert result.result.wait(PATIENCE)


def test_output_into_variables(shell: Shell) -> None:
    assert shell.execute("--wlm=local --out text --err trouble", "echo hello; echo oh >&2").success
    assert (shell["text"], shell["trouble"]) == ("hello\n", "oh\n")
    assert "hello" not in shell.out
    assert "oh" not in shell.err


def test_output_of_the_background_can_be_read_as_it_comes(shell: Shell) -> None:
    assert shell.execute("--wlm=local --bg --out stream", "echo hello").success
    assert until(shell["stream"].read) == "hello\n"
    assert shell["stream"].read() == ""


def test_shell_with_arguments(shell: Shell) -> None:
    assert shell.execute("--wlm=local --shell='/usr/bin/env -S python3 -u'", "print(6 * 7)").success
    assert "42\n" in shell.out


def test_the_line_is_filled_in_and_the_cell_is_not(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.ip.push({"name": "a b", "n": 4})
    monkeypatch.setenv("PLACE", "/tmp")
    line = "--wlm=local --job-name={name}-{n + 1} --chdir=$PLACE --input=${PLACE}/x{{y}} --dry-run"
    assert shell.execute(line, "echo {n} ${n} $n").success
    assert "stdin_path: /tmp/x{y}" in shell.out
    assert "echo {n} ${n} $n\n" in shell.out
    assert "name: a b-5" in shell.out
    assert "directory: /tmp" in shell.out


def test_dry_run_shows_and_submits_nothing(shell: Shell, slurm: Any, job_root: Path) -> None:
    before = slurm.run("squeue", "-h", "-t", "all", "-o", "%i")
    assert shell.execute("--dry-run -n8 -N4 --qos=x --hold", "srun hostname").success
    assert "#!/bin/bash\nsrun hostname\n" in shell.out
    assert re.search(r"sbatch --parsable .* --nodes=4 --ntasks=8 --qos=x --hold /\S+\.job", shell.out)
    assert "'process_count': 8" in shell.out
    assert not job_root.exists()
    assert slurm.run("squeue", "-h", "-t", "all", "-o", "%i") == before


def test_native_options_come_after_two_dashes(shell: Shell) -> None:
    assert shell.execute("--wlm=slurm --dry-run -n2 -- -C haswell --mem=3G").success
    assert " --ntasks=2 -C haswell --mem=3G /" in shell.out


def test_configuration_counts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = Config(
        {"ExecuteMagics": {"wlm": "local", "default_shell": "/usr/bin/env python3", "job_directory": str(tmp_path)}}
    )
    shell = Shell(capsys, config)
    try:
        assert shell.execute("", "print('from', 'python')").success
        assert "from python\n" in shell.out
        assert list((tmp_path / "jobs").iterdir())
        assert shell.run("%config ExecuteMagics.wlm = 'psij:local'").success
        assert shell.execute("--amgr=job", "print(1)").success
        assert shell["job"].wlm == "psij:local"
    finally:
        vars(settings).update(vars(Settings()))


def test_it_unloads_and_loads_again(shell: Shell) -> None:
    for _ in range(3):
        assert shell.run("%reload_ext execute_batch_scheduler.execute_magic").success
    names = [type(one).__name__ for one in shell.ip.configurables]
    assert names.count("ExecuteMagics") == 1
    assert shell.run("%unload_ext execute_batch_scheduler.execute_magic").success
    assert "ExecuteMagics" not in [type(one).__name__ for one in shell.ip.configurables]
    assert not shell.execute("--wlm=local").success
    assert "not found" in shell.out + shell.err


# Ctrl-C


def _interrupt_when(condition: Any, times: int = 1) -> threading.Thread:
    def act() -> None:
        until(condition)
        for _ in range(times):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]
            time.sleep(0.3)

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_an_interrupt_cancels_the_job(shell: Shell, slurm: Any, tmp_path: Path) -> None:
    thread = _interrupt_when((tmp_path / "running").exists)
    result = shell.execute("-n1 --amgr=job", f"echo so far; touch {tmp_path}/running; sleep 1000")
    thread.join()
    job = shell["job"]
    assert isinstance(result.error_in_exec, JobCancelled)
    assert shell.out.count("so far\n") == 1
    assert f"Terminate job {job.native_id}\n" in shell.out
    assert f"End batch job {job.native_id} Status:  CANCELLED" in shell.out
    assert "Traceback" not in shell.out + shell.err
    assert slurm.field(job.native_id, "JobState") == "CANCELLED"


def test_a_second_interrupt_stops_the_waiting(shell: Shell, tmp_path: Path) -> None:
    thread = _interrupt_when((tmp_path / "running").exists, times=2)
    shell.execute("--wlm=local --amgr=job", f"trap '' TERM; touch {tmp_path}/running; while :; do sleep 0.1; done")
    thread.join()
    assert "Terminate job" in shell.out
    assert "not waiting any longer; it has been told to end: job is <Job" in shell.out
    assert "Traceback" not in shell.out + shell.err
    assert not shell["job"].done()
    assert shell["job"].wait(PATIENCE)


def test_an_interrupt_may_leave_the_job_running(shell: Shell, tmp_path: Path) -> None:
    assert shell.run("%config ExecuteMagics.on_interrupt = 'detach'").success
    thread = _interrupt_when((tmp_path / "running").exists)
    shell.execute("--wlm=local --amgr=job", f"touch {tmp_path}/running; until [ -e {tmp_path}/go ]; do sleep 0.1; done")
    thread.join()
    assert "Terminate" not in shell.out
    assert "Traceback" not in shell.out + shell.err
    assert shell["job"].running()
    (tmp_path / "go").touch()
    assert shell["job"].result(PATIENCE) == ""


def test_an_interrupt_ends_the_watching_of_a_job_that_somebody_came_back_to(shell: Shell, tmp_path: Path) -> None:
    script = f"touch {tmp_path}/running; until [ -e {tmp_path}/go ]; do sleep 0.1; done"
    job = submit_script(script, wlm="local")
    until((tmp_path / "running").exists)
    thread = _interrupt_when(lambda: time.sleep(0.5) is None)
    shell.run(f"%execute_attach {job.native_id} --wlm=local")
    thread.join()
    assert "Terminate" not in shell.out
    assert "not waiting any longer; the job goes on: _execute_job is <Job" in shell.out + shell.err
    assert shell["_execute_job"].native_id == job.native_id
    (tmp_path / "go").touch()
    assert job.result(PATIENCE) == ""


# what else a newcomer stumbled over


def test_a_job_that_never_ran_is_not_said_to_run(shell: Shell, slurm: Any) -> None:
    job = submit_script("true", "--hold", wlm="slurm")
    assert job.cancel()
    assert job.wait(PATIENCE)
    assert shell.run(f"%execute_attach {job.native_id} --wlm=slurm").success
    assert "Running" not in shell.out
    assert f"\nEnd batch job {job.native_id} Status:  CANCELLED\n" in shell.out


def test_output_that_is_gone_is_said_to_be(shell: Shell) -> None:
    job = submit_script("echo out", wlm="local")
    assert job.wait(PATIENCE)
    Path(str(job.paths.stdout)).unlink()
    assert shell.run(f"%execute_output {job.native_id} --wlm=local").success
    assert shell.err == f"stdout is gone: there is no {job.paths.stdout}\n"


def test_of_several_jobs_those_that_are_known_are_cancelled(shell: Shell, slurm: Any) -> None:
    jobs = [submit_script("true", "--hold", wlm="slurm") for _ in range(2)]
    result = shell.run(f"%execute_cancel {jobs[0]} 99999999 {jobs[1]}")
    assert "no job 99999999 is known" in str(result.error_in_exec)
    assert all(job.wait(PATIENCE) and job.cancelled() for job in jobs)


@pytest.mark.parametrize(
    ("line", "name"), [("-n1 --dryrun", "dry-run"), ("-n1 --outt=v", "out"), ("-n1 --bgg", "bg"), ("--hst=x", "host")]
)
def test_a_misspelt_option_of_the_cell_gets_a_hint(shell: Shell, slurm: Any, line: str, name: str) -> None:
    shell.execute(line)
    assert f"did you mean --{name}, an option of the cell? %%execute? shows them" in shell.out + shell.err


def test_a_refusal_tells_the_command_without_paths_of_what_is_gone(shell: Shell, slurm: Any, job_root: Path) -> None:
    shell.execute("-n1 --mem=x")
    said = shell.out + shell.err
    assert "--output=.../stdout --error=.../stderr --ntasks=1 --mem=x .../" in said
    assert "Hint: memory is a number with K, M, G or T behind it" in said
    assert str(job_root) not in said


def test_a_state_that_there_is_not(shell: Shell) -> None:
    result = shell.run("%execute_jobs --state=FIALED")
    assert str(result.error_in_exec) == "'FIALED' is no state of jobs; did you mean FAILED?"
