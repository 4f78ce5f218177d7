import pytest
import torch

from sinotherm.errors import SettingsError
from sinotherm.operators import backend
from sinotherm.operators.backend import backends, choose_device, frame_backend, nufft_backend


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(SettingsError, match="device 'gpu': give one of auto, cpu, cuda"):
        choose_device("gpu")


@pytest.mark.parametrize("cuda", [False, True])
def test_backends_are_described_for_people(monkeypatch: pytest.MonkeyPatch, cuda: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    described = backends()
    assert "gridding kernels" in described["whole frames"]
    assert ("sparse matrices on a GPU" in described["NUFFT with gradients"]) == cuda


def test_gridding_serves_single_precision_on_the_cpu_and_no_other() -> None:
    assert nufft_backend("cpu", single=True, accuracy=5e-4) == "gridded"
    assert nufft_backend("cpu", single=False, accuracy=5e-4) == "finufft"
    assert nufft_backend("cpu", single=True, accuracy=1e-6) == "finufft"
    assert nufft_backend("cuda", single=True, accuracy=5e-4) == "sparse"


def test_sparse_matrices_serve_single_precision_where_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "has_kernels", lambda: False)
    assert nufft_backend("cpu", single=True, accuracy=5e-4) == "sparse"
    assert nufft_backend("cpu", single=False, accuracy=5e-4) == "finufft"


def test_back_projection_serves_few_spokes_of_many_coils() -> None:
    assert frame_backend(8, 16) == frame_backend(16, 32) == "back-projection"
    assert frame_backend(1, 16) == frame_backend(8, 64) == frame_backend(16, 402) == "gridded"
