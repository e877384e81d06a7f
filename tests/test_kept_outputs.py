"""``predict(keep=...)``: logits and features of every draw, as the network gave them."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ppl_med.analysis import ood
from ppl_med.data import Batches
from ppl_med.inference import Ensemble, MeanFieldNormal, PointEstimate, fit, functions, predict
from ppl_med.models import BayesianClassifier, BayesianSegmenter


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4), nn.Linear(4, 2)
    )


def cases(number: int, prefix: str, batch_size: int = 4) -> Batches:
    random = np.random.default_rng(len(prefix) + number)
    arrays = {
        "image": random.normal(size=(number, 1, 4, 4)).astype(np.float32),
        "label": np.arange(number) % 2,
        "id": [f"{prefix}{i}" for i in range(number)],
    }
    return Batches(arrays, batch_size=batch_size)


KEEP = ("logit", "feature:0", "feature:3")


@pytest.mark.parametrize("where", [None, "last_layer"])
def test_outputs_are_those_of_each_drawn_net(where: Any) -> None:
    """Of layers before any random weight too, which run once for all draws otherwise."""
    model = BayesianClassifier(net(), ["a", "b"], where=where)
    guide = MeanFieldNormal(model, init_scale=0.3)
    batches = cases(7, "c")
    tree = predict(model, guide, batches, draws=3, keep=KEEP, progress=False)
    image = torch.cat([batch["image"] for batch in batches])
    group: Any = tree["posterior"]
    np.testing.assert_allclose(
        torch.softmax(torch.tensor(group["logit"].values), -1), group["probs"], atol=1e-6
    )
    hidden: list[torch.Tensor] = []
    layers: Any = model.network.net
    hook = layers[3].register_forward_hook(lambda m, i, o: hidden.append(o.detach()))
    with torch.no_grad():
        for function in functions(model, guide, draws=3):
            function(image)
    hook.remove()
    expected = torch.stack([one for one in hidden if len(one) == len(image)])
    np.testing.assert_allclose(group["feature:3"].values[0], expected, atol=1e-5)
    assert group["feature:0"].sizes["feature:0_dim_0"] == 3  # channels, averaged over space
    moves = bool((group["feature:0"][0, 0] != group["feature:0"][0, 1]).any())
    assert moves == (where is None)
    plain = predict(model, guide, batches, draws=3, progress=False)
    np.testing.assert_array_equal(plain["posterior"]["probs"], group["probs"])


def test_batches_and_stores_give_the_same(tmp_path) -> None:
    model = BayesianClassifier(net(), ["a", "b"])
    guide = MeanFieldNormal(model)
    options: dict[str, Any] = {"draws": 2, "keep": KEEP, "progress": False}
    whole = predict(model, guide, cases(9, "c", 9), **options)
    stored = predict(model, guide, cases(9, "c", 2), store=tmp_path / "run.zarr", **options)
    groups: list[Any] = [one["posterior"].to_dataset() for one in (stored, whole)]
    for name in KEEP:
        np.testing.assert_allclose(groups[0][name], groups[1][name], atol=1e-5)
    assert stored.attrs["keep"] == ", ".join(KEEP)
    with pytest.raises(ValueError, match="keep"):
        predict(
            model, guide, cases(9, "c", 2), store=tmp_path / "run.zarr", draws=2, resume=True,
            progress=False,
        )  # fmt: skip


def test_members_of_an_ensemble_have_features_of_their_own() -> None:
    model = BayesianClassifier(net(), ["a", "b"])
    ensemble = Ensemble(model, PointEstimate, members=2)
    fit(model, ensemble, cases(8, "t"), epochs=1, progress=False)
    tree = predict(model, ensemble, cases(6, "c"), draws=2, keep=("feature:3",), progress=False)
    feature: Any = tree["posterior"]["feature:3"]
    assert feature.sizes["chain"] == 2
    assert bool((feature[0] != feature[1]).any()) and bool((feature[:, 0] == feature[:, 1]).all())


def test_novelty_from_end_to_end() -> None:
    """Images of another brightness are novel; the false alarms are as rare as stated."""
    model = BayesianClassifier(net(), ["a", "b"])
    guide = MeanFieldNormal(model, init_scale=0.02)
    options: dict[str, Any] = {"draws": 4, "keep": ("feature:3",), "progress": False}
    trees = [predict(model, guide, cases(n, p, 64), **options) for n, p in ((200, "t"), (80, "va"))]
    reference = ood.fit_novelty(*trees)
    new = cases(50, "new", 64)
    bright = [{**batch, "image": batch["image"] + 8.0} for batch in new]
    assert (
        float(ood.novelty(predict(model, guide, bright, **options), reference)["pvalue"].max())
        < 0.1
    )
    inside = ood.novelty(predict(model, guide, new, **options), reference)["pvalue"]
    assert float((inside < 0.1).mean()) < 0.35  # binomial(50, 0.1) at 1e-6


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (("feature:conv",), "has no layer 'conv'; the nearest are"),
        (("logits",), "keep must hold 'logit' or 'feature:<layer>', got 'logits'"),
        (("feature:",), "has no layer ''"),
    ],
)
def test_a_layer_that_is_not_there_is_named(keep: tuple[str, ...], message: str) -> None:
    model = BayesianClassifier(net(), ["a", "b"])
    with pytest.raises(ValueError, match=message):
        predict(model, MeanFieldNormal(model), cases(4, "c"), draws=2, keep=keep, progress=False)
    with pytest.raises(TypeError, match=r"pass keep=\('logit',\)"):
        predict(model, MeanFieldNormal(model), cases(4, "c"), draws=2, keep="logit", progress=False)


def test_outputs_that_are_no_row_of_a_case_are_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(16, 16), nn.Linear(16, 2)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(self.layer(image.flatten(1))))

    twice = BayesianClassifier(Twice(), ["a", "b"])
    with pytest.raises(ValueError, match="it ran 2 times"):
        predict(
            twice, MeanFieldNormal(twice), cases(4, "c"), draws=2, keep=("feature:layer",),
            progress=False,
        )  # fmt: skip
    maps = BayesianSegmenter(nn.Conv2d(1, 2, 1), ["a", "b"])
    images = [{"image": torch.randn(2, 1, 8, 8)}]
    with pytest.raises(ValueError, match="not one row for each of 2 cases"):
        predict(maps, MeanFieldNormal(maps), images, draws=2, keep=("logit",), progress=False)
    with pytest.raises(ValueError, match="layers see patches"):
        predict(
            maps, MeanFieldNormal(maps), images, draws=2, keep=("logit",), window=(4, 4),
            progress=False,
        )  # fmt: skip
