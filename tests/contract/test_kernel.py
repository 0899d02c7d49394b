"""%%execute in a real Jupyter kernel, driven as a notebook drives it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from execute_batch_scheduler import attach, jobs
from tests.contract.behaviour import until
from tests.services import interactive
from tests.services.sshd import Sshd

PATIENCE = 60.0


class Notebook:
    """A kernel and the outputs of the cell that runs in it, as a notebook would save them."""

    def __init__(self) -> None:
        self.manager, self.client = start_new_kernel()
        assert isinstance(self.client, BlockingKernelClient)
        self.outputs: list[dict[str, Any]] = []
        self.run("%load_ext execute_batch_scheduler.execute_magic")

    def start(self, cell: str) -> str:
        self.outputs = []
        return str(self.client.execute(cell))

    def next_output(self, message_id: str, timeout: float = PATIENCE) -> Optional[str]:
        """The text of the next output; None when the cell has ended."""
        while True:
            message = self.client.get_iopub_msg(timeout=timeout)
            if message["parent_header"].get("msg_id") != message_id:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return None
            if kind in ("stream", "error", "execute_result", "display_data"):
                self.outputs.append(content)
                return str(content.get("text") or content.get("traceback") or content.get("data"))

    def run(self, cell: str) -> str:
        message_id = self.start(cell)
        texts = []
        while (text := self.next_output(message_id)) is not None:
            texts.append(text)
        return "".join(texts)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    notebook = Notebook()
    try:
        yield notebook
    finally:
        notebook.close()


def test_a_cell_on_slurm_streams(slurm: Any, notebook: Notebook, tmp_path: Path) -> None:
    cell = notebook.start(
        f"%%execute -n2\necho line 1; until [ -e {tmp_path}/go ]; do sleep 0.05; done; srun -n2 echo line 2"
    )
    seen = ""
    while (text := notebook.next_output(cell)) is not None:
        seen += text
        if "line 1" in seen:
            (tmp_path / "go").touch()
    assert "Submitted batch job" in seen
    assert "\nline 1\nline 2\nline 2\nEnd batch job" in seen
    assert seen.endswith("Status:  COMPLETED\n")


def test_errors_are_short(notebook: Notebook) -> None:
    said = notebook.run("%%execute --wlm=local\necho trouble >&2; exit 3")
    assert "exit code 3" in said
    assert "execute_magic.py" not in said
    assert notebook.outputs[-1]["ename"] == "JobFailed"


def test_an_interrupt_cancels(notebook: Notebook, tmp_path: Path) -> None:
    cell = notebook.start(f"%%execute --wlm=local\ntouch {tmp_path}/running; echo so far; sleep 1000")
    _until((tmp_path / "running").exists)
    time.sleep(0.2)
    notebook.manager.interrupt_kernel()
    seen = ""
    while (text := notebook.next_output(cell)) is not None:
        seen += text
    assert "so far" in seen
    assert "Terminate job" in seen
    assert "Status:  CANCELLED" in seen
    assert notebook.outputs[-1]["ename"] == "JobCancelled"


@pytest.mark.parametrize("end", ["shutdown", "restart"])
def test_the_end_of_the_kernel_is_not_that_of_the_job(notebook: Notebook, tmp_path: Path, end: str) -> None:
    """Both begin with an interrupt, like the stop button."""
    script = f"touch {tmp_path}/running; until [ -e {tmp_path}/go ]; do sleep 0.05; done; touch {tmp_path}/done"
    notebook.start(f"%%execute --wlm=local\n{script}")
    _until((tmp_path / "running").exists)
    time.sleep(0.2)
    notebook.manager.shutdown_kernel() if end == "shutdown" else notebook.manager.restart_kernel()
    (tmp_path / "go").touch()
    _until((tmp_path / "done").exists)


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_job_outlives_its_kernel(notebook: Notebook, tmp_path: Path) -> None:
    notebook.run(f"%%execute --wlm=local --bg --amgr=job\nsleep 1; touch {tmp_path}/done")
    notebook.manager.shutdown_kernel(now=True)
    _until((tmp_path / "done").exists)


def test_a_gigabyte_of_output(notebook: Notebook) -> None:
    """Neither the kernel nor the saved notebook grows with it."""
    notebook.run("%%execute --wlm=local\necho warm")
    memory = "int(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    notebook.run(f"before = {memory}")
    notebook.run("%%execute --wlm=local --amgr=job\nseq -f 'line %010.0f and what else there is to say of it' 23000000")
    saved = json.dumps(notebook.outputs)
    assert len(saved) < 1_000_000
    text = "".join(output["text"] for output in notebook.outputs if "text" in output)
    assert "line 0000000001 and" in text
    assert "line 0023000000 and" in text
    assert "bytes are not shown; the whole is in /" in text
    assert int(notebook.run("import os; print(os.path.getsize(job.paths.stdout))")) > 1_000_000_000
    assert int(notebook.run(f"print({memory} - before)")) < 60_000  # kB
    notebook.run("os.unlink(job.paths.stdout)")


def test_a_login_asks_in_the_notebook_and_a_cell_never_does(sshd: Sshd) -> None:
    with interactive.running() as server:
        sshd.add_host(server.block(interactive.INTERACTIVE_USER))
        notebook = Notebook()
        try:
            assert "%execute_login aguardedmachine" in notebook.run("%%execute --host=aguardedmachine\necho in")
            cell = str(notebook.client.execute("%execute_login aguardedmachine", allow_stdin=True))
            for answer in (interactive.PASSWORD, server.code):
                request = notebook.client.get_stdin_msg(timeout=PATIENCE)["content"]
                assert request["password"] is True
                notebook.client.input(answer)
            seen = ""
            while (text := notebook.next_output(cell)) is not None:
                seen += text
            assert "Logged in to aguardedmachine" in seen
            assert interactive.PASSWORD not in seen
            assert "\nin\nDone\n" in notebook.run("%%execute --host=aguardedmachine\necho in")
        finally:
            notebook.close()


def test_a_cell_by_ssh_goes_on_when_the_kernel_is_killed(sshd: Sshd, tmp_path: Path) -> None:
    notebook, go = Notebook(), tmp_path / "go"
    notebook.start(f"%%execute --host={sshd.name}\necho one; until [ -e {go} ]; do sleep 0.05; done; echo two")
    until(lambda: [entry.native_state for entry in jobs() if entry.host == sshd.name][-1:] == ["RUNNING"])
    notebook.manager.shutdown_kernel(now=True)
    notebook.client.stop_channels()
    go.touch()
    assert attach(str(jobs()[-1].native_id)).result(PATIENCE) == "one\ntwo\n"
