"""Read by PSI/J: it looks for a folder of this name in every directory on sys.path."""

from execute_batch_scheduler.adapters.descriptors import descriptors

__PSI_J_EXECUTORS__ = descriptors("execute_batch_scheduler.adapters")
