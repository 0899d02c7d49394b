"""In a checkout only, and not installed: the adapters lie in the folder of that name at the top."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "adapters")]

from execute_batch_scheduler.adapters import registry as registry
