"""Measure of the retrospectively sampled multi-coil sets: ours beside BART `pics` and sigpy on the same samples.

    SET=DATA/multicoil_complex/multicoil_complex.h5
    python benchmarks/physics_undersampling.py $SET brain benchmarks/physics_brain.json
    python benchmarks/physics_undersampling.py $SET phantom benchmarks/physics_phantom.json

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


def coil_images(path: Path, name: str) -> np.ndarray:
    with h5py.File(path) as file:
        if name == "brain":
            return file["gpunufft/img_brain_4ch"][:]
        return ifft2(file["mrphysics/phantom_16ch"][:])


def main(path: Path, name: str, record: Path) -> None:
    images = coil_images(path, name)
    images = (images / np.sqrt((np.abs(images) ** 2).sum(0)).max()).astype(np.complex64)
    rows = []
    for n_spokes in (64, 32, 16):
        for row in compare(images, n_spokes):
            if not rows:
                print_row(list(row))
                print_row(["---"] * len(row))
            rows.append(row)
            print_row([table_cell(value) for value in row.values()])
    arguments = f"DATA/{path.parent.name}/{path.name} {name} benchmarks/{record.name}"
    command = f"python benchmarks/physics_undersampling.py {arguments}"
    write_record(record, figures_record(command, rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
