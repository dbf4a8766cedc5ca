"""How often networks without a backdoor answer as the attacks want: no repair need do better.

::

    python -m benchmarks.repair.floor --data FOLDER

stamps the holdout with the trigger of each CIFAR-10 victim, asks the zoo's clean networks, and writes
``benchmarks/results/repair_floor.json``. About a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.repair.measure import measure
from benchmarks.repair.methods import STRONG, WEAK
from benchmarks.repair.victims import load_victim
from benchmarks.zoo.subjects import load_subject
from calibration.trainable import load_trainable

__all__ = ["CLEAN", "FLOOR", "read_floor"]

FLOOR = Path(__file__).parent.parent / "results" / "repair_floor.json"
CLEAN = ("clean", "clean_1", "clean_2")
KEPT = ("asr", "acc_non_target", "acc", "robust_acc")


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    options = parser.parse_args()
    networks = [load_trainable(load_subject(name).model).module for name in CLEAN]
    found = {}
    for name in (*WEAK, *STRONG):
        victim = load_victim(name, options.data)
        measured = [measure(network, victim, copies=()) for network in networks]
        found[name] = {key: [one[key] for one in measured] for key in KEPT}
        print(name, found[name]["asr"], flush=True)
    FLOOR.write_text(json.dumps({"networks": CLEAN, "victims": found}, indent=1) + "\n")


def read_floor(victim: str) -> dict[str, float]:
    """Return the mean of each share over the clean networks; nothing for a victim that was not measured."""
    found = json.loads(FLOOR.read_text())["victims"].get(victim, {})
    return {key: sum(values) / len(values) for key, values in found.items()}


if __name__ == "__main__":
    main()
