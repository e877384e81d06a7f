"""Attributions, counterfactuals and swap tests of fixed nets, which no training has made."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from frozen_store import Results
from torch import Tensor, nn

from ppl_med.explain import latent_counterfactual, minimal_perturbation, sparse_additive
from ppl_med.explain.attribution import attribute, attribute_uncertainty
from ppl_med.explain.confounding import dependence, exposure, swap_test
from ppl_med.inference import ConditionalNormal
from ppl_med.models import ConditionalVAE

METHODS: dict[str, dict[str, Any]] = {
    "saliency": {},
    "input_x_gradient": {},
    "integrated_gradients": {"steps": 8},
    "smooth_grad": {"samples": 4},
    "occlusion": {"patch": 3, "stride": 2},
    "grad_cam": {},
    "guided_backprop": {},
    "lrp": {},
    "deep_lift": {},
    "full_gradient": {},
}


def nets(count: int = 2) -> list[Any]:
    """Small convolutional nets in double precision, with weights from NumPy."""
    rng = np.random.default_rng(11)
    found = []
    for _ in range(count):
        net = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 2)
        ).double()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(torch.tensor(0.5 * rng.normal(size=parameter.shape)))
        found.append(net.eval())
    return found


def images(cases: int = 4) -> Tensor:
    return torch.tensor(np.random.default_rng(12).normal(size=(cases, 1, 8, 8)))


def attributions() -> Results:
    found: Results = {}
    for name, options in METHODS.items():
        torch.manual_seed(0)
        found[f"attribute/{name}"] = attribute(nets(), images(), 1, method=name, **options)
    for quantity in ("entropy", "mutual_information"):
        torch.manual_seed(0)
        found[f"attribute_uncertainty/{quantity}"] = attribute_uncertainty(
            nets(), images(), quantity, method="integrated_gradients", steps=8
        )
    found["attribute/probability"] = attribute(
        nets(), images(), 0, method="integrated_gradients", output="probability", steps=8
    )
    return found


def vae() -> tuple[Any, Any]:
    torch.manual_seed(4)
    model = ConditionalVAE(1, ("a", "b"), (8, 8), latent_dim=2, width=3)
    guide = ConditionalNormal(model.posterior_net())
    return model.eval(), guide.eval()


def counterfactuals() -> Results:
    given: dict[str, Any] = {"functions": nets(), "image": images(3)}
    net = nets()
    with torch.no_grad():
        present = torch.stack([one(images(3)) for one in net]).mean(0).argmax(1)
    given["target"] = 1 - present
    pair = vae()
    single = given | {"functions": [one.float() for one in nets()], "image": images(3).float()}
    return {
        "minimal_perturbation": minimal_perturbation(**given, steps=10),
        "sparse_additive": sparse_additive(**given, steps=10, penalty=0.05),
        "latent_counterfactual": latent_counterfactual(
            **single, vae=pair, steps=5, particles=4, search=False
        ),
    }


def _brighter(image: Tensor) -> Tensor:
    changed = image.clone()
    changed[:, :, 0, 0] += 2.0
    return changed


def confounding() -> Results:
    rng = np.random.default_rng(13)
    dims = ("chain", "draw", "case", "channel", "row", "col")
    maps = {name: xr.DataArray(rng.normal(size=(1, 3, 6, 1, 4, 4)), dims=dims) for name in "pq"}
    other = {name: xr.DataArray(rng.normal(size=(1, 3, 6, 1, 4, 4)), dims=dims) for name in "pq"}
    region = xr.DataArray(np.zeros((6, 4, 4), bool), dims=("case", "row", "col"))
    region[:, :2, :2] = True
    feature = xr.DataArray(rng.normal(size=(1, 3, 30)), dims=("chain", "draw", "case"))
    return {
        "swap_test": swap_test(nets(), images(), _brighter, 1, group=[0, 0, 1, 2]),
        "swap_test/log_odds": swap_test(nets(), images(), _brighter, 1, scale="log_odds"),
        "exposure": exposure(maps, region, reference=other),
        "dependence": dependence(
            feature, rng.normal(size=30), permutations=19, mutual_information=False
        ),
    }


GROUPS: dict[str, Callable[[], Results]] = {
    "attributions": attributions,
    "counterfactuals": counterfactuals,
    "confounding": confounding,
}


def result(group: str) -> Results:
    """Those of one group by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return GROUPS[group]()
