"""``python -m peers``: make every environment that is missing or stale, all at the same time."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from peers.environments import NAMES, environment


def main() -> None:
    """Make the environments named, or all."""
    with ThreadPoolExecutor() as pool:
        for home in pool.map(environment, sys.argv[1:] or NAMES):
            sys.stdout.write(f"{home}\n")


if __name__ == "__main__":
    main()
