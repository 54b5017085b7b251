"""What every test shares: one thread for tiny tensors, and the dtype and device of a run."""

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device of the tests that take one (cpu, cuda)")


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors run 10 to 200 times faster on one
    yield
    torch.set_num_threads(threads)
