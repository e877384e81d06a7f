"""What every test starts from: one seed, an empty parameter store, validation on.

torch and pyro are optional here, so that the tests of the numpy side run without them.
"""

import importlib.util
import os
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import typed_imports

SEED = 0
THREADS = 1
HAS_PYRO = importlib.util.find_spec("pyro") is not None

matplotlib.use("Agg")
typed_imports.install()


def pytest_sessionstart() -> None:
    """Fix the number of threads: sums over threads differ in the last bits otherwise."""
    if HAS_PYRO:
        import torch

        torch.set_num_threads(THREADS)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    if item.get_closest_marker("gpu") is None:
        return
    if not HAS_PYRO:
        pytest.skip("needs torch")
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Clear Pyro's parameter store, seed every generator, turn validation on; close figures."""
    random.seed(SEED)
    if HAS_PYRO:
        import pyro

        pyro.clear_param_store()
        pyro.set_rng_seed(SEED)
        pyro.enable_validation(True)
    yield
    from matplotlib import pyplot

    pyplot.close("all")


@pytest.fixture
def types_unchecked() -> Iterator[None]:
    """Users have no such checks: the messages must be the library's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", typed_imports.WrongType)
        yield


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with the real data sets, named by the environment variable PPL_MED_DATA."""
    name = os.environ.get("PPL_MED_DATA")
    if not name:
        pytest.skip("needs real data: set PPL_MED_DATA to the folder that holds the data sets")
    folder = Path(name)
    if not folder.is_dir():
        pytest.fail(f"PPL_MED_DATA is {name!r}, which is no folder; correct or unset it")
    return folder


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """The client of two worker processes, for ``dask.config.set(scheduler=cluster)``."""
    distributed = pytest.importorskip("distributed", reason="clusters")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as workers,
        distributed.Client(workers, set_as_default=False) as client,
    ):
        yield client
