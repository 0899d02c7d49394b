"""Packages lie in two folders of the checkout and are installed as one: see docs/how-it-works.md."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "build_tools"))

from execute_build import BuildPy, Install

setup(
    packages=["execute_batch_scheduler", "execute_batch_scheduler.adapters", "psij-descriptors"],
    py_modules=["execute_cell"],
    package_dir={
        "execute_batch_scheduler": "execute_batch_scheduler",
        "execute_batch_scheduler.adapters": "adapters",
        "psij-descriptors": "adapters/psij-descriptors",
    },
    package_data={"execute_batch_scheduler": ["py.typed"], "execute_batch_scheduler.adapters": ["*.bash"]},
    zip_safe=False,
    cmdclass={"build_py": BuildPy, "install": Install},
)
