"""How much time passes beyond Slurm's own, beside sbatch, srun, PSI/J and submitit, on a private real Slurm.

It starts the Slurm and stops it, on the loopback interface, as the current user; all files are temporary.

Slurm starts jobs about once a second, so whoever asks right after a job has ended waits almost a whole second. Hence
the contenders take turns in a random order, and each waits a random part of a second first.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import logging
import math
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Optional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.services import slurm  # noqa: E402

TRIVIAL = "#!/bin/bash\ndate +%s.%N\n"
MINUTE = "#!/bin/bash\nsleep 60\ndate +%s.%N\n"
LINES = "#!/bin/bash\nfor ((i = 0; i < {count}; i++)); do date +%s.%N; sleep 0.3; done\n"
TIMEOUT = 180.0  # seconds for whatever should take less
FLOOR = "sbatch, scontrol asked each 10 ms"
BARE, WAIT, STOCK, SUBMITIT = "sbatch alone", "sbatch --wait", "PSI/J's own executor", "submitit"
OURS, STOCK_OURS = "ours", "ours, wlm=psij:slurm"
# Messages to the controller that nobody who submits or asks has sent: sdiag's own, and those of the nodes.
NOT_CLIENTS = {
    "MESSAGE_COMPOSITE",
    "MESSAGE_EPILOG_COMPLETE",
    "MESSAGE_NODE_REGISTRATION_STATUS",
    "REQUEST_COMPLETE_BATCH_SCRIPT",
    "REQUEST_COMPLETE_PROLOG",
    "REQUEST_STATS_INFO",
    "REQUEST_STEP_COMPLETE",
}

Contender = Callable[[], str]


@dataclass(frozen=True)
class Plan:
    """How often each thing is measured; `slow` holds the rounds of contenders that take seconds each."""

    rounds: int
    slow: dict[str, int]
    counted_jobs: int = 5
    counted_minutes: int = 1
    lines: int = 30
    line_jobs: int = 2
    starts: int = 20
    submissions: int = 200


def full_plan(rounds: int) -> Plan:
    """All of it."""
    return Plan(rounds, {STOCK: 2, SUBMITIT: max(1, rounds // 5)})


def quick_plan(rounds: int) -> Plan:
    """A minute's worth."""
    return Plan(min(rounds, 5), {}, counted_jobs=2, counted_minutes=0, lines=10, line_jobs=1, starts=5, submissions=20)


@dataclass
class Report:
    """All figures as they were measured, and the targets."""

    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    targets: list[dict[str, Any]] = field(default_factory=list)

    def table(self, title: str, rows: dict[str, list[float]], unit: str, floor: Optional[str] = None) -> None:
        """Print medians, 95th percentiles and ratios to the floor's median; keep the figures."""
        self.figures[title] = rows
        base = median(rows[floor]) if floor else None
        print(f"\n{title}\n  {'':42}{'n':>5}{'median':>12}{'p95':>12}" + (f"{'/ floor':>10}" if base else ""))
        for name, values in rows.items():
            ratio = f"{median(values) / base:10.2f}" if base else ""
            mark = " (floor)" if name == floor else ""
            middle, high = show(median(values), unit), show(percentile95(values), unit)
            print(f"  {name + mark:42}{len(values):5}{middle:>12}{high:>12}{ratio}", flush=True)

    def target(self, what: str, value: float, limit: float, unit: str) -> None:
        """Say whether a target is met."""
        met = value <= limit
        self.targets.append({"target": what, "value": value, "limit": limit, "unit": unit, "met": met})
        print(f"  {self.verdict(self.targets[-1])}", flush=True)

    @staticmethod
    def verdict(target: dict[str, Any]) -> str:
        """One target as a line."""
        value, limit = (show(target[name], target["unit"]) for name in ("value", "limit"))
        return f"{'met' if target['met'] else 'MISSED':6} {target['target']}: {value} (at most {limit})"


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def percentile95(values: Sequence[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def show(seconds: float, unit: str) -> str:
    """A figure with its unit; seconds are turned into the unit."""
    if unit == "ms":
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds:.3f} s" if unit == "s" else f"{seconds:g}"


def run(*command: str) -> str:
    """A command's output; it must succeed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, timeout=TIMEOUT)
    return done.stdout.decode().strip()


def until(done: Callable[[], Any], pause: float = 0.01) -> None:
    """Wait for something, asking again after each pause."""
    end = time.monotonic() + TIMEOUT
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {TIMEOUT:g} s")
        time.sleep(pause)


def say(what: str) -> None:
    """Tell on stderr what is going on."""
    print(f"... {what}", file=sys.stderr, flush=True)


class Lab:
    """The contenders. Each runs one job and returns the time stamp that the job printed last.

    Parameters
    ----------
    folder
        For scripts and output; nothing is written elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        from execute_batch_scheduler import submit_script

        import psij

        self.folder = folder
        self.submit_script = submit_script
        self._psij = psij
        self._stock = psij.JobExecutor.get_instance("slurm")
        self._random = random.Random(1)
        self._files = 0

    def script(self, text: str) -> Path:
        """A file that holds a script."""
        path = self.new_path("script")
        path.write_text(text)
        path.chmod(0o700)
        return path

    def new_path(self, kind: str) -> Path:
        """A name that is free."""
        self._files += 1
        return self.folder / f"{kind}-{self._files}"

    def shuffled(self, names: Iterable[str]) -> list[str]:
        """In a random order."""
        order = list(names)
        self._random.shuffle(order)
        return order

    def pause(self) -> None:
        """A random part of Slurm's scheduling period."""
        time.sleep(self._random.random())

    def contenders(self, text: str, *names: str) -> dict[str, Contender]:
        """Those of the names given, for one script."""
        script = self.script(text)
        everyone: dict[str, Contender] = {
            FLOOR: lambda: self._floor(script),
            BARE: lambda: self._bare_sbatch(script),
            "srun": lambda: run("srun", str(script)),
            WAIT: lambda: self._sbatch_wait(script),
            STOCK: lambda: self._stock_psij(script),
            SUBMITIT: self._submitit,
            OURS: lambda: self.submit_script(text, wlm="slurm").result(TIMEOUT),
            STOCK_OURS: lambda: self.submit_script(text, wlm="psij:slurm").result(TIMEOUT),
        }
        return {name: everyone[name] for name in names}

    def sbatch(self, script: Path, *options: str) -> tuple[str, Path]:
        """Submit; the job's number and its output file."""
        output = self.new_path("output")
        return run("sbatch", "--parsable", f"--output={output}", *options, str(script)), output

    def _bare_sbatch(self, script: Path) -> str:
        """Watching the output file asks Slurm nothing."""
        _, output = self.sbatch(script)
        until(lambda: output.exists() and output.read_text().endswith("\n"))
        return output.read_text()

    def _floor(self, script: Path) -> str:
        number, output = self.sbatch(script)
        until(lambda: "JobState=COMPLETED" in run("scontrol", "show", "job", number))
        return output.read_text()

    def _sbatch_wait(self, script: Path) -> str:
        _, output = self.sbatch(script, "--wait")
        return output.read_text()

    def _stock_psij(self, script: Path) -> str:
        output = self.new_path("output")
        job = self._psij.Job(self._psij.JobSpec(executable=str(script), stdout_path=output))
        self._stock.submit(job)
        status = job.wait(timedelta(seconds=TIMEOUT))
        if status is None or status.state is not self._psij.JobState.COMPLETED:
            raise RuntimeError(f"PSI/J: {status}")
        return output.read_text()

    def _submitit(self) -> str:
        import submitit

        logging.getLogger("submitit").setLevel(logging.ERROR)
        executor = submitit.AutoExecutor(folder=self.folder / "submitit", cluster="slurm")
        executor.update_parameters(timeout_min=5)
        with silent_stderr():  # sacct complains that there is no accounting
            return str(executor.submit(time.time).result())


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Without what this process and its children write to stderr."""
    saved = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


# RPCs


def count_messages(action: Callable[[], object]) -> dict[str, int]:
    """What clients sent to the controller while something was done, by message type."""
    run("sdiag", "-r")
    action()
    time.sleep(1)
    by_type = run("sdiag").partition("by message type")[2].partition("statistics by user")[0]
    counts = {name: int(count) for name, count in re.findall(r"^\s+(\w+)\s+\(.*?count:(\d+)", by_type, re.MULTILINE)}
    return {name: count for name, count in counts.items() if name not in NOT_CLIENTS}


def measure_messages(lab: Lab, report: Report, plan: Plan) -> None:
    """Count the controller's RPCs of one job."""
    kinds = {"a trivial job": (TRIVIAL, plan.counted_jobs), "a 60 s job": (MINUTE, plan.counted_minutes)}
    for kind, (text, jobs) in kinds.items():
        if not jobs:
            continue
        contenders = lab.contenders(text, BARE, WAIT, *([STOCK] if STOCK in plan.slow else []), OURS)
        rows: dict[str, list[float]] = {name: [] for name in contenders}
        types = {}
        for number in range(jobs):
            for name in rows:
                if name == STOCK and number:
                    continue
                say(f"messages of {kind}: {name}")
                types[name] = count_messages(contenders[name])
                rows[name].append(sum(types[name].values()))
        report.table(f"Messages to the controller for {kind} that starts at once", rows, "", BARE)
        for name, counts in types.items():
            print(f"    {name}: {', '.join(f'{count} {message}' for message, count in counts.items())}")
        if text is TRIVIAL:
            report.target("messages for a trivial job, the worst", max(rows[OURS]), 2, "")


# whole jobs


def measure_jobs(lab: Lab, report: Report, plan: Plan) -> None:
    """Wall time of a trivial job, and the part of it after the job's last word."""
    contenders = lab.contenders(TRIVIAL, FLOOR, "srun", WAIT, OURS, STOCK_OURS, *plan.slow)
    for name in contenders:
        if name not in plan.slow:
            contenders[name]()  # imports and first times
    walls: dict[str, list[float]] = {name: [] for name in contenders}
    delays: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(plan.rounds):
        say(f"trivial jobs, round {number + 1} of {plan.rounds}")
        for name in lab.shuffled(contenders):
            every = math.ceil(plan.rounds / plan.slow.get(name, plan.rounds))
            if number % every == 0:
                lab.pause()
                begun = time.perf_counter()
                stamp = contenders[name]()
                ended, now = time.perf_counter(), time.time()
                walls[name].append(ended - begun)
                delays[name].append(now - float(stamp))
    report.table("Wall time of a trivial job", walls, "s", FLOOR)
    report.table("From the job's last time stamp to its result", delays, "ms", FLOOR)
    report.target("the end is known, median", median(delays[OURS]), 0.060, "ms")
    report.target("the end is known, p95", percentile95(delays[OURS]), 0.200, "ms")


# lines


def line_delays(pieces: Iterable[str]) -> list[float]:
    """How old the time stamps are that arrive as lines of a text in pieces."""
    delays, rest = [], ""
    for piece in pieces:
        now = time.time()
        *lines, rest = (rest + piece).split("\n")
        delays += [now - float(line) for line in lines if re.fullmatch(r"\d+\.\d{9}", line)]
    return delays


def read_growing(path: Path, lines: int) -> Iterator[str]:
    """What a file gets, looked at each 10 ms, until it has so many lines."""
    until(path.exists)
    end = time.monotonic() + TIMEOUT
    with path.open() as file:
        while lines > 0 and time.monotonic() < end:
            text = file.read()
            lines -= text.count("\n")
            yield text
            time.sleep(0.01)


def srun_lines(script: Path) -> list[float]:
    """Through srun's own standard output."""
    with subprocess.Popen(["srun", "--time=5", str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        return line_delays(process.stdout)


@contextlib.contextmanager
def kernel() -> Iterator[Callable[[str], Iterator[str]]]:
    """A real IPython kernel: a function that runs a cell in it and gives what the cell prints, as messages arrive."""
    from jupyter_client.manager import run_kernel

    client: Any
    with run_kernel(startup_timeout=60) as client:

        def printed(cell: str) -> Iterator[str]:
            number = client.execute(cell)
            while True:
                message = client.get_iopub_msg(timeout=TIMEOUT)
                kind, content = message["header"]["msg_type"], message["content"]
                if message["parent_header"].get("msg_id") != number:
                    continue
                if kind == "stream" and content["name"] == "stdout":
                    yield content["text"]
                elif kind == "error":
                    raise RuntimeError("\n".join(content["traceback"]))
                elif kind == "status" and content["execution_state"] == "idle":
                    return

        list(printed("%load_ext execute_batch_scheduler"))
        yield printed


def measure_lines(lab: Lab, report: Report, plan: Plan) -> None:
    """How old a line is when it is seen."""
    text = LINES.format(count=plan.lines)
    script = lab.script(text)

    def follow() -> list[float]:
        job = lab.submit_script(text, wlm="slurm")
        return line_delays(piece for stream, piece in job.follow() if stream == "stdout")

    floor, ours, notebook = "sbatch, its file read each 10 ms", "ours: follow()", "ours: a notebook cell"
    with kernel() as printed:
        ways: dict[str, Callable[[], list[float]]] = {
            floor: lambda: line_delays(read_growing(lab.sbatch(script)[1], plan.lines)),
            "srun": lambda: srun_lines(script),
            ours: follow,
            notebook: lambda: line_delays(printed(f"%%execute --wlm=slurm\n{text}")),
        }
        rows: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(plan.line_jobs):
            say(f"lines, round {number + 1} of {plan.line_jobs}")
            for name in lab.shuffled(ways):
                delays = ways[name]()
                if len(delays) != plan.lines:
                    raise RuntimeError(f"{name}: {len(delays)} of {plan.lines} lines came")
                rows[name] += delays
    report.table("From a line's time stamp until it is seen", rows, "ms", floor)
    report.target("a line through follow(), median", median(rows[ours]), 0.150, "ms")
    report.target("a line in a notebook, median", median(rows[notebook]), 0.150, "ms")


# submission


@contextlib.contextmanager
def timing_sbatch(transport: Any) -> Iterator[list[float]]:
    """The seconds that each sbatch takes which is run through a transport."""
    spent: list[float] = []
    original = transport.run

    def timed_run(command: Sequence[str], **options: Any) -> Any:
        begun = time.perf_counter()
        result = original(command, **options)
        if command[0] == "sbatch":
            spent.append(time.perf_counter() - begun)
        return result

    transport.run = timed_run
    try:
        yield spent
    finally:
        del transport.run


def measure_submission(lab: Lab, report: Report, plan: Plan) -> None:
    """Submit held jobs, one by one, by hand and by submit_script; cancel them."""
    script = str(lab.script(TRIVIAL))
    executor: Any = lab.submit_script(TRIVIAL, "-H", wlm="slurm").psij_job.executor
    ways: dict[str, Callable[[], object]] = {
        "sbatch": lambda: subprocess.run(
            ["sbatch", "--parsable", "-H", script], capture_output=True, check=True, timeout=TIMEOUT
        ),
        OURS: lambda: lab.submit_script(TRIVIAL, "-H", wlm="slurm"),
    }
    rows: dict[str, list[float]] = {name: [] for name in ways}
    say("submissions")
    try:
        with timing_sbatch(executor.transport) as inside:
            for _ in range(plan.submissions):
                for name in lab.shuffled(ways):
                    begun = time.perf_counter()
                    ways[name]()
                    rows[name].append(time.perf_counter() - begun)
    finally:
        run("scancel", f"--user={getpass.getuser()}")
    rows["  ours: the sbatch in it"] = inside
    rows["  ours: all else in it"] = [whole - part for whole, part in zip(rows[OURS], inside)]
    rows["extra, pair by pair"] = [mine - bare for mine, bare in zip(rows[OURS], rows["sbatch"])]
    report.table("Submission of one job", rows, "ms", "sbatch")
    report.target("extra time of a submission, median", median(rows["extra, pair by pair"]), 0.002, "ms")


# the extension


def start_ipython(cell: str) -> tuple[float, list[str]]:
    """Wall time of a fresh IPython that runs one cell, and the words that it prints."""
    begun = time.perf_counter()
    words = run(sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "-c", cell).split()
    return time.perf_counter() - begun, words


def measure_load_ext(lab: Lab, report: Report, plan: Plan) -> None:
    """What %load_ext adds to the start of IPython."""
    loaded = "print('psij' in sys.modules)"
    cells = {
        "IPython": f"import sys, time\n{loaded}",
        "IPython, %load_ext": "import sys, time\nbegun = time.perf_counter()\n%load_ext execute_batch_scheduler\n"
        f"print(time.perf_counter() - begun)\n{loaded}",
    }
    for cell in cells.values():
        start_ipython(cell)  # compiles
    rows: dict[str, list[float]] = {name: [] for name in (*cells, "  %load_ext by itself")}
    psij_seen = False
    say("starts of IPython")
    for _ in range(plan.starts):
        for name in lab.shuffled(cells):
            seconds, words = start_ipython(cells[name])
            rows[name].append(seconds)
            rows["  %load_ext by itself"] += [float(word) for word in words[:-1]]
            psij_seen = psij_seen or words[-1] != "False"
    rows["extra, pair by pair"] = [more - less for more, less in zip(rows["IPython, %load_ext"], rows["IPython"])]
    report.table("Start of IPython", rows, "ms", "IPython")
    report.target("extra time of %load_ext, median", median(rows["extra, pair by pair"]), 0.050, "ms")
    report.target("psij imported by %load_ext (1: yes)", int(psij_seen), 0, "")


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A private directory while the block runs; what threads still write there in the end does no harm."""
    folder = Path(tempfile.mkdtemp(prefix="latency-"))
    try:
        yield folder
    finally:
        os.chdir(ROOT)
        shutil.rmtree(folder, ignore_errors=True)


def prepare_environment(folder: Path, environment: dict[str, str]) -> None:
    """Let everything that is started use the private Slurm, this checkout, and no file outside of the folder."""
    for name in list(os.environ):
        if re.match(r"(EXECUTE|PSIJ|SBATCH|SLURM|SRUN)_|PYTHONDONTWRITEBYTECODE$", name):
            del os.environ[name]
    os.environ.update(environment)
    os.environ.update(HOME=str(folder), IPYTHONDIR=str(folder / "ipython"), PYTHONPYCACHEPREFIX=str(folder / "pycache"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.chdir(folder)


def bound(seconds: int) -> None:
    """End after so long at the latest, and also when told to, in a way that stops what was started."""

    def stop(number: int, _: object) -> None:
        sys.exit(f"ended by {signal.Signals(number).name}")

    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    signal.alarm(seconds)


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="trivial jobs per contender (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few rounds, no 60 s jobs, no slow contenders")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all single figures there")
    arguments = parser.parse_args()
    missing = slurm.missing()
    if missing:
        sys.exit(f"not on this machine: {', '.join(missing)}; sudo apt-get install slurm-wlm")
    rounds = max(1, arguments.rounds)
    plan = quick_plan(rounds) if arguments.quick else full_plan(rounds)
    json_file = arguments.json and arguments.json.absolute()
    bound(1200 + 30 * rounds)

    report = Report()
    with temporary_folder() as folder, slurm.running() as private:
        prepare_environment(folder, private.environment)
        print(f"{run('sbatch', '--version')}, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs")
        lab = Lab(folder)
        lab.contenders(TRIVIAL, BARE)[BARE]()  # the first job of a fresh Slurm takes seconds
        # Messages first, while nobody polls; submissions last: their trackers go on for a while.
        for measure in (measure_messages, measure_jobs, measure_lines, measure_load_ext, measure_submission):
            measure(lab, report, plan)
    print("\nTargets")
    for target in report.targets:
        print(f"  {report.verdict(target)}")
    if json_file:
        json_file.write_text(json.dumps({"figures": report.figures, "targets": report.targets}, indent=1) + "\n")


if __name__ == "__main__":
    main()
