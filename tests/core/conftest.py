"""One thread for every test of the core: two cores are shared, and sums must not change order."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
