from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from execute_batch_scheduler.adapters.jobdir import JobDir

from execute_batch_scheduler.errors import BadUsage
from execute_batch_scheduler.flags import merge, parse
from execute_batch_scheduler.spec import ANSWERS, check_stock, make_spec, parse_time

DIRECTORY = JobDir("/root/jobs/one")


def spec(*words, **more):
    return make_spec(parse(words), DIRECTORY, **more)


def resources(made):
    fields = ("node_count", "process_count", "processes_per_node", "cpu_cores_per_process", "gpu_cores_per_process")
    return {name: value for name in fields if (value := getattr(made.resources, name)) is not None}


def test_without_flags_nothing_but_the_command_and_the_outputs_is_said():
    made = spec()
    assert (made.executable, made.arguments) == ("/bin/bash", ["-p", "/root/jobs/one/run"])
    assert (made.stdout_path, made.stderr_path) == (Path("/root/jobs/one/stdout"), Path("/root/jobs/one/stderr"))
    assert (made.stdin_path, made.directory) == (None, None)
    assert made.inherit_environment
    assert not made.environment
    assert resources(made) == {}
    assert made.resources.memory is None
    assert not made.resources.exclusive_node_use
    attributes = made.attributes
    assert (attributes.duration, attributes.queue_name, attributes.account) == (None, None, None)
    assert attributes.reservation_id is None
    assert not attributes.custom_attributes


@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("-N4", {"node_count": 4}),
        ("-n8", {"process_count": 8}),
        ("--ntasks-per-node=2", {"processes_per_node": 2}),
        ("-c2", {"cpu_cores_per_process": 2}),
        ("--gpus-per-task=1", {"gpu_cores_per_process": 1}),
    ],
)
def test_counts_have_fields(word, field):
    made = spec(word)
    assert resources(made) == field
    assert not made.attributes.custom_attributes


@pytest.mark.parametrize(
    ("word", "attribute", "value"),
    [
        ("-pshort", "queue_name", "short"),
        ("-Ame", "account", "me"),
        ("--reservation=r1", "reservation_id", "r1"),
        ("-t90", "duration", timedelta(minutes=90)),
    ],
)
def test_what_describes_the_job_has_attributes(word, attribute, value):
    made = spec(word)
    assert getattr(made.attributes, attribute) == value
    assert not made.attributes.custom_attributes


def test_the_directory_the_input_and_exclusive_have_fields():
    made = spec("-D", "/work dir", "-i", "in.txt", "--exclusive")
    assert (made.directory, made.stdin_path) == (Path("/work dir"), Path("in.txt"))
    assert made.resources.exclusive_node_use
    assert not made.attributes.custom_attributes


@pytest.mark.parametrize(
    ("words", "custom"),
    [
        (["--mem=4G"], {"slurm.mem": "4G"}),
        (["--comment=a b"], {"slurm.comment": "a b"}),
        (["--comment="], {"slurm.comment": ""}),
        (["-N2-4"], {"slurm.nodes": "2-4"}),
        (["-N", "8-12:4"], {"slurm.nodes": "8-12:4"}),
        (["-n0"], {"slurm.ntasks": "0"}),
        (["-n", "08"], {"slurm.ntasks": "08"}),
        (["-c", "x"], {"slurm.cpus-per-task": "x"}),
        (["--gpus-per-task=a100:2"], {"slurm.gpus-per-task": "a100:2"}),
        (["--exclusive=user"], {"slurm.exclusive": "user"}),
        (["--time=UNLIMITED"], {"slurm.time": "UNLIMITED"}),
        (["-D", "a/"], {"slurm.chdir": "a/"}),
        (["--chdir="], {"slurm.chdir": ""}),
        (["-i", "in-%j"], {"slurm.input": "in-%j"}),
        (["--partition="], {"slurm.partition": ""}),
        (["--hold"], {"native_arguments": ["--hold"]}),
        (["--frobnicate"], {"native_arguments": ["--frobnicate"]}),
        (["--frobnicate", "3"], {"native_arguments": ["--frobnicate=3"]}),
        (["-z3", "--requeue", "-k"], {"native_arguments": ["-z3", "--requeue", "--no-kill"]}),
        (["-koff"], {"slurm.no-kill": "off"}),
        (["--wait", "--parsable", "--quiet"], None),
    ],
)
def test_everything_else_goes_the_attribute_way_as_it_was_typed(words, custom):
    made = spec(*words)
    assert made.attributes.custom_attributes == custom
    assert resources(made) == {}
    assert made.attributes.duration is None


@pytest.mark.parametrize(
    ("words", "fields", "custom"),
    [
        (["-n8", "-N4"], {"process_count": 8, "node_count": 4}, None),
        (["-n8", "-N3"], {"process_count": 8}, {"slurm.nodes": "3"}),
        (["-N3", "-n8"], {"node_count": 3}, {"slurm.ntasks": "8"}),
        (["-N2", "-n8", "--ntasks-per-node=4"], {"node_count": 2, "process_count": 8, "processes_per_node": 4}, None),
        (
            ["-N2", "-n7", "--ntasks-per-node=4"],
            {"node_count": 2, "processes_per_node": 4},
            {"slurm.ntasks": "7"},
        ),
        (["-n2", "-N4"], {"process_count": 2}, {"slurm.nodes": "4"}),
    ],
)
def test_numbers_that_psij_refuses_together_are_left_to_slurm(words, fields, custom):
    made = spec(*words)
    assert resources(made) == fields
    assert made.attributes.custom_attributes == custom
    made.resources._check_constraints()


@pytest.mark.parametrize(
    ("words", "stdout", "stderr"),
    [
        (["-o", "out-%j"], None, None),
        (["-e", "err"], Path("/root/jobs/one/stdout"), None),
        (["-o", "out", "-e", "err"], None, None),
    ],
)
def test_outputs_that_the_user_names_are_not_ours_and_output_alone_merges_both(words, stdout, stderr):
    made = spec(*words)
    assert (made.stdout_path, made.stderr_path) == (stdout, stderr)
    said = {f"slurm.{flag.name}": flag.value for flag in parse(words)}
    assert made.attributes.custom_attributes == said


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [([], "script.sh", "script.sh"), (["-J", "mine"], "script.sh", "mine"), ([], None, "/bin/bash")],
)
def test_the_name_is_the_one_said_or_the_default(words, name, expected):
    assert spec(*words, name=name).name == expected


def test_beside_another_schedulers_directives_what_is_weaker_stands_in_the_head():
    flags = merge(parse(["-n8"]), parse(["--time=5", "--comment=a b", "--wait"]), {})
    made = make_spec(flags, DIRECTORY, name="script.sh", foreign=["#PBS -l walltime=1:00"])
    assert resources(made) == {"process_count": 8}
    assert (made.name, made.stdout_path, made.stderr_path) == ("/bin/bash", None, None)
    assert made.attributes.custom_attributes == {
        "directives": [
            '#SBATCH "--job-name=script.sh"',
            '#SBATCH "--output=/root/jobs/one/stdout"',
            '#SBATCH "--time=5"',
            '#SBATCH "--comment=a b"',
            "#PBS -l walltime=1:00",
        ]
    }


def test_a_job_may_be_called_as_its_command():
    assert spec("--job-name=/bin/bash").attributes.custom_attributes == {"slurm.job-name": "/bin/bash"}


def test_native_words_come_behind_the_flags():
    made = spec("--hold", native=["--foo", "a b"])
    assert made.attributes.custom_attributes == {"native_arguments": ["--hold", "--foo", "a b"]}


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["-a", "0-3"], "array"),
        (["-h"], "help"),
        (["--usage"], "usage"),
        (["-V"], "version"),
        (["--wrap=ls"], "wrap"),
        (["--test-only"], "test-only"),
    ],
)
def test_options_that_make_no_sense_in_a_cell_are_answered(words, option):
    with pytest.raises(BadUsage) as caught:
        spec(*words)
    assert str(caught.value) == f"--{option} makes no sense in a cell: {ANSWERS[option]}"


def test_each_answer_is_tested():
    assert set(ANSWERS) == {"array", "help", "usage", "version", "wrap", "test-only"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("1:02:03", 3723),
        ("1-2", 93600),
        ("1-2:3", 93780),
        ("1-2:3:4", 93784),
        ("0:0:1", 1),
        ("00:42:00", 2520),
        ("0", None),
        ("0:0", None),
        ("", None),
        ("UNLIMITED", None),
        ("-1", None),
        ("1-", None),
        ("1:2:3:4", None),
        ("1.5", None),
        ("99999999999999999999-0", None),
        ("1 ", None),
        ("10m", None),
    ],
)
def test_times_are_sbatchs_and_what_a_duration_cannot_say_is_left_to_slurm(text, seconds):
    assert parse_time(text) == (None if seconds is None else timedelta(seconds=seconds))


def check(words, executor, native=()):
    flags = parse(words)
    check_stock(make_spec(flags, DIRECTORY), flags, native, executor)


@pytest.mark.parametrize(
    ("words", "executor"),
    [
        ([], "slurm"),
        (["-N2", "-n8", "-c2", "--time=1:00", "-pshort", "-Ame", "--exclusive", "-D/tmp"], "slurm"),
        (["--qos=high", "--mem=4G"], "slurm"),
        (["-N2", "-n4", "--time=5"], "lsf"),
        (["--chdir=/tmp", "--input=in"], "local"),
        (["--wait"], "lsf"),
        (["--ntasks-per-node=2", "-n4"], "pbs"),
    ],
)
def test_stock_executors_take_what_they_can_say(words, executor):
    check(words, executor)


@pytest.mark.parametrize(
    ("words", "executor", "message"),
    [
        (["--qos=high"], "lsf", "--qos: it has no place for it"),
        (["--hold"], "slurm", "--hold: it has no place for it"),
        (["--frobnicate=1"], "slurm", "--frobnicate: it has no place for it"),
        (["-o", "x"], "slurm", "--output: it sets that itself"),
        (["-e", "x"], "local", "--error: it sets that itself"),
        (["-J", "x"], "slurm", "--job-name: it sets that itself"),
        (["--export=A"], "slurm", "--export: it sets that itself"),
        (["--open-mode=append"], "slurm", "--open-mode: it sets that itself"),
        (["-D", "/a b"], "slurm", "--chdir: it would put quotes into '/a b'"),
        (["--comment=$HOME"], "slurm", "--comment: it would put quotes into '$HOME'"),
        (["-N2-4"], "slurm", "--nodes: it has no way to say '2-4' beside the others"),
        (["-n8"], "slurm", "--ntasks: it would put all tasks on one node unless --nodes is given too"),
        (["-n8", "-c2"], "pbs", "--ntasks: it would put all tasks on one node unless --nodes is given too"),
        (["-N3", "-n8"], "lsf", "--ntasks: it has no way to say '8' beside the others"),
    ],
)
def test_stock_executors_are_refused_by_name_what_they_would_get_wrong(words, executor, message):
    with pytest.raises(BadUsage) as caught:
        check(words, executor)
    assert str(caught.value) == f"PSI/J's own executor {executor} cannot be given {message}"


def test_stock_executors_cannot_be_given_native_words():
    with pytest.raises(BadUsage, match=r"lsf cannot be given native options \(-q \.\.\.\)"):
        check([], "lsf", ["-q", "x"])
