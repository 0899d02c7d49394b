"""make demo: a real cell in a real IPython, shown as it happens."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pexpect

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.services import slurm, sshd

CELLS = {
    "local": ["%%execute --wlm=local", 'for i in 1 2 3; do echo "line $i"; sleep 0.5; done'],
    "ssh": ["%%execute --wlm=ssh --host=adistantmachine", 'echo "Hello from $(hostname)"'],
    "slurm": ["%%execute -n8 -N4", "srun -n 8 sh -c 'echo $SLURMD_NODENAME'"],
}


def main(backend: str) -> None:
    with ExitStack() as stack:
        environment = dict(os.environ)
        if backend == "slurm":
            missing = slurm.missing()
            if missing:
                sys.exit(f"not on this machine: {', '.join(missing)}; sudo apt-get install slurm-wlm")
            print("Starting a private Slurm with four nodes ...", flush=True)
            environment.update(stack.enter_context(slurm.running()).environment)
        if backend == "ssh":
            missing = sshd.missing()
            if missing:
                sys.exit(f"not on this machine: {', '.join(missing)}; sudo apt-get install openssh-server")
            print("Starting a private sshd ...", flush=True)
            environment.update(stack.enter_context(sshd.running()).environment)
            environment.pop("SSH_AUTH_SOCK", None)
        shell = pexpect.spawn(
            sys.executable,
            ["-m", "IPython", "--no-banner", "--simple-prompt", "--colors=NoColor", "--no-term-title"],
            env=environment,
            encoding="utf-8",
            timeout=60,
            cwd="/",
        )
        shell.logfile_read = sys.stdout
        shell.expect(r"In \[1\]: ")
        shell.sendline("%load_ext execute_batch_scheduler.execute_magic")
        shell.expect(r"In \[2\]: ")
        for line in CELLS[backend]:
            shell.sendline(line)
            shell.expect(r"\.\.\.: ")
        shell.sendline("")
        shell.expect(r"\.\.\.: ")
        shell.sendline("")
        shell.expect("Status:  COMPLETED|Done")
        shell.expect(r"In \[3\]: ")
        shell.sendline("exit")
        shell.expect(pexpect.EOF)
        shell.wait()
    if backend == "local":
        print("\nNow you: .venv/bin/ipython", flush=True)


main(sys.argv[1])
