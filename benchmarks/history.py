"""How long jobs() takes with many entries, and how soon a fresh process shows a running job's output.

Targets: jobs() with 5,000 entries in under 0.3 s; the first output of an attached job within 0.5 s of attach().
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

ENTRIES = 5000
ATTACH = """
import sys, time
from execute_batch_scheduler import attach
import execute_batch_scheduler.history
begin = time.monotonic()
next(iter(attach(sys.argv[1]).follow()))
print(time.monotonic() - begin)
"""


def main() -> int:
    """Measure, print, and say whether the targets are met."""
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(HOME=home, EXECUTE_JOURNAL=f"{home}/journal", EXECUTE_JOB_DIRECTORY=f"{home}/jobs")
        from execute_batch_scheduler import jobs, journal, submit_script

        for number in range(ENTRIES):
            key = f"{number:08x}-0000-4000-8000-000000000000"
            journal.note(key, wlm="slurm", executor="tracked-slurm", name="job", directory=f"{home}/jobs/{number}")
            journal.note(key, native_id=str(number))
            journal.note(key, state="COMPLETED", native_state="COMPLETED", exit_code=0, ended=time.time())
        times = []
        for _ in range(5):
            begin = time.monotonic()
            assert len(jobs()) == ENTRIES
            times.append(time.monotonic() - begin)
        listing = sorted(times)[2]

        job = submit_script("echo here; sleep 20", wlm="local")
        while not job.stdout():
            time.sleep(0.02)
        seen = []
        for _ in range(5):
            out = subprocess.run(
                [sys.executable, "-c", ATTACH, job.native_id], capture_output=True, text=True, check=True
            )
            seen.append(float(out.stdout))
        attaching = sorted(seen)[2]
        job.cancel()
        job.wait(30)
    met = True
    for what, value, target in (
        ("jobs() with 5,000 entries", listing, 0.3),
        ("attach() to first output", attaching, 0.5),
    ):
        met = met and value <= target
        word = "met   " if value <= target else "MISSED"
        print(f"{word} {what}: {value * 1000:.1f} ms (at most {target * 1000:.0f} ms)")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
