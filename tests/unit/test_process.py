from __future__ import annotations

import pytest
from execute_batch_scheduler.adapters.jobdir import Attempt, JobDir, Record
from execute_batch_scheduler.adapters.process import parse_processes, start_script, verdict
from execute_batch_scheduler.adapters.tracking import Report

from execute_batch_scheduler.flags import parse
from execute_batch_scheduler.spec import make_spec

from psij import JobAttributes, JobSpec, JobState

START = """( trap - INT QUIT; cd -- {directory} >/dev/null || exit
hash setsid || exit
__pid=$BASHPID
exec 6>&1 7>&2 <{stdin} >{stdout} 2>{stderr} || exit
echo "$__pid" >&6
exec 6>&- 7>&- setsid -- {command} ) &
"""
OURS = {
    "directory": ".",
    "stdin": "/dev/null",
    "stdout": "/jobs/one/stdout",
    "stderr": "/jobs/one/stderr",
    "command": "/bin/bash -p /jobs/one/run",
}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {}),
        (["-D", "/a b"], {"directory": "'/a b'"}),
        (["-D", "a/"], {"directory": "a/"}),
        (["-i", "in file"], {"stdin": "'in file'"}),
        (["-i", "in-%x", "-J", "me"], {"stdin": "in-me"}),
        (["-o", "out"], {"stdout": "out", "stderr": "&1"}),
        (["-e", "err"], {"stderr": "err"}),
        (["-o", "a b", "-e", "it's"], {"stdout": "'a b'", "stderr": "'it'\"'\"'s'"}),
        (["-o", "slurm-%j.out"], {"stdout": 'slurm-"$__pid".out', "stderr": "&1"}),
        (["-o", "%A%u%N"], {"stdout": '"$__pid""$USER""$HOSTNAME"', "stderr": "&1"}),
        (["-o", "%4j-%J"], {"stdout": '"$(printf %04d "$__pid")"-"$__pid"', "stderr": "&1"}),
        (["-o", "100%%-%x", "-J", "a b"], {"stdout": "100%-'a b'", "stderr": "&1"}),
        (["-o", "%q$HOME"], {"stdout": "%q'$HOME'", "stderr": "&1"}),
    ],
)
def test_the_text_that_starts_a_process(words, expected):
    spec = make_spec(parse(words), JobDir("/jobs/one"))
    assert start_script(spec) == START.format(**{**OURS, **expected})


def test_the_text_that_starts_a_plain_specification():
    spec = JobSpec("/bin/echo", ["a b", "$x"], directory="/work", attributes=JobAttributes())
    expected = {"directory": "/work", "stdout": "/dev/null", "stderr": "&1", "command": "/bin/echo 'a b' '$x'"}
    assert start_script(spec) == START.format(**{**OURS, **expected})


@pytest.mark.parametrize(
    ("out", "processes"),
    [
        ("", {}),
        ("  12 Ss   /bin/bash -p /jobs/a b/run\n", {"12": "/bin/bash -p /jobs/a b/run"}),
        ("12 Z [bash] <defunct>\n13 S sleep 5\n", {"13": "sleep 5"}),
        ("12 Zs x\n", {}),
        ("12 R\n", {"12": ""}),
        (" 12 S+ a\n345 Sl b  c\n", {"12": "a", "345": "b  c"}),
    ],
)
def test_processes_that_live_and_their_commands(out, processes):
    assert parse_processes(out) == processes


GONE = "its process is gone and left no end record: killed with SIGKILL, or the machine restarted"
LATE = "TimeLimit: it reached its time limit"


def ended(code=None, **fields):
    return Attempt(0, started=1.0, ended=2.0, exit_code=code, **fields)


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("attempt", [None, Attempt(0), Attempt(0, started=1.0, told=("TERM",), limit=True)])
def test_a_process_that_lives_and_has_not_ended_runs(attempt, cancelled):
    assert verdict(Record(attempt, cancelled), alive=True) == Report(JobState.ACTIVE, "RUNNING")


@pytest.mark.parametrize(
    ("record", "report"),
    [
        (Record(), Report(JobState.FAILED, "FAILED", None, GONE)),
        (Record(Attempt(0, started=1.0)), Report(JobState.FAILED, "FAILED", None, GONE)),
        (Record(Attempt(0, started=1.0, told=("TERM",))), Report(JobState.FAILED, "FAILED", None, GONE)),
        (Record(Attempt(0, limit=True)), Report(JobState.FAILED, "TIMEOUT", None, LATE)),
        (Record(None, cancelled=True), Report(JobState.CANCELED, "CANCELLED", None, "cancelled")),
        (Record(Attempt(0, limit=True), cancelled=True), Report(JobState.CANCELED, "CANCELLED", None, "cancelled")),
    ],
)
def test_a_process_that_is_gone_without_an_end_record(record, report):
    assert verdict(record, alive=False) == report


@pytest.mark.parametrize("alive", [False, True])
@pytest.mark.parametrize(
    ("record", "report"),
    [
        (Record(ended(0)), Report(JobState.COMPLETED, "COMPLETED", 0)),
        (Record(ended(3)), Report(JobState.FAILED, "FAILED", 3, "NonZeroExitCode")),
        (Record(ended(137)), Report(JobState.FAILED, "FAILED", 137, "NonZeroExitCode")),
        (Record(ended(signal=9)), Report(JobState.FAILED, "FAILED", 137, "RaisedSignal:9")),
        (Record(ended(0, told=("USR1",))), Report(JobState.COMPLETED, "COMPLETED", 0)),
        (Record(ended(signal=15, told=("TERM",))), Report(JobState.FAILED, "FAILED", 143, "RaisedSignal:15")),
        (Record(ended(0, limit=True)), Report(JobState.FAILED, "TIMEOUT", 0, LATE)),
        (Record(ended(signal=15, told=("TERM",), limit=True)), Report(JobState.FAILED, "TIMEOUT", 143, LATE)),
        (
            Record(ended(signal=15, told=("TERM",)), cancelled=True),
            Report(JobState.CANCELED, "CANCELLED", 143, "cancelled"),
        ),
        (Record(ended(7, told=("TERM",)), cancelled=True), Report(JobState.CANCELED, "CANCELLED", 7, "cancelled")),
        (Record(ended(0), cancelled=True), Report(JobState.COMPLETED, "COMPLETED", 0)),
        (Record(ended(3), cancelled=True), Report(JobState.FAILED, "FAILED", 3, "NonZeroExitCode")),
    ],
)
def test_an_end_record_decides_whether_or_not_the_process_is_seen_to_live(record, report, alive):
    assert verdict(record, alive) == report
