"""What runs in the job before its script, in the wrapper's own bash."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from execute_batch_scheduler.adapters.jobdir import JobDir
from execute_batch_scheduler.adapters.transport import Local

SCRIPT = "#!/bin/bash\necho script\n"


@pytest.fixture
def run(tmp_path):
    """Run a script with a prologue to its end: exit code, stdout, stderr."""

    def run(prologue, script=SCRIPT, environment=None, **variables):
        directory = JobDir(str(tmp_path / "root" / "jobs" / "one"))
        Local().create(directory.files(script.encode(), environment or {}, prologue))
        executable, arguments = directory.command
        done = subprocess.run(
            [executable, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            env={**os.environ, **variables},
        )
        attempt = directory.read(Local()).attempt
        status = attempt.exit_code if attempt.signal is None else -attempt.signal
        assert (attempt.ended is not None, status) == (True, done.returncode)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize(
    ("prologue", "script", "expected"),
    [
        ("export A=1; echo before", "#!/bin/bash\necho $A\n", "before\n1\n"),
        ("cd /usr\numask 027", "#!/bin/sh\npwd; umask\n", "/usr\n0027\n"),
        ("ulimit -n 99", "#!/bin/bash\nulimit -n\n", "99\n"),
        ("cat", SCRIPT, "script\n"),  # the script's input is not its
        ("# nothing", SCRIPT, "script\n"),
        ("echo 'no newline at its end' \\", SCRIPT, "no newline at its end :\nscript\n"),
        # what its shell has set is not the script's
        ("set -euo pipefail; shopt -s nullglob", "#!/bin/bash\nfalse; shopt -q nullglob || echo off\n", "off\n"),
        # names that the wrapper uses itself
        ("here=/x; code=3; script=/y; attempt=9; signals=; note() { exit 9; }", SCRIPT, "script\n"),
        # an unlucky end, and what `set -e` passes over
        ("[ -d /nowhere ] && cd /nowhere", SCRIPT, "script\n"),
        ("false || true\nif false; then :; fi\n! true", SCRIPT, "script\n"),
        # a function that fails inside and succeeds, as those of module systems and conda
        ("activate() { false; ls /nowhere 2>/dev/null; true; }; activate", SCRIPT, "script\n"),
        ("return 0", SCRIPT, "script\n"),
    ],
)  # fmt: skip
def test_it_runs_in_the_shell_that_becomes_the_script(run, prologue, script, expected):
    assert run(prologue, script) == (0, expected, "")


@pytest.mark.parametrize(
    ("prologue", "code", "message"),
    [
        (
            "echo no module >&2; false\necho after",
            1,
            "no module\nthe prologue ended with exit code 1 at: echo no module >&2; false;",
        ),
        ("module() { return 5; }\nmodule load gcc\ntrue", 5, "exit code 5 at: module load gcc; the script was not run"),
        ("no_such_command_anywhere", 127, "command not found"),
        ("source /no/such/file", 1, "No such file or directory"),
        ("exit 3", 3, "exit code 3"),
        ("exit 0", 1, "the prologue ended with exit code 0; the script was not run"),
        ("return 4", 4, "exit code 4"),
        ("if true; then", None, "syntax error"),
        ("echo 'unclosed", None, "unexpected EOF"),
        ("set -u; echo $NOT_SET_ANYWHERE", None, "unbound variable"),
        ("kill -TERM $BASHPID", -15, ""),
    ],
)
def test_where_it_fails_the_script_does_not_run(run, prologue, code, message):
    status, out, err = run(prologue)
    assert "script" not in out
    assert "after" not in out
    assert status != 0 if code is None else status == code
    assert message in err
    if status > 0:
        assert "the script was not run" in err


def test_the_variables_come_first(run):
    assert run("B=${A}b; export B", "#!/bin/bash\necho $B\n", {"A": "it's"}) == (0, "it'sb\n", "")


def test_it_finds_what_a_bash_script_finds(run, tmp_path):
    """Module systems export a function, or name a file in BASH_ENV; the wrapper itself leaves both alone."""
    (tmp_path / "bash_env").write_text("declare from_file=file\n")
    variables = {"BASH_ENV": str(tmp_path / "bash_env"), "BASH_FUNC_module%%": "() {  echo \"module $* '%s'\"\n}"}
    script = "#!/bin/bash\nmodule unload\n"
    assert run("module load gcc; echo $from_file", script, **variables) == (
        0,
        "module load gcc '%s'\nfile\nmodule unload '%s'\n",
        "",
    )


def test_a_script_that_cannot_be_run_is_not_its_fault(run):
    code, out, err = run("echo before", "#!/no/such/shell\n")
    assert (code in (126, 127), out) == (True, "before\n")
    assert "/no/such/shell, which is to run the script, cannot be run on" in err
    assert "prologue" not in err


def test_a_signal_reaches_it(tmp_path):
    """It may take long, and the job can be cancelled meanwhile."""
    directory = JobDir(str(tmp_path / "root" / "jobs" / "one"))
    Local().create(directory.files(SCRIPT.encode(), {}, "echo begun; for ((i = 0; i < 500; i++)); do sleep 0.05; done"))
    executable, arguments = directory.command
    with open(directory.stdout, "ab") as out:
        process = subprocess.Popen([executable, *arguments], stdout=out, stderr=out, start_new_session=True)
    while "begun" not in Path(directory.stdout).read_text() or not directory.read(Local()).attempt:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    assert directory.read(Local()).attempt.told == ("TERM",)
    assert "script\n" not in Path(directory.stdout).read_text()


def test_what_ends_at_once_keeps_its_exit_code(tmp_path):
    """The keeper must be listening before there is anything to end."""

    def one(number):
        directory = JobDir(str(tmp_path / str(number) / "root" / "jobs" / "one"))
        Local().create(directory.files(b"#!/no/such/shell\n", {}, "return 4" if number % 2 else ""))
        executable, arguments = directory.command
        done = subprocess.run([executable, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
        attempt = directory.read(Local()).attempt
        return done.returncode, attempt.exit_code, attempt.signal

    with ThreadPoolExecutor(8) as pool:
        seen = set(pool.map(one, range(200)))
    assert {code for code, _, _ in seen} <= {4, 126, 127}
    assert all(code == recorded and sent is None for code, recorded, sent in seen)
