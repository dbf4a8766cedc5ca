"""Repairs the zoo's victims with every method and writes a record of each; see :mod:`benchmarks.repair.run`.

::

    python -m benchmarks.bench_repair [--only METHOD ...] [--victims NAME ...] [--images N ...] ...
"""

from benchmarks.repair.run import main

if __name__ == "__main__":
    main()
