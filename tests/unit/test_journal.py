from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys

import pytest

from execute_batch_scheduler import journal


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    place = tmp_path / "deep" / "journal"
    monkeypatch.setenv("EXECUTE_JOURNAL", str(place))
    return place


def test_later_lines_add_to_earlier_ones():
    journal.note("a", wlm="slurm", directory="/x")
    journal.note("b", wlm="local", directory="/y")
    journal.note("a", native_id="7")
    journal.note("a", state="FAILED", exit_code=3)
    first, second = journal.entries()
    assert (first.key, first.wlm, first.native_id, first.state, first.exit_code) == ("a", "slurm", "7", "FAILED", 3)
    assert (second.key, second.native_id) == ("b", None)


def test_what_is_removed_is_not_listed():
    journal.note("a", wlm="slurm", directory="/x")
    journal.note("a", removed=True)
    assert journal.entries() == []


def test_the_files_are_private(folder):
    journal.note("a", wlm="slurm")
    for path in (folder.parent, folder, *folder.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize("damage", ["{", "[]", "1", "null", '{"v": 1}', '{"v": 1, "key": 3, "at": 1}', "\0" * 50, "{}"])
def test_damage_is_passed_over_with_a_warning(folder, damage):
    journal.note("a", wlm="slurm")
    with (folder / "20200101T000000-elsewhere-1.jsonl").open("w") as file:
        file.write(f"{damage}\n" + json.dumps({"v": 1, "key": "b", "at": 1.0, "wlm": "local"}) + "\n")
    with pytest.warns(UserWarning, match="damaged entry is passed over: .*line 1"):
        found = journal.entries()
    assert [entry.key for entry in found] == ["b", "a"]


def test_half_a_line_is_still_being_written(folder):
    journal.note("a", wlm="slurm")
    with next(folder.iterdir()).open("a") as file:
        file.write('{"v": 1, "key": "a", "at": 5')
    assert [entry.key for entry in journal.entries()] == ["a"]


def test_a_newer_format_is_left_to_newer_releases(folder):
    journal.note("a", wlm="slurm")
    with next(folder.iterdir()).open("a") as file:
        file.write('{"v": 2, "key": "b", "at": 5, "wlm": "slurm"}\n')
    assert [entry.key for entry in journal.entries()] == ["a"]


def test_many_processes_write_at_once(folder):
    code = (
        "import os; from execute_batch_scheduler import journal\n"
        "for n in range(200): journal.note(f'{os.getpid()}-{n}', wlm='x')"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ)) for _ in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert len(journal.entries()) == 800
    assert len(list(folder.iterdir())) == 4


def test_files_of_ended_processes_that_tell_of_nothing_else_go(folder):
    code = "from execute_batch_scheduler import journal\njournal.note('a', wlm='x'); journal.note('b', wlm='x')"
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
    journal.drop({"a"})
    assert len(list(folder.iterdir())) == 2
    journal.drop({"b"})
    assert [path.stem.rpartition("-")[2] for path in folder.iterdir()] == [str(os.getpid())]
    assert journal.entries() == []


@pytest.mark.parametrize(
    "damage",
    [
        '"native_id": 5',
        '"wlm": 5',
        '"state": []',
        '"ended": 1e400',
        '"exit_code": "3"',
        '"removed": 1',
        '"x": ' + "[" * 100_000,
    ],
)
def test_a_value_that_no_line_of_ours_has_is_damage(damage):
    journal.note("good", wlm="slurm")
    (file,) = journal.folder().glob("*.jsonl")
    file.write_text(f'{{"v": 1, "key": "bad", "at": 5, "wlm": "slurm", {damage}}}\n' + file.read_text())
    with pytest.warns(UserWarning, match=f"a damaged entry is passed over: {file}, line 1"):
        assert [entry.key for entry in journal.entries()] == ["good"]


@pytest.mark.parametrize("at", ["1e400", "NaN", "-1", '"5"'])
def test_a_time_that_cannot_be_is_damage(at):
    journal.note("good", wlm="slurm")
    (file,) = journal.folder().glob("*.jsonl")
    file.write_text(f'{{"v": 1, "key": "bad", "at": {at}, "wlm": "slurm"}}\n' + file.read_text())
    with pytest.warns(UserWarning, match="line 1"):
        assert [entry.key for entry in journal.entries()] == ["good"]


def test_a_line_that_was_written_in_part_is_an_error_and_costs_no_other(monkeypatch):
    journal.note("one", wlm="slurm")
    (file,) = journal.folder().glob("*.jsonl")
    size, limits = file.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            journal.note("two", wlm="slurm")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    journal.note("three", wlm="slurm")
    with pytest.warns(UserWarning, match="line 2"):
        assert [entry.key for entry in journal.entries()] == ["one", "three"]


def test_files_of_others_in_its_folder_are_left_alone():
    journal.note("one", wlm="slurm")
    backup = journal.folder() / "backup.jsonl"
    backup.touch()
    journal.drop({"one"})
    assert backup.exists()
