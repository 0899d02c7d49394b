"""How a job's state becomes known: evidence from its directory first, then one question to the scheduler.

One tracker per executor, one thread per tracker, whatever the number of jobs. The thread lists the directory of marks
that all wrappers share and reads the records of the jobs named there. What it finds decides when the scheduler is
asked; the answer decides what the state is. Questions run on a second thread: a scheduler that is down takes seconds
to say so, and evidence must not wait for it.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Optional, Protocol
from weakref import WeakKeyDictionary

from execute_batch_scheduler.adapters.jobdir import JobDir, Record, parse_record, read_records
from execute_batch_scheduler.adapters.transport import Marks, Refused, Transport, TransportError

from psij import Job, JobState, JobStatus, SubmitException

logger = logging.getLogger(__name__)
_EARLY = 1000


class OutcomeUnknown(SubmitException):
    """Whether the scheduler took a job is not known, and could not be found out. It must not be submitted again."""


NO_EVIDENCE = "no evidence of its end: it is in no queue, left no end record, and no accounting knows it"


@dataclass(frozen=True)
class Report:
    """A scheduler's answer about one job. `state` is None where its word for the state is not known to us."""

    state: Optional[JobState]
    native_state: Optional[str] = None
    exit_code: Optional[int] = None
    reason: Optional[str] = None
    expected_start: Optional[float] = None
    nodes: Optional[str] = None
    attempt: int = 0
    started: Optional[float] = None
    ended: Optional[float] = None
    submitted: Optional[float] = None
    command: Optional[str] = None

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self.state is not None and self.state.final


@dataclass(frozen=True)
class Details:
    """What is known of a job beside PSI/J's status; times are seconds since the epoch."""

    native_state: Optional[str] = None
    reason: Optional[str] = None
    expected_start: Optional[float] = None
    nodes: Optional[str] = None
    started: Optional[float] = None
    ended: Optional[float] = None
    unanswered_since: Optional[float] = None
    attempt: int = 0  # of which the scheduler speaks; the record's is less where the job was queued again


@dataclass(frozen=True)
class Pace:
    """How often to look and to ask, in seconds."""

    look_watched: float = 0.02  # at the marks, while somebody waits for a job that has just moved
    look_idle: float = 1.0  # at the marks, while nobody waits
    first_look: float = 2.0  # at the record of a job of another machine, whose marks are pushed
    sweep: float = 30.0  # at a record whose mark never came: NFS may hide names that long
    queued: float = 3.0  # first question about a job that has not started: it mostly has by then
    queued_most: float = 60.0
    running: float = 75.0  # question about a job that runs and says nothing
    ended: float = 0.03  # first question after an end record: the controller knows a moment later
    ended_most: float = 2.0
    forgotten: float = 1.0  # before a "not found" is believed, twice
    unanswered: float = 5.0  # before a scheduler that did not answer is asked again
    unanswered_most: float = 15.0
    refused: float = 300.0  # the same of a machine that does not let us in: sites count that


class Deliver(Protocol):
    """What a tracker calls when a job's state has changed."""

    def __call__(self, job: Job, status: JobStatus) -> None:
        """Take the new status."""


@dataclass
class _Known:
    """What stays of a job when it has ended; it must not refer to the job, whose end it would outlive."""

    record: Record = field(default_factory=Record)
    outputs: dict[str, bytes] = field(default_factory=dict)
    details: Details = field(default_factory=Details)
    status: Optional[JobStatus] = None  # the last one delivered


@dataclass
class _Entry:
    job: Job
    directory: Optional[JobDir]
    born: float
    known: _Known = field(default_factory=_Known)
    report: Optional[Report] = None
    moved: float = 0.0  # when something last happened
    next_look: float = 0.0
    next_ask: float = 0.0
    step: float = 0.0  # the pause between questions, doubled as long as nothing happens
    asked: bool = False  # a question is under way
    ending: bool = False  # its end was told of, and not by the scheduler
    misses: int = 0
    watchers: int = 0
    listeners: list[Callable[[], None]] = field(default_factory=list)


class Tracker:
    """Watches the jobs of one executor until they have ended.

    Parameters
    ----------
    name
        For the threads' names.
    transport
        Where the job directories lie.
    ask
        Answers by PSI/J job id; a job that is missing is one the scheduler does not know. It may block, and raises
        TransportError where the scheduler did not answer.
    deliver
        Called for each change of state, on the tracker's thread.
    queued
        The scheduler's own word for a job that it has taken and not said anything about yet.
    verdict
        Where the end record alone decides: what it says. Then nobody is asked.
    """

    def __init__(
        self,
        name: str,
        transport: Transport,
        ask: Callable[[Sequence[Job]], Mapping[str, Report]],
        deliver: Deliver,
        pace: Pace = Pace(),
        queued: Optional[str] = None,
        verdict: Optional[Callable[[Record], Report]] = None,
    ) -> None:
        self._queued = queued
        self._verdict = verdict
        self.pace = pace
        self._name = name
        self._transport = transport
        self._ask = ask
        self._deliver = deliver
        self._entries: dict[str, _Entry] = {}
        self._marks: dict[str, Marks] = {}
        self._early: dict[str, str] = {}  # records that were pushed of jobs that are not registered yet, by directory
        self._heard: dict[str, tuple[str, dict[str, bytes]]] = {}  # see `hear`
        self._ended: WeakKeyDictionary[Job, _Known] = WeakKeyDictionary()
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._questions: queue.SimpleQueue[list[_Entry]] = queue.SimpleQueue()
        self._process: Optional[int] = None  # where the threads run: a fork has none of them

    # what executors and handles call

    def register_job(self, job: Job) -> None:
        """Begin to track a job that has its native id. Named as PSI/J's own poll thread names it."""
        now = time.monotonic()
        entry = _Entry(job, JobDir.of(job.spec), born=now, moved=now, next_ask=now + self.pace.queued)
        if job.status.state is JobState.QUEUED:
            entry.known.details = Details(native_state=self._queued)
        with self._lock:
            if entry.directory:
                folder = entry.directory.events
                if folder not in self._marks:
                    self._marks[folder] = self._transport.marks(folder, self._wake.set)
                self._marks[folder].hurry()
                if self._transport.host is not None:  # what happens is pushed; a look would make it wait
                    entry.next_look = now + self.pace.first_look
            self._entries[job.id] = entry
            early = self._early.pop(entry.directory.path, None) if entry.directory else None
            self._run()
        if job.status.state is JobState.NEW:  # attached to: it was submitted, whatever else is found
            self._tell(entry, JobStatus(JobState.QUEUED))
        if early is not None:
            self._take_text(entry, early)
        self._wake.set()

    def _run(self) -> None:
        """Have the threads run in this process."""
        if self._process != os.getpid():
            if self._process is not None:  # who asked, and who was told of marks, was left behind
                for entry in self._entries.values():
                    entry.asked = False
                self._marks = {folder: self._transport.marks(folder, self._wake.set) for folder in self._marks}
            self._process = os.getpid()
            for target in (self._watch, self._inquire):
                threading.Thread(target=target, name=f"{self._name} {target.__name__}", daemon=True).start()

    def hear(self, path: str, record: str, outputs: dict[str, bytes]) -> None:
        """Take what a job's own wrapper has told of its end.

        Parameters
        ----------
        path
            The job directory. The job may be registered yet or not.
        outputs
            All that stands in files of the directory, by name, as far as that is known.
        """
        with self._lock:
            self._heard[path] = record, outputs
            _trim(self._heard)
        self._wake.set()

    def take(self, job: Job, record: Record) -> None:
        """Take a record that was read elsewhere, so that a job that somebody comes back to is known at once."""
        with self._lock:
            entry = self._entries.get(job.id)
        if entry and record != entry.known.record:
            self._take_record(entry, record)

    def status(self, job: Job) -> JobStatus:
        """The last state delivered. PSI/J's own until there is one, but never a final one that was not judged here."""
        status = self._known(job).status
        if status:
            return status
        return JobStatus(JobState.ACTIVE) if job.status.final else job.status

    def settle(self, job: Job, report: Report) -> None:
        """Take a job whose end is known already; nobody is asked."""
        entry = _Entry(job, JobDir.of(job.spec), born=time.monotonic())
        if entry.directory:
            entry.known.record = entry.directory.read(self._transport)
        entry.known.details = _details(report, entry)
        self._tell(entry, _status(job, report, entry.known.details))

    def details(self, job: Job) -> Details:
        """What is known of a job. No I/O."""
        return self._known(job).details

    def record(self, job: Job) -> Record:
        """The record as last read. No I/O."""
        return self._known(job).record

    def outputs(self, job: Job) -> dict[str, bytes]:
        """What the job directory's stdout and stderr held when the job ended, if its wrapper has told. No I/O."""
        return self._known(job).outputs

    def _known(self, job: Job) -> _Known:
        with self._lock:
            entry = self._entries.get(job.id)
            return entry.known if entry else self._ended.get(job) or _Known()

    def listen(self, job: Job, listener: Callable[[], None]) -> None:
        """Call `listener` on the tracker's thread whenever something of the job changes."""
        with self._lock:
            entry = self._entries.get(job.id)
            if entry:
                entry.listeners.append(listener)
                return
        listener()

    @contextmanager
    def watched(self, job: Job) -> Iterator[None]:
        """While somebody waits for a job it is looked at more often."""
        with self._lock:
            entry = self._entries.get(job.id)
            if entry:
                entry.watchers += 1
                self._run()
        self._wake.set()
        try:
            yield
        finally:
            if entry:
                with self._lock:
                    entry.watchers -= 1

    def hurry(self, job: Job, ending: bool = False) -> None:
        """Ask about a job soon: something was just done to it. If it is `ending`, go on asking, ever more rarely."""
        with self._lock:
            entry = self._entries.get(job.id)
            if entry:
                entry.ending = entry.ending or ending
                entry.step = 0.0
                entry.next_ask = min(entry.next_ask, time.monotonic() + self.pace.ended)
        self._wake.set()

    # the watching thread

    def _watch(self) -> None:
        while True:
            try:
                self._put_questions()
                self._look()
            except Exception:  # a thread that dies would leave every job as it is, for ever
                logger.exception("%s: looking at the jobs failed; going on", self._name)
                time.sleep(1)
            self._wake.wait(self._pause())
            self._wake.clear()

    def _pause(self) -> Optional[float]:
        now = time.monotonic()
        with self._lock:
            entries = list(self._entries.values())
            if not entries:
                for marks in self._marks.values():
                    marks.rest()
                return None
        pauses = [max(0.0, entry.next_ask - now) for entry in entries if not entry.asked]
        for entry in entries:
            if entry.watchers:  # quick for half a minute after something happened, then slower, by the job's quiet
                pauses.append(min(0.25, max(self.pace.look_watched, (now - entry.moved) / 600)))
            else:
                pauses.append(self.pace.look_idle)
        return min(pauses)

    def _look(self) -> None:
        now = time.monotonic()
        marked = self._marked()
        with self._lock:
            entries = [entry for entry in self._entries.values() if entry.directory]
            known = {entry.directory.path for entry in entries if entry.directory}
            self._early.update({path: record for path, record in marked.items() if record and path not in known})
            _trim(self._early)
            heard = {path: self._heard.pop(path) for path in known & self._heard.keys()}
        for entry in entries:
            assert entry.directory
            if entry.directory.path in heard:
                record, entry.known.outputs = heard[entry.directory.path]
                self._take_text(entry, record)
            if entry.directory.path in marked:
                pushed = marked[entry.directory.path]
                if pushed is None:
                    entry.next_look = 0.0  # now, or as soon as it can be read
                else:
                    self._take_text(entry, pushed)
        due = [entry for entry in entries if now >= entry.next_look]
        if not due:
            return
        try:
            records = self._records(due)
        except TransportError as error:
            logger.info("%s: %s", self._name, error)
            for entry in due:
                entry.next_look = time.monotonic() + self._patience(error)
            return
        for entry, record_read in zip(due, records):
            entry.next_look = now + self.pace.sweep
            if record_read != entry.known.record:
                self._take_record(entry, record_read)

    def _patience(self, error: Exception) -> float:
        return self.pace.refused if isinstance(error, Refused) else self.pace.unanswered

    def _records(self, entries: Sequence[_Entry]) -> list[Record]:
        """The records of jobs as they are now; of a job without a directory an empty one."""
        read = iter(read_records([entry.directory for entry in entries if entry.directory], self._transport))
        return [next(read) if entry.directory else Record() for entry in entries]

    def _marked(self) -> dict[str, Optional[str]]:
        """Paths of the job directories for which there are marks not seen before, and their records where they came."""
        marked = {}
        for folder, marks in list(self._marks.items()):
            for name, record in marks.fresh().items():
                marked[f"{folder[: -len('/events')]}/jobs/{name.split('.', 1)[0]}"] = record
        return marked

    def _take_text(self, entry: _Entry, text: str) -> None:
        record = parse_record(text)
        if record != entry.known.record:
            self._take_record(entry, record)

    def _take_record(self, entry: _Entry, record: Record) -> None:
        with self._lock:
            if entry.known.status is not None and entry.known.status.final:
                return  # what was pushed of its beginning may come after what it has told of its end
            before, entry.known.record = entry.known.record.attempt, record
            attempt = record.attempt
            entry.moved = time.monotonic()
            if not attempt:
                return
            if attempt.ended is not None:
                self._ask_in(entry, self.pace.ended)
            elif before is None or before.number != attempt.number:
                self._ask_in(entry, self.pace.running)
            elif attempt.told != before.told or attempt.limit:
                self._ask_in(entry, self.pace.forgotten)
            entry.known.details = replace(
                entry.known.details,
                native_state="RUNNING",
                reason=None,
                expected_start=None,
                nodes=entry.known.details.nodes or attempt.node,
                started=attempt.started,
            )
        if attempt.ended is not None and self._verdict:
            self._take_answer(entry, self._verdict(record), record)
        else:
            self._tell(entry, JobStatus(JobState.ACTIVE, time=attempt.started))

    def _put_questions(self) -> None:
        now = time.monotonic()
        with self._lock:
            due = [entry for entry in self._entries.values() if not entry.asked and entry.next_ask <= now]
            if len(due) > 1:  # one question answers for all, so nobody need be asked about again soon
                due = [entry for entry in self._entries.values() if not entry.asked]
            for entry in due:
                entry.asked = True
        if due:
            self._questions.put(due)

    # the asking thread

    def _inquire(self) -> None:
        while True:
            self._answer(self._questions.get())
            self._wake.set()

    def _answer(self, entries: list[_Entry]) -> None:
        try:
            reports = self._ask([entry.job for entry in entries])
            # The record may have come while the question was under way.
            for entry, record in zip(entries, self._records(entries)):
                self._take_answer(entry, reports.get(entry.job.id), record)
        except TransportError as error:
            logger.info("%s: %s", self._name, error)
            self._unanswered(entries, self._patience(error))
        except Exception as error:
            logger.exception("%s: a question failed; asking again", self._name)
            self._unanswered(entries, self._patience(error))

    def _unanswered(self, entries: Sequence[_Entry], patience: float) -> None:
        for entry in (entry for entry in entries if entry.asked):
            with self._lock:
                entry.asked = False
                if entry.known.status is not None and entry.known.status.final:
                    continue
                if entry.known.details.unanswered_since is None:
                    entry.known.details = replace(entry.known.details, unanswered_since=time.time())
                self._ask_again(entry, patience, max(patience, self.pace.unanswered_most))
            self._tell(entry)

    def _take_answer(self, entry: _Entry, report: Optional[Report], record: Record) -> None:
        if record != entry.known.record:
            self._take_record(entry, record)
        attempt = record.attempt
        with self._lock:
            entry.asked = False
            if entry.known.status is not None and entry.known.status.final:
                return  # it was asked before that
            if report is None:
                entry.misses += 1
                if entry.misses < 3 and not (attempt and attempt.ended is not None):
                    self._ask_in(entry, self.pace.forgotten * entry.misses)
                    return
            entry.misses = 0
            report = judged(report, record, entry.directory)
            if entry.report is None or report.native_state != entry.report.native_state:
                entry.moved = time.monotonic()
            entry.report = report
            entry.known.details = _details(report, entry)
            self._plan(entry, report)
        if report.state is not None:
            self._tell(entry, _status(entry.job, report, entry.known.details))
        else:
            self._tell(entry)

    def _plan(self, entry: _Entry, report: Report) -> None:
        attempt = entry.known.record.attempt
        if attempt and attempt.ended is not None and attempt.number >= report.attempt:
            self._ask_again(entry, self.pace.ended, self.pace.ended_most)
        elif report.state is JobState.QUEUED:
            waited = time.monotonic() - entry.born
            self._ask_in(entry, min(self.pace.queued_most, max(self.pace.queued, waited / 2)))
        elif attempt and not (
            attempt.told or entry.known.record.cancelled or entry.ending or report.native_state == "COMPLETING"
        ):
            self._ask_in(entry, self.pace.running)
        else:  # told to stop, or killed before it could put that down, or running without a sign of it
            self._ask_again(entry, self.pace.forgotten, self.pace.running)

    def _ask_in(self, entry: _Entry, seconds: float) -> None:
        entry.step = seconds
        entry.next_ask = time.monotonic() + seconds

    def _ask_again(self, entry: _Entry, first: float, most: float) -> None:
        self._ask_in(entry, min(most, max(first, entry.step * 2)))

    def _tell(self, entry: _Entry, status: Optional[JobStatus] = None) -> None:
        job, known = entry.job, entry.known
        with self._lock:
            if known.status is not None and known.status.final:
                return  # both threads may come to a job's end
            moved = status is not None and (known.status is None or status.state.is_greater_than(known.status.state))
            if moved:
                known.status = status
        if moved and status is not None:
            self._deliver(job, status)
        if status is not None and status.final:
            with self._lock:
                self._ended[job] = known
                self._entries.pop(job.id, None)
        for listener in list(entry.listeners):
            listener()


def _trim(found: dict[str, Any]) -> None:
    """Let go of what nobody has asked for so long that nobody will."""
    while len(found) > _EARLY:
        found.pop(next(iter(found)))


def judged(report: Optional[Report], record: Record, directory: Optional[JobDir]) -> Report:
    """A scheduler's answer, or its not knowing the job, together with the job's own record."""
    if report is None:
        report = _verdict_without_scheduler(record)
    return _with_record(report, record, directory) if report.final else report


def _details(report: Report, entry: _Entry) -> Details:
    attempt = entry.known.record.attempt
    return Details(
        native_state=report.native_state,
        reason=report.reason,
        expected_start=report.expected_start,
        nodes=report.nodes or entry.known.details.nodes or (attempt.node if attempt else None),
        started=(attempt.started if attempt else None) or report.started,
        ended=((attempt.ended if attempt else None) or report.ended or time.time()) if report.final else None,
        attempt=report.attempt,
    )


def _verdict_without_scheduler(record: Record) -> Report:
    """The scheduler has forgotten the job: its own record decides, and where there is none, nothing is known."""
    attempt = record.attempt
    if attempt is None and record.cancelled:
        return Report(JobState.CANCELED, "CANCELLED", reason="cancelled")
    if attempt is None or attempt.ended is None:
        return Report(JobState.FAILED, "UNKNOWN", reason=NO_EVIDENCE)
    if record.obeyed:
        return Report(JobState.CANCELED, "CANCELLED", attempt.status, "cancelled")
    if attempt.status == 0 and not attempt.told:
        return Report(JobState.COMPLETED, "COMPLETED", exit_code=0)
    told = f"it was sent {', '.join(attempt.told)}; " if attempt.told else ""
    state, native = (JobState.COMPLETED, "COMPLETED") if attempt.status == 0 else (JobState.FAILED, "FAILED")
    return Report(state, native, attempt.status, f"{told}the scheduler no longer knows the job, its own record counts")


def _with_record(report: Report, record: Record, directory: Optional[JobDir]) -> Report:
    """A final report, with what only the job's record can add."""
    attempt = record.attempt
    if report.exit_code is None and attempt and attempt.ended is not None:
        report = replace(report, exit_code=attempt.status)
        if attempt.signal and report.native_state == "FAILED":  # Slurm's number may mean something else
            report = replace(report, reason=f"RaisedSignal:{attempt.signal}")
    if directory and attempt is None and report.native_state == "FAILED":
        hint = (
            "nothing tells that the script was begun: it was killed at once, or a file of --output, --error or --input "
            "could not be opened (is its directory there?), or "
            f"the node does not see {directory.path}; then set job_directory to one it sees"
        )
        report = replace(report, reason=f"{report.reason}; {hint}" if report.reason else hint)
    return report


def _status(job: Job, report: Report, details: Details) -> JobStatus:
    assert report.state is not None
    metadata: dict[str, object] = {
        "native_id": job.native_id,
        "native_state": details.native_state,
        "reason": details.reason,
        "nodes": details.nodes,
    }
    at = details.ended if report.final else details.started if report.state is JobState.ACTIVE else None
    return JobStatus(report.state, time=at, message=report.reason, exit_code=report.exit_code, metadata=metadata)
