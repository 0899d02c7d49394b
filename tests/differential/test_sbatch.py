"""The same scripts by sbatch itself and by submit_script: what sbatch understood, what Slurm recorded, what ran.

All jobs are submitted at once, each with its twin behind it, to a Slurm whose nodes have room for all of them: so that
where a job runs does not depend on its neighbours. What may differ is listed, with the reason; nothing else may.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from execute_batch_scheduler.adapters.slurm import TrackedSlurmExecutor
from execute_batch_scheduler.adapters.transport import Local, Result

from execute_batch_scheduler import BadUsage, Job, SubmissionFailed, submit_script
from tests.differential.scripts import REFUSED, SCRIPTS, Script
from tests.services import slurm as service

from psij import JobExecutor

PATIENCE = 60.0
DEFAULT = "file slurm-@ID@.out"
NODE = "Sockets=2 CoresPerSocket=64 ThreadsPerCore=2 RealMemory=400000 Feature=ib,big"
MORE = """
FirstJobId=100000
MessageTimeout=30
Licenses=matlab:400
TrackWCKey=no
"""

ALLOWED: tuple[tuple[str, str], ...] = (
    (r"record Command$", "sbatch gets a file of ours that runs the wrapper"),
    (r"record \w*(Time|Eval)$", "two jobs, two moments"),
    (r"record Scheduler$", "which of Slurm's two looked at it first is chance"),
    (r"record AllocNode:Sid$", "the session that sbatch ran in"),
    (r"record Priority$", "falls with each job; whether one is held or nice is compared by other fields"),
    (r"record (\w*NodeList|BatchHost|Nodes|CPU_IDs)$", "where there is room is chance; how much is taken is compared"),
    (r"environment SLURM_TASK_PID$", "the process that Slurm started, which is the wrapper"),
    (r"environment (CUDA_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL|ROCR_VISIBLE_DEVICES|ZE_AFFINITY_MASK|SLURM_JOB_GPUS)$",
     "which GPUs are free is chance; how many is compared"),
    (r"environment SLURM_JOB_(START|END)_TIME$", "newer releases: two jobs, two moments"),
    (r"open files \d{3,}$", "slurmstepd leaks some of its own where it starts many jobs at once"),
    (r"option job-name$", "we say it where sbatch takes it from the file; the record has it"),
    (r"option (no-requeue|requeue|exclusive|oversubscribe)$", "two names of one setting; the record has it"),
    (r"message sbatch: error: Change from #SLURM", "we have changed it"),
)  # fmt: skip
"""Where twins may differ, as a pattern for the place, and why."""

ALLOWED_WITHOUT_OUTPUT = (
    (r"(record Std(Out|Err)|open files [12]|option (output|error))$",
     "without --output it goes into two files of the job directory: the one wanted difference"),
)  # fmt: skip
"""Where sbatch's own file would be slurm-N.out."""

ALLOWED_AS_TEXT = (
    (r"record JobName$|environment SLURM_JOB_NAME$", "a text has no file name; it is called sbatch"),
    (r"record Std(Out|Err)$|files? |open files [12]$", "and so is what is named by %x"),
)

AS_TEXT = (
    (r"record JobName$|environment SLURM_JOB_NAME$|option job-name$", "a text has no file name; it is called sbatch"),
    (r"record Std|files? ", "and so is what is named by %x"),
)

AS_TEXT = (
    "minimal.sh",
    "mpi.slurm",
    "quotes.sh",
    "docstring.py",
    "between.sh",
    "pbs.sh",
    "exit_code.sh",
    "no_newline.sh",
)


class _Recorded(Local):
    """This machine with the variables of one Slurm; what sbatch said last is kept."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.said = ""

    @property
    def environment(self) -> Mapping[str, str]:
        return {**os.environ, **self._environment}

    def run(self, command: Sequence[str], **options: Any) -> Result:
        result = super().run(command, **options)
        if command[0] == "sbatch":
            self.said = result.stderr
        return result


@dataclass
class Seen:
    """One of the twins: its number and folder, and all that is known of it, by place."""

    number: str
    folder: Path
    said: str
    places: dict[str, Any] = field(default_factory=dict)


@dataclass
class Twins:
    plain: Seen
    ours: Seen
    job: Job


class Lab:
    """A place to submit both ways from."""

    def __init__(self, base: Path, slurm: service.Slurm) -> None:
        self.base = base
        self.slurm = slurm
        self.first = ""
        executor = JobExecutor.get_instance("tracked-slurm")
        assert isinstance(executor, TrackedSlurmExecutor)
        self.executor = executor
        self.transport = executor.transport = _Recorded(slurm.environment)
        names = ("PATH", "HOME", "USER", "LOGNAME")
        self.environment = {name: os.environ[name] for name in names if name in os.environ}
        self.environment |= {"LANG": "C.UTF-8", "EXECUTE_JOB_DIRECTORY": str(base / "root"), **slurm.environment}
        for folder in ("scripts", "probe"):
            (base / folder).mkdir()
        self.probe = base / "probe" / "probe"
        self.probe.write_text(Path(__file__).with_name("probe.py").read_text())
        self.probe.chmod(0o755)

    def folder(self, kind: str, name: str) -> Path:
        """A working directory for one of the twins, with what its script may find there."""
        folder = self.base / kind / name
        (folder / "sub").mkdir(parents=True)
        (folder / "data.in").write_text("from the input\n")
        (folder / "old.txt").write_text("old\n")
        return folder

    def file(self, name: str, script: Script) -> Path:
        file = self.base / "scripts" / name
        file.write_bytes(
            script.content.replace(b"@PROBE@", str(self.probe).encode()).replace(b"@BASE@", str(self.base).encode())
        )
        return file

    def flags(self, script: Script) -> list[str]:
        return [flag.replace("@FIRST@", self.first) for flag in script.flags]

    def plain(self, name: str, script: Script) -> subprocess.CompletedProcess[str]:
        """By sbatch itself."""
        return subprocess.run(
            ["sbatch", "--parsable", "-v", *self.flags(script), str(self.file(name, script))],
            cwd=self.folder("plain", name),
            env={**self.environment, **script.variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
        )

    def ours(self, name: str, script: Script, kind: str = "magic") -> Job:
        """By submit_script, from a file, or from its text if `kind` says so."""
        file = self.file(name, script)
        what: Any = file.read_text() if kind == "text.." else file
        here = os.getcwd()
        os.chdir(self.folder(kind, name))
        try:
            with mock.patch.dict(os.environ, {**self.environment, **script.variables}, clear=True):
                return submit_script(what, [*self.flags(script), "-v"], executor=self.executor)
        finally:
            os.chdir(here)

    def records(self) -> dict[str, dict[str, str]]:
        """All that Slurm's records hold, by job number."""
        text = self.slurm.run("scontrol", "--oneliner", "--details", "show", "job")
        found = {}
        for line in text.splitlines():
            parts = re.split(r"(?:^| )([A-Z][\w/:]*)=", line)
            record = dict(zip(parts[1::2], (value.strip() for value in parts[2::2])))
            found[record["JobId"]] = record
        return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if service.missing():
        pytest.skip("NOT EXERCISED: Slurm is not installed")
    with service.running(node=NODE, gpus=60, more=MORE) as slurm:
        course = f"ReservationName=course Users={getpass.getuser()} StartTime=now Duration=60 Nodes=sn4 Flags=OVERLAP"
        slurm.run("scontrol", "create", *course.split())
        lab = Lab(tmp_path_factory.mktemp("differential"), slurm)
        lab.first = lab.plain("first", SCRIPTS["minimal.sh"]).stdout.strip()
        yield lab


def submit_all(lab: Lab) -> dict[str, Twins]:
    pairs: dict[str, Twins] = {}
    for kind, names in (("magic", tuple(SCRIPTS)), ("text..", AS_TEXT)):
        for name in names:
            script = SCRIPTS[name]
            if kind == "magic":
                result = lab.plain(name, script)
                assert result.returncode == 0, f"sbatch refuses {name}: {result.stderr}"
                plain = Seen(result.stdout.strip(), lab.base / "plain" / name, result.stderr)
            else:
                plain = pairs[name].plain
            job = lab.ours(name, script, kind)
            key = name if kind == "magic" else f"{name} as text"
            pairs[key] = Twins(plain, Seen(job.native_id, lab.base / kind / name, lab.transport.said), job)
    return pairs


@pytest.fixture(scope="module")
def twins(lab: Lab) -> dict[str, Twins]:
    """All scripts, submitted both ways, when all that will end has ended."""
    pairs = submit_all(lab)
    waiting = {name for name, script in SCRIPTS.items() if script.waits}
    ends = [seen.number for name, pair in pairs.items() if name not in waiting for seen in (pair.plain, pair.ours)]
    deadline = time.monotonic() + PATIENCE
    while True:
        records = lab.records()
        running = [number for number in ends if records[number]["JobState"] in ("PENDING", "RUNNING", "COMPLETING")]
        if not running or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    assert not running, [lab.records()[number] for number in running]
    for name, pair in pairs.items():
        if name not in waiting:
            assert pair.job.wait(PATIENCE)
        for seen in (pair.plain, pair.ours):
            gather(seen, records[seen.number], lab)
        paths = pair.job.paths
        own = [path for path in (paths.stdout, paths.stderr) if path and path.startswith(paths.directory)]
        if own:
            text = "".join(Path(path).read_text(errors="surrogateescape") for path in own)
            pair.ours.places[DEFAULT] = normal(text, pair.ours, lab)
    return pairs


def gather(seen: Seen, record: Mapping[str, str], lab: Lab) -> None:
    """All that is known of a job, by place."""
    places: dict[str, Any] = {f"record {name}": value for name, value in record.items()}
    for line in seen.said.splitlines():
        option = re.match(r"sbatch: ([a-z][\w-]*) +: (.*)", line)
        if option:
            places[f"option {option[1]}"] = option[2]
        elif re.match(r"sbatch: (error|fatal|warning)", line):
            places[f"message {line}"] = line
    for number, path in enumerate(sorted(lab.probe.parent.glob(f"{seen.number}.*.json"))):
        places["runs"] = number + 1
        for name, value in json.loads(path.read_text()).items():
            if isinstance(value, dict):
                places |= {f"{name} {key}": one for key, one in value.items()}
            else:
                places[name] = value
    for path in sorted(seen.folder.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(seen.folder))
            places[f"file {normal(name, seen, lab)}"] = path.read_bytes().decode(errors="surrogateescape")
    seen.places = {normal(name, seen, lab): normal(value, seen, lab) for name, value in places.items()}


def normal(value: Any, seen: Seen, lab: Lab) -> Any:
    """A value without what must differ between twins: number, folder, node, and which GPUs."""
    if isinstance(value, list):
        return [normal(one, seen, lab) for one in value]
    if not isinstance(value, str):
        return value
    value = value.replace(str(seen.folder), "@DIR@")
    value = re.sub(rf"(?<!\d){seen.number}(?!\d)", "@ID@", value)
    value = re.sub(r"\bsn(\d|\[[\d,-]+\])", "@NODES@", value)
    value = re.sub(r"/\S+/job@ID@/slurm_script|/\S+/jobs/\w+-\w+/script", "@SCRIPT@", value)
    return re.sub(r"\(IDX:[\d,-]+\)", "(IDX)", value)


def moments(one: Any, other: Any) -> bool:
    """Whether these are times that differ as those of two submissions do: `--begin=now+1hour` counts from them."""
    try:
        apart = datetime.fromisoformat(one) - datetime.fromisoformat(other)
    except (TypeError, ValueError):
        return False
    return abs(apart.total_seconds()) < PATIENCE


def differences(twins: Twins, allowed: Sequence[tuple[str, str]] = ()) -> list[str]:
    """Where the twins differ and may not."""
    plain, ours = twins.plain.places, twins.ours.places
    for places in (plain, ours):  # two files cannot keep the order of one
        places[DEFAULT] = sorted(places[DEFAULT].splitlines()) if isinstance(places.get(DEFAULT), str) else []
    found = []
    for place in sorted({*plain, *ours}):
        one, other = plain.get(place), ours.get(place)
        patterns = [*ALLOWED, *allowed]
        if one is None or str(one).endswith("/slurm-@ID@.out"):
            patterns += ALLOWED_WITHOUT_OUTPUT
        if place == "option begin" and moments(one, other):
            continue
        if one != other and not any(re.match(pattern, place) for pattern, _ in patterns):
            found.append(f"{place}: {one!r} by sbatch, {other!r} by us")
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_as_by_sbatch(twins: dict[str, Twins], name: str) -> None:
    assert differences(twins[name]) == []
    assert SCRIPTS[name].waits or "runs" in twins[name].plain.places


@pytest.mark.parametrize("name", AS_TEXT)
def test_a_text_is_as_by_sbatch_but_for_its_name(twins: dict[str, Twins], name: str) -> None:
    assert differences(twins[f"{name} as text"], ALLOWED_AS_TEXT) == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_sbatch_refuses_is_refused(lab: Lab, name: str) -> None:
    script = REFUSED[name]
    result = lab.plain(name, script)
    assert result.returncode != 0, f"sbatch takes it: {result.stderr}"
    before = set((lab.base / "root" / "jobs").glob("*"))
    with pytest.raises((BadUsage, SubmissionFailed)) as caught:
        lab.ours(name, script)
    assert str(caught.value)
    assert set((lab.base / "root" / "jobs").glob("*")) == before
