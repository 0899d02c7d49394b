"""What keeps a job ready over there, by a real bash: the text that is sent, spoken to as its client does."""

from __future__ import annotations

import calendar
import os
import re
import select
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from execute_batch_scheduler.adapters.jobdir import RUN, parse_record

from execute_batch_scheduler.adapters import starter
from tests.services.processes import alive

BASH = "#!/bin/bash\n"


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return value


class Started:
    """A `start.bash` that runs here."""

    def __init__(self, root, folder, text=starter._START, **variables):
        program = folder / "program"
        program.write_text(f"__root={shlex.quote(str(root))} __run={shlex.quote(RUN.decode())}\n{text}")
        self.root = root
        self.pid = os.getpid()
        self.early = []
        self.session = starter._Session(None, self)
        self.process = subprocess.Popen(
            ["/bin/bash", "-p", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), **variables},
        )

    def say(self, data):
        self.process.stdin.write(data if isinstance(data, bytes) else data.encode())
        self.process.stdin.flush()

    def receive(self, timeout):
        assert select.select([self.process.stdout], [], [], 20)[0], "it says nothing"
        return os.read(self.process.stdout.fileno(), 100)

    def next(self, *wanted):
        """The next line with one of these words, in words. Others may come before it: who says what says it alone."""
        for line in self.early:
            if line[0] in wanted:
                self.early.remove(line)
                return line
        while True:
            line = [word.decode(errors="surrogateescape") for word in self.session.line()]
            if line[0] in wanted:
                return line
            self.early.append(line)

    def answer(self):
        return self.next("went", "gone")[0]

    def spare(self):
        """The name and process id of the next spare."""
        _, name, pid = self.next("spare")
        self.pid = int(pid)
        return name, self.pid

    def go(self, name, script, environment="", words=":", place=".", pid=None):
        parts = [part if isinstance(part, bytes) else part.encode() for part in (script, environment, words, place)]
        self.say(
            f"go {name} {pid or self.pid} {' '.join(str(len(part)) for part in parts)}\n".encode() + b"".join(parts)
        )

    def ended(self):
        """The name, the record, and the output of a job that tells its end."""
        _, name, record, *output = self.next("ended")
        return name, parse_record(record).attempt, output[0] if output else None

    def stop(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(20)


@pytest.fixture
def start(tmp_path):
    """Start one."""
    running = []

    def start(root=None, **more):
        running.append(Started(root or tmp_path / "ro ot", tmp_path, **more))
        return running[-1]

    yield start
    for one in running:
        one.stop()


def test_a_spare_becomes_a_job(start, tmp_path):
    it = start()
    name, pid = it.spare()
    place = it.root / "jobs" / name
    assert re.fullmatch(r"\d{8}T\d{6}-[0-9a-f]{8}", name)
    assert abs(calendar.timegm(time.strptime(name[:15], "%Y%m%dT%H%M%S")) - time.time()) < 60
    assert sorted(file.name for file in place.iterdir()) == ["record", "run", "script", "stderr", "stdout"]
    assert {oct(file.stat().st_mode)[-3:] for file in place.iterdir()} == {"600", "700"}
    assert (place / "record").read_text() == ""
    script = (
        "#!/bin/bash\n" + r"""echo "$PWD $# $0" | sed "s:$(dirname "$0"):HERE:"; printf '\303\274\n'; exit 7""" + "\n"
    )
    (tmp_path / "pl ace").mkdir()
    it.go(name, script, place=str(tmp_path / "pl ace"), words=f"cd -- {shlex.quote(str(tmp_path / 'pl ace'))}")
    assert it.answer() == "went"
    ended, attempt, output = it.ended()
    assert (ended, attempt.exit_code, attempt.native_id) == (name, 7, str(pid))
    assert output == f"{tmp_path}/pl ace 0 HERE/script\nü\n"
    assert (place / "stdout").read_text() == output
    until(lambda: not alive(pid))
    assert (it.root / "events" / f"{name}.0.ended").exists()
    second, number = it.spare()  # the next one
    assert second != name
    assert alive(number)


def test_variables_words_and_the_prologue_reach_the_script(start):
    it = start(name="mine", here="/x/", code="3", LC_ALL="C.UTF-8", line="v", TMOUT="1", EXECUTE_SPARE="other")
    name, _ = it.spare()
    time.sleep(1.2)
    names = "$name $here $code $line $TMOUT $LC_ALL $MORE $SECRET ${EXECUTE_SPARE-unset} ${EXECUTE_TIME_LIMIT-none}"
    it.go(
        name, f"{BASH}echo {names}", environment="export SECRET='a b'\n", words="export MORE=more EXECUTE_TIME_LIMIT=60"
    )
    assert it.answer() == "went"
    assert it.ended()[2] == "mine /x/ 3 v 1 C.UTF-8 more a b unset none\n"
    assert oct((it.root / "jobs" / name / "environment").stat().st_mode)[-3:] == "600"


def test_where_cd_prints(start, tmp_path):
    (tmp_path / "sub").mkdir()
    it = start(CDPATH=str(tmp_path))
    name, _ = it.spare()
    it.go(name, f"{BASH}pwd", words="cd sub", place="sub")
    assert it.answer() == "went"
    assert it.ended()[2] == f"{tmp_path}/sub\n"


def test_a_script_finds_what_it_finds_elsewhere(start):
    """Descriptors, signals, umask, its input, a session of its own."""
    it = start()
    name, pid = it.spare()
    script = f"{BASH}ls /proc/$$/fd; trap; umask; cat; ps -o sid= -p $$; grep SigIgn /proc/self/status"
    it.go(name, script)
    assert it.answer() == "went"
    usual = subprocess.run(["bash", "-c", "umask; grep SigIgn /proc/self/status"], capture_output=True, text=True)
    mask, *ignored = usual.stdout.split()
    assert it.ended()[2].split() == ["0", "1", "2", "255", mask, str(pid), *ignored]


def test_a_time_limit_counts_from_the_beginning(start):
    it = start()
    name, _ = it.spare()
    time.sleep(1.2)
    it.go(name, f"{BASH}sleep 0.5; echo $SECONDS", words="export EXECUTE_TIME_LIMIT=1")
    assert it.answer() == "went"
    assert it.ended()[1].exit_code == 0
    name, _ = it.spare()
    it.go(name, f"{BASH}sleep 30", words="export EXECUTE_TIME_LIMIT=1")
    assert it.answer() == "went"
    attempt = it.ended()[1]
    assert (attempt.limit, attempt.signal) == (True, signal.SIGTERM)


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("true", ""),
        (r"printf 'a b\n\\n \\\\s\t\\\n\n'", "a b\n\\n \\\\s\t\\\n\n"),
        (r"printf '\377\303 & *$x'", "\udcff\udcc3 & *$x"),
        ("head -c 999 /dev/zero | tr '\\0' '\\n'", "\n" * 999),
        ("head -c 1000 /dev/zero | tr '\\0' x", None),
        (r"printf 'a\0b'", None),
        ('rm "${0%script}stdout"', None),
    ],
)
def test_output_comes_along_as_long_as_it_is_little(start, command, output):
    it = start()
    name, _ = it.spare()
    it.go(name, f"{BASH}{command}\n")
    assert it.answer() == "went"
    assert it.ended()[2] == output


def test_output_that_is_too_long_for_a_line_does_not_come_along(start, tmp_path):
    it = start(tmp_path / ("x" * 250) / ("y" * 250) / ("z" * 250) / ("u" * 250))
    name, _ = it.spare()
    it.go(name, f"{BASH}printf '\\n%.0s' {{1..900}}")
    assert it.answer() == "went"
    _, attempt, output = it.ended()
    assert (attempt.exit_code, output) == (0, None)


def test_many_that_end_at_once_do_not_mix_their_words(start):
    it = start()
    names = []
    for number in range(12):
        name, _ = it.spare()
        names.append(name)
        waiting = f"for n in {{1..900}}; do [ -e '{it.root}/go' ] || sleep 0.02; done"
        it.go(name, f"{BASH}{waiting}; for n in {{1..50}}; do echo {number} $n; done")
        assert it.answer() == "went"
    (it.root / "go").touch()
    found = {name: output for name, _, output in (it.ended() for _ in names)}
    assert found == {name: "".join(f"{n} {m}\n" for m in range(1, 51)) for n, name in enumerate(names)}


def test_nobody_hears_of_the_end(start):
    """The connection went away: the job runs to its end all the same, and says so in its record."""
    it = start()
    name, pid = it.spare()
    it.go(name, f"{BASH}sleep 1; echo done; exit 3")
    assert it.answer() == "went"
    it.stop()
    until(lambda: not alive(pid))
    assert parse_record((it.root / "jobs" / name / "record").read_text()).attempt.exit_code == 3


def test_it_ends_and_so_does_its_spare(start):
    it = start()
    name, pid = it.spare()
    it.process.stdin.close()
    until(lambda: not alive(pid))
    until(lambda: not (it.root / "jobs" / name).exists())
    assert list((it.root / "events").iterdir()) == []


@pytest.mark.parametrize("message", ["go", "go {name}", "go {name} {pid} 1 1 1", "go {name} {pid} 9 0 0 0\nhalf"])
def test_a_message_that_is_not_whole_ends_it(start, message):
    it = start()
    name, pid = it.spare()
    it.process.stdin.write(f"{message.format(name=name, pid=pid)}\n".encode())
    it.process.stdin.close()
    until(lambda: not alive(pid))
    until(lambda: not (it.root / "jobs" / name).exists())
    assert it.process.wait(20) != 0


def test_killed_it_takes_its_spare_along(start):
    it = start()
    name, pid = it.spare()
    it.process.kill()
    until(lambda: not alive(pid))
    until(lambda: not (it.root / "jobs" / name).exists())


@pytest.mark.parametrize(
    "how",
    [
        "killed",
        "its wrapper killed",
        "terminated",
        "hung up",
        "removed",
        "partly removed",
        "elsewhere",
        "unknown",
        "unwritable",
    ],
)
def test_a_spare_that_cannot_be_begun_is_gone(start, tmp_path, how):
    it = start()
    name, pid = it.spare()
    directory = it.root / "jobs" / name
    if how == "killed":
        os.killpg(pid, signal.SIGKILL)
        until(lambda: not alive(pid))
    elif how == "its wrapper killed":
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid))
    elif how == "terminated":
        os.killpg(pid, signal.SIGTERM)
        until(lambda: not directory.exists())
    elif how == "hung up":
        os.kill(pid, signal.SIGHUP)
        until(lambda: not directory.exists())
    elif how == "partly removed":
        (directory / "stderr").unlink()
    elif how == "removed":
        subprocess.run(["rm", "-rf", directory], check=True)
    elif how == "unwritable":
        (directory / "script").unlink()
        (directory / "script").mkdir()
    wanted = "20000101T000000-00000000" if how == "unknown" else name
    it.go(wanted, f"{BASH}touch {tmp_path}/ran", place="/no/such" if how == "elsewhere" else ".")
    assert it.answer() == "gone"
    assert not (it.root / "jobs" / wanted).exists()
    second, _ = it.spare()
    it.go(second, f"{BASH}echo fine")
    assert it.answer() == "went"
    assert it.ended()[2] == "fine\n"
    until(lambda: not alive(pid))
    assert not (tmp_path / "ran").exists()
    assert not directory.exists()


def test_a_spare_whose_directory_is_gone_leaves_alone_what_has_its_name(start):
    it = start()
    name, pid = it.spare()
    directory = it.root / "jobs" / name
    subprocess.run(["rm", "-rf", directory], check=True)
    directory.mkdir()
    it.process.stdin.close()
    until(lambda: not alive(pid))
    assert directory.exists()


@pytest.mark.parametrize("name", ["..", ".", "*", "20000101T000000-0000000x", "a/20000101T000000-00000000"])
def test_nothing_is_removed_that_has_no_name_of_a_spare(start, tmp_path, name):
    it = start()
    spare, _ = it.spare()
    (it.root / "jobs" / "a" / "20000101T000000-00000000").mkdir(parents=True)
    (it.root / "jobs" / "20000101T000000-0000000x").mkdir()
    it.go(name, f"{BASH}echo no")
    assert it.answer() == "gone"
    it.say("renew\n")
    until(lambda: not (it.root / "jobs" / spare).exists())
    assert (it.root / "jobs" / "a" / "20000101T000000-00000000").exists()
    assert (it.root / "jobs" / "20000101T000000-0000000x").exists()


def test_relative_directories_begin_at_home(start, tmp_path):
    (tmp_path / "sub" / "deeper").mkdir(parents=True)
    it = start()
    for place, answer in (("sub", "went"), ("sub", "went"), ("deeper", "gone"), ("sub/deeper", "went")):
        name, _ = it.spare()
        it.go(name, f"{BASH}pwd", words=f"cd -- {place} || exit", place=place)
        assert it.answer() == answer
        assert answer == "gone" or it.ended()[2] == f"{tmp_path}/{place}\n"


def test_a_spare_that_fails_before_its_script_leaves_a_record(start):
    it = start()
    name, _ = it.spare()
    it.go(name, f"{BASH}echo no", words="exit 4")
    assert it.answer() == "went"
    assert it.ended()[1].exit_code == 4


def test_a_directory_that_is_there_already_is_left_alone(start, tmp_path):
    text = starter._START
    for part, fixed in (('"$RANDOM" "$RANDOM"', "7 7"), ("'%(%Y%m%dT%H%M%S)T' -1", "20000101T000000")):
        assert text.count(part) == 1
        text = text.replace(part, fixed)
    directory = tmp_path / "root" / "jobs" / "20000101T000000-00070007"
    directory.mkdir(parents=True)
    (directory / "run").write_text("another's")
    it = start(tmp_path / "root", text=text)
    it.go("20000101T000000-00000000", f"{BASH}echo no")
    assert it.answer() == "gone"
    assert not it.early  # no spare
    assert (directory / "run").read_text() == "another's"
    assert list(directory.iterdir()) == [directory / "run"]


def test_a_message_that_comes_in_parts_and_children_that_have_ended(start):
    assert starter._START.count("__wait=5 ") == 1
    it = start(text=starter._START.replace("__wait=5 ", "__wait=.1 "))
    name, pid = it.spare()
    for part in ("g", f"o {name} {pid} ", "20 0", " 1 1\n", f"{BASH}echo yes", ":."):
        it.say(part)
        time.sleep(0.25)
    assert it.answer() == "went"
    assert it.ended()[2] == "yes\n"
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_lost_spare_is_replaced(start):
    it = start()
    name, pid = it.spare()
    it.say("renew\n")
    second, _ = it.spare()
    assert second != name
    until(lambda: not alive(pid))
    assert [one.name for one in (it.root / "jobs").iterdir()] == [second]


def test_renewal_does_no_harm_to_a_job_that_runs(start):
    it = start()
    name, pid = it.spare()
    it.go(name, f"{BASH}sleep 1; echo done")
    assert it.answer() == "went"
    it.say("renew\n")
    it.spare()
    assert alive(pid)
    assert it.ended()[2] == "done\n"


def test_a_spare_that_nobody_wants_is_given_up(start):
    text = starter._START
    for part, shorter in (("__wait=5 ", "__wait=.1 "), ("__patience=60 ", "__patience=3 ")):
        assert text.count(part) == 1
        text = text.replace(part, shorter)
    it = start(text=text)
    name, pid = it.spare()
    until(lambda: not alive(pid))
    until(lambda: not (it.root / "jobs" / name).exists())
    it.next("lost")
    it.go(name, f"{BASH}echo no")
    assert it.answer() == "gone"
    second, _ = it.spare()  # somebody is there again
    it.go(second, f"{BASH}echo yes")
    assert it.answer() == "went"
    assert it.ended()[2] == "yes\n"


def test_no_place_for_a_spare(start, tmp_path):
    (tmp_path / "file").write_text("")
    it = start(tmp_path / "file")
    it.go("20000101T000000-00000000", f"{BASH}echo no")
    assert it.answer() == "gone"


def test_a_script_of_many_bytes(start):
    it = start()
    name, _ = it.spare()
    text = "# " + "ü" * 30_000 + "\n"
    it.go(name, f'{BASH}{text}wc -c <"$0"')
    assert it.answer() == "went"
    assert int(it.ended()[2]) == len((BASH + text).encode()) + len('wc -c <"$0"')
