from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from execute_batch_scheduler.adapters.jobdir import Attempt, JobDir, Record, parse_record
from execute_batch_scheduler.adapters.transport import Local, NewDirectory

from psij import JobSpec

STARTED = "started\tattempt=0\ttime=1700000000.250000\tid=7\tnode=n1\tstdout=/o\tstderr=/e\n"
ENDED = "ended\tattempt=0\ttime=1700000002.5\texit=0\ttold=\n"


@pytest.fixture
def open_umask():
    """The loosest umask: what is private then is private by intent."""
    before = os.umask(0)
    yield
    os.umask(before)


def attempt(**fields):
    known = {"number": 0, "native_id": "7", "node": "n1", "stdout": "/o", "stderr": "/e", "started": 1700000000.25}
    return Attempt(**{**known, **fields})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Record()),
        (STARTED, Record(attempt())),
        (STARTED + ENDED, Record(attempt(ended=1700000002.5, exit_code=0))),
        (STARTED + ENDED.replace("exit=0", "exit=3"), Record(attempt(ended=1700000002.5, exit_code=3))),
        (STARTED + ENDED.replace("exit=0", "signal=9"), Record(attempt(ended=1700000002.5, signal=9))),
        (
            STARTED + "told\tattempt=0\ttime=1\tsignal=USR1\ntold\tattempt=0\ttime=2\tsignal=TERM\n",
            Record(attempt(told=("USR1", "TERM"))),
        ),
        (
            STARTED + "told\tattempt=0\ttime=1\tsignal=TERM\n" + ENDED.replace("told=", "told=TERM"),
            Record(attempt(ended=1700000002.5, exit_code=0, told=("TERM",))),
        ),
        (
            STARTED + ENDED.replace("told=", "told=INT,TERM"),
            Record(attempt(ended=1700000002.5, exit_code=0, told=("INT", "TERM"))),
        ),
        (STARTED + "limit\tattempt=0\ttime=1\t\n", Record(attempt(limit=True))),
        ("cancelled\n", Record(None, cancelled=True)),
        (STARTED + "cancelled\n" + ENDED, Record(attempt(ended=1700000002.5, exit_code=0), cancelled=True)),
        (ENDED, Record(Attempt(0, ended=1700000002.5, exit_code=0))),
    ],
)
def test_a_record_tells_what_happened(text, expected):
    assert parse_record(text) == expected


@pytest.mark.parametrize("cut", range(1, len(ENDED)))
def test_a_line_that_is_still_being_written_is_not_read(cut):
    assert parse_record(STARTED + ENDED[:cut]) == Record(attempt())


def test_the_last_attempt_counts_wherever_its_lines_stand():
    second = STARTED.replace("attempt=0", "attempt=1").replace("node=n1", "node=n2")
    late = ENDED.replace("exit=0", "signal=15")
    expected = Record(attempt(number=1, node="n2"))
    assert parse_record(STARTED + late + second) == expected
    assert parse_record(STARTED + second + late) == expected


def test_the_tenth_attempt_comes_after_the_second():
    assert parse_record("started\tattempt=2\nstarted\tattempt=10\n").attempt.number == 10
    assert parse_record("started\tattempt=10\nstarted\tattempt=2\n").attempt.number == 10


@pytest.mark.parametrize(
    "garbage",
    [
        "\n",
        "\x00\x00\x00\n",
        "nonsense\n",
        "ended\texit=0\n",
        "ended\tattempt=\texit=0\n",
        "ended\tattempt=x\texit=0\n",
        "\t\t\t\n",
        "=\t=\n",
        "attempt=0\tended\texit=1\n",
        "cancelledd\n",
        "\ufffd\ufffd\n",
    ],
)
def test_a_line_that_makes_no_sense_is_passed_over(garbage):
    assert parse_record(garbage + STARTED + garbage + ENDED) == parse_record(STARTED + ENDED)


@pytest.mark.parametrize("line", ["new\tattempt=0\tx=1\n", STARTED.replace("\tid=7", "\tid=7\tmore=1")])
def test_what_a_later_version_may_add_is_passed_over(line):
    assert parse_record(STARTED + line) == Record(attempt())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("exit=x\ttold=", {"exit_code": None, "signal": None}),
        ("told=TERM", {"exit_code": None, "told": ("TERM",)}),
        ("exit=3", {"exit_code": 3, "told": ()}),
    ],
)
def test_a_field_that_cannot_be_read_is_missing(fields, expected):
    got = parse_record(f"ended\tattempt=0\ttime=x\t{fields}\n").attempt
    assert {name: getattr(got, name) for name in expected} == expected
    assert got.ended is None


@pytest.mark.parametrize(
    ("fields", "status"),
    [({}, None), ({"exit_code": 0}, 0), ({"exit_code": 137}, 137), ({"signal": 9}, 137), ({"signal": 15}, 143)],
)
def test_the_status_is_the_one_a_shell_tells(fields, status):
    assert Attempt(0, **fields).status == status


def test_names_of_new_directories_sort_by_time_and_hold_the_key():
    before = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    directory = JobDir.new("/root", "0123456789abcdef")
    after = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    assert re.fullmatch(r"/root/jobs/\d{8}T\d{6}-01234567", directory.path)
    assert before <= directory.name[:15] <= after


def test_one_class_names_every_file():
    directory = JobDir("/r/jobs/deep/jobs/name")
    assert directory.name == "name"
    assert directory.events == "/r/jobs/deep/events"
    assert directory.record == "/r/jobs/deep/jobs/name/record"
    assert directory.stdout == "/r/jobs/deep/jobs/name/stdout"
    assert directory.stderr == "/r/jobs/deep/jobs/name/stderr"
    assert directory.command == ("/bin/bash", ["-p", "/r/jobs/deep/jobs/name/run"])


def test_a_directory_is_found_again_in_the_specification():
    directory = JobDir("/r/jobs/name")
    executable, arguments = directory.command
    assert JobDir.of(JobSpec(executable, arguments)) == directory


@pytest.mark.parametrize(
    "spec",
    [
        None,
        JobSpec(),
        JobSpec("/bin/true"),
        JobSpec("/bin/bash"),
        JobSpec("/bin/bash", ["/r/jobs/name/run"]),
        JobSpec("/bin/bash", ["-p", "/r/jobs/name/script"]),
        JobSpec("/bin/bash", ["-p", "/r/jobs/name/run", "x"]),
        JobSpec("/bin/sh", ["-p", "/r/jobs/name/run"]),
    ],
)
def test_another_command_has_no_directory(spec):
    assert JobDir.of(spec) is None


def test_create_makes_everything_private(tmp_path, open_umask):
    root = tmp_path / "above" / "root"
    directory = JobDir.new(str(root), "0123456789")
    Local().create(directory.files(b"#!/bin/sh\n", {"A": "x y"}))
    modes = {str(path.relative_to(tmp_path)): oct(path.stat().st_mode & 0o7777) for path in tmp_path.rglob("*")}
    job = f"above/root/jobs/{directory.name}"
    assert modes == {
        "above": "0o700",
        "above/root": "0o700",
        "above/root/events": "0o700",
        "above/root/jobs": "0o700",
        job: "0o700",
        f"{job}/script": "0o700",
        f"{job}/run": "0o600",
        f"{job}/environment": "0o600",
        f"{job}/record": "0o600",
        f"{job}/stdout": "0o600",
        f"{job}/stderr": "0o600",
    }


def test_create_writes_the_script_as_it_is_and_leaves_the_rest_empty(tmp_path):
    directory = JobDir.new(str(tmp_path), "0123456789")
    Local().create(directory.files(b"#!/bin/sh\n\xff\n", {}))
    job = Path(directory.path)
    assert sorted(path.name for path in job.iterdir()) == ["record", "run", "script", "stderr", "stdout"]
    assert (job / "script").read_bytes() == b"#!/bin/sh\n\xff\n"
    assert [(job / name).read_bytes() for name in ("record", "stdout", "stderr")] == [b"", b"", b""]
    assert (job / "run").read_bytes().startswith(b"#!/bin/bash -p\n")


def test_the_environment_is_quoted(tmp_path):
    directory = JobDir.new(str(tmp_path), "0123456789")
    Local().create(directory.files(b"", {"A": "it's $HOME `x`", "B": "", "C": "a\nb"}))
    text = (Path(directory.path) / "environment").read_text()
    assert text == "export A='it'\"'\"'s $HOME `x`'\nexport B=''\nexport C='a\nb'\n"


def test_create_leaves_nothing_when_a_file_cannot_be_written(tmp_path):
    path = tmp_path / "jobs" / "one"
    with pytest.raises(FileNotFoundError):
        Local().create(NewDirectory(str(path), {"script": (b"x", 0o700), "no/such": (b"", 0o600)}))
    assert not path.exists()


def test_create_touches_nothing_that_is_there(tmp_path):
    path = tmp_path / "jobs" / "one"
    path.mkdir(parents=True)
    (path / "script").write_text("mine")
    with pytest.raises(FileExistsError):
        Local().create(NewDirectory(str(path), {"script": (b"x", 0o700)}))
    assert (path / "script").read_text() == "mine"


def test_two_jobs_share_the_marks(tmp_path):
    first, second = JobDir.new(str(tmp_path), "1" * 10), JobDir.new(str(tmp_path), "2" * 10)
    for directory in (first, second):
        Local().create(directory.files(b"", {}))
    assert first.path != second.path
    assert first.events == second.events == str(tmp_path / "events")


def test_reading_a_record_that_is_gone_is_reading_an_empty_one(tmp_path):
    directory = JobDir(str(tmp_path / "jobs" / "one"))
    assert directory.read(Local()) == Record()


def test_reading_a_record_survives_what_is_no_text(tmp_path):
    directory = JobDir.new(str(tmp_path), "0123456789")
    Local().create(directory.files(b"", {}))
    Path(directory.record).write_bytes(b"\xff\xfe\n" + STARTED.encode() + ENDED[:-1].encode())
    assert directory.read(Local()) == Record(attempt())


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999", "x", ""])
def test_a_number_that_is_none_harms_nothing(number):
    text = f"started\tattempt={number}\nstarted\tattempt=0\ttime={number}\nended\tattempt=0\texit={number}\n"
    assert parse_record(text).attempt == Attempt(0)
