from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Optional

import pytest
from execute_batch_scheduler.adapters.tracking import Details

from execute_batch_scheduler import display
from execute_batch_scheduler.job import Paths
from execute_batch_scheduler.journal import Entry

from psij import JobState

PATHS = Paths("/jobs/one", "/jobs/one/script", "/jobs/one/record", "/jobs/one/stdout", "/jobs/one/stderr")
ELSEWHERE = Paths("/jobs/one", "/jobs/one/script", "/jobs/one/record", "/home/log", None)
HALF = Paths("/jobs/one", "/jobs/one/script", "/jobs/one/record", "/jobs/one/stdout", "/home/err")
NOWHERE = Paths("/jobs/one", "/jobs/one/script", "/jobs/one/record", None, "/jobs/one/stderr")


@dataclass
class Job:
    """A handle's facts, without a scheduler."""

    native_id: str = "42"
    wlm: str = "slurm"
    host: Optional[str] = None
    state: JobState = JobState.QUEUED
    exit_code: Optional[int] = None
    details: Details = field(default_factory=Details)
    submitted: datetime = datetime(2030, 1, 2, 3, 4, 5)
    started: Optional[datetime] = None
    ended: Optional[datetime] = None
    paths: Paths = PATHS
    cancelling: bool = False

    def done(self) -> bool:
        return self.state.final

    @property
    def native_state(self):
        return self.details.native_state

    @property
    def reason(self):
        return self.details.reason


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        (0, "."),
        (0.9, "."),
        (1, ".."),
        (8.99, "." * 9),
        (9, "." * 10),
        (10, "." * 10),
        (19.9, "." * 10),
        (20, "." * 10 + "o"),
        (59.9, "." * 10 + "oooo"),
        (60, "." * 10 + "ooooo"),
        (119, "." * 10 + "ooooo"),
        (120, "." * 10 + "oooooO"),
        (600, "." * 10 + "ooooo" + "O" * 9),
        (1199, "." * 10 + "ooooo" + "O" * 9),
        (1200, "." * 10 + "ooooo" + "O" * 9 + "@"),
        (7200, "." * 10 + "ooooo" + "O" * 9 + "@" * 11),
    ],
)
def test_the_progress_line_counts_seconds_tens_minutes_and_tens_of_minutes(seconds, line):
    assert display.marks(seconds) == line


def test_the_progress_line_only_ever_grows():
    lines = [display.marks(tenth / 10) for tenth in range(0, 30000)]
    assert all(after.startswith(before) and len(after) - len(before) <= 1 for before, after in zip(lines, lines[1:]))


@pytest.mark.parametrize(
    ("job", "first", "last"),
    [
        (Job(), "Submitted batch job 42", "End batch job 42 Status:  QUEUED"),
        (
            Job(details=Details("COMPLETED"), state=JobState.COMPLETED),
            "Submitted batch job 42",
            "End batch job 42 Status:  COMPLETED",
        ),
        (
            Job(details=Details("TIMEOUT"), state=JobState.FAILED, wlm="psij:slurm"),
            "Submitted batch job 42 (psij:slurm)",
            "End batch job 42 Status:  TIMEOUT",
        ),
        (
            Job(details=Details("COMPLETED"), state=JobState.COMPLETED, wlm="local"),
            "Started on this machine with pid: 42",
            "Done",
        ),
        (
            Job(details=Details("FAILED"), state=JobState.FAILED, wlm="local"),
            "Started on this machine with pid: 42",
            "End process 42 Status:  FAILED",
        ),
    ],
)
def test_the_first_and_the_last_line_of_a_cell(job, first, last):
    assert (display.submitted(job), display.ended(job)) == (first, last)


@pytest.mark.parametrize(
    ("details", "text"),
    [
        (Details(), "Waiting for resources"),
        (Details(reason="Priority: later"), "Waiting for resources (Priority: later)"),
        (
            Details(reason="Priority", expected_start=datetime(2030, 1, 2, 3, 4).timestamp()),
            "Waiting for resources (Priority; expected start 2030-01-02 03:04)",
        ),
        (
            Details(unanswered_since=datetime(2030, 1, 2, 3, 4, 5).timestamp()),
            "Waiting for resources (the scheduler has not answered since 03:04:05)",
        ),
    ],
)
def test_why_a_job_waits(details, text):
    assert display.waiting(Job(details=details)) == text


@pytest.mark.parametrize(
    ("job", "lines", "text"),
    [
        (
            Job(state=JobState.FAILED, exit_code=3, details=Details("FAILED", "NonZeroExitCode")),
            ["one", "two"],
            "job 42 (slurm) ended FAILED, exit code 3\nthe last lines of /err:\n    one\n    two\n"
            "its script and output are in /jobs/one",
        ),
        (
            Job(state=JobState.FAILED, host="login", details=Details("TIMEOUT", "TimeLimit: too long")),
            [],
            "job 42 (slurm at login) ended TIMEOUT: TimeLimit: too long\nits script and output are in login:/jobs/one",
        ),
        (
            Job(state=JobState.CANCELED, wlm="psij:slurm"),
            [],
            "job 42 (psij:slurm) ended CANCELED\nits script and output are in /jobs/one",
        ),
        (
            Job(state=JobState.FAILED, host="login", paths=ELSEWHERE),
            [],
            "job 42 (slurm at login) ended FAILED\nits output is in login:/home/log; its script is in login:/jobs/one",
        ),
        (
            Job(state=JobState.FAILED, paths=HALF),
            [],
            "job 42 (slurm) ended FAILED\nits output is in /jobs/one/stdout and /home/err; its script is in /jobs/one",
        ),
        (
            Job(state=JobState.FAILED, paths=NOWHERE),
            [],
            "job 42 (slurm) ended FAILED\nits script is in /jobs/one",
        ),
    ],
)
def test_what_is_said_of_a_job_that_did_not_complete(job, lines, text):
    assert display.failure(job, lines, "/err") == text


@pytest.mark.parametrize(
    ("job", "text"),
    [
        (Job(), "<Job 42 slurm QUEUED>"),
        (Job(details=Details("PENDING"), host="login"), "<Job 42 slurm@login PENDING>"),
        (Job(details=Details("FAILED"), exit_code=0), "<Job 42 slurm FAILED exit code 0>"),
    ],
)
def test_one_line(job, text):
    assert display.one_line(job) == text


def test_a_card_shows_what_is_known():
    card = display.card(
        Job(
            state=JobState.COMPLETED,
            exit_code=0,
            details=Details("COMPLETED", nodes="n[1-2]"),
            started=datetime(2030, 1, 2, 3, 5),
            ended=datetime(2030, 1, 2, 3, 6),
        )
    )
    row = "<tr><th style='text-align:left'>{}</th><td style='text-align:left'>{}</td></tr>"
    rows = {
        "Job": "42 (slurm)",
        "State": "COMPLETED",
        "Exit code": "0",
        "Nodes": "n[1-2]",
        "Submitted": "2030-01-02 03:04:05",
        "Started": "2030-01-02 03:05:00",
        "Ended": "2030-01-02 03:06:00",
        "Directory": "/jobs/one",
    }
    assert card == f"<table>{''.join(row.format(name, value) for name, value in rows.items())}</table>"


def test_a_card_escapes_what_others_wrote():
    job = Job(
        wlm="<b>",
        details=Details("<i>", "<script>alert(\"1\")</script> & 'x'", nodes="<u>"),
        paths=Paths("/a<s>", "", "", None, None),
    )
    card = display.card(job)
    for text in ("<b>", "<i>", "<script>", "<u>", "<s>"):
        assert text not in card
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &#x27;x&#x27;" in card


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (Entry("key", name="train.sh", title="module load gcc"), "train.sh"),
        (Entry("key", name="sbatch", title="srun ./a.out"), "srun ./a.out"),
        (Entry("key", name="sbatch"), "sbatch"),
        (Entry("key", title="a\033b"), "a?b"),
    ],
)
def test_a_job_without_a_name_of_its_own_is_known_by_its_first_command(entry, text):
    assert display.table([entry]).splitlines()[1].endswith(f"  {text}")
