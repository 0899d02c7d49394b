"""``python -m execute_batch_scheduler``."""

from __future__ import annotations

import argparse
import sys

from execute_batch_scheduler import doctor


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m execute_batch_scheduler")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    examine = commands.add_parser("doctor", help="what is found on this machine, and what to do about what is not")
    examine.add_argument("--submit", action="store_true", help="run a small job too, on the default backend")
    examine.add_argument("--host", help="another machine, [user@]machine[:port], or a target")
    words = parser.parse_args()
    return doctor.main(words.submit, words.host)


sys.exit(main())
