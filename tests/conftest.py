import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the shared test data; outside CI the test skips without it."""
    folder = Path(os.environ.get("SINOTHERM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "splits.json").is_file():
        if os.environ.get("CI"):
            pytest.fail(f"no test data in {folder}: set SINOTHERM_TEST_DATA")
        pytest.skip(f"no test data in {folder}: set SINOTHERM_TEST_DATA")
    return folder
