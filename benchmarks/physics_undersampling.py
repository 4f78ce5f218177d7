"""Measure of the retrospectively sampled multi-coil sets: ours beside BART `pics` and sigpy on the same samples.

    python benchmarks/physics_undersampling.py DATA/multicoil_complex.h5 benchmarks/physics_undersampling.json

Needs `bart` on the PATH and the extra `bench` (sigpy). DATA: `multicoil_complex` (MIT, see its SOURCE.md).
Pause other work: the times of a run are compared with each other.
"""

import sys
from pathlib import Path

import h5py
import numpy as np

from sinotherm.core.record import figures_record, write_record
from sinotherm.evaluation.tables import print_row, table_cell
from sinotherm.evaluation.undersampling import compare
from sinotherm.operators.fourier import ifft2


def main(path: Path, record: Path) -> None:
    with h5py.File(path) as file:
        brain = file["gpunufft/img_brain_4ch"][:]
        phantom = ifft2(file["mrphysics/phantom_16ch"][:])
    rows = []
    for name, images in (("brain, 4 coils", brain), ("phantom, 16 coils", phantom)):
        scaled = (images / np.sqrt((np.abs(images) ** 2).sum(0)).max()).astype(np.complex64)
        for n_spokes in (64, 32, 16):
            for row in compare(scaled, n_spokes):
                if not rows:
                    print_row(["data", *row])
                    print_row(["---"] * (len(row) + 1))
                rows.append({"data": name, **row})
                print_row([table_cell(value) for value in rows[-1].values()])
    write_record(record, figures_record(f"python {' '.join(sys.argv)}", rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
