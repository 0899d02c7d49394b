"""Packages lie in two folders of the checkout and are installed as one: see docs/how-it-works.md."""

from setuptools import setup

setup(
    packages=["execute_batch_scheduler", "execute_batch_scheduler.adapters", "psij-descriptors"],
    package_dir={
        "execute_batch_scheduler": "execute_batch_scheduler",
        "execute_batch_scheduler.adapters": "adapters",
        "psij-descriptors": "adapters/psij-descriptors",
    },
    package_data={"execute_batch_scheduler": ["py.typed"], "execute_batch_scheduler.adapters": ["run.bash"]},
)
