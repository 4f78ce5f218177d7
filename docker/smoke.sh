#!/usr/bin/env bash
# Streams a small simulated scan through a running server and checks what comes back.
# Usage: docker/smoke.sh [HOST:PORT]      with the image: docker compose -f docker/compose.yaml up -d --wait && docker/smoke.sh
set -euo pipefail
server=${1:-127.0.0.1:9002}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

sinotherm simulate "$folder/scan.h5" --scene hyperthermia --matrix 64 --coils 4 --spokes 64 --frames 8 --baseline 5 --cooling 0 --seed 1
sinotherm send "$folder/scan.h5" --to "$server" -c radial_thermometry -o "$folder/images.h5" --pace fast
python - "$folder/images.h5" <<'PY'
import sys

import h5py

with h5py.File(sys.argv[1]) as file:
    series = {name: file[f"dataset/{name}/data"].shape for name in file["dataset"] if name.startswith("image_")}
print(series)
if series.get("image_1", (0,))[0] != 8 or "image_3" not in series:
    sys.exit(f"expected 8 magnitude images and temperature maps, found {series}")
PY
echo "smoke test passed"
