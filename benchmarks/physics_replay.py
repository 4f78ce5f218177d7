"""Offline replay against the scanner's own pace (TR 3 ms, 8 coils), and memory over 100,000 spokes.

    python benchmarks/physics_replay.py benchmarks/physics_replay.json

Pause other work. The long scan has two coils, so that its file stays below 1 GB.
"""

import logging
import sys
from pathlib import Path

from sinotherm.bench.replay import rows
from sinotherm.core.record import figures_record, write_record


def main(record: Path) -> None:
    logging.disable(logging.WARNING)
    found = [row for method in ("fbp", "gridding") for row in rows(spokes=(32, 64, 128), frames=80, method=method)]
    found += rows(coils=2, spokes=(64,), frames=100_000 // 64 + 1)
    for row in found:
        print(row)
    write_record(record, figures_record(f"python {' '.join(sys.argv)}", found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
