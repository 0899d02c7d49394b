"""What a cell on another machine costs, beside ssh and paramiko alone: time, round trips, output, memory, processor.

The other machine is a private real sshd here, on the loopback interface, as the current user; it is started and
stopped, and all files are temporary. Hence both sides share this machine's processors. A proxy stands in for distance.

Contenders take turns in a random order.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.latency import (  # noqa: E402
    TIMEOUT,
    Report,
    bound,
    median,
    prepare_environment,
    run,
    say,
    temporary_folder,
    until,
)
from tests.services import sshd  # noqa: E402
from tests.services.proxy import Proxy  # noqa: E402

HOST = "adistantmachine"
JOBS = 50
MARKS = 1000
SESSIONS = 8  # at once through a ControlMaster: sshd allows ten on a connection, and counts those that just ended
NEW, SHARED, SCRIPT = "ssh, a new connection", "ssh, ControlMaster", "ssh bash -s < script, ControlMaster"
PARAMIKO, OURS, BEYOND = "paramiko, a new channel", "ours", "ours, beyond the job's own run time"
SUBMISSION = "  of that: submit_script()"
FIRST = "ours, the first of a new process"
CAT, GCM = "ssh cat, a new connection", "ssh cat, the cipher that ours takes"
SLOW = "a profile of 100 ms"
_FIRST = """
import sys, time
begun = time.perf_counter()
from execute_batch_scheduler import submit_script
import execute_batch_scheduler.adapters.ssh, paramiko
imported = time.perf_counter()
submit_script("true", host=sys.argv[1]).result(60)
print(imported - begun, time.perf_counter() - imported)
"""
# Not getrusage, whose maximum is that of the process which started this one if that was larger.
_MEMORY = r"""
import re, sys
from execute_batch_scheduler import submit_script
def megabytes(name):
    return int(re.search(name + r":\s+(\d+)", open("/proc/self/status").read())[1]) * 1024 / 1e6
host, file = sys.argv[1:]
submit_script("true", host=host).result(60)
before = megabytes("VmRSS")
job = submit_script(f"cat {file}", host=host)
size = WHAT
print(megabytes("VmHWM") - before)
"""
_FOLLOW = "sum(len(text) for _, text in job.follow(most=MOST))"


@dataclass(frozen=True)
class Plan:
    """How often each thing is measured; `windows` are the seconds of silence after which 20 s of CPU are measured."""

    rounds: int
    starts: int = 5
    trips: int = 10
    bursts: int = 3
    megabytes: int = 100
    copies: int = 5
    windows: tuple[int, ...] = (0, 75)
    window: float = 20.0


def quick_plan(rounds: int) -> Plan:
    """A minute's worth."""
    return Plan(min(rounds, 5), starts=2, trips=3, bursts=1, megabytes=20, copies=2, windows=(0,), window=5.0)


class Lab:
    """The server, and the ways to it.

    Parameters
    ----------
    server
        Its host name is `HOST`.
    folder
        For sockets and files of ours; nothing is written elsewhere.
    """

    def __init__(self, server: sshd.Sshd, folder: Path) -> None:
        from execute_batch_scheduler import submit_script
        from execute_batch_scheduler.adapters import ssh

        program = shutil.which("ssh", path=os.environ["PATH"].partition(":")[2])  # not the shell script that names -F
        assert program
        self.server = server
        self.folder = folder
        self.submit_script = submit_script
        self.ssh = [program, "-F", str(server.config), "-T"]
        self.transport = ssh.transport
        self.logout = ssh.logout
        self._random = random.Random(1)

    def shuffled(self, names: Iterable[str]) -> list[str]:
        """In a random order."""
        order = list(names)
        self._random.shuffle(order)
        return order

    def pause(self, most: float = 0.1) -> None:
        """What has just ended is cleared away meanwhile."""
        time.sleep(self._random.uniform(most / 2, most))

    @contextlib.contextmanager
    def master(self, host: str) -> Iterator[list[str]]:
        """The words of ssh that share one open connection."""
        words = [*self.ssh, "-o", f"ControlPath={self.folder}/{host}.control"]
        with subprocess.Popen([*words, "-M", "-N", host], stdin=subprocess.DEVNULL) as process:
            try:
                until(lambda: subprocess.run([*words, "-O", "check", host], capture_output=True).returncode == 0)
                yield [*words, host]
            finally:
                process.terminate()

    @contextlib.contextmanager
    def paramiko(self) -> Iterator[Any]:
        """An open connection of paramiko's."""
        import paramiko

        with paramiko.SSHClient() as client:
            client.load_host_keys(str(self.server.known_hosts))
            client.connect(
                self.server.host,
                self.server.port,
                self.server.user,
                key_filename=str(self.server.key),
                allow_agent=False,
                look_for_keys=False,
            )
            yield client

    def cell(self, host: str = HOST) -> None:
        """A cell of ours."""
        self.submit_script("true", host=host).result(TIMEOUT)


def python(code: str, *arguments: str) -> list[float]:
    """The numbers that a new process prints."""
    return [float(word) for word in run(sys.executable, "-c", code, *arguments).split()]


def own_time(job: Any) -> float:
    """How long the job itself took."""
    return float((job.ended - job.started).total_seconds())


# a cell


def measure_cells(lab: Lab, report: Report, plan: Plan, title: str) -> None:
    """A trivial cell, in every way that there is."""
    script = lab.folder / "script"
    script.write_text("true\n")
    submissions: list[float] = []

    def ours() -> Any:
        begun = time.perf_counter()
        job = lab.submit_script("true", host=HOST)
        submissions.append(time.perf_counter() - begun)
        job.result(TIMEOUT)
        return job

    def with_script(words: Sequence[str]) -> None:
        with script.open() as file:
            subprocess.run([*words, "bash", "-s"], stdin=file, capture_output=True, check=True, timeout=TIMEOUT)

    def by_channel(client: Any) -> None:
        _, out, _ = client.exec_command("true")
        out.read()
        if out.channel.recv_exit_status() != 0:
            raise RuntimeError("true was not true")

    with lab.master(HOST) as shared, lab.paramiko() as client:
        ways: dict[str, Callable[[], Any]] = {
            NEW: lambda: run(*lab.ssh, HOST, "true"),
            SHARED: lambda: run(*shared, "true"),
            SCRIPT: lambda: with_script(shared),
            PARAMIKO: lambda: by_channel(client),
            OURS: ours,
        }
        for way in ways.values():
            way()
        rows: dict[str, list[float]] = {name: [] for name in (*ways, BEYOND, SUBMISSION)}
        say(f"cells, {title}: {plan.rounds} rounds")
        for _ in range(plan.rounds):
            for name in lab.shuffled(ways):
                lab.pause()
                begun = time.perf_counter()
                job = ways[name]()
                rows[name].append(time.perf_counter() - begun)
                if job:
                    rows[BEYOND].append(rows[name][-1] - own_time(job))
    rows[SUBMISSION] = submissions[1:]
    python(_FIRST, HOST)  # compiles
    firsts = [python(_FIRST, HOST) for _ in range(plan.starts)]
    rows[FIRST] = [seconds for _, seconds in firsts]
    rows["  and what it has to import"] = [seconds for seconds, _ in firsts]
    report.table(f"A trivial cell, {title}", rows, "ms", SHARED)
    ratio = round(median(rows[BEYOND]) / median(rows[SHARED]), 2)
    report.target(f"{title}: beyond the job's own run time / {SHARED}, medians", ratio, 0.5, "")


@contextlib.contextmanager
def slow_profile(lab: Lab) -> Iterator[None]:
    """Sessions begin as on clusters: module systems and conda take their time."""
    files = [lab.server.home / name for name in (".bashrc", ".bash_profile")]
    for file in files:
        file.write_text("sleep 0.1\n")
    lab.logout(f"ssh://{HOST}")
    try:
        yield
    finally:
        for file in files:
            file.unlink()
        lab.logout(f"ssh://{HOST}")


# round trips


def measure_trips(lab: Lab, report: Report, plan: Plan) -> None:
    """From submission to what is known of it, on a line that is long."""
    for delay in (0.025, 0.05):
        with Proxy(lab.server.host, lab.server.port, delay) as proxy:
            host = f"far{round(delay * 1000)}"
            lab.server.add_host(
                lab.server.config.read_text()
                .partition("\nHost ")[0]
                .replace(f"Host {HOST}\n", f"Host {host}\n    HostKeyAlias {HOST}\n")
                .replace(f"Port {lab.server.port}\n", f"Port {proxy.port}\n")
            )
            _measure_trips(lab, report, plan, host, proxy)


def _measure_trips(lab: Lab, report: Report, plan: Plan, host: str, proxy: Proxy) -> None:
    trip = 2 * proxy.delay
    lab.cell(host=host)
    transport = lab.transport(f"ssh://{host}")
    names = ("submit_script() returns", "its start is known", "its result is there")
    rows: dict[str, list[float]] = {name: [] for name in (SHARED, *names)}
    turns: dict[str, list[float]] = {f"{name}, {what}": [] for name in rows for what in ("proxy", "transport")}
    say(f"round trips of {trip * 1000:g} ms")
    with lab.master(host) as shared:
        run(*shared, "true")
        for _ in range(plan.trips):
            for way in lab.shuffled([OURS, SHARED]):
                time.sleep(0.5)  # what is under way arrives
                before, asked, begun = proxy.counts, transport.turns, time.perf_counter()

                def passed(
                    name: str, before: Any = before, asked: int = asked, begun: float = begun, own: float = 0.0
                ) -> None:
                    rows[name].append(time.perf_counter() - begun - own)
                    turns[f"{name}, proxy"].append((proxy.counts - before).turns)
                    turns[f"{name}, transport"].append(transport.turns - asked)

                if way == SHARED:
                    run(*shared, "true")
                    passed(SHARED)
                    continue
                job = lab.submit_script("sleep 0.5", host=host)  # long enough for its start and end to come apart
                passed(names[0])
                until(lambda job=job: job.running() and job.started, 0.001)  # type: ignore[misc]
                passed(names[1])
                job.result(TIMEOUT)
                passed(names[2], own=own_time(job))
    del turns[f"{SHARED}, transport"]
    report.table(f"A cell over {trip * 1000:g} ms there and back, from its submission", rows, "ms", SHARED)
    counts = {f"{name}, by time": [round(seconds / trip, 2) for seconds in values] for name, values in rows.items()}
    report.table(f"The same in round trips of {trip * 1000:g} ms", {**counts, **turns}, "")
    report.target("round trips from submission to start, median", median(rows[names[1]]) / trip, 3, "")


# many at once


def measure_many(lab: Lab, report: Report, plan: Plan) -> None:
    """Fifty jobs at once."""
    rows: dict[str, list[float]] = {name: [] for name in (f"ssh, ControlMaster, {SESSIONS} at once", OURS)}
    shared_name, fresh = next(iter(rows)), "ours, connection included"
    logins: list[float] = []
    rows[fresh] = []

    def ours() -> float:
        begun = time.perf_counter()
        with ThreadPoolExecutor(JOBS) as pool:
            jobs = list(pool.map(lambda _: lab.submit_script("true", host=HOST), range(JOBS)))
        if not all(job.wait(TIMEOUT) and job.exit_code == 0 for job in jobs):
            raise RuntimeError("not all jobs completed")
        return time.perf_counter() - begun

    def by_ssh() -> float:
        begun = time.perf_counter()
        with ThreadPoolExecutor(SESSIONS) as pool:
            list(pool.map(lambda _: run(*shared, "true"), range(JOBS)))
        return time.perf_counter() - begun

    with lab.master(HOST) as shared:
        say(f"{JOBS} jobs at once")
        for _ in range(plan.bursts):
            rows[shared_name].append(by_ssh())
            time.sleep(1)
            lab.logout(f"ssh://{HOST}")
            before = lab.server.logins
            rows[fresh].append(ours())
            logins.append(lab.server.logins - before)
            time.sleep(1)
            rows[OURS].append(ours())
            logins[-1] = lab.server.logins - before
            time.sleep(1)
    report.table(f"{JOBS} jobs at once", rows, "s", shared_name)
    report.target(f"logins for them, the worst of {plan.bursts}", max(logins), 1, "")


# output


def measure_output(lab: Lab, report: Report, plan: Plan) -> None:
    """Large output."""
    file = lab.folder / "large"
    piece = 57 * 10000
    with file.open("wb") as stream:
        while stream.tell() < plan.megabytes * 1_000_000:
            stream.write(base64.encodebytes(os.urandom(piece)))
    size = file.stat().st_size
    job = lab.submit_script(f"cat {file}", host=HOST)
    if not job.wait(TIMEOUT):
        raise TimeoutError

    def cat(words: Sequence[str]) -> int:
        subprocess.run([*words, f"cat {file}"], stdout=subprocess.DEVNULL, check=True, timeout=TIMEOUT)
        return size

    def follow(job: Any) -> int:
        return sum(len(text) for _, text in job.follow())

    with lab.master(HOST) as shared:
        ways: dict[str, Callable[[], int]] = {
            CAT: lambda: cat([*lab.ssh, HOST]),
            "ssh cat, ControlMaster": lambda: cat(shared),
            GCM: lambda: cat([*lab.ssh, "-o", "Ciphers=aes128-gcm@openssh.com", HOST]),
            "ours: stdout()": lambda: len(job.stdout()),
            "ours: follow() of an ended job": lambda: follow(job),
            "ours: follow() of a job that writes it": lambda: follow(lab.submit_script(f"cat {file}", host=HOST)),
        }
        rows: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(plan.copies):
            say(f"output, round {number + 1} of {plan.copies}")
            for name in lab.shuffled(ways):
                lab.pause(1)
                begun = time.perf_counter()
                if ways[name]() != size:
                    raise RuntimeError(f"{name}: not all of {size} bytes came")
                rows[name].append(round(size / (time.perf_counter() - begun) / 1e6, 1))
    report.table(f"{size / 1e6:.0f} MB of output, MB/s", rows, "", CAT)
    slowest = min(median(speeds) for name, speeds in rows.items() if name.startswith("ours"))
    report.target("time for output / ssh cat, our slowest way", median(rows[CAT]) / slowest, 1 / 0.6, "")
    reads = {
        "follow(most=60000)": _FOLLOW.replace("MOST", "60000"),
        "follow()": _FOLLOW.replace("MOST", "None"),
        "result()": "len(job.result(60))",
    }
    memory = {}
    for name, code in reads.items():
        say(f"memory of {name}")
        memory[name] = [round(python(_MEMORY.replace("WHAT", code), HOST, str(file))[0], 1)]
    report.table(f"Growth of our process at its highest for {size / 1e6:.0f} MB of output, MB", memory, "")


# the machine over there


def processor_seconds(server: sshd.Sshd) -> dict[tuple[int, str], float]:
    """What each process below the server has used, with its children that have ended."""
    ticks = os.sysconf("SC_CLK_TCK")
    used = {}
    for pid, program in server._descendants():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            used[pid, program] = sum(map(int, words[11:15])) / ticks
    return used


def measure_silence(lab: Lab, report: Report, plan: Plan) -> None:
    """The price of a job that is followed and says nothing, also when many others have left their marks."""
    rows: dict[str, list[float]] = {}
    for marks, windows in ((0, plan.windows), (MARKS, plan.windows[:1])):
        lab.logout(f"ssh://{HOST}")
        events = lab.server.home / ".execute_batch_scheduler" / "events"
        shutil.rmtree(events, ignore_errors=True)
        events.mkdir(parents=True)
        for number in range(marks):
            (events / time.strftime(f"%Y%m%dT%H%M%S-{number:08x}.0.ended", time.gmtime())).touch()
        with _followed(lab):
            begun = time.monotonic()
            for after in windows:
                say(f"silence after {after} s, {marks} marks")
                time.sleep(max(0.0, begun + after - time.monotonic()))
                for name, share in _shares(lab.server, plan.window).items():
                    rows[f"{name}, {marks} marks, from second {after}"] = [round(60 * share, 2)]
    title = f"A job that is followed and silent, CPU seconds per minute, measured over {plan.window:g} s"
    report.table(title, rows, "")


@contextlib.contextmanager
def _followed(lab: Lab) -> Iterator[None]:
    job = lab.submit_script("echo begun; exec sleep 600", host=HOST)
    seen = threading.Event()

    def follow() -> None:
        for _ in job.follow():
            seen.set()

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        if not seen.wait(TIMEOUT):
            raise TimeoutError
        yield
    finally:
        job.cancel()
        thread.join(TIMEOUT)


def _shares(server: sshd.Sshd, seconds: float) -> dict[str, float]:
    """How much of a processor is used while some seconds pass."""
    before, here, begun = processor_seconds(server), time.process_time(), time.monotonic()
    time.sleep(seconds)
    after, passed = processor_seconds(server), time.monotonic() - begun
    shares = {"our process": (time.process_time() - here) / passed}
    for program in ("bash", "sshd"):
        used = sum(after[one] - before.get(one, 0.0) for one in after if one[1].startswith(program))
        shares[f"{program} there"] = used / passed
    return shares


def check_profile(lab: Lab) -> None:
    """That commands of ssh read ~/.bashrc is a setting of bash's when it was built."""
    mark = lab.server.home / "mark"
    with slow_profile(lab):
        with (lab.server.home / ".bashrc").open("a") as file:
            file.write(f"touch {mark}\n")
        run(*lab.ssh, HOST, "true")
    print(f"ssh HOST COMMAND {'reads' if mark.exists() else 'DOES NOT READ'} ~/.bashrc over there")


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="trivial cells per contender (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few rounds, less output, short silence")
    parts = ("cells", "profile", "trips", "many", "output", "silence")
    parser.add_argument("--only", choices=parts, help="measure this alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all single figures there")
    arguments = parser.parse_args()
    missing = sshd.missing()
    if missing:
        sys.exit(f"not on this machine: {', '.join(missing)}; sudo apt-get install openssh-server openssh-client")
    rounds = max(1, arguments.rounds)
    plan = quick_plan(rounds) if arguments.quick else Plan(rounds)
    json_file: Optional[Path] = arguments.json and arguments.json.absolute()
    bound(900 + 10 * rounds)

    report = Report()
    with temporary_folder() as folder, sshd.running(name=HOST) as server:
        prepare_environment(folder, {**server.environment, "EXECUTE_SITE_CONFIG": os.devnull})
        os.environ.pop("SSH_AUTH_SOCK", None)
        version = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr.split(",")[0]
        load = os.getloadavg()[0]  # of others, too: figures of a machine that has more to do are worth little
        print(f"{version}, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, load {load:.1f}")
        lab = Lab(server, folder)
        check_profile(lab)

        def profile() -> None:
            with slow_profile(lab):
                measure_cells(lab, report, plan, SLOW)

        parts: dict[str, Callable[[], None]] = {
            "cells": lambda: measure_cells(lab, report, plan, "a bare login"),
            "profile": profile,
            "trips": lambda: measure_trips(lab, report, plan),
            "many": lambda: measure_many(lab, report, plan),
            "output": lambda: measure_output(lab, report, plan),
            "silence": lambda: measure_silence(lab, report, plan),
        }
        for name, part in parts.items():
            if arguments.only in (None, name):
                part()
    print("\nTargets")
    for target in report.targets:
        print(f"  {report.verdict(target)}")
    if json_file:
        json_file.write_text(json.dumps({"figures": report.figures, "targets": report.targets}, indent=1) + "\n")


if __name__ == "__main__":
    main()
