"""The wrapper, run by a real bash, without a scheduler."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from execute_batch_scheduler.adapters.jobdir import RUN, JobDir
from execute_batch_scheduler.adapters.transport import Local

BASH = "#!/bin/bash\n"
# Counts what it is sent, says so, and ends with 7 when its file of that name appears.
COUNTING = """#!/bin/bash
for name in HUP INT QUIT USR1 USR2 TERM; do trap "echo $name" "$name"; done
echo ready
for ((i = 0; i < 500; i++)); do
  [ ! -e "${0%script}stop" ] || exit 7
  sleep 0.02
done
"""


@pytest.fixture
def make(tmp_path):
    """Make a job directory for a script."""

    def make(script, environment=None):
        directory = JobDir(str(tmp_path / "root" / "jobs" / "one"))
        Local().create(directory.files(script.encode(), environment or {}))
        return directory

    return make


@pytest.fixture
def start():
    """Start a command in a session of its own, with its outputs in files as a scheduler has them."""
    processes = []

    def start(directory, command=None, *, stdin="/dev/null", **variables):
        executable, arguments = directory.command
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        with open(stdin) as source, open(directory.stdout, "ab") as out, open(directory.stderr, "ab") as err:
            process = subprocess.Popen(
                command or [executable, *arguments],
                stdin=source,
                stdout=out,
                stderr=err,
                env={**environment, **variables},
                start_new_session=True,
            )
        processes.append(process)
        return process

    yield start
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


@pytest.fixture
def run(make, start):
    """Run a script in the wrapper to its end: wait status, last attempt, output, directory."""

    def run(script, environment=None, **more):
        directory = make(script, environment)
        status = start(directory, **more).wait(10)
        return status, directory.read(Local()).attempt, Path(directory.stdout).read_text(), directory

    return run


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def living(process):
    """The command lines of a session's processes."""
    listed = subprocess.run(
        ["ps", "-o", "stat=,args=", "--sid", str(process.pid)], stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    return [args for stat, args in (line.split(None, 1) for line in listed) if not stat.startswith("Z")]


def settled(directory, process):
    """Whether the script is ready, and the wrapper on its guard."""
    return "ready" in Path(directory.stdout).read_text() and "started\t" in Path(directory.record).read_text()


@pytest.mark.parametrize("code", [0, 1, 3, 126, 128, 137, 143, 255])
def test_an_exit_code_is_handed_on_and_kept(run, code):
    status, attempt, *_ = run(f"{BASH}exit {code}\n")
    assert (status, attempt.exit_code, attempt.signal, attempt.told) == (code, code, None, ())


@pytest.mark.parametrize("name", ["KILL", "TERM", "INT", "PIPE", "SEGV", "HUP", "USR1", "ABRT"])
def test_a_signal_that_ends_the_script_ends_the_wrapper_too(run, name):
    number = getattr(signal, f"SIG{name}")
    status, attempt, *_ = run(f"{BASH}kill -{name} $$\nsleep 5\n")
    assert (status, attempt.exit_code, attempt.signal) == (-number, None, number)
    assert attempt.status == 128 + number


def test_a_signal_that_bash_itself_ignores_is_handed_on_as_a_code(run):
    status, attempt, *_ = run("#!/usr/bin/env python3\nimport os\nos.kill(os.getpid(), 3)\n")
    assert (status, attempt.signal) == (131, 3)


def test_variables_that_bear_names_of_the_wrappers_own_reach_the_script_as_they_were(make, start):
    text = RUN.decode()
    words = set(re.findall(r"(?<![\w$/.-])([a-z_]+)(?==)", text)) | set(re.findall(r"read -r (\w+)", text))
    names = {name for name in words if not name.startswith("__")}
    assert {"here", "limit", "code", "line"} & names
    names -= {"_"}
    directory = make(f"{BASH}exec env -0\n", {"MORE": "x"})
    assert start(directory, **{name: f"the user's {name}" for name in names}).wait(10) == 0
    pairs = (pair.partition("=") for pair in Path(directory.stdout).read_text().split("\0"))
    environment = {name: value for name, _, value in pairs}
    assert {name: environment.get(name) for name in names} == {name: f"the user's {name}" for name in names}


def test_tmout_ends_no_guard(make, start):
    """bash gives up reading after so many seconds; the canary would be taken for killed."""
    directory = make(f"{BASH}trap 'exit 7' USR1; echo ready; for ((i = 0; i < 500; i++)); do sleep 0.02; done\n")
    process = start(directory, TMOUT="1")
    until(lambda: settled(directory, process))
    time.sleep(1.5)
    os.kill(process.pid, signal.SIGUSR1)
    assert process.wait(10) == 7


def test_an_exit_code_above_128_is_no_signal_whoever_else_ends_meanwhile(make, start):
    """What bash runs at the end of a child it does not run for one that ends just then."""
    directory = make(f"{BASH}sleep 0.3\nexit 140\n")
    os.mkfifo(Path(directory.path, "nothing"))
    text = RUN.decode()
    rest = ' read -t {} <>"$__here/nothing"'
    for part, slow in (
        ("<(:)", "<(sleep 0.1)"),
        ("  wait $!\n", f"{rest.format(0.2)}; wait $!\n"),
        ("jobs -l >&9'", f"jobs -l >&9;{rest.format(0.5)}'"),
    ):
        assert text.count(part) == 1
        text = text.replace(part, slow)
    Path(directory.path, "run").write_text(text)
    assert start(directory).wait(10) == 140
    attempt = directory.read(Local()).attempt
    assert (attempt.exit_code, attempt.signal) == (140, None)


def test_an_exit_code_above_128_is_no_signal(run):
    status, attempt, *_ = run(f"{BASH}bash -c 'kill -9 $$'\nexit $?\n")
    assert (status, attempt.exit_code, attempt.signal) == (137, 137, None)


def test_the_record_tells_where_and_when(run):
    before = time.time()
    _, attempt, _, directory = run(f"{BASH}sleep 0.05\n")
    after = time.time()
    assert before <= attempt.started < attempt.ended <= after
    assert (attempt.number, attempt.node) == (0, socket.gethostname())
    assert (attempt.stdout, attempt.stderr) == (directory.stdout, directory.stderr)
    assert not attempt.limit


def test_without_a_scheduler_the_id_is_the_session(make, start):
    directory = make(f"{BASH}true\n")
    process = start(directory)
    process.wait(10)
    assert directory.read(Local()).attempt.native_id == str(process.pid)


def test_a_schedulers_id_node_and_attempt_are_kept(run):
    variables = {"SLURM_JOB_ID": "77", "SLURMD_NODENAME": "n3", "SLURM_RESTART_COUNT": "2"}
    _, attempt, out, _ = run(f"{BASH}echo $SLURM_JOB_ID\n", **variables)
    assert (attempt.native_id, attempt.node, attempt.number, attempt.exit_code) == ("77", "n3", 2, 0)
    assert out == "77\n"


def test_marks_of_start_and_end_lie_in_the_shared_directory(run):
    *_, directory = run(f"{BASH}true\n", SLURM_RESTART_COUNT="1")
    assert sorted(os.listdir(directory.events)) == ["one.1.ended", "one.1.started"]


def test_the_record_and_the_marks_are_private(run):
    *_, directory = run(f"{BASH}umask 0\n")
    paths = [Path(directory.record), *Path(directory.events).iterdir()]
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}


def test_an_attempt_is_added_to_the_record_of_those_before(make, start):
    directory = make(f"{BASH}exit $SLURM_RESTART_COUNT\n")
    for count in ("0", "1"):
        start(directory, SLURM_RESTART_COUNT=count).wait(10)
    lines = Path(directory.record).read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["started", "ended"] * 2
    assert directory.read(Local()).attempt.exit_code == 1


def test_standard_input_is_handed_on(run, tmp_path):
    (tmp_path / "in").write_text("one\ntwo\n")
    _, _, out, _ = run(f"{BASH}cat\n", stdin=tmp_path / "in")
    assert out == "one\ntwo\n"


def test_output_and_errors_go_where_they_would(run):
    _, _, out, directory = run(f"{BASH}echo out\necho err >&2\n")
    assert out == "out\n"
    assert Path(directory.stderr).read_text() == "err\n"


def test_variables_of_the_environment_file_reach_the_script(run):
    value = "it's $HOME\n`x` \\"
    _, _, out, _ = run(f'{BASH}printf "%s|%s" "$A" "$PATH"\n', {"A": value, "PATH": "/bin:/usr/bin"}, A="inherited")
    assert out == f"{value}|/bin:/usr/bin"


@pytest.mark.parametrize(
    "script",
    [
        "env | sort",
        "ls /proc/self/fd",
        "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status",
        "umask; ulimit -a; set -o; shopt",
        "echo $SHLVL $#",
        "readlink /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2",
        "pwd",
    ],
)
def test_the_script_cannot_tell_that_it_is_wrapped(make, start, script):
    directory = make(f"{BASH}{script}\n")
    outputs = []
    for command in (None, [f"{directory.path}/script"]):
        Path(directory.stdout).write_text("")
        assert start(directory, command, SHLVL="3").wait(10) == 0
        outputs.append(Path(directory.stdout).read_text())
    assert outputs[0] == outputs[1] != ""


def test_an_exported_function_reaches_the_script_once(run):
    function = {"BASH_FUNC_greet%%": "() {  echo hi\n}"}
    _, _, out, _ = run(f"{BASH}greet\nenv | grep -c ^BASH_FUNC_greet\n", **function)
    assert out == "hi\n1\n"


@pytest.mark.parametrize(("variables", "expected"), [({"POSIXLY_CORRECT": ""}, "on set\n"), ({}, "off \n")])
def test_posix_mode_is_the_scripts_business(run, variables, expected):
    script = f'{BASH}echo "$(set -o | grep posix | cut -f2) ${{POSIXLY_CORRECT+set}}"\n'
    status, attempt, out, _ = run(script, **variables)
    assert (status, attempt.exit_code, out) == (0, 0, expected)


def test_bash_env_is_read_by_the_script_once(run, tmp_path):
    (tmp_path / "rc").write_text("echo sourced\n")
    _, _, out, _ = run(f"{BASH}echo $BASH_ENV\n", BASH_ENV=str(tmp_path / "rc"))
    assert out == f"sourced\n{tmp_path / 'rc'}\n"


def test_a_script_in_another_language_runs(run):
    status, attempt, out, _ = run("#!/usr/bin/env python3\nprint(1)\nraise SystemExit(3)\n")
    assert (status, attempt.exit_code, out) == (3, 3, "1\n")


def test_a_script_that_cannot_be_run_ends_with_a_message(run):
    status, attempt, _, directory = run("#!/no/such/shell\n")
    assert status == attempt.exit_code
    assert status in (126, 127)
    assert "/no/such/shell, which is to run the script, cannot be run on" in Path(directory.stderr).read_text()


def test_what_is_left_in_the_background_does_not_hold_the_wrapper(run):
    begun = time.monotonic()
    status, attempt, *_ = run(f"{BASH}sleep 5 &\nexit 3\n")
    assert (status, attempt.exit_code) == (3, 3)
    assert time.monotonic() - begun < 3


def test_the_wrapper_leaves_no_process_behind(make, start):
    directory = make(f"{BASH}true\n")
    process = start(directory)
    process.wait(10)
    until(lambda: not living(process))


def test_a_script_that_kills_its_parent_is_killed_and_recorded(run):
    status, attempt, *_ = run(f"{BASH}kill -9 $PPID\nsleep 5\n")
    assert (status, attempt.signal) == (-9, 9)


@pytest.mark.parametrize("name", ["TERM", "USR1", "INT", "HUP"])
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["wrapper", "group"])
def test_a_signal_reaches_the_script_exactly_once(make, start, name, send):
    directory = make(COUNTING)
    process = start(directory)
    out = Path(directory.stdout)
    until(lambda: settled(directory, process))
    send(process.pid, getattr(signal, f"SIG{name}"))
    until(lambda: name in out.read_text() and directory.read(Local()).attempt.told)
    time.sleep(0.2)  # a second one would come within 0.1 s of the line in the record
    Path(directory.path, "stop").touch()
    assert process.wait(10) == 7
    attempt = directory.read(Local()).attempt
    assert out.read_text() == f"ready\n{name}\n"
    assert (attempt.exit_code, attempt.told) == (7, (name,))
    assert "one.0.told" in os.listdir(directory.events)


@pytest.mark.parametrize("sends", [(os.kill, os.killpg), (os.killpg, os.kill), (os.killpg, os.killpg)])
def test_the_second_signal_is_counted_as_the_first(make, start, sends):
    directory = make(COUNTING)
    process = start(directory)
    out = Path(directory.stdout)
    until(lambda: settled(directory, process))
    for send, name in zip(sends, ("USR1", "USR2")):
        send(process.pid, getattr(signal, f"SIG{name}"))
        until(lambda name=name: name in out.read_text())
        time.sleep(0.2)
        until(lambda: settled(directory, process))
    Path(directory.path, "stop").touch()
    assert process.wait(10) == 7
    assert out.read_text() == "ready\nUSR1\nUSR2\n"
    assert directory.read(Local()).attempt.told == ("USR1", "USR2")


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["wrapper", "group"])
def test_a_signal_that_the_script_does_not_handle_ends_both(make, start, send):
    directory = make(f"{BASH}echo ready\nexec sleep 10\n")
    process = start(directory)
    until(lambda: settled(directory, process))
    send(process.pid, signal.SIGTERM)
    assert process.wait(5) == -15
    attempt = directory.read(Local()).attempt
    assert (attempt.signal, attempt.told) == (15, ("TERM",))


def test_a_signal_that_comes_to_the_script_long_before_it_comes_to_the_wrapper_is_recorded(make, start):
    """A scheduler that signals each process in turn, on a machine with much to do."""
    directory = make(f"{BASH}echo ready\nexec sleep 30\n")
    process = start(directory)
    until(lambda: settled(directory, process))
    listed = subprocess.run(["ps", "-o", "pid=", "--sid", str(process.pid)], stdout=subprocess.PIPE, text=True).stdout
    for pid in sorted(map(int, listed.split()), reverse=True):
        if pid != process.pid:
            os.kill(pid, signal.SIGTERM)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    attempt = directory.read(Local()).attempt
    assert (attempt.signal, attempt.told) == (signal.SIGTERM, ("TERM",))


def test_a_signal_before_the_script_runs_is_not_lost(make, start):
    directory = make(f"{BASH}exec sleep 10\n")
    process = start(directory)
    until(lambda: Path(f"/proc/{process.pid}/status").read_text().find("SigCgt:\t0000000000000000") < 0)
    time.sleep(0.005)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(5) == -15


def test_sigkill_leaves_no_end_record(make, start):
    directory = make(f"{BASH}echo ready\nexec sleep 10\n")
    process = start(directory)
    until(lambda: settled(directory, process))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(5)
    attempt = directory.read(Local()).attempt
    assert (attempt.ended, attempt.status) == (None, None)


def test_a_time_limit_ends_the_script_and_what_it_started(make, start):
    directory = make(f"{BASH}echo ${{EXECUTE_TIME_LIMIT-unset}}\nsleep 20 &\nwait\n")
    process = start(directory, EXECUTE_TIME_LIMIT="2")  # bash counts whole seconds, by the clock
    begun = time.monotonic()
    process.wait(5)
    assert time.monotonic() - begun > 0.9
    attempt = directory.read(Local()).attempt
    assert (attempt.limit, attempt.signal, attempt.told) == (True, 15, ("TERM",))
    assert Path(directory.stdout).read_text() == "unset\n"
    until(lambda: not living(process))


def test_a_script_may_use_the_end_of_its_time_to_tidy_up(make, start):
    directory = make(f"{BASH}trap 'echo tidy; exit 0' TERM\nsleep 20 &\nwait\n")
    assert start(directory, EXECUTE_TIME_LIMIT="1").wait(5) == 0
    attempt = directory.read(Local()).attempt
    assert (attempt.limit, attempt.exit_code, attempt.told) == (True, 0, ("TERM",))
    assert Path(directory.stdout).read_text() == "tidy\n"


def test_a_script_within_its_time_limit_is_left_alone(run):
    status, attempt, *_ = run(f"{BASH}sleep 0.1\nexit 3\n", EXECUTE_TIME_LIMIT="60")
    assert (status, attempt.limit, attempt.told) == (3, False, ())
