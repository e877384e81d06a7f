"""A store of 100 000 cases and 32 draws is written, and analysed, by a process of one GiB.

Each is a fresh process, whose peak is that of the operating system; most of it are the imports.
"""

import subprocess
import sys
from pathlib import Path

import pytest

CASES, DRAWS, CLASSES = 100_000, 32, 10
GIGABYTE = 2**30

WRITE = f"""
import sys, resource, torch
from ppl_med.inference import MeanFieldNormal, predict
from ppl_med.models import BayesianClassifier

class Made:
    def __len__(self):
        return {CASES} // 250
    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(len(self)):
            label = torch.randint(0, {CLASSES}, (250,), generator=generator)
            image = torch.randn(250, 1, 4, 4, generator=generator)
            image.view(250, 16)[torch.arange(250), label] += 2
            yield {{"image": image, "label": label}}

torch.manual_seed(0)
torch.set_num_threads(1)
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, {CLASSES}))
model = BayesianClassifier(net, [str(name) for name in range({CLASSES})])
guide = MeanFieldNormal(model, init_scale=0.1)
options = {{"draws": {DRAWS}, "store": sys.argv[1], "device": "cpu", "progress": False}}
predict(model, guide, Made(), **options)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
ANALYSE = """
import sys, resource, xarray
from ppl_med.analysis import calibration, conformal, scoring, uncertainty

tree = xarray.open_datatree(sys.argv[1], engine="zarr", chunks={})
for analysis in (
    scoring.score,
    scoring.elpd_heldout,
    uncertainty.summary,
    conformal.calibrate,
    calibration.fit,
    lambda tree: calibration.errors(tree, replicates=1),
):
    analysis(tree).load()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(program: str, path: Path) -> int:
    """Bytes that a program needs at most."""
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory otherwise")
def test_a_large_store_is_written_and_analysed_in_a_gigabyte(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    assert peak(WRITE, path) < GIGABYTE
    assert peak(ANALYSE, path) < GIGABYTE
