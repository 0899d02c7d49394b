"""A real Slurm on this machine: private directory, loopback only, as the current user, no system service touched.

Four nodes of 4 CPUs, 4000 MB and 2 GPUs each, all this host, unless a test wants others. With accounting, slurmdbd and
mariadb run beside it.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Optional

from tests.services.processes import alive

COMMANDS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol")
ACCOUNTING_COMMANDS = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db")
_NODES = ("sn1", "sn2", "sn3", "sn4")
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"

_CONF = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd-%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
PlugStackConfig={base}/etc/plugstack.conf
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=50
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0
ReturnToService=2
SlurmctldTimeout=120
SlurmdTimeout={slurmd_timeout}
InactiveLimit=0
KillWait={kill_wait}
MinJobAge={min_job_age}
OverTimeLimit=0
MessageTimeout=3
RequeueExit=99
GresTypes=gpu
MailProg=/bin/true
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
PartitionName=DEFAULT State=UP MaxTime=INFINITE DefaultTime=10 OverSubscribe=NO
{nodes}
PartitionName=normal Nodes=sn[1-4] Default=YES
PartitionName=short Nodes=sn[1-4] MaxTime=30
{more}
{accounting}
"""
_ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos
"""
_DBD_CONF = """
AuthType=auth/none
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser={user}
PidFile={base}/run/slurmdbd.pid
LogFile={base}/log/slurmdbd.log
CommunicationParameters=NoInAddrAny
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql_port}
StorageUser=slurm
StoragePass=private
StorageLoc=slurm_acct
"""


def missing(accounting: bool = False) -> list[str]:
    """The commands that are needed and not there."""
    needed = COMMANDS + (ACCOUNTING_COMMANDS if accounting else ())
    return [command for command in needed if not shutil.which(command, path=_path())]


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}"


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody holds now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Slurm:
    """A running private Slurm; `environment` is what its commands need."""

    def __init__(self, base: Path, accounting: bool, **settings: Any) -> None:
        self.base = base
        self.accounting = accounting
        self.environment = {"SLURM_CONF": str(base / "etc" / "slurm.conf")}
        self._ports = free_ports(3 + len(_NODES))
        self._sql: Optional[subprocess.Popen[bytes]] = None
        self._settings = {
            "kill_wait": 3,
            "min_job_age": 300,
            "slurmd_timeout": 60,
            "node": "CPUs=4 RealMemory=4000",
            "gpus": 2,
            "more": "",
            **settings,
        }

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of its commands; its standard output."""
        result = subprocess.run(
            command,
            env={**os.environ, **self.environment, "PATH": _path()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if check and result.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: exit code {result.returncode}: {result.stderr}{self.logs()}")
        return result.stdout

    def field(self, job_id: str, name: str) -> str:
        """One field of ``scontrol show job``."""
        out = self.run("scontrol", "-o", "show", "job", str(job_id))
        return next(word[len(name) + 1 :] for word in out.split() if word.startswith(f"{name}="))

    def start(self) -> None:
        """Start all daemons and wait until every node is idle."""
        for name in ("etc", "log", "run", "state", *(f"spool/{node}" for node in _NODES)):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        port, dbd_port, sql_port, *node_ports = self._ports
        host = socket.gethostname().split(".")[0]
        values = {
            "base": self.base,
            "host": host,
            "user": getpass.getuser(),
            "port": port,
            "dbd_port": dbd_port,
            "sql_port": sql_port,
            "nodes": "\n".join(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} {self._settings['node']} "
                f"Gres=gpu:{self._settings['gpus']} State=UNKNOWN"
                for node, node_port in zip(_NODES, node_ports)
            ),
            **self._settings,
        }
        values["accounting"] = _ACCOUNTING.format(**values) if self.accounting else ""
        etc = self.base / "etc"
        (etc / "slurm.conf").write_text(_CONF.format(**values))
        (etc / "plugstack.conf").write_text("")
        (etc / "cgroup.conf").write_text("CgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\n")
        files = f"Name=gpu File=/dev/tty[1-{self._settings['gpus']}]"
        (etc / "gres.conf").write_text("".join(f"NodeName={node} {files}\n" for node in _NODES))
        if self.accounting:
            (etc / "slurmdbd.conf").write_text(_DBD_CONF.format(**values))
            (etc / "slurmdbd.conf").chmod(0o600)
            self._start_accounting(sql_port)
        self.start_controller()
        for node in _NODES:
            self.start_node(node)
        self._until(
            "every node is idle",
            lambda: self.run("sinfo", "-h", "-N", "-p", "normal", "-o", "%T").split() == ["idle"] * 4,
        )

    def _start_accounting(self, sql_port: int) -> None:
        data, socket_path = self.base / "sql", self.base / "run" / "sql"
        me = ["--user=root"] if os.geteuid() == 0 else []
        self.run(
            "mariadb-install-db", "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal", *me
        )
        self._sql = subprocess.Popen(
            [
                shutil.which("mariadbd", path=_path()) or "mariadbd",
                "--no-defaults",
                f"--datadir={data}",
                f"--socket={socket_path}",
                f"--port={sql_port}",
                "--bind-address=127.0.0.1",
                f"--log-error={self.base}/log/sql.log",
                *me,
            ],
            start_new_session=True,
        )
        sql = (
            "CREATE DATABASE IF NOT EXISTS slurm_acct; "
            "CREATE USER IF NOT EXISTS slurm@'localhost' IDENTIFIED BY 'private'; "
            "CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY 'private'; "
            "GRANT ALL ON slurm_acct.* TO slurm@'localhost'; GRANT ALL ON slurm_acct.* TO slurm@'127.0.0.1'"
        )
        self._until(
            "mariadb answers",
            lambda: self.run("mariadb", "--no-defaults", "-uroot", f"--socket={socket_path}", "-e", sql) is not None,
        )
        self.run("slurmdbd")
        self._until("slurmdbd answers", lambda: "Cluster" in self.run("sacctmgr", "show", "cluster"))
        for words in (("cluster", "lab"), ("account", "science"), ("user", getpass.getuser(), "Account=science")):
            self.run("sacctmgr", "-i", "add", *words)

    def start_controller(self) -> None:
        """Start slurmctld, at first or again."""
        self.run("slurmctld")
        self._until("slurmctld answers", lambda: "UP" in self.run("scontrol", "ping"))

    def stop_controller(self) -> None:
        """Stop slurmctld; its state stays."""
        self._stop("slurmctld")

    def start_node(self, node: str) -> None:
        """Start one slurmd."""
        self.run("slurmd", "-N", node)

    def stop_node(self, node: str) -> None:
        """Kill one slurmd, as if the node were lost."""
        self._stop(f"slurmd-{node}", signal.SIGKILL)

    def stop(self) -> None:
        """End every job and every daemon."""
        try:
            self.run("scancel", "--full", "-s", "KILL", "-u", getpass.getuser(), check=False)
            self.run("scancel", "-u", getpass.getuser(), check=False)
            self._until("no job is left", lambda: not self.run("squeue", "-h"), 10)
        except (subprocess.TimeoutExpired, RuntimeError):
            pass  # the controller or a node is down; the jobs end with the nodes below
        for name in ("slurmctld", *(f"slurmd-{node}" for node in _NODES), "slurmdbd"):
            self._stop(name)
        if self._sql:
            self._sql.terminate()
            self._sql.wait(30)
        for pid in self._left_over():
            with suppress(ProcessLookupError):  # it ended with the one before
                os.kill(pid, signal.SIGKILL)

    def _left_over(self) -> list[int]:
        """Steps whose slurmd was killed wait for it for ever, and their jobs run on. All hold this configuration."""
        mark = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            try:
                variables = (folder / "environ").read_bytes().split(b"\0") if folder.name.isdigit() else []
                job = any(variable.startswith(b"SLURM_JOB_ID=") for variable in variables)
                if mark in variables and (job or (folder / "comm").read_text().startswith("slurmstepd")):
                    found.append(int(folder.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it has ended meanwhile, or is somebody else's
        return found

    def logs(self) -> str:
        """The ends of all logs, for a failure's message."""
        tails = []
        for path in sorted((self.base / "log").glob("*.log")):
            tails.append(f"\n--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-20:]))
        return "".join(tails)

    def _stop(self, name: str, number: int = signal.SIGTERM) -> None:
        path = self.base / "run" / f"{name}.pid"
        if not path.exists():
            return
        pid = int(path.read_text())
        path.unlink()
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        try:
            self._until(f"{name} has stopped", lambda: not alive(pid), 5)
        except RuntimeError:
            os.kill(pid, signal.SIGKILL)

    def _until(self, what: str, done: Any, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        problem: object = ""
        while time.monotonic() < end:
            try:
                if done():
                    return
            except RuntimeError as error:
                problem = error
            time.sleep(0.02)
        raise RuntimeError(f"not within {seconds} s: {what}; {problem}{self.logs()}")


@contextmanager
def running(accounting: bool = False, **settings: Any) -> Iterator[Slurm]:
    """A private Slurm while the block runs."""
    base = Path(tempfile.mkdtemp(prefix="slurm-"))
    slurm = Slurm(base, accounting, **settings)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
        shutil.rmtree(base, ignore_errors=True)
