"""What a user of another machine sees and does: cells, files, logging in, coming back to a job."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from execute_batch_scheduler import BadUsage, ExecuteError, JobFailed, attach, jobs, journal, submit_script, transfer
from execute_batch_scheduler.adapters import ssh
from execute_batch_scheduler.history import clean
from tests.contract.behaviour import PATIENCE, until
from tests.contract.test_magic import Shell, shell  # noqa: F401
from tests.services import interactive
from tests.services.sshd import Sshd

import psij
from psij import JobState

HOST = "adistantmachine"
pytestmark = pytest.mark.usefixtures("sshd")


def test_a_cell(shell: Shell) -> None:  # noqa: F811
    assert shell.execute(f"--wlm=ssh --host={HOST} --pid=number", 'echo "Hello from $(echo $HOME)"').success
    home = submit_script("echo $HOME", host=HOST).result(PATIENCE)
    assert shell.out.startswith(f"SSH started with pid: {shell['number']}\nRunning .")
    assert shell.out.endswith(f"\nHello from {home}Done\n")


def test_host_alone_is_enough_and_its_parts_can_be_said_apart(shell: Shell, sshd: Sshd) -> None:  # noqa: F811
    assert shell.execute(f"--host={HOST} --amgr=job", "echo $PWD").success
    assert shell["job"].result() == f"{sshd.home}\n"
    line = f"--host={HOST} --user={sshd.user} --port={sshd.port} --identity={sshd.key} --amgr=job"
    assert shell.execute(line, "echo apart").success
    assert shell["job"].result() == "apart\n"
    assert shell["job"].host == f"{sshd.user}@{HOST}:{sshd.port}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--wlm=ssh", "--wlm=ssh wants the machine: --host=machine"),
        ("--host=-oProxyCommand=touch,/tmp/x", "is no host"),
        ("--host='a;b'", "'a;b' is no host"),
        ("--user=me", "--user, --port and --identity go with --host"),
        (f"--wlm=local --host={HOST}", f"local cannot be reached on {HOST}: over SSH there are slurm, ssh"),
        (f"--wlm=psij:slurm --host={HOST}", "psij:slurm cannot be reached on"),
        (f"--host={HOST} --get", "--get wants the names of files"),
        (f"--host={HOST} --get a --bg", "--get waits for the job, and --bg does not"),
        ("--wlm=local --put a", "--put goes with --host"),
        (f"--host={HOST} -n8", "--ntasks=8 asks for a scheduler: say --wlm=slurm for the one behind"),
        ("--host=", "--host is empty"),
        ("--wlm=shh", "there is no backend 'shh'; did you mean ssh?"),
        (f"--host={HOST} --timme=3", "--timme=3: no such option; did you mean --time"),
        (f"--host={HOST} -- --native", "need a scheduler, and --wlm=ssh has none"),
    ],
)
def test_what_cannot_be_meant_is_one_line(shell: Shell, line: str, message: str) -> None:  # noqa: F811
    before = len(journal.entries())
    assert not shell.execute(line).success
    said = shell.out + shell.err
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert len(journal.entries()) == before


def test_a_target_names_a_machine(
    shell: Shell,  # noqa: F811
    sshd: Sshd,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        f'[targets.away]\nwlm = "ssh"\nhost = "{HOST}"\njob_directory = "~/scratch/jobs"\n'
        'prologue = "export A=prologue"\n'
    )
    monkeypatch.setenv("EXECUTE_CONFIG", str(file))
    assert shell.execute("--target=away --amgr=job", "echo $A").success
    assert shell["job"].result() == "prologue\n"
    assert str(shell["job"].paths.directory).startswith(f"{sshd.home}/scratch/jobs/jobs/")


def test_from_psij_alone(sshd: Sshd, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='wants a url="ssh://'):
        psij.JobExecutor.get_instance("ssh")
    executor = psij.JobExecutor.get_instance("ssh", url=f"ssh://{HOST}")
    job = psij.Job(psij.JobSpec("/bin/sh", ["-c", "echo $HOME; exit 3"], stdout_path=tmp_path / "out"))
    executor.submit(job)
    status = job.wait(timedelta(seconds=PATIENCE))
    assert status is not None
    assert (status.state, status.exit_code) == (JobState.FAILED, 3)
    assert (tmp_path / "out").read_text() == f"{sshd.home}\n"


def test_the_job_outlives_whoever_submitted_it_and_is_found_again(tmp_path: Path) -> None:
    go = tmp_path / "go"
    code = (
        "from execute_batch_scheduler import submit_script\n"
        f"job = submit_script('echo one; until [ -e {go} ]; do sleep 0.05; done; echo two; exit 3', host='{HOST}')\n"
        "print(job.native_id)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    entry = jobs()[-1]
    assert (entry.native_id, entry.host, entry.wlm) == (done.stdout.strip(), HOST, "ssh")
    assert entry.native_state == "RUNNING"
    job = attach(str(entry.native_id))
    until(lambda: job.stdout() == "one\n")
    go.touch()
    assert job.wait(PATIENCE)
    assert (job.exit_code, job.stdout()) == (3, "one\ntwo\n")
    assert attach(str(entry.native_id), host=HOST).exit_code == 3
    with pytest.raises(ExecuteError, match="no job"):
        attach(str(entry.native_id), host="another")


def test_what_ended_jobs_left_over_there_is_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXECUTE_JOURNAL", str(tmp_path / "journal"))
    job = submit_script("head -c 100000 /dev/zero", host=HOST)
    assert job.wait(PATIENCE)
    count, freed = clean(0)
    assert count >= 1
    assert freed > 100000
    assert not Path(str(job.paths.directory)).exists()


def test_a_machine_that_is_away_makes_jobs_say_so(sshd: Sshd) -> None:
    job = submit_script("sleep 60", host=HOST)
    ssh.logout(f"ssh://{HOST}")
    sshd.stop()
    try:
        entry = next(entry for entry in jobs() if entry.key == job.key)
        assert entry.native_state == "UNKNOWN"
        assert "not answered" in str(entry.reason)
    finally:
        sshd.start()
    until(lambda: next(entry for entry in jobs() if entry.key == job.key).native_state == "RUNNING")
    assert job.cancel()
    assert job.wait(PATIENCE)


def test_what_is_shown_of_a_job_that_somebody_comes_back_to(shell: Shell) -> None:  # noqa: F811
    job = submit_script("echo out; sleep 60", host=HOST)
    until(lambda: job.stdout() == "out\n")
    assert shell.run(f"%execute_output {job}").success
    assert shell.out == "out\n"
    assert shell.run(f"%execute_info {job} --host={HOST}").success
    assert f"Job        {job} (ssh at {HOST})\nState      RUNNING\n" in shell.out
    assert f"Directory  {HOST}:/" in shell.out
    assert shell.run(f"%execute_jobs --host={HOST}").success
    assert not shell.run(f"%execute_info {job} --host=another").success
    assert shell.run(f"%execute_cancel {job}").success
    assert shell.out == f"Terminate job {job}\n"
    assert job.wait(PATIENCE)


def test_a_number_is_not_taken_for_the_beginning_of_a_key() -> None:
    job = submit_script("sleep 60", host=HOST)
    for length in (1, 7):
        with pytest.raises(ExecuteError, match="no job"):
            attach(job.key[:length].translate({ord("-"): "0"}) + "z", wlm="ssh")
        with pytest.raises(ExecuteError, match="no job"):
            attach(job.key[:length], wlm="ssh")
    assert attach(job.key[:8], wlm="ssh").native_id == job.native_id
    job.cancel()
    assert job.wait(PATIENCE)


def test_silence_is_told_and_a_cancellation_that_cannot_be(shell: Shell, sshd: Sshd, tmp_path: Path) -> None:  # noqa: F811
    stopped = threading.Event()

    def stop() -> None:
        until((tmp_path / "running").exists)
        sshd.stop()
        stopped.set()
        until(lambda: shell["job"].details.unanswered_since)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        shell.execute(f"--host={HOST} --amgr=job", f"touch {tmp_path}/running; sleep 1000")
        thread.join()
        assert re.search(rf"--- {HOST} has not answered since \d\d:\d\d:\d\d; the job goes on ---", shell.out)
        said = shell.out + shell.err
        assert f"it could not be cancelled, and goes on: job {shell['job']} is as it was, but" in said
        assert f"%execute_cancel {shell['job']} tries that again" in said
        assert shell["job"].state is JobState.ACTIVE
    finally:
        sshd.start()
    assert shell.run(f"%execute_cancel {shell['job']}").success
    assert shell["job"].wait(PATIENCE)
    assert shell["job"].cancelled()


def test_a_bashrc_is_read_once_and_its_output_is_nobodys(sshd: Sshd) -> None:
    bashrc = Path(sshd.home) / ".bashrc"
    bashrc.write_text("echo Welcome; echo and more >&2; cd /; export COUNT=x$COUNT\n")
    try:
        ssh.logout(f"ssh://{HOST}")
        job = submit_script('echo "$PWD $COUNT"', host=HOST)
        assert job.result(PATIENCE) == f"{sshd.home} x\n"
        assert job.stderr() == ""
        assert job.native_id.isdigit()
    finally:
        bashrc.unlink()
        ssh.logout(f"ssh://{HOST}")


def test_settings_may_be_set_by_either_way() -> None:
    import execute_batch_scheduler
    from execute_batch_scheduler import settings as by_name
    from execute_batch_scheduler.settings import Settings, settings

    try:
        execute_batch_scheduler.settings.wlm = "psij:nowhere"
        assert settings.wlm == by_name.wlm == "psij:nowhere"
        with pytest.raises(ExecuteError, match="nowhere"):
            submit_script("true", dry_run=True)
    finally:
        vars(settings).update(vars(Settings()))


# files


def test_files_go_there_and_come_back(
    shell: Shell,  # noqa: F811
    sshd: Sshd,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "a b'c").write_bytes(bytes(range(256)) * 40000)  # 10 MB: three pieces
    (tmp_path / "data" / "empty").touch()
    (tmp_path / "data" / "for" / "results").mkdir(parents=True)  # empty, and wanted even so
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho tool ran\n")
    tool.chmod(0o755)
    line = f"--host={HOST} --chdir={sshd.home}/place --put data tool --get 'results/*.txt' data --amgr=job"
    cell = "./tool; mkdir -p results/sub; echo 1 >results/one.txt; echo 2 >results/two.txt; cp data/deep/* results/big"
    cell += "; cd data/for/results"
    (Path(sshd.home) / "place").mkdir()
    assert shell.execute(line, cell).success
    assert "tool ran\nDone\n" in shell.out
    assert "put: 3 files, 10.2 MB" in shell.out
    assert re.search(r"get: \d files, ", shell.out)
    assert (tmp_path / "results" / "one.txt").read_text() == "1\n"
    assert (tmp_path / "results" / "two.txt").read_text() == "2\n"
    assert not (tmp_path / "results" / "big").exists()
    assert shell["job"].get("results/big", to=tmp_path / "other") == [tmp_path / "other" / "results" / "big"]
    assert (tmp_path / "other" / "results" / "big").read_bytes() == bytes(range(256)) * 40000
    assert shell["job"].get(f"{sshd.home}/place/data", to=tmp_path / "absolute")
    assert (tmp_path / "absolute" / "data" / "deep" / "a b'c").stat().st_size == 256 * 40000
    assert (tmp_path / "absolute" / "data" / "empty").stat().st_size == 0
    assert not list(tmp_path.rglob("*.part"))


def test_a_name_that_leads_out_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    job = submit_script("true", host=HOST)
    assert job.wait(PATIENCE)
    outside = Path(sshd.home).parent / "outside.txt"
    outside.write_text("x")
    here = tmp_path / "here"
    here.mkdir()
    with pytest.raises(ExecuteError, match="leads out of"):
        job.get("../outside.txt", to=here)
    (here / "link").symlink_to(tmp_path)
    (Path(sshd.home) / "link").mkdir(exist_ok=True)
    (Path(sshd.home) / "link" / "file").write_text("x")
    with pytest.raises(ExecuteError, match="leads out of"):
        job.get("link/file", to=here)
    assert sorted(tmp_path.rglob("*")) == [here, here / "link"]


def test_files_that_are_not_there(sshd: Sshd, tmp_path: Path) -> None:
    before = len(journal.entries())
    with pytest.raises(BadUsage, match="--put: there is no /none on this machine"):
        submit_script("true", host=HOST, put=["/none"])
    assert len(journal.entries()) == before
    job = submit_script("true", host=HOST)
    assert job.wait(PATIENCE)
    with pytest.raises(ExecuteError, match=r"none\*: nothing there has such a name"):
        job.get("none*", to=tmp_path)
    with pytest.raises(ExecuteError, match=r"\$\(touch x\): nothing there"):
        job.get("$(touch x)", to=tmp_path)
    (Path(sshd.home) / "run[1].csv").write_text("one")
    assert [path.read_text() for path in job.get("run[1].csv", to=tmp_path)] == ["one"]
    for name in ("!", "(", "-name", "there"):
        (Path(sshd.home) / name).write_text(name)
    with pytest.raises(
        ExecuteError, match=r"copied 4 files from .*, and not all:\nnone: nothing there has such a name$"
    ):
        job.get("none", "!", "(", "-name", "there", to=tmp_path)
    assert [(tmp_path / name).read_text() for name in ("!", "(", "-name", "there")] == ["!", "(", "-name", "there"]
    for name in ("!", "(", "-name", "there"):
        (Path(sshd.home) / name).unlink()
    mixed = Path(sshd.home) / "mixed"
    mixed.mkdir()
    (mixed / "a").symlink_to("nowhere")
    (mixed / "b").write_text("b")
    with pytest.raises(ExecuteError, match=r"copied 1 file from .*, and not all:\nmixed/a: a link that leads nowhere$"):
        job.get("mixed/*", to=tmp_path)
    assert (tmp_path / "mixed" / "b").read_text() == "b"
    with pytest.raises(BadUsage, match="--get: an empty name"):
        job.get("", to=tmp_path)
    with pytest.raises(BadUsage, match="--put: an empty name"):
        submit_script("true", host=HOST, put=[""])


def test_copies_are_as_private_as_what_they_are_of(sshd: Sshd, tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        here = tmp_path / "mine"
        (here / "deep").mkdir(parents=True)
        modes = {"": 0o700, "deep": 0o750, "key": 0o600, "tool": 0o755, "deep/read": 0o440, "group": 0o664}
        for name in ("key", "tool", "deep/read", "group"):
            (here / name).write_text(name)
        for name, mode in modes.items():
            (here / name).chmod(mode)
        os.mkfifo(here / "pipe")
        (here / "link").symlink_to("nowhere")
        job = submit_script("true", host=HOST, put=[here])
        assert job.wait(PATIENCE)
        assert [notice.split("/")[-1] for notice in job.notices] == [
            "link, which is neither file nor directory",
            "pipe, which is neither file nor directory",
        ]
        wanted = {**modes, "group": 0o644}
        there = Path(sshd.home) / "mine"
        assert {name: (there / name).stat().st_mode & 0o777 for name in modes} == wanted
        job.get("mine", to=tmp_path / "back")
        back = tmp_path / "back" / "mine"
        assert {name: (back / name).stat().st_mode & 0o777 for name in wanted} == wanted
    finally:
        os.umask(mask)


def test_an_output_that_is_a_pipe_stops_nobody(sshd: Sshd) -> None:
    pipe = Path(sshd.home) / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR)  # so that the job can open it
    try:
        one = submit_script("echo one; sleep 60", f"--output={pipe}", host=HOST)
        followed = one.follow(ticks=True)
        assert next(followed) == ("", "")
        other = submit_script("echo two; sleep 60", host=HOST)
        assert next(other.follow()) == ("stdout", "two\n")
        assert one.stdout() == ""
        assert one.cancel()
        assert other.cancel()
    finally:
        os.close(reader)


def test_what_cannot_be_copied_is_told_and_all_else_is_copied(sshd: Sshd, tmp_path: Path) -> None:
    job = submit_script("true", host=HOST)
    assert job.wait(PATIENCE)
    there = Path(sshd.home) / "parts"
    (there / "deep").mkdir(parents=True)
    for name in ("a", "b", "deep/c"):
        (there / name).write_text(name)
    (there / "deep" / "up").symlink_to("..")  # a loop
    (there / "nowhere").symlink_to("/no/such")
    here = tmp_path / "whole"
    assert sorted(job.get("parts", to=here)) == [here / "parts" / name for name in ("a", "b", "deep/c")]
    here = tmp_path / "partly"
    (here / "parts" / "a").mkdir(parents=True)  # where a file should come to lie
    with pytest.raises(ExecuteError) as caught:
        job.get("parts", to=here)
    first, *others = str(caught.value).splitlines()
    assert first == f"copied 2 files from {HOST}, and not all:"
    assert len(others) == 1
    assert others[0].startswith(f"{sshd.home}/parts/a: ")
    assert "Is a directory" in others[0]
    assert sorted(one.name for one in here.rglob("*") if one.is_file()) == ["b", "c"]


def test_files_that_change_while_they_are_copied(sshd: Sshd, tmp_path: Path) -> None:
    job = submit_script("true", host=HOST)
    assert job.wait(PATIENCE)
    there, other = Path(sshd.home) / "changing", Path(sshd.home) / "changed"
    size = 9_000_000  # three pieces

    def grow(name: str, done: int, total: int) -> None:
        with there.open("ab") as file:
            file.write(b"b" * 5_000_000)

    there.write_bytes(b"a" * size)
    (copy,) = job.get("changing", to=tmp_path, progress=grow)
    assert copy.read_bytes() == b"a" * size

    def replace(name: str, done: int, total: int) -> None:
        other.write_bytes(b"c" * size)
        other.rename(there)

    with pytest.raises(ExecuteError, match="changing: it was replaced while it was copied; try again"):
        job.get("changing", to=tmp_path, progress=replace)
    assert copy.read_bytes() == b"a" * size


def test_no_file_is_lost_that_has_a_name_like_another(sshd: Sshd, tmp_path: Path) -> None:
    job = submit_script("true", host=HOST)
    assert job.wait(PATIENCE)
    names = ["a", "a.part", "b", "b.part", ".part"]
    there, here, back = Path(sshd.home) / "alike", tmp_path / "alike", Path(sshd.home) / "back"
    there.mkdir()
    here.mkdir()
    for name in names:
        (there / name).write_text(name)
    (here / "c.part").write_text("mine")
    assert len(job.get("alike", "alike/a*", to=tmp_path)) == len(names)
    assert {one.name: one.read_text() for one in here.iterdir()} == {"c.part": "mine", **{name: name for name in names}}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    with pytest.raises(ExecuteError, match=r"both .*/one/a and .*/two/a would become"):
        job.get(f"{tmp_path}/one/a", f"{tmp_path}/two/a", to=tmp_path)
    (here / "loop").symlink_to(".")
    (here / "link").symlink_to("a")
    (here / "deep").symlink_to(tmp_path / "one")
    back.mkdir()
    (back / "d.part").write_text("theirs")
    transfer.put(ssh.transport(f"ssh://{HOST}"), [str(here), str(here / "link")], str(back))
    assert (back / "link").read_text() == "a"
    assert (back / "alike" / "deep" / "a").read_text() == "one"
    assert {one.name for one in back.rglob("*")} >= {"d.part", *names, "c.part", "link", "deep"}
    assert not (back / "alike" / "loop").exists()
    (back / "e").mkdir()
    (tmp_path / "e").write_text("e")
    with pytest.raises(ExecuteError, match="directory"):
        transfer.put(ssh.transport(f"ssh://{HOST}"), [str(tmp_path / "e")], str(back))
    assert list((back / "e").iterdir()) == []
    assert not list(back.glob(".*"))


def test_a_cell_of_this_machine_has_nothing_to_bring_back(
    shell: Shell,  # noqa: F811
) -> None:
    assert shell.execute("--wlm=local --get 'results/*'", "echo done").success
    assert shell.out.endswith("done\nDone\n--get: the job ran on this machine, so its files are here already\n")


def test_files_come_back_from_a_job_that_failed(
    shell: Shell,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = shell.execute(f"--host={HOST} --get log.failed", "echo why >log.failed; exit 3")
    assert isinstance(result.error_in_exec, JobFailed)
    assert (tmp_path / "log.failed").read_text() == "why\n"


# logging in


def test_a_machine_that_asks_is_logged_in_to_once(
    shell: Shell,  # noqa: F811
    sshd: Sshd,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with interactive.running(name="askingmachine") as server:
        sshd.add_host(server.block(interactive.INTERACTIVE_USER))
        assert not shell.execute("--host=askingmachine", "echo in").success
        assert "%execute_login askingmachine" in shell.out + shell.err

        def answer(prompt: str) -> str:
            return server.code if "code" in prompt else interactive.PASSWORD

        monkeypatch.setattr("getpass.getpass", answer)
        monkeypatch.setattr("builtins.input", answer)
        assert shell.run("%execute_login askingmachine").success
        assert "Logged in to askingmachine" in shell.out
        for _ in range(2):
            assert shell.execute("--host=askingmachine", "echo in").success
            assert "\nin\nDone\n" in shell.out
        assert server.logins[interactive.INTERACTIVE_USER] == 1
        assert shell.run("%execute_logout askingmachine").success
        assert not shell.execute("--host=askingmachine", "echo in").success


def _read_by(path: str) -> int:
    """How many descriptors of this machine's processes read a file."""
    found = 0
    for link in Path("/proc").glob("[0-9]*/fd/[0-9]*"):
        try:
            flags = int(re.search(r"flags:\s+(\d+)", (link.parents[1] / "fdinfo" / link.name).read_text())[1], 8)  # type: ignore[index]
            found += os.readlink(link) == path and not flags & os.O_ACCMODE
        except OSError:
            continue  # it has ended meanwhile
    return found


def test_a_file_that_nobody_follows_any_more_is_closed_over_there(sshd: Sshd) -> None:
    job = submit_script("echo out; sleep 1000", host=HOST)
    path = str(job.paths.stdout)
    followed = [job.follow() for _ in range(3)]
    try:
        assert [next(one) for one in followed] == [("stdout", "out\n")] * 3
        assert _read_by(path) == 3
        del followed[:]
        until(lambda: _read_by(path) == 0, 30)
    finally:
        assert job.cancel()
