from __future__ import annotations

import threading
import time

import pytest
from execute_batch_scheduler.adapters.jobdir import JobDir
from execute_batch_scheduler.adapters.tracking import NO_EVIDENCE, Details, Pace, Report, Tracker
from execute_batch_scheduler.adapters.transport import TransportError

from psij import Job, JobSpec, JobState

NEVER = 1000.0
# A question is asked only where something happens; the marks are looked at without pause.
PACE = Pace(
    look_watched=0.002,
    look_idle=0.002,
    sweep=NEVER,
    queued=NEVER,
    queued_most=NEVER,
    running=NEVER,
    ended=0.0,
    ended_most=0.01,
    forgotten=0.005,
    unanswered=0.005,
)
EAGER = {"queued": 0.0, "queued_most": 0.005, "running": 0.005}
STARTED = "started\tattempt=0\ttime=100\tid=7\tnode=n1\tstdout=/o\tstderr=/e\n"
ENDED = "ended\tattempt=0\ttime=200\texit=0\ttold=\n"
RUNNING = Report(JobState.ACTIVE, "RUNNING")
DONE = Report(JobState.COMPLETED, "COMPLETED", 0)


class Memory:
    """A machine whose files are a dictionary; counts how often a directory is listed."""

    host = None

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.listed: list[str] = []

    def run(self, command, *, timeout, environment=None):
        raise TransportError("there are no commands here")

    def create(self, new):
        self.files.update({f"{new.path}/{name}": content for name, (content, _) in new.files.items()})

    def append(self, path, data):
        self.files[path] = self.files.get(path, b"") + data

    def read(self, path, offset=0, limit=-1):
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path][offset:][: None if limit < 0 else limit]

    def size(self, path):
        return len(self.read(path))

    def names(self, path):
        self.listed.append(path)
        return [name[len(path) + 1 :] for name in list(self.files) if name.startswith(f"{path}/")]

    def texts(self, paths):
        return {path: self.files[path].decode() for path in paths if path in self.files}

    def marks(self, folder, wake):
        return MemoryMarks(self, folder)

    def write(self, job, line):
        """What a wrapper does: a line in the record, then a mark."""
        directory = JobDir.of(job.spec)
        self.append(directory.record, line.encode())
        event = line.split("\t")[0]
        self.files[f"{directory.events}/{directory.name}.0.{event}"] = b""


class MemoryMarks:
    def __init__(self, memory, folder):
        self.memory, self.folder, self.seen = memory, folder, set()

    def fresh(self):
        names = set(self.memory.names(self.folder))
        fresh, self.seen = names - self.seen, names
        return dict.fromkeys(fresh)

    def rest(self):
        pass

    def hurry(self):
        pass


class Scheduler:
    """Answers questions from a list, the last answer for ever; an exception is raised."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked: list[list[str]] = []

    def __call__(self, jobs):
        self.asked.append([job.native_id for job in jobs])
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return {job.id: answer for job in jobs if answer is not None}


class Delivered(list):
    """What the tracker delivers: state and message."""

    def __call__(self, job, status):
        self.append((job.native_id, status.state))


@pytest.fixture
def memory():
    return Memory()


@pytest.fixture
def delivered():
    return Delivered()


@pytest.fixture
def track(memory, delivered):
    """Make a tracker that asks this scheduler."""

    trackers = []

    def track(scheduler, **pace):
        trackers.append(Tracker("test", memory, scheduler, delivered, Pace(**{**vars(PACE), **pace})))
        return trackers[-1]

    yield track
    for tracker in trackers:  # whose threads would go on at this pace
        with tracker._lock:
            tracker._entries.clear()


@pytest.fixture
def job(memory):
    """Make a job with a native id and an empty record."""

    def make(native_id="7"):
        job = Job()
        directory = JobDir.new("/root", job.id)
        job.spec = JobSpec(*directory.command)
        job._native_id = native_id
        memory.create(directory.files(b"", {}))
        return job

    return make


def until(condition, seconds=3.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def looks(memory, count=5):
    """Wait until the tracker has looked at the marks again."""
    before = len(memory.listed)
    until(lambda: len(memory.listed) >= before + count)


def state(tracker, job):
    return tracker.status(job).state


def test_an_end_record_triggers_exactly_one_question_and_the_answer_decides(track, job, memory, delivered):
    scheduler = Scheduler(Report(JobState.FAILED, "TIMEOUT", None, "TimeLimit"))
    tracker, one = track(scheduler), job()
    tracker.register_job(one)
    looks(memory)
    assert scheduler.asked == []
    memory.write(one, STARTED)
    until(lambda: state(tracker, one) is JobState.ACTIVE)
    looks(memory)
    assert scheduler.asked == []
    memory.write(one, ENDED)
    until(lambda: tracker.status(one).final)
    assert scheduler.asked == [["7"]]
    assert delivered == [("7", JobState.QUEUED), ("7", JobState.ACTIVE), ("7", JobState.FAILED)]
    status, details = tracker.status(one), tracker.details(one)
    assert (status.exit_code, status.message) == (0, "TimeLimit")  # the code is the record's, the state Slurm's
    assert details == Details("TIMEOUT", "TimeLimit", nodes="n1", started=100.0, ended=200.0)
    assert status.metadata == {"native_id": "7", "native_state": "TIMEOUT", "reason": "TimeLimit", "nodes": "n1"}


def test_the_start_record_makes_a_job_active_without_a_question(track, job, memory):
    scheduler = Scheduler(DONE)
    tracker, one = track(scheduler), job()
    tracker.register_job(one)
    memory.write(one, STARTED)
    until(lambda: state(tracker, one) is JobState.ACTIVE)
    assert tracker.details(one) == Details("RUNNING", nodes="n1", started=100.0)
    assert tracker.record(one).attempt.stdout == "/o"
    assert scheduler.asked == []


def test_a_scheduler_that_still_says_running_is_asked_again(track, job, memory):
    scheduler = Scheduler(RUNNING, RUNNING, DONE)
    tracker, one = track(scheduler), job()
    tracker.register_job(one)
    memory.write(one, STARTED + ENDED)
    until(lambda: tracker.status(one).final)
    assert len(scheduler.asked) == 3
    assert state(tracker, one) is JobState.COMPLETED


def test_not_found_is_believed_the_third_time_and_is_no_evidence(track, job):
    scheduler = Scheduler(None)
    tracker, one = track(scheduler, **EAGER), job()
    tracker.register_job(one)
    until(lambda: tracker.status(one).final)
    assert len(scheduler.asked) == 3
    status = tracker.status(one)
    assert (status.state, tracker.details(one).native_state) == (JobState.FAILED, "UNKNOWN")
    assert status.message.startswith(NO_EVIDENCE)


def test_not_found_twice_is_forgiven(track, job):
    scheduler = Scheduler(None, None, RUNNING, None, None, RUNNING, DONE)
    tracker, one = track(scheduler, **EAGER), job()
    tracker.register_job(one)
    until(lambda: tracker.status(one).final)
    assert len(scheduler.asked) == 7
    assert state(tracker, one) is JobState.COMPLETED


@pytest.mark.parametrize(
    ("ended", "expected", "code"),
    [
        ("exit=0\ttold=", JobState.COMPLETED, 0),
        ("exit=3\ttold=", JobState.FAILED, 3),
        ("signal=9\ttold=", JobState.FAILED, 137),
        ("exit=0\ttold=USR1", JobState.COMPLETED, 0),
        ("signal=15\ttold=TERM", JobState.FAILED, 143),
    ],
)
def test_the_record_decides_when_the_scheduler_has_forgotten(track, job, memory, ended, expected, code):
    scheduler = Scheduler(None)
    tracker, one = track(scheduler), job()
    tracker.register_job(one)
    memory.write(one, f"{STARTED}ended\tattempt=0\ttime=200\t{ended}\n")
    until(lambda: tracker.status(one).final)
    assert len(scheduler.asked) == 1
    assert (state(tracker, one), tracker.status(one).exit_code) == (expected, code)


def test_a_cancellation_that_was_obeyed_is_one_when_the_scheduler_has_forgotten(track, job, memory):
    tracker, one = track(Scheduler(None)), job()
    tracker.register_job(one)
    memory.write(one, f"{STARTED}cancelled\nended\tattempt=0\ttime=200\tsignal=15\ttold=TERM\n")
    until(lambda: tracker.status(one).final)
    assert (state(tracker, one), tracker.status(one).exit_code) == (JobState.CANCELED, 143)


@pytest.mark.parametrize("error", [TransportError("no answer"), RuntimeError("a bug")])
def test_a_question_without_an_answer_changes_no_state_and_is_asked_again(track, job, delivered, error):
    gate = threading.Event()

    def ask(jobs):
        if gate.is_set():
            return {one.id: RUNNING for one in jobs}
        raise error

    tracker, one = track(ask, queued=0.0, queued_most=0.01), job()
    before = time.time()
    tracker.register_job(one)
    until(lambda: tracker.details(one).unanswered_since)
    since = tracker.details(one).unanswered_since
    assert before <= since <= time.time()
    time.sleep(0.05)
    assert tracker.details(one).unanswered_since == since  # several times, and still since then
    assert (state(tracker, one), delivered) == (JobState.QUEUED, [("7", JobState.QUEUED)])
    gate.set()
    until(lambda: state(tracker, one) is JobState.ACTIVE)
    assert tracker.details(one).unanswered_since is None


def test_evidence_is_taken_while_the_scheduler_does_not_answer(track, job, memory):
    asked, gate = threading.Event(), threading.Event()

    def ask(jobs):
        asked.set()
        gate.wait(5)
        return {one.id: DONE for one in jobs}

    tracker, one = track(ask, queued=0.0), job()
    tracker.register_job(one)
    assert asked.wait(5)
    memory.write(one, STARTED)
    until(lambda: state(tracker, one) is JobState.ACTIVE)
    gate.set()
    until(lambda: state(tracker, one) is JobState.COMPLETED)


def test_a_final_state_stays(track, job, memory, delivered):
    scheduler = Scheduler(DONE, Report(JobState.FAILED, "FAILED", 1))
    tracker, one = track(scheduler), job()
    tracker.register_job(one)
    memory.write(one, STARTED + ENDED)
    until(lambda: tracker.status(one).final)
    tracker.hurry(one)
    memory.write(one, ENDED.replace("exit=0", "exit=3"))
    time.sleep(0.05)
    assert scheduler.asked == [["7"]]
    assert (state(tracker, one), tracker.status(one).exit_code) == (JobState.COMPLETED, 0)
    assert [final for _, final in delivered if final.final] == [JobState.COMPLETED]


def test_a_state_is_delivered_once_and_never_goes_back(track, job, delivered):
    queued = Report(JobState.QUEUED, "PENDING", reason="Resources")
    scheduler = Scheduler(queued, queued, RUNNING, queued, RUNNING, DONE)
    tracker, one = track(scheduler, **EAGER), job()
    tracker.register_job(one)
    until(lambda: tracker.status(one).final)
    assert delivered == [("7", JobState.QUEUED), ("7", JobState.ACTIVE), ("7", JobState.COMPLETED)]


def test_the_details_follow_a_job_that_was_requeued(track, job):
    again = Report(JobState.QUEUED, "PENDING", reason="BeginTime", expected_start=500.0)
    tracker, one = track(Scheduler(RUNNING, again), **EAGER), job()
    tracker.register_job(one)
    until(lambda: tracker.details(one).native_state == "PENDING")
    assert state(tracker, one) is JobState.ACTIVE
    assert (tracker.details(one).reason, tracker.details(one).expected_start) == ("BeginTime", 500.0)


def test_an_unknown_state_is_kept_as_text_and_changes_nothing(track, job, delivered):
    tracker, one = track(Scheduler(Report(None, "DREAMING")), **EAGER), job()
    tracker.register_job(one)
    until(lambda: tracker.details(one).native_state == "DREAMING")
    assert (state(tracker, one), delivered) == (JobState.QUEUED, [("7", JobState.QUEUED)])


def test_a_failure_without_a_start_names_the_directory(track, job):
    tracker, one = track(Scheduler(Report(JobState.FAILED, "FAILED", reason="JobLaunchFailure")), **EAGER), job()
    tracker.register_job(one)
    until(lambda: tracker.status(one).final)
    message = tracker.status(one).message
    assert message.startswith("JobLaunchFailure; nothing tells that the script was begun")
    assert JobDir.of(one.spec).path in message
    assert "set job_directory" in message


def test_an_answer_from_before_the_end_changes_nothing_any_more(delivered, job, memory):
    asked, gate = threading.Event(), threading.Event()

    def ask(jobs):
        asked.set()
        assert gate.wait(10)
        return {one.id: RUNNING for one in jobs}

    verdict, one = Report(JobState.FAILED, "FAILED", 3, "its own"), job()
    tracker = Tracker("test", memory, ask, delivered, PACE, verdict=lambda record: verdict)
    tracker.register_job(one)
    tracker.hurry(one)
    assert asked.wait(10)
    memory.write(one, STARTED + ENDED)
    until(lambda: tracker.status(one).final)
    gate.set()
    time.sleep(0.2)  # for what must not happen
    assert (tracker.details(one).native_state, tracker.details(one).reason) == ("FAILED", "its own")


def test_a_signal_that_slurm_takes_for_one_of_its_own_marks_is_that_of_the_record(track, job, memory):
    tracker, one = track(Scheduler(Report(JobState.FAILED, "FAILED", reason="JobLaunchFailure"))), job()
    tracker.register_job(one)
    memory.write(one, STARTED + "ended\tattempt=0\ttime=200\tsignal=53\ttold=\n")
    until(lambda: tracker.status(one).final)
    assert (tracker.status(one).exit_code, tracker.status(one).message) == (181, "RaisedSignal:53")


def test_a_record_whose_mark_never_comes_is_found_by_the_sweep(track, job, memory):
    tracker, one = track(Scheduler(DONE), sweep=0.01), job()
    tracker.register_job(one)
    looks(memory)
    memory.append(JobDir.of(one.spec).record, STARTED.encode())
    until(lambda: state(tracker, one) is JobState.ACTIVE)


def test_a_mark_of_another_job_makes_nobody_read(track, job, memory):
    tracker, one, other = track(Scheduler(DONE)), job(), job("8")
    tracker.register_job(one)
    looks(memory)
    memory.append(JobDir.of(one.spec).record, STARTED.encode())
    memory.write(other, STARTED)
    looks(memory)
    assert state(tracker, one) is JobState.QUEUED


def test_one_listing_serves_many_jobs(track, job, memory):
    tracker, jobs = track(Scheduler(DONE), look_idle=0.05), [job(str(number)) for number in range(50)]
    for one in jobs:
        tracker.register_job(one)
    time.sleep(0.2)
    before, begun = len(memory.listed), time.monotonic()
    time.sleep(0.2)
    assert 1 <= len(memory.listed) - before <= 2 + (time.monotonic() - begun) / 0.05
    assert set(memory.listed) == {"/root/events"}


def test_several_jobs_that_are_due_make_one_question(track, job, memory):
    gate, asked = threading.Event(), []

    def ask(jobs):
        asked.append(sorted(one.native_id for one in jobs))
        gate.wait(5)
        return {one.id: DONE for one in jobs}

    tracker, first, others = track(ask), job("1"), [job("2"), job("3"), job("4")]
    tracker.register_job(first)
    memory.write(first, STARTED + ENDED)
    until(lambda: asked == [["1"]])  # while this question is under way ...
    for one in others:
        memory.append(JobDir.of(one.spec).record, (STARTED + ENDED).encode())
    with tracker._lock:
        for one in others:
            tracker.register_job(one)
            tracker.hurry(one)
    gate.set()
    until(lambda: all(tracker.status(one).final for one in [first, *others]))
    assert asked == [["1"], ["2", "3", "4"]]


def test_a_question_about_several_answers_for_all(track, job):
    scheduler = Scheduler(DONE)
    tracker, jobs = track(scheduler), [job("1"), job("2"), job("3")]
    with tracker._lock:
        for one in jobs:
            tracker.register_job(one)
        for one in jobs[:2]:
            tracker.hurry(one)
    until(lambda: all(tracker.status(one).final for one in jobs))
    assert [sorted(names) for names in scheduler.asked] == [["1", "2", "3"]]


def test_an_answer_that_lacks_a_job_concerns_that_job_alone(track, job):
    known, lost = job("1"), job("2")
    tracker = track(lambda jobs: {known.id: RUNNING}, **EAGER)
    for one in (known, lost):
        tracker.register_job(one)
    until(lambda: tracker.status(lost).final)
    assert (state(tracker, known), state(tracker, lost)) == (JobState.ACTIVE, JobState.FAILED)


def test_a_signal_in_the_record_is_a_reason_to_ask(track, job, memory):
    scheduler = Scheduler(DONE)
    tracker, one = track(scheduler), job()
    tracker.register_job(one)
    memory.write(one, STARTED)
    until(lambda: state(tracker, one) is JobState.ACTIVE)
    memory.write(one, "told\tattempt=0\ttime=150\tsignal=TERM\n")
    until(lambda: scheduler.asked)


def test_to_hurry_is_to_ask_at_once(track, job, memory):
    scheduler = Scheduler(Report(JobState.CANCELED, "CANCELLED"))
    tracker, one = track(scheduler), job()
    tracker.register_job(one)
    looks(memory)
    tracker.hurry(one)
    until(lambda: state(tracker, one) is JobState.CANCELED)
    assert scheduler.asked == [["7"]]


def test_a_job_that_is_ending_is_asked_about_until_it_has_ended(track, job, memory):
    """Slurm writes into the output why it kills a job some seconds before it says so."""
    scheduler = Scheduler(RUNNING, RUNNING, RUNNING, Report(JobState.FAILED, "FAILED", 137))
    tracker, one = track(scheduler, forgotten=0.01), job()
    tracker.register_job(one)
    memory.write(one, STARTED)
    until(lambda: state(tracker, one) is JobState.ACTIVE)
    tracker.hurry(one, ending=True)
    until(lambda: state(tracker, one) is JobState.FAILED)
    assert len(scheduler.asked) == 4


def test_listeners_hear_of_changes_and_at_once_of_a_job_that_has_ended(track, job, memory):
    tracker, one, heard = track(Scheduler(DONE)), job(), []
    tracker.register_job(one)
    tracker.listen(one, lambda: heard.append(state(tracker, one)))
    memory.write(one, STARTED)
    until(lambda: heard == [JobState.ACTIVE])
    memory.write(one, ENDED)
    until(lambda: heard and heard[-1] is JobState.COMPLETED)
    late = []
    tracker.listen(one, lambda: late.append(True))
    assert late == [True]


def test_a_job_that_somebody_waits_for_is_looked_at_more_often(track, job, memory):
    tracker, one = track(Scheduler(DONE), look_idle=NEVER), job()
    tracker.register_job(one)
    until(lambda: memory.listed)
    time.sleep(0.02)
    before = len(memory.listed)
    with tracker.watched(one):
        looks(memory, 10)
    time.sleep(0.02)
    after = len(memory.listed)
    time.sleep(0.03)
    assert before <= 2
    assert len(memory.listed) - after <= 1


def test_what_cannot_be_looked_at_is_looked_at_again(track, job, memory, monkeypatch):
    tracker, one = track(Scheduler(DONE)), job()
    names, calls = memory.names, []

    def fails_once(path):
        calls.append(path)
        if len(calls) == 1:
            raise PermissionError(path)
        return names(path)

    monkeypatch.setattr(memory, "names", fails_once)
    tracker.register_job(one)
    memory.write(one, STARTED)
    until(lambda: state(tracker, one) is JobState.ACTIVE)


def test_psijs_final_state_is_not_believed_before_it_is_judged(track, job):
    tracker, one = track(Scheduler(DONE)), job()
    one._status = DONE_STATUS = type(one.status)(JobState.COMPLETED)
    tracker.register_job(one)
    assert one.status is DONE_STATUS
    assert state(tracker, one) is JobState.ACTIVE


def test_a_job_that_is_not_tracked_has_psijs_status_and_no_details(track, job):
    tracker, one = track(Scheduler(DONE)), job()
    assert tracker.status(one) is one.status
    assert tracker.details(one) == Details()
    assert tracker.record(one).attempt is None
