"""A tree that ``predict`` really made, for the ArviZ checks; run it to save one for later.

python tests/predicted_tree.py FILE.nc
"""

import sys

import xarray as xr

from ppl_med import storage
from ppl_med.data import Batches, blood_smear
from ppl_med.inference import Ensemble, MeanFieldNormal, fit, predict
from ppl_med.models import BayesianClassifier
from ppl_med.networks import CompactCNN


def predict_cells() -> xr.DataTree:
    """Train two members for a moment; 60 training cells under 2 x 100 draws."""
    cells = blood_smear(60, label_noise=0.3, seed=0)
    batches = Batches({name: cells[name] for name in ("image", "label", "id")}, batch_size=60)
    model = BayesianClassifier(CompactCNN(width=4), ["uninfected", "parasitized"])
    guide = Ensemble(model, lambda member: MeanFieldNormal(member, init_scale=0.3), members=2)
    fit(model, guide, batches, epochs=5, progress=False)
    return predict(model, guide, batches, draws=100, log_likelihood_of="training", progress=False)


if __name__ == "__main__":
    storage.save(predict_cells(), sys.argv[1])
