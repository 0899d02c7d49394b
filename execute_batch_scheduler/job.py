"""Job: the handle of one submitted script."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Optional, Union

from execute_batch_scheduler import display, journal, output, transfer
from execute_batch_scheduler.adapters.jobdir import JobDir
from execute_batch_scheduler.adapters.tracking import Details, Tracker
from execute_batch_scheduler.adapters.transport import Transport, TransportError
from execute_batch_scheduler.errors import BadUsage, ConnectionLost, JobCancelled, JobError, JobFailed, SubmissionFailed

import psij
from psij import JobState

logger = logging.getLogger(__name__)
Timeout = Union[float, timedelta, None]


_KILLER = re.compile(r"slurmstepd\S*: error")  # some releases add the name of the node


@dataclass(frozen=True)
class Paths:
    """The files of a job on the machine where it runs.

    An output is None as long as only the node knows its name; the others are None of a job that was not submitted here.
    """

    directory: Optional[str]
    script: Optional[str]
    record: Optional[str]
    stdout: Optional[str]
    stderr: Optional[str]


class _Future(concurrent.futures.Future):  # type: ignore[type-arg]
    """Done when the job is. Its result is read when it is asked for, not before: it may be gigabytes."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def result(self, timeout: Optional[float] = None) -> str:
        super().result(timeout)
        return self._job.result()

    def exception(self, timeout: Optional[float] = None) -> Optional[JobError]:
        super().exception(timeout)
        return self._job.exception()

    def cancel(self) -> bool:
        return self._job.cancel()

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[str]], object]) -> None:
        """On a thread of its own: what blocks there must not keep the tracker from telling of other jobs."""
        super().add_done_callback(lambda future: threading.Thread(target=fn, args=(future,)).start())


class Job:
    """A submitted script: its state, its output, its end.

    Made by `submit_script`. It can be waited for, awaited, and given to concurrent.futures.

    Attributes
    ----------
    wlm : str
        The backend that runs it: slurm, local, psij:slurm ...
    host : str or None
        The machine that it was submitted from; None is this one.
    notices : tuple of str
        What the user should know of the way it was submitted.
    cancelling : bool
        Whether this handle has asked for a cancellation.
    key : str
        A UUID that no other job has, on any scheduler.
    submitted : datetime
        When that was, by this machine's clock.
    psij_job : psij.Job
        PSI/J's view of the same job.
    future : concurrent.futures.Future
        Done when the job is; its result is the standard output.
    """

    def __init__(
        self,
        psij_job: psij.Job,
        *,
        wlm: str,
        host: Optional[str],
        tracker: Tracker,
        transport: Transport,
        notices: tuple[str, ...] = (),
        key: Optional[str] = None,
        submitted: Optional[float] = None,
    ) -> None:
        self.psij_job = psij_job
        self.wlm = wlm
        self.host = host
        self.notices = notices
        self.cancelling = False
        self.key: str = key or psij_job.id
        self.submitted: datetime = datetime.fromtimestamp(submitted or time.time()).astimezone()
        self.future: concurrent.futures.Future[str] = _Future(self)
        self.future.set_running_or_notify_cancel()
        self._directory = JobDir.of(psij_job.spec)
        self._tracker = tracker
        self._transport = transport
        self._changed = threading.Condition()
        self._news = False  # output came by itself
        tracker.listen(psij_job, self._notice)

    # what it is

    @property
    def spec(self) -> psij.JobSpec:
        """The PSI/J specification that was submitted."""
        assert self.psij_job.spec is not None
        return self.psij_job.spec

    @property
    def native_id(self) -> str:
        """The scheduler's number, or the process id."""
        return self.psij_job.native_id or ""

    id = native_id

    @property
    def paths(self) -> Paths:
        """Where the job's files are."""
        directory = self._directory
        if directory is None:
            return Paths(None, None, None, self._stdout(), self._stderr())
        return Paths(directory.path, f"{directory.path}/script", directory.record, self._stdout(), self._stderr())

    # how it is

    @property
    def state(self) -> JobState:
        """PSI/J's state: NEW, QUEUED, ACTIVE, COMPLETED, FAILED, CANCELED. Once final it stays."""
        return self._tracker.status(self.psij_job).state

    @property
    def details(self) -> Details:
        """All that is known beside the state, as it was last heard."""
        return self._tracker.details(self.psij_job)

    @property
    def native_state(self) -> Optional[str]:
        """The scheduler's own word for the state; None as long as it has not been heard."""
        return self.details.native_state

    @property
    def reason(self) -> Optional[str]:
        """Why the job waits, or why it ended as it did, in words."""
        return self.details.reason

    @property
    def exit_code(self) -> Optional[int]:
        """As a shell tells it, 128 + N for signal N; None before the end and where the script never ended by itself."""
        return self._tracker.status(self.psij_job).exit_code

    @property
    def started(self) -> Optional[datetime]:
        """When the script began, by the node's clock."""
        return _when(self.details.started)

    @property
    def ended(self) -> Optional[datetime]:
        """When the script ended, by the node's clock."""
        return _when(self.details.ended)

    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.state.final

    def running(self) -> bool:
        """Whether it runs."""
        return self.state is JobState.ACTIVE

    def cancelled(self) -> bool:
        """Whether it was cancelled, by whomever."""
        return self.state is JobState.CANCELED

    # waiting

    def wait(self, timeout: Timeout = None) -> bool:
        """Wait for the end.

        Parameters
        ----------
        timeout
            Seconds, or a timedelta; None waits for ever.

        Returns
        -------
        bool
            Whether the job has ended.
        """
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        with self._tracker.watched(self.psij_job):  # not for the state alone: the journal and callbacks come behind it
            return bool(concurrent.futures.wait([self.future], seconds).done)

    def result(self, timeout: Timeout = None) -> str:
        """Wait for the end; standard output, as the job has left it, if it completed.

        Raises
        ------
        JobFailed
            With state, exit code, reason and the last lines of stderr.
        JobCancelled
            If it was cancelled.
        concurrent.futures.TimeoutError
            If it has not ended by then; it goes on.
        ConnectionLost
            If it has ended, and its output cannot be read now.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        try:
            with self._reaching():
                told = self._told("stdout")
                return output.whole(self._transport, self._place("stdout")) if told is None else output.text(told)
        except FileNotFoundError:
            gone = f"job {self.native_id} completed, but its output is gone: there is no {self._stdout()}"
            raise JobFailed(gone, self) from None

    def exception(self, timeout: Timeout = None) -> Optional[JobError]:
        """Wait for the end; the error that `result` would raise, or None. Raises TimeoutError as `result` does."""
        if not self.wait(timeout):
            raise concurrent.futures.TimeoutError(f"job {self.native_id} has not ended within {timeout} s; it goes on")
        if self.state is JobState.COMPLETED:
            return None
        kind = JobCancelled if self.cancelled() else JobFailed
        path, lines = None, list[str]()
        with self._reaching():
            for stream, place in (("stderr", self._stderr()), ("stdout", self._stdout())):
                if place and not lines:
                    path, lines = place, output.last_lines(self._transport, place, self._told(stream))
        return kind(display.failure(self, lines, path), self)

    def add_done_callback(self, function: Callable[[Job], Any]) -> None:
        """Call `function` with this handle when the job has ended, at once if it has."""
        self.future.add_done_callback(lambda _: function(self))

    def __await__(self) -> Generator[Any, None, str]:
        return asyncio.wrap_future(self.future).__await__()

    def cancel(self) -> bool:
        """Ask for the job to be cancelled; that it is shows in `state` a moment later.

        Returns
        -------
        bool
            False if it had ended already.

        Raises
        ------
        SubmissionFailed, ConnectionLost
            If the scheduler could not be asked.
        """
        if self.done():
            return False
        with self._reaching():
            if self._directory:
                self._directory.note_cancelled(self._transport)
        self.cancelling = True
        try:
            self.psij_job.cancel()
        except psij.SubmitException as error:
            raise SubmissionFailed(f"job {self.native_id} could not be cancelled: {error}") from error
        return True

    # output

    def stdout(self) -> str:
        """All of standard output so far."""
        return self._whole("stdout")

    def stderr(self) -> str:
        """All of standard error so far; '' where it goes to the same file as standard output."""
        return self._whole("stderr")

    def get_output(self) -> tuple[str, str]:
        """Standard output and standard error so far. Never blocks."""
        return self.stdout(), self.stderr()

    def open(self, stream: str, most: Optional[int] = None) -> output.Output:
        """A reader of ``"stdout"`` or ``"stderr"`` whose ``read()`` gives what has come since; see `output.Output`."""
        return output.Output(self._transport, lambda: self._place(stream), most, self._arrived)

    def follow(
        self,
        *,
        most: Optional[int] = None,
        ticks: bool = False,
        streams: Optional[Mapping[str, output.Output]] = None,
    ) -> Iterator[tuple[str, str]]:
        """The output as the job writes it, until the job has ended and all is read.

        Parameters
        ----------
        most
            At most this many bytes from the head of each stream, and at the end as many from its tail.
        ticks
            Give ``("", "")`` too whenever nothing new has come, several times a second.
        streams
            Readers from `open` to go on with, by name; default is new ones.

        Yields
        ------
        tuple of str
            ``"stdout"`` or ``"stderr"``, and the text.
        """
        streams = streams or {name: self.open(name, most) for name in ("stdout", "stderr")}
        last = time.monotonic()
        with self._tracker.watched(self.psij_job), self._reaching():
            while True:
                if done := self.done():
                    for name, stream in streams.items():
                        stream.finish(self._told(name))
                pieces = [(name, text) for name, stream in streams.items() if (text := stream.read())]
                yield from pieces
                if pieces:
                    last = time.monotonic()
                    if any(_KILLER.search(text) for _, text in pieces):
                        self._tracker.hurry(self.psij_job, ending=True)  # Slurm writes there why it ends a job
                elif done:
                    break
                else:
                    if ticks:
                        yield "", ""
                    quiet = time.monotonic() - last
                    with self._changed:
                        self._changed.wait_for(lambda: self._news or self.done(), min(0.25, 0.03 + quiet / 200))
                        self._news = False
            yield from ((name, text) for name, stream in streams.items() if (text := stream.rest()))
        self.wait()

    def get(
        self,
        *patterns: str,
        to: Union[str, os.PathLike[str]] = ".",
        progress: transfer.Progress = lambda *_: None,
    ) -> list[Path]:
        """Copy files from the directory where the script runs on another machine; see `transfer.get`.

        Parameters
        ----------
        patterns
            Names of files or directories over there, or patterns such as ``results/*.csv``.
        to
            The directory here.
        progress
            Called with a name, how many bytes are there, and how many there are in all.

        Returns
        -------
        list of pathlib.Path
            What was written.

        Raises
        ------
        ExecuteError
            If there is no such file, or a name would lead out of `to`.
        """
        if self.host is None:
            raise BadUsage("the files of this job are on this machine; there is nothing to copy")
        with self._reaching():
            place = transfer.working_directory(self.spec, self._transport)
            return transfer.get(self._transport, patterns, place, os.fspath(to), progress)

    def _whole(self, stream: str) -> str:
        try:
            with self._reaching():
                return output.whole(self._transport, self._place(stream))
        except FileNotFoundError:
            return ""

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except TransportError as error:
            raise ConnectionLost(f"job {self.native_id} is as it was, but {error}") from error

    def _place(self, stream: str) -> Optional[output.Place]:
        """Where an output lies; None as long as only the node knows."""
        path = {"stdout": self._stdout, "stderr": self._stderr}[stream]()
        attempt = self._tracker.record(self.psij_job).attempt
        if path is None:
            return None
        if attempt is None or attempt.started is None:
            return output.Place(path)
        begin = attempt.stdout_from if stream == "stdout" else attempt.stderr_from
        # Where the next attempt runs, or has ended, and no record tells of it, none will: what there is is read.
        waits = not self.done() and self.native_state != "RUNNING"
        return output.Place(path, begin, attempt.number, over=waits and self.details.attempt > attempt.number)

    def _told(self, stream: str) -> Optional[bytes]:
        """All of an output, where it came together with the job's end."""
        place, told = self._place(stream), self._tracker.outputs(self.psij_job)
        ours = self._directory and {"stdout": self._directory.stdout, "stderr": self._directory.stderr}[stream]
        return told.get(stream) if place and place.path == ours else None

    def _stdout(self) -> Optional[str]:
        path = self.spec.stdout_path
        if path is not None and (self._directory is None or str(path) == self._directory.stdout):
            return str(path)
        attempt = self._tracker.record(self.psij_job).attempt
        return attempt.stdout if attempt else None

    def _stderr(self) -> Optional[str]:
        path = self.spec.stderr_path
        if path is not None and (self._directory is None or str(path) == self._directory.stderr):
            return str(path)
        attempt = self._tracker.record(self.psij_job).attempt
        return attempt.stderr if attempt and attempt.stderr != attempt.stdout else None

    # how it shows

    def __repr__(self) -> str:
        return display.one_line(self)

    def __str__(self) -> str:
        return self.native_id

    def _repr_html_(self) -> str:
        return display.card(self)

    def _notice(self) -> None:
        over = self.done() and not self.future.done()
        if over and self._directory:
            self._note_end()  # before anybody who waits goes on, and perhaps ends the process
        with self._changed:
            self._changed.notify_all()
        if over:
            self.future.set_result("")

    def _arrived(self) -> None:
        with self._changed:
            self._news = True
            self._changed.notify_all()

    def _note_end(self) -> None:
        details = self.details
        try:
            journal.note(
                self.key,
                state=str(self.state),
                native_state=details.native_state,
                exit_code=self.exit_code,
                reason=details.reason,
                started=details.started,
                ended=details.ended,
            )
        except OSError as error:  # who asks for the job later asks the scheduler again
            logger.warning("job %s: its end could not be noted: %s", self.native_id, error)


def _when(seconds: Optional[float]) -> Optional[datetime]:
    return None if seconds is None else datetime.fromtimestamp(seconds).astimezone()
