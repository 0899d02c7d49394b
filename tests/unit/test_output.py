from __future__ import annotations

import pytest
from execute_batch_scheduler.adapters.transport import Local

from execute_batch_scheduler.output import Output, Place, last_lines, whole

PIECE = 1 << 16


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"")
    return path


def reader(path, most=None):
    return Output(Local(), lambda: Place(str(path)), most)


def append(path, data):
    with path.open("ab") as file:
        file.write(data)


def test_a_growing_file_is_read_from_where_the_last_reading_ended(file):
    out = reader(file)
    assert out.read() == ""
    append(file, b"one\n")
    assert (out.read(), out.read()) == ("one\n", "")
    append(file, b"two")
    append(file, b" three")
    assert out.read() == "two three"


def test_a_file_that_is_not_there_yet_is_waited_for(tmp_path):
    path = tmp_path / "later"
    out = reader(path)
    assert (out.read(), out.rest()) == ("", "")
    path.write_text("here")
    assert out.read() == "here"


def test_a_path_that_is_not_known_yet_is_asked_for_again(file):
    file.write_text("here")
    places = iter([None, None, *[Place(str(file))] * 9])
    out = Output(Local(), lambda: next(places))
    assert [out.read() for _ in range(3)] == ["", "", "here"]


def test_half_a_character_waits_for_its_other_half(file):
    text = "aé€😀z"
    out, got = reader(file), ""
    for byte in text.encode():
        append(file, bytes([byte]))
        piece = out.read()
        assert "\ufffd" not in piece
        got += piece
    assert got == text
    assert out.rest() == ""


def test_half_a_character_that_stays_is_shown_at_the_end(file):
    append(file, "é".encode()[:1])
    out = reader(file)
    assert (out.read(), out.rest()) == ("", "\ufffd")


def test_bytes_that_are_no_text_do_not_stop_the_reading(file):
    append(file, b"a\xff\xfeb")
    out = reader(file)
    assert out.read() == "a\ufffd\ufffdb"
    append(file, b"c")
    assert out.read() == "c"


def test_a_piece_is_bounded(file):
    append(file, b"x" * (2 * PIECE + 1))
    out = reader(file)
    assert [len(out.read()) for _ in range(4)] == [PIECE, PIECE, 1, 0]


def test_a_character_across_two_pieces_is_whole(file):
    append(file, b"x" * (PIECE - 1) + "é".encode())
    out = reader(file)
    assert (out.read(), out.read()) == ("x" * (PIECE - 1), "é")


def test_a_truncated_file_is_read_anew(file):
    file.write_text("first attempt\n")
    out = reader(file)
    out.read()
    file.write_text("second\n")
    assert out.read() == "second\n"
    append(file, b"more")
    assert out.read() == "more"


def test_half_a_character_of_the_first_attempt_is_not_taken_into_the_second(file):
    file.write_bytes(b"abc\xc3")
    out = reader(file)
    assert out.read() == "abc"
    file.write_bytes(b"\xa9x")
    assert out.read() == "\ufffdx"


class Attempts:
    """A job's output over its attempts, whose records come when they are told."""

    def __init__(self, file):
        self.file, self.begin, self.number, self.over = file, 0, 0, False
        self.out = Output(Local(), lambda: Place(str(file), self.begin, self.number, self.over))

    def next(self, begin=0):
        self.begin, self.number, self.over = begin, self.number + 1, False

    def read(self):
        return self.out.read(), self.out.restarts


@pytest.mark.parametrize("record_first", [True, False])
def test_the_output_of_a_job_that_was_queued_again_begins_anew_once(file, record_first):
    file.write_text("first attempt\n")
    job = Attempts(file)
    assert job.read() == ("first attempt\n", 0)
    file.write_text("second")
    if record_first:
        job.next()
    assert job.read() == ("second", 1)
    if not record_first:
        job.next()
    append(file, b" more")
    assert job.read() == (" more", 1)
    file.write_text("third")
    job.next()
    assert job.read() == ("third", 2)


def test_an_attempt_that_has_outgrown_the_one_before_is_shown_from_its_start(file):
    file.write_text("short\n")
    job = Attempts(file)
    assert job.read() == ("short\n", 0)
    file.write_text("much longer than the first\n")
    job.next()
    assert job.read() == ("much longer than the first\n", 1)


def test_an_attempt_that_is_appended_is_told_apart_and_not_repeated(file):
    file.write_text("first\n")
    job = Attempts(file)
    assert job.read() == ("first\n", 0)
    append(file, b"se")
    assert job.read() == ("se", 0)  # its record has not come yet
    job.next(begin=6)
    append(file, b"cond\n")
    assert job.read() == ("cond\n", 1)
    append(file, b"unread\nthird\n")
    job.next(begin=20)
    assert job.read() == ("unread\n", 1)
    assert job.read() == ("third\n", 2)


@pytest.mark.parametrize("appended", [True, False])
def test_what_comes_when_the_job_was_queued_again_waits_for_the_record_of_its_attempt(file, appended):
    file.write_text("first\n")
    job = Attempts(file)
    assert job.read() == ("first\n", 0)
    assert job.read() == ("", 0)
    append(file, b"killed\n")
    job.over = True
    assert job.read() == ("killed\n", 0)
    assert job.read() == ("", 0)
    append(file, b"second\n") if appended else file.write_text("much longer than the first\n")
    assert job.read() == ("", 0)  # nothing tells yet whose that is
    job.next(begin=13 if appended else 0)
    assert job.read() == ("second\n" if appended else "much longer than the first\n", 1)
    append(file, b"more\n")
    assert job.read() == ("more\n", 1)


def test_the_first_record_of_a_job_changes_nothing(file):
    file.write_text("out\n")
    job = Attempts(file)
    job.number = None
    assert job.read() == ("out\n", 0)
    job.number = 1
    append(file, b"more\n")
    assert job.read() == ("more\n", 0)


@pytest.mark.parametrize(
    ("size", "head", "tail"),
    [
        (0, "", ""),
        (9, "012345678", ""),
        (10, "0123456789", ""),
        (11, "0123456789", "0"),
        (20, "0123456789", "0123456789"),
    ],
)
def test_what_fits_into_head_and_tail_is_shown_whole(file, size, head, tail):
    file.write_text("0123456789" * 3)
    with file.open("ab") as handle:
        handle.truncate(size)
    out = reader(file, most=10)
    assert out.read() == head
    assert out.read() == ""
    assert out.rest() == tail


def test_what_does_not_fit_is_left_out_between_head_and_tail_and_counted(file):
    file.write_bytes(b"h" * 10 + b"m" * 1234 + b"t" * 10)
    out = reader(file, most=10)
    assert out.read() == "h" * 10
    assert out.rest() == f"\n[... 1,234 bytes are not shown; the whole is in {file} ...]\n{'t' * 10}"


def test_the_head_is_filled_by_several_readings(file):
    out = reader(file, most=5)
    append(file, b"abc")
    assert out.read() == "abc"
    append(file, b"defgh")
    assert (out.read(), out.read(), out.rest()) == ("de", "", "fgh")


def test_without_a_limit_nothing_is_left_for_the_end(file):
    file.write_text("x" * 100)
    out = reader(file)
    assert (out.read(), out.rest()) == ("x" * 100, "")


def test_a_file_that_is_gone_at_the_end_has_no_tail(file):
    file.write_text("0123456789")
    out = reader(file, most=5)
    out.read()
    file.unlink()
    assert out.rest() == ""


def test_the_whole_text(file):
    file.write_bytes(b"a\xc3\xa9\xff\n" * 3)
    assert whole(Local(), Place(str(file))) == "aé\ufffd\n" * 3
    assert whole(Local(), None) == ""
    with pytest.raises(FileNotFoundError):
        whole(Local(), Place(f"{file}.none"))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("a\nb", ["a", "b"]),
        ("".join(f"{number}\n" for number in range(30)), [str(number) for number in range(20, 30)]),
        ("\n\nx\n", ["", "", "x"]),
    ],
)
def test_the_last_lines(file, text, lines):
    file.write_text(text)
    assert last_lines(Local(), str(file)) == lines


def test_the_last_lines_of_a_long_file_are_bounded_in_bytes(file):
    file.write_text("x" * (3 * PIECE) + "\nlast\n")
    first, last = last_lines(Local(), str(file))
    assert (len(first) < PIECE, last) == (True, "last")
    assert last_lines(Local(), str(file), count=1) == ["last"]


def test_there_are_no_last_lines_where_there_is_no_file(file):
    assert last_lines(Local(), None) == last_lines(Local(), f"{file}.none") == []


def test_what_is_known_as_a_whole_is_not_read(file):
    append(file, "aé".encode()[:2])
    out = reader(file)
    assert out.read() == "a"
    file.unlink()
    for _ in range(2):
        out.finish("aé b".encode())
    assert (out.read(), out.read(), out.rest()) == ("é b", "", "")
    fresh = reader(file, most=3)
    fresh.finish(b"abc")
    assert (fresh.read(), fresh.read()) == ("abc", "")


def test_a_whole_that_is_shorter_than_what_was_read_is_not_taken_for_the_rest(file):
    append(file, b"first attempt")
    out = reader(file)
    assert out.read() == "first attempt"
    file.write_bytes(b"new")
    out.finish(b"new")
    assert (out.read(), out.read()) == ("new", "")


@pytest.mark.parametrize("new", ["begins with other words", "first w, or much the same"])
def test_a_whole_that_is_another_than_what_was_read_is_shown_from_its_beginning(file, new):
    append(file, b"first words")
    out = reader(file)
    assert out.read() == "first words"
    out.finish(new.encode())
    assert (out.read(), out.read(), out.rest(), out.restarts) == (new, "", "", 1)


def test_the_last_lines_of_what_is_known(file):
    assert last_lines(Local(), str(file), b"a\nb\xff\n", 1) == ["b\ufffd"]
