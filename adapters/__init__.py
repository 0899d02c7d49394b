"""PSI/J executors that tell the truth about their jobs. Importing this package makes them known to PSI/J.

They work without the front end: ``psij.JobExecutor.get_instance("tracked-slurm")``, ``get_instance("process")``.
"""

from execute_batch_scheduler.adapters import registry as registry
