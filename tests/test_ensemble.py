"""Ensembles: every member is a single fit of its own, and the chain axis keeps them apart."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from posterior_trees import array
from torch import Tensor, nn

from ppl_med.data import Batches
from ppl_med.inference import (
    BernoulliDropout,
    ConditionalNormal,
    Ensemble,
    MeanFieldNormal,
    PointEstimate,
    fit,
    functions,
    load,
    predict,
    save,
)
from ppl_med.models import BayesianClassifier, LatentClassifier
from ppl_med.networks import GaussianEncoder

MEMBERS, SEED, CASES = 3, 11, 24
CLASSES = ("a", "b")


def small_model() -> BayesianClassifier:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 2),
    )
    return BayesianClassifier(net, CLASSES)


def conditional(model: Any) -> ConditionalNormal:
    return ConditionalNormal(GaussianEncoder(1, 2, 3, num_classes=2))


GUIDES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], nn.Module]]] = {
    "point": (small_model, PointEstimate),
    "mean-field": (small_model, MeanFieldNormal),
    "dropout": (small_model, BernoulliDropout),
    "latent": (lambda: LatentClassifier(1, CLASSES, width=3), conditional),
}


def batches(shuffle: bool = True) -> Batches:
    generator = torch.Generator().manual_seed(5)
    label = torch.arange(CASES) % 2
    image = torch.randn(CASES, 1, 6, 6, generator=generator) + label[:, None, None, None]
    return Batches({"image": image, "label": label}, batch_size=8, shuffle=shuffle)


def train(model: nn.Module, guide: nn.Module, seed: int = SEED) -> xr.Dataset:
    return fit(model, guide, batches(), epochs=2, learning_rate=0.01, seed=seed, progress=False)


def state(*programs: nn.Module) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": value.clone()
        for index, program in enumerate(programs)
        for name, value in program.state_dict().items()
        if isinstance(value, Tensor)
    }


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.filterwarnings("ignore:posterior collapse")  # these labels need no latent code
def test_each_member_is_a_single_fit_bit_for_bit(name: str) -> None:
    make, factory = GUIDES[name]
    model = make()
    ensemble = Ensemble(model, factory, MEMBERS, seed=2)
    singles = [copy.deepcopy(pair) for pair in ensemble.members]
    assert all(differing(state(*pair), state(*singles[0])) for pair in singles[1:])
    history = train(model, ensemble)
    assert history["elbo"].dims == ("chain", "step")
    tree = predict(model, ensemble, batches(False), draws=2, seed=1, progress=False)
    assert tree["posterior"].sizes["chain"] == MEMBERS
    for member, single in enumerate(singles):
        alone = train(*single, seed=SEED + member)
        assert differing(state(*ensemble.members[member]), state(*single)) == []
        for variable in ("elbo", "nll", "kl"):
            own = history[variable].isel(chain=member)
            np.testing.assert_array_equal(own.values, alone[variable].values)
    probs = array(tree, "posterior/probs").values
    assert len(np.unique(probs.reshape(MEMBERS, -1), axis=0)) == MEMBERS


def test_a_members_chain_is_the_members_own_prediction() -> None:
    """A point estimate draws no number, so its chain equals the member on its own."""
    model = small_model()
    ensemble = Ensemble(model, PointEstimate, MEMBERS)
    train(model, ensemble)
    tree = predict(model, ensemble, batches(False), draws=2, progress=False)
    for member, pair in enumerate(ensemble.members):
        alone = predict(*pair, batches(False), draws=2, progress=False)
        np.testing.assert_array_equal(
            array(tree, "posterior/probs").sel(chain=member).values,
            array(alone, "posterior/probs").sel(chain=0).values,
        )
    image = next(iter(batches(False)))["image"]
    for function in functions(model, ensemble, draws=2):
        probs = array(tree, "posterior/probs").sel(chain=function.chain, draw=function.draw)
        np.testing.assert_allclose(
            torch.softmax(function(image).double(), -1).detach().numpy(),
            probs.values[: len(image)],
            atol=1e-6,
        )


def test_the_model_stays_as_it_was() -> None:
    model = small_model()
    before = state(model)
    train(model, Ensemble(model, PointEstimate, 2))
    assert differing(before, state(model)) == []


def test_members_that_keep_their_start_differ_by_the_order_of_the_data() -> None:
    model = small_model()
    ensemble = Ensemble(model, PointEstimate, 2, start="keep")
    for own, guide in ensemble.members:
        assert differing(state(own), state(model)) == []
        assert differing(state(guide), state(PointEstimate(model))) == []
    train(model, ensemble)
    first, second = (state(*pair) for pair in ensemble.members)
    assert "1.parts.weights.value" in differing(first, second)


class Scaled(nn.Module):
    """A parameter that nobody knows how to draw anew."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(36))
        self.layer = nn.Linear(36, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image.flatten(1) * self.factor)


def test_a_module_that_cannot_start_anew_is_named() -> None:
    model = BayesianClassifier(Scaled(), CLASSES)
    with pytest.raises(ValueError, match=r"network\.net \(Scaled\) holds parameters and has no"):
        Ensemble(model, PointEstimate, 2)

    def start(own: nn.Module) -> None:
        for parameter in own.parameters():
            nn.init.normal_(parameter)

    ensemble = Ensemble(model, PointEstimate, 2, start=start)
    first, second = (next(guide.parameters()) for guide in ensemble.guides)
    assert not torch.equal(first, second)


def test_starts_come_from_the_seed_and_leave_the_generator_alone() -> None:
    model = small_model()
    before = torch.get_rng_state()
    first, again = (Ensemble(model, MeanFieldNormal, 2, seed=4) for _ in range(2))
    other = Ensemble(model, MeanFieldNormal, 2, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert differing(state(first), state(again)) == []
    # Member m starts from seed + m: the second member of one is the first of the other.
    assert differing(state(*first.members[1]), state(*other.members[0])) == []
    assert differing(state(*first.members[0]), state(*other.members[0]))


def test_one_member_is_no_ensemble() -> None:
    with pytest.raises(ValueError, match="members must be a whole number, 2 or more, got 1"):
        Ensemble(small_model(), PointEstimate, 1)


def test_an_ensemble_is_no_program() -> None:
    with pytest.raises(TypeError, match="an Ensemble is not one program"):
        Ensemble(small_model(), PointEstimate, 2)(torch.zeros(1, 1, 6, 6))


def test_a_saved_ensemble_predicts_the_same_bits(tmp_path: Path) -> None:
    model = small_model()
    ensemble = Ensemble(model, MeanFieldNormal, MEMBERS)
    train(model, ensemble)
    tree = predict(model, ensemble, batches(False), draws=3, progress=False)
    path = tmp_path / "ensemble.pt"
    save(path, model, ensemble)
    torch.manual_seed(99)
    other_model = small_model()
    other = Ensemble(other_model, MeanFieldNormal, MEMBERS, seed=77)
    load(path, other_model, other)
    assert differing(state(ensemble), state(other)) == []
    again = predict(other_model, other, batches(False), draws=3, progress=False)
    xr.testing.assert_equal(tree, again)
    fewer = Ensemble(other_model, MeanFieldNormal, MEMBERS - 1)
    with pytest.raises(ValueError, match=r"holds 3 member\(s\), the guide 2"):
        load(path, other_model, fewer)


def test_chains_draw_their_own_noise() -> None:
    """Two members with one and the same q: their draws must still differ."""
    model = small_model()
    ensemble = Ensemble(model, MeanFieldNormal, 2, start="keep")
    probs = array(
        predict(model, ensemble, batches(False), draws=4, progress=False), "posterior/probs"
    )
    first, second = probs.sel(chain=0).values, probs.sel(chain=1).values
    assert not np.isclose(first, second).all(axis=(1, 2)).any()
