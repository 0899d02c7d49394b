"""Our executors by name. PSI/J executes this file by its path, so it imports the classes from where they live."""

from execute_batch_scheduler.adapters.process import ProcessExecutor, SSHExecutor
from execute_batch_scheduler.adapters.slurm import TrackedSlurmExecutor

__all__ = ["ProcessExecutor", "SSHExecutor", "TrackedSlurmExecutor"]
