"""Makes our executors known to PSI/J when it is imported."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

_main = threading.current_thread() is threading.main_thread()
_handler = signal.getsignal(signal.SIGCHLD) if _main else None
from psij import JobExecutor  # noqa: E402

if _handler is not None:  # PSI/J takes SIGCHLD on import, without chaining. It is the user's.
    signal.signal(signal.SIGCHLD, _handler)

from execute_batch_scheduler.adapters.descriptors import descriptors  # noqa: E402


def register() -> None:
    """Register where PSI/J's own search has not found our descriptors, as in an editable install."""
    folder = Path(__file__).resolve().parent
    for descriptor in descriptors(folder.name):
        if descriptor.name not in JobExecutor.get_executor_names():
            JobExecutor.register_executor(descriptor, str(folder.parent))


register()
