"""What must not stop halfway does not, whatever signal comes."""

from __future__ import annotations

import signal
import threading

import pytest

from execute_batch_scheduler.submit import uninterrupted


class Stop(Exception):
    pass


def stop(number, frame):
    raise Stop


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGALRM])
def number(request):
    usual = signal.signal(request.param, stop)
    yield request.param
    signal.signal(request.param, usual)


def test_a_signal_counts_when_it_is_done_and_undoes_it(number):
    done = []

    def action():
        signal.raise_signal(number)
        signal.raise_signal(number)
        done.append("done")

    def undo():
        signal.raise_signal(number)
        done.append("undone")

    with pytest.raises(Stop):
        uninterrupted(action, undo)
    assert done == ["done", "undone"]
    assert signal.getsignal(number) is stop


def test_one_whose_handler_does_not_raise_is_told_and_nothing_is_undone():
    told = []
    usual = signal.signal(signal.SIGUSR1, lambda number, _: told.append(number))
    try:
        uninterrupted(lambda: signal.raise_signal(signal.SIGUSR1), lambda: told.append("undone"))
    finally:
        signal.signal(signal.SIGUSR1, usual)
    assert told == [signal.SIGUSR1]


def test_an_error_passes_and_handlers_are_as_they_were(number):
    def action():
        raise ValueError

    with pytest.raises(ValueError):
        uninterrupted(action)
    assert signal.getsignal(number) is stop


def test_on_another_thread_no_handler_is_touched():
    done = []
    thread = threading.Thread(target=uninterrupted, args=(lambda: done.append(1),))
    thread.start()
    thread.join()
    assert done == [1]
