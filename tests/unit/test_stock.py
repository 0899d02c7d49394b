from __future__ import annotations

from pathlib import Path

import pytest
from execute_batch_scheduler.adapters.jobdir import JobDir
from execute_batch_scheduler.adapters.tracking import Report
from execute_batch_scheduler.adapters.transport import Local

from execute_batch_scheduler.adapters import stock

from psij import Job, JobSpec, JobState, JobStatus

QUEUED, ACTIVE, COMPLETED = JobState.QUEUED, JobState.ACTIVE, JobState.COMPLETED
FAILED, CANCELED = JobState.FAILED, JobState.CANCELED
STARTED = "started\tattempt=0\ttime=1\tid=7\n"


def ended(how="exit=0", told=""):
    return f"{STARTED}ended\tattempt=0\ttime=2\t{how}\ttold={told}\n"


@pytest.fixture
def job(tmp_path):
    """Make a job of which PSI/J says this, and whose record says that."""

    def make(state, record, **more):
        directory = JobDir(str(tmp_path / "jobs" / "one"))
        Local().create(directory.files(b"", {}))
        Path(directory.record).write_text(record)
        made = Job(JobSpec(*directory.command))
        made._status = JobStatus(state, **more)
        return made

    return make


@pytest.mark.parametrize(
    ("state", "record", "expected"),
    [
        (QUEUED, "", QUEUED),
        (QUEUED, STARTED, ACTIVE),
        (ACTIVE, STARTED, ACTIVE),
        (CANCELED, STARTED, CANCELED),
        (FAILED, STARTED, FAILED),
        (FAILED, "", FAILED),
        (FAILED, "cancelled\n", CANCELED),
        (COMPLETED, "", None),
        (COMPLETED, STARTED, None),
        (QUEUED, ended(), COMPLETED),
        (ACTIVE, ended(), COMPLETED),
        (COMPLETED, ended(), COMPLETED),
        (FAILED, ended(), COMPLETED),
        (CANCELED, ended(), CANCELED),
        (ACTIVE, ended("exit=3"), FAILED),
        (COMPLETED, ended("exit=3"), FAILED),
        (COMPLETED, ended("signal=9"), FAILED),
        (CANCELED, ended("signal=15", "TERM"), CANCELED),
        (FAILED, "cancelled\n" + ended("signal=15", "TERM"), CANCELED),
        (ACTIVE, "cancelled\n" + ended(), COMPLETED),
        (ACTIVE, "cancelled\n" + ended("exit=3"), FAILED),
    ],
)
def test_the_record_decides_and_psijs_completed_alone_is_no_evidence(job, state, record, expected):
    report = stock.verdict(job(state, record), Local())
    assert (report and report.state) == expected


def test_the_exit_code_is_the_records_and_the_reason_psijs(job):
    report = stock.verdict(job(FAILED, ended("signal=9"), exit_code=1, message="why"), Local())
    assert report == Report(FAILED, exit_code=137, reason="why")


def test_without_an_end_record_psijs_word_is_passed_on(job):
    report = stock.verdict(job(FAILED, STARTED, exit_code=1, message="why"), Local())
    assert report == Report(FAILED, exit_code=1, reason="why")


def test_of_a_job_without_our_wrapper_psijs_word_is_all_there_is():
    job = Job(JobSpec("/bin/true"))
    job._status = JobStatus(ACTIVE)
    assert stock.verdict(job, Local()) == Report(ACTIVE)
