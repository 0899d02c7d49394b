from __future__ import annotations

import calendar
import io
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from execute_batch_scheduler.adapters.slurm import (
    STATES,
    format_time,
    is_same,
    job_id,
    literal_filename,
    parse_accounting,
    parse_queue,
    parse_show_job,
    question_environment,
    reason_in_words,
    submit_arguments,
    submit_environment,
    submit_script,
)
from execute_batch_scheduler.adapters.tracking import Report

from psij import Job, JobAttributes, JobExecutor, JobSpec, JobState, ResourceSpecV1, SubmitException

# What Slurm 22.05 printed for jobs in many states.
DATA = Path(__file__).resolve().parents[1] / "data" / "slurm"
QUEUED, ACTIVE, COMPLETED = JobState.QUEUED, JobState.ACTIVE, JobState.COMPLETED
FAILED, CANCELED = JobState.FAILED, JobState.CANCELED


def at(clock):
    return datetime.fromisoformat(f"2026-11-23T{clock}").timestamp()


def shown(name):
    return parse_show_job((DATA / f"show_{name}.txt").read_text())


def quiet(spec):
    """The specification without the time limit that PSI/J gives to everybody."""
    spec.attributes.duration = None
    return spec


def custom(**attributes):
    made = JobAttributes()
    for name, value in attributes.items():
        made.set_custom_attribute(name.replace("__", ".").replace("_", "-"), value)
    return made


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (JobSpec("/bin/true"), []),
        (JobSpec("/bin/true", ["-x"], environment={"A": "b"}), []),
        (
            JobSpec(
                "/bin/bash",
                ["-p", "/jobs/one/run"],
                name="my job",
                directory="/a b",
                stdin_path="/in",
                stdout_path="/out%j",
                stderr_path="/err",
            ),
            ["--job-name=my job", "--chdir=/a b", "--input=/in", "--output=/out%%j", "--error=/err"],
        ),
        (
            JobSpec(
                "/bin/true",
                resources=ResourceSpecV1(
                    node_count=2,
                    process_count=8,
                    processes_per_node=4,
                    cpu_cores_per_process=2,
                    gpu_cores_per_process=1,
                    exclusive_node_use=True,
                    memory=3 << 20,
                ),
            ),
            [
                "--nodes=2",
                "--ntasks=8",
                "--ntasks-per-node=4",
                "--cpus-per-task=2",
                "--gpus-per-task=1",
                "--mem=3072K",
                "--exclusive",
            ],
        ),
        (JobSpec("/bin/true", resources=ResourceSpecV1(process_count=8)), ["--ntasks=8"]),
        (JobSpec("/bin/true", resources=ResourceSpecV1(memory=1)), ["--mem=1K"]),
        (
            JobSpec("/bin/true", attributes=JobAttributes(queue_name="short", account="me", reservation_id="r1")),
            ["--partition=short", "--account=me", "--reservation=r1"],
        ),
        (
            JobSpec(
                "/bin/true", attributes=custom(slurm__qos="high", SLURM__p="short", slurm__comment="a 'b' \"c\"\n")
            ),
            ["--qos=high", "-pshort", "--comment=a 'b' \"c\"\n"],
        ),
        (JobSpec("/bin/true", attributes=custom(pbs__q="x", qos="high")), []),
        (JobSpec("/bin/true", inherit_environment=False), ["--export=NONE"]),
    ],
)
def test_sbatch_is_told_what_the_specification_says_and_nothing_else(spec, words):
    assert submit_arguments(quiet(spec)) == words


def test_the_time_limit_of_a_specification_is_told():
    spec = JobSpec("/bin/true", attributes=JobAttributes(duration=timedelta(hours=25)))
    assert submit_arguments(spec) == ["--time=1-01:00:00"]


def test_native_words_come_last_and_before_what_must_count():
    attributes = custom(slurm__nodes="2-4")
    attributes.set_custom_attribute("native_arguments", ["--hold", "-z3"])
    spec = JobSpec("/bin/true", resources=ResourceSpecV1(process_count=8), attributes=attributes)
    spec.inherit_environment = False
    assert submit_arguments(quiet(spec)) == ["--ntasks=8", "--nodes=2-4", "--hold", "-z3", "--export=NONE"]


def test_a_change_of_the_specification_changes_the_command():
    spec = quiet(JobSpec("/bin/true", resources=ResourceSpecV1(process_count=8)))
    spec.resources.process_count = 3
    spec.name = "other"
    assert submit_arguments(spec) == ["--job-name=other", "--ntasks=3"]


@pytest.mark.parametrize(
    ("spec", "script"),
    [
        (
            JobSpec("/bin/bash", ["-p", "/jobs/one/run"]),
            "#!/bin/bash -p\nexec /bin/bash -p /jobs/one/run\n",
        ),
        (
            JobSpec("/bin/a b", ["it's", "$x", ""], environment={"A": "b c", "N": 3}),
            "#!/bin/bash -p\nexport A='b c'\nexport N=3\nexec '/bin/a b' 'it'\"'\"'s' '$x' ''\n",
        ),
    ],
)
def test_the_script_that_sbatch_gets(spec, script):
    assert submit_script(spec) == script


def test_directives_stand_at_the_head_of_the_script():
    attributes = JobAttributes()
    attributes.set_custom_attribute("directives", ["#SBATCH -n2", "#PBS -q x"])
    assert submit_script(JobSpec("/bin/true", attributes=attributes)) == (
        "#!/bin/bash -p\n#SBATCH -n2\n#PBS -q x\nexec /bin/true\n"
    )


def test_outside_of_an_allocation_variables_of_slurms_are_the_sites():
    site = {"SLURM_MPI_TYPE": "pmix", "SLURM_TIME_FORMAT": "relative", "SRUN_CPUS_PER_TASK": "2"}
    assert submit_environment(site) == site
    assert submit_environment({**site, "SLURM_JOB_ID": "7"}) == {}
    assert submit_environment({"SBATCH_ARRAY_INX": "0-3", "SBATCH_WAIT": "1", "SLURM_JOB_NAME": "x"}) == {}


@pytest.mark.parametrize("hook", ["pre_launch", "post_launch"])
def test_hooks_of_psijs_are_refused(hook):
    with pytest.raises(SubmitException, match="put pre_launch and post_launch into the script"):
        submit_script(JobSpec("/bin/true", **{hook: "/hook"}))


@pytest.mark.parametrize(
    ("path", "literal"), [("/a", "/a"), ("/a%j", "/a%%j"), ("/100%", "/100%%"), ("/a\\%j", "/a\\%j"), ("%%", "%%%%")]
)
def test_a_path_with_a_percent_sign_is_no_pattern(path, literal):
    assert literal_filename(path) == literal


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(seconds=1), "00:00:01"),
        (timedelta(minutes=90), "01:30:00"),
        (timedelta(hours=23, minutes=59, seconds=59), "23:59:59"),
        (timedelta(days=1), "1-00:00:00"),
        (timedelta(days=10, seconds=3723), "10-01:02:03"),
        (timedelta(milliseconds=1500), "00:00:01"),
    ],
)
def test_times_are_said_in_full(duration, text):
    assert format_time(duration) == text


@pytest.mark.parametrize(
    ("out", "number"),
    [
        ("123\n", "123"),
        ("123", "123"),
        ("94;lab\n", "94;lab"),
        ("123\nmore\n", "123"),
        ("", None),
        ("\n123\n", None),
        ("Submitted batch job 123\n", None),
        ("123 on cluster x\n", None),
        ("error: 5\n", None),
    ],
)
def test_the_job_id_is_the_first_line_of_parsable_output(out, number):
    assert job_id(out) == number


def test_the_environment_of_the_kernel_does_not_reach_the_job():
    keep = {"PATH": "/bin", "SBATCH_PARTITION": "p", "SLURM_CONF": "/c", "SLURM_JWT": "t", "OMP_NUM_THREADS": "2"}
    keep |= {"MY_SLURM_JOB_ID": "1", "MPLBACKEND_X": "", "OARS": "", "PAGERS": ""}
    drop = dict.fromkeys(
        [
            "SLURM_JOB_ID",
            "SLURM_NTASKS",
            "SLURMD_NODENAME",
            "SRUN_DEBUG",
            "PMI_RANK",
            "PMI2",
            "PMIX_RANK",
            "JPY_PARENT_PID",
            "JUPYTERHUB_API_TOKEN",
            "IPYTHON_DIR",
            "OAR_JOB_ID",
            "PBS_JOBID",
            "MPLBACKEND",
            "CLICOLOR",
            "CLICOLOR_FORCE",
            "FORCE_COLOR",
            "PAGER",
            "GIT_PAGER",
            "SBATCH_WAIT",
        ],
        "x",
    )
    assert submit_environment({**keep, **drop}) == keep


def test_the_environment_of_a_question_keeps_the_form_of_its_answer():
    keep = {"PATH": "/bin", "SLURM_CONF": "/c", "SBATCH_PARTITION": "p", "SLURM_TIME_FORMATS": "x"}
    drop = dict.fromkeys(
        [
            "SQUEUE_FORMAT",
            "SQUEUE_STATES",
            "SCONTROL_ALL",
            "SACCT_FORMAT",
            "SCANCEL_NAME",
            "SINFO_ALL",
            "SLURM_TIME_FORMAT",
            "SLURM_CLUSTERS",
            "SLURM_BITSTR_LEN",
        ],
        "x",
    )
    assert question_environment({**keep, **drop}) == {**keep, "TZ": "UTC0"}


@pytest.mark.parametrize("reason", ["None", "JobHeldUser", "Resources"])
def test_a_cancelled_job_no_longer_waits(reason):
    assert reason_in_words(reason, "CANCELLED") == "cancelled"


def test_a_cancelled_job_whose_dependency_failed_says_so():
    assert reason_in_words("DependencyNeverSatisfied", "CANCELLED").startswith("DependencyNeverSatisfied: ")


@pytest.mark.parametrize(
    ("reason", "signal", "words"),
    [
        ("JobLaunchFailure", 9, "RaisedSignal:9(Killed)"),
        ("None", 15, "RaisedSignal:15(Terminated)"),
        ("RaisedSignal:9(Killed)", 9, "RaisedSignal:9(Killed)"),
        ("JobLaunchFailure", 53, "JobLaunchFailure: the node could not start it"),
        ("NonZeroExitCode", 0, "NonZeroExitCode"),
    ],
)
def test_a_failed_job_that_a_signal_ended_says_so(reason, signal, words):
    assert reason_in_words(reason, "FAILED", signal) == words


@pytest.mark.parametrize(
    ("reason", "state", "words"),
    [
        ("Resources", "PENDING", "Resources: it waits for nodes to become free"),
        ("None", "RUNNING", None),
        ("(null)", "RUNNING", None),
        ("", "COMPLETED", None),
        ("AssocGrpCpuLimit", "PENDING", "AssocGrpCpuLimit"),
        ("a reason with words", "PENDING", "a reason with words"),
        (
            "ReqNodeNotAvail, UnavailableNodes:sn4",
            "PENDING",
            "ReqNodeNotAvail: a node it needs is not available (UnavailableNodes:sn4)",
        ),
        ("None", "TIMEOUT", "TimeLimit: it reached its time limit"),
        ("", "OUT_OF_MEMORY", "OutOfMemory: it used more memory than it had asked for"),
        ("None", "NODE_FAIL", "NodeFailure: its node failed"),
        ("Unheard, of", "PENDING", "Unheard, of"),
    ],
)
def test_a_reason_keeps_its_own_text_and_gets_words(reason, state, words):
    assert reason_in_words(reason, state) == words


HELD = "JobHeldUser: it is held; release it with scontrol release"
KILLED = "RaisedSignal:9(Killed)"
LATE = "TimeLimit: it reached its time limit"


def bare(report):
    """Without what only tells jobs of the same number apart."""
    return replace(report, submitted=None, command=None)


SHOWN = {
    "held": Report(QUEUED, "PENDING", reason=HELD),
    "begin": Report(QUEUED, "PENDING", reason="BeginTime: its begin time has not come", expected_start=at("01:43:15")),
    "dependency": Report(QUEUED, "PENDING", reason="Dependency: a job it depends on has not ended"),
    "never": Report(
        QUEUED,
        "PENDING",
        reason="DependencyNeverSatisfied: what it depends on can no longer happen; it will never start",
    ),
    "partition_time": Report(QUEUED, "PENDING", reason="PartitionTimeLimit: its time limit is above the partition's"),
    "resources": Report(
        QUEUED, "PENDING", reason="Resources: it waits for nodes to become free", expected_start=at("00:53:25")
    ),
    "priority": Report(
        QUEUED, "PENDING", reason="Priority: jobs of higher priority come first", expected_start=at("01:03:00")
    ),
    "running": Report(ACTIVE, "RUNNING", nodes="sn2", started=at("00:43:05"), ended=at("00:53:05")),
    "name": Report(ACTIVE, "RUNNING", nodes="sn2", started=at("00:42:58"), ended=at("00:52:58")),
    "suspended": Report(ACTIVE, "SUSPENDED", nodes="sn2", started=at("00:43:06"), ended=at("00:53:06")),
    "completed": Report(COMPLETED, "COMPLETED", exit_code=0, nodes="sn1", started=at("00:42:58"), ended=at("00:42:58")),
    "failed": Report(
        FAILED,
        "FAILED",
        exit_code=3,
        reason="NonZeroExitCode",
        nodes="sn1",
        started=at("00:42:58"),
        ended=at("00:42:58"),
    ),
    "cancelled_running": Report(
        CANCELED,
        "CANCELLED",
        exit_code=143,
        reason="cancelled",
        nodes="sn2",
        started=at("00:42:58"),
        ended=at("00:42:58"),
    ),
    "timeout": Report(
        FAILED, "TIMEOUT", exit_code=143, reason=LATE, nodes="sn1", started=at("00:42:58"), ended=at("00:44:25")
    ),
    "node_fail": Report(
        FAILED,
        "NODE_FAIL",
        reason="NodeDown: a node it needs is down",
        nodes="sn3",
        started=at("00:43:13"),
        ended=at("00:43:13"),
    ),
}


@pytest.mark.parametrize("name", SHOWN)
def test_what_scontrol_shows(name):
    got, expected = bare(shown(name)), SHOWN[name]
    if not expected.final:  # the end of a job that has not ended is Slurm's guess
        got = Report(**{**vars(got), "ended": None})
        expected = Report(**{**vars(expected), "ended": None})
    assert got == expected


@pytest.mark.parametrize(
    ("name", "state", "exit_code", "reason"),
    [
        ("killed", FAILED, 137, KILLED),
        ("oom", FAILED, 137, KILLED),
        ("launch_failed", FAILED, None, "JobLaunchFailure: the node could not start it"),
        ("cancelled_pending", CANCELED, None, "cancelled"),
        ("node_down", QUEUED, None, ...),
        ("requeued", QUEUED, None, "BeginTime: its begin time has not come"),
        ("requeue_hold", QUEUED, None, ...),
    ],
)
def test_how_it_ended_or_why_it_waits(name, state, exit_code, reason):
    report = shown(name)
    assert (report.state, report.exit_code) == (state, exit_code)
    assert reason is ... or report.reason == reason


@pytest.mark.parametrize(("name", "attempt"), [("requeued", 1), ("requeue_hold", 1), ("running", 0)])
def test_the_number_of_restarts_is_the_attempt(name, attempt):
    assert shown(name).attempt == attempt


def test_the_reason_of_a_node_that_is_away_is_not_cut():
    reason = shown("node_down").reason
    assert reason.startswith("ReqNodeNotAvail: a node it needs is not available (")
    assert "UnavailableNodes:sn4" in reason


def test_a_name_and_a_comment_cannot_fake_a_state():
    text = (DATA / "show_name.txt").read_text()
    assert "JobState=FAKE" in text
    assert "Comment=JobState=COMPLETED" in text
    assert shown("name").native_state == "RUNNING"


@pytest.mark.parametrize(
    "text", ["", "slurm_load_jobs error: Invalid job id specified\n", "JobId=5 JobState=RUNNING\n"]
)
def test_what_is_no_answer_of_scontrol_is_none(text):
    assert parse_show_job(text) is None


def test_an_unknown_state_is_kept_as_text():
    text = (DATA / "show_running.txt").read_text().replace("JobState=RUNNING", "JobState=DREAMING")
    report = parse_show_job(text)
    assert (report.state, report.native_state, report.final) == (None, "DREAMING", False)


def test_an_answer_of_a_node_that_failed_has_one_word_more():
    text = (DATA / "show_node_fail.txt").read_text()
    more = text.replace("Reason=NodeDown ", "Reason=NodeDown FailedNode=sn3 ")
    assert more != text
    assert parse_show_job(more) == parse_show_job(text)


def test_a_memory_kill_by_slurms_own_mark_has_no_exit_code():
    text = (DATA / "show_failed.txt").read_text()
    text = text.replace("JobState=FAILED Reason=NonZeroExitCode", "JobState=OUT_OF_MEMORY Reason=OutOfMemory")
    report = parse_show_job(text.replace("ExitCode=3:0", "ExitCode=0:125"))
    assert (report.state, report.exit_code) == (FAILED, None)
    assert report.reason == "OutOfMemory: it used more memory than it had asked for"


QUEUE = {
    "1": Report(FAILED, "TIMEOUT", 143, LATE, nodes="sn1", started=at("00:42:58")),
    "2": Report(COMPLETED, "COMPLETED", 0, nodes="sn1", started=at("00:42:58")),
    "3": Report(FAILED, "FAILED", 3, "NonZeroExitCode", nodes="sn1", started=at("00:42:58")),
    "4": Report(FAILED, "FAILED", 137, KILLED, nodes="sn1", started=at("00:42:58")),
    "5": Report(CANCELED, "CANCELLED", 143, "cancelled", nodes="sn2", started=at("00:42:58")),
    "6": Report(
        FAILED,
        "FAILED",
        None,
        "JobLaunchFailure: the node could not start it",
        nodes="sn2",
        started=at("00:42:58"),
    ),
    "7": Report(ACTIVE, "RUNNING", nodes="sn2", started=at("00:42:58")),
    "11": Report(ACTIVE, "SUSPENDED", nodes="sn2", started=at("00:43:06")),
    "12": Report(QUEUED, "PENDING", reason="job requeued in held state", attempt=1),
    "13": Report(ACTIVE, "RUNNING", nodes="sn2", started=at("00:43:25"), attempt=1),
    "15": Report(QUEUED, "PENDING", reason=HELD),
    "16": SHOWN["begin"],
    "20": Report(QUEUED, "PENDING", reason="ReqNodeNotAvail: a node it needs is not available (UnavailableNodes:sn4)"),
    "23": SHOWN["resources"],
    "24": SHOWN["priority"],
}


@pytest.mark.parametrize(
    ("command", "submitted", "same"),
    [
        ("/w/x.job /r/jobs/20261122T100000-abcdef01", None, True),
        ("/w/x.job /r/jobs/20261122T100000-ffffffff", None, False),
        ("/home/me/other.sh", at("00:42:58"), False),
        (None, calendar.timegm((2026, 11, 22, 10, 0, 3)), True),
        ("(null)", calendar.timegm((2026, 11, 22, 9, 58, 0)), True),  # clocks differ
        (None, calendar.timegm((2026, 10, 1, 0, 0, 0)), False),  # had the number once
        (None, None, True),
    ],
)
def test_another_job_of_the_same_number_is_told_apart(command, submitted, same):
    job = Job(JobSpec("/bin/bash", ["-p", "/r/jobs/20261122T100000-abcdef01/run"]))
    assert is_same(Report(QUEUED, "PENDING", command=command, submitted=submitted), job) is same


def test_what_squeue_lists():
    reports = parse_queue((DATA / "queue.txt").read_text())
    assert sorted(reports, key=int) == [str(number) for number in range(1, 25)]
    assert {number: bare(reports[number]) for number in QUEUE} == QUEUE
    assert {report.command for report in reports.values()} == {"/tmp/job.sh"}


@pytest.mark.parametrize("line", ["", "nonsense", "slurm_load_jobs error: x", "7", "7_3   RUNNING", " " * 600])
def test_a_line_of_squeue_that_cannot_be_read_concerns_that_job_alone(line):
    text = (DATA / "queue.txt").read_text()
    assert parse_queue(f"{line}\n{text}{line}\n") == parse_queue(text)


def test_a_line_of_squeue_that_is_cut_is_read_as_far_as_it_goes():
    line = (DATA / "queue.txt").read_text().splitlines()[2]
    assert parse_queue(line[:48]) == {"2": Report(COMPLETED, "COMPLETED", 0)}


def test_what_accounting_tells_of_ended_jobs():
    reports = {key: bare(report) for key, report in parse_accounting((DATA / "accounting.txt").read_text()).items()}
    assert sorted(reports, key=int) == ["1", "2", "3", "4", "5", "6", "9", "14", "22"]
    ended = {"started": at("00:42:58"), "ended": at("00:42:58")}
    assert reports["2"] == Report(COMPLETED, "COMPLETED", 0, nodes="sn1", **ended)
    assert reports["3"] == Report(FAILED, "FAILED", 3, nodes="sn1", **ended)
    assert reports["4"] == Report(FAILED, "FAILED", 137, KILLED, nodes="sn1", **ended)
    assert reports["5"] == Report(CANCELED, "CANCELLED", None, "cancelled by 0", nodes="sn2", **ended)
    assert reports["1"] == Report(
        FAILED, "TIMEOUT", None, LATE, nodes="sn1", started=at("00:42:58"), ended=at("00:44:25")
    )
    assert reports["14"].reason == "NodeFailure: its node failed"
    assert (reports["6"].exit_code, reports["22"].nodes) == (None, None)


@pytest.mark.parametrize(
    "line",
    ["", "nonsense", "1|2|3", "sacct: error: Slurm accounting storage is disabled", "99||0:0|a|b|c", "99|x|y:z|a|b|c"],
)
def test_a_line_of_sacct_that_cannot_be_read_is_passed_over(line):
    text = (DATA / "accounting.txt").read_text()
    assert parse_accounting(f"{line}\n{text}") == parse_accounting(text)


def test_a_job_name_cannot_fake_a_state():
    assert parse_show_job((DATA / "show_newline.txt").read_text()).native_state == "RUNNING"


def test_every_final_state_is_final_and_every_other_is_not():
    final = {state for state, meaning in STATES.items() if meaning.final}
    assert final == {
        "COMPLETED",
        "CANCELLED",
        "FAILED",
        "TIMEOUT",
        "NODE_FAIL",
        "PREEMPTED",
        "BOOT_FAIL",
        "DEADLINE",
        "OUT_OF_MEMORY",
        "LAUNCH_FAILED",
        "REVOKED",
    }


@pytest.fixture
def executor():
    return JobExecutor.get_instance("tracked-slurm")


def test_psijs_hooks_give_the_same_command_and_script(executor, tmp_path):
    job = Job(quiet(JobSpec("/bin/true", ["x y"], name="one")))
    path = tmp_path / "job script"
    assert executor.get_submit_command(job, path) == ["sbatch", "--parsable", "--job-name=one", str(path)]
    text = io.StringIO()
    executor.generate_submit_script(job, {}, text)
    assert text.getvalue() == "#!/bin/bash -p\nexec /bin/true 'x y'\n"


def test_one_job_is_asked_for_by_scontrol_and_several_by_one_squeue(executor):
    assert executor.get_status_command(["7"]) == ["scontrol", "--local", "show", "job", "7"]
    command = executor.get_status_command(["7", "8"])
    assert command[:-1] == ["squeue", "--local", "--me", "-t", "all", "-h", "-O"]
    assert command[-1] == (
        "JobID:24,State:24,exit_code:12,RestartCnt:12,StartTime:24,SubmitTime:24,NodeList:256,Command:1024,Reason:512"
    )


def test_output_of_sbatch_without_an_id_is_an_error(executor):
    assert executor.job_id_from_submit_output("94;lab\n") == "94;lab"
    with pytest.raises(SubmitException, match="printed no job id: 'what'"):
        executor.job_id_from_submit_output("what")


def test_psijs_own_form_of_the_queue(executor):
    states = executor.parse_status_output(0, (DATA / "queue.txt").read_text())
    assert (states["3"].state, states["3"].exit_code, states["3"].message) == (FAILED, 3, "NonZeroExitCode")
    assert states["7"].state is ACTIVE
