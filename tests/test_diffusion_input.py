"""What a diffusion refuses, and how its runs are saved, resumed and warned of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from noised_masks import TableNet, point
from torch import Tensor

from ppl_med.data import Batches
from ppl_med.explain.attribution import attribute
from ppl_med.inference import (
    NUTS,
    FromPrior,
    Guides,
    ImportanceWeighted,
    Laplace,
    MeanFieldNormal,
    Noising,
    PointEstimate,
    fit,
    functions,
    load,
    predict,
    sample,
    save,
)
from ppl_med.models import CategoricalDiffusion, GaussianDiffusion, RectifiedFlow
from ppl_med.networks import DenoisingUNet
from ppl_med.programs.noising import CategoricalNoise, GaussianNoise
from ppl_med.weights import Normal

NAMES = ("a", "b", "c")
SMALL: dict[str, Any] = {"channels": (8, 8), "image_channels": (4, 4)}


def categorical(num_steps: int = 4, num_classes: int = 2, **settings: Any) -> CategoricalDiffusion:
    net = TableNet(num_classes, num_classes, num_steps)
    return CategoricalDiffusion(net, NAMES[:num_classes], num_steps, **settings)


def numbers(num_steps: int = 4, outputs: int = 2, **settings: Any) -> GaussianDiffusion:
    return GaussianDiffusion(TableNet(1, outputs, num_steps), NAMES[:2], num_steps, **settings)


def batch(*size: int, cases: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    image = torch.randn(cases, 1, *size, generator=generator)
    return {"image": image, "mask": (image[:, 0] > 0).long()}


def trained(model: Any, given: Any = None, **options: Any) -> xr.Dataset:
    batches = Batches(batch(2, 2) if given is None else given, batch_size=2)
    return fit(model, point(model), batches, **({"epochs": 1, "progress": False} | options))


def test_the_kl_that_is_warned_of_is_that_of_the_weights() -> None:
    """A chain's own is thousands of nats for a large mask, as a log-likelihood is."""
    large = batch(64, 64)
    for make in (categorical, numbers):
        history = trained(make(), large)  # warnings are errors
        assert float(history["kl"].min()) > 1000
    model = categorical(prior=Normal(1e-3))
    guide = Guides(MeanFieldNormal(model), Noising(model.noising))
    with pytest.warns(UserWarning, match="noising process left out.* prior is far") as told:
        history = fit(model, guide, Batches(large, batch_size=2), epochs=1, progress=False)
    warned = float(str(told[0].message).split()[3])
    assert 1000 < warned < float(history["kl"].mean()) - 1000


@pytest.mark.parametrize("noise", [CategoricalNoise, GaussianNoise])
def test_a_chain_has_two_steps_at_least(noise: Any) -> None:
    with pytest.raises(ValueError, match=r"num_steps must be .* 2 .* one state between"):
        noise(2, 1)
    with pytest.raises(ValueError, match="num_classes"):
        noise(1, 4)
    with pytest.raises(ValueError, match="hardening"):
        noise(2, 4, hardening=0.0)


@pytest.mark.parametrize("make", [categorical, numbers])
def test_steps_of_sampling_are_those_of_the_chain_at_most(make: Any) -> None:
    with pytest.raises(ValueError, match="sampling_steps must be from 1 to num_steps, 4, got 5"):
        make(sampling_steps=5)
    with pytest.raises(ValueError, match="bound_steps"):
        make(bound_steps=0)


@pytest.mark.parametrize("make", [categorical, numbers])
@pytest.mark.parametrize(("value", "message"), [(-2, "mask holds -2"), (2, r"holds 2 .* 0\.\.1")])
def test_every_pixel_has_one_of_the_classes(make: Any, value: int, message: str) -> None:
    arrays = batch(2, 2)
    arrays["mask"][1, 0, 1] = value
    model = make()
    with pytest.raises(ValueError, match=message):
        trained(model, arrays)
    with pytest.raises(ValueError, match=message):
        predict(model, point(model), Batches(arrays), draws=2, progress=False)


@pytest.mark.parametrize("form", ["fast", "slow"])
def test_a_net_of_other_outputs_is_named(form: Any) -> None:
    with pytest.raises(ValueError, match=r"net gave an output of shape .* 1 noised .* 2 outputs"):
        trained(numbers(outputs=1, form=form))
    net = TableNet(2, 3, 4)
    with pytest.raises(ValueError, match=r"\(2, 2, 2, 2\) is needed.* 2 noised .* 2 outputs"):
        trained(CategoricalDiffusion(net, NAMES[:2], 4, form=form))


@pytest.mark.parametrize("make", [categorical, numbers])
def test_volumes_need_a_chain_of_volumes(make: Any) -> None:
    with pytest.raises(ValueError, match=r"3 axes of space.*spatial_dims=3"):
        trained(make(), batch(2, 2, 2))
    with pytest.raises(ValueError, match=r"2 axes of space.*spatial_dims=2"):
        trained(make(spatial_dims=3), batch(2, 2))


def test_sizes_that_the_net_cannot_halve_are_named() -> None:
    model = CategoricalDiffusion(DenoisingUNet(1, 2, 2, **SMALL), NAMES[:2], 4)
    with pytest.raises(ValueError, match=r"divisible by 2|multiple of 2"):
        trained(model, batch(6, 5))
    patched = CategoricalDiffusion(DenoisingUNet(1, 2, 2, **SMALL, patch=4), NAMES[:2], 4)
    with pytest.raises(ValueError, match="divisible by patch, 4"):
        trained(patched, batch(6, 8))


def test_only_the_bound_itself_is_trained() -> None:
    for objective in (ImportanceWeighted(2), ImportanceWeighted(2, elbo_steps=5)):
        with pytest.raises(ValueError, match=r"a bound is all that is known; use objective=Elbo"):
            trained(categorical(), objective=objective)


def test_inferences_that_need_the_density_refuse() -> None:
    with pytest.raises(ValueError, match="of this model a bound is all that is known"):
        Laplace(categorical())
    with pytest.raises(ValueError, match="one value per case"):
        sample(categorical(), Batches(batch(2, 2)), NUTS(), draws=2, progress=False)


def test_a_guide_without_the_noising_process_is_named() -> None:
    model = categorical()
    with pytest.raises(ValueError, match=r"latent site 'x4'.*Guides\(PointEstimate.*Noising\("):
        fit(model, PointEstimate(model), Batches(batch(2, 2)), epochs=1, progress=False)


@pytest.mark.parametrize("form", ["fast", "slow"])
def test_states_are_not_left_to_the_prior(form: Any) -> None:
    """One random step of states that no noising process made would be the bound of no model."""
    model = categorical(form=form)
    left = FromPrior("x4", "x3", "x2", "x1", "at_step", "noised", "earlier")
    guide = Guides(PointEstimate(model, use_prior=False), left)
    with pytest.raises(ValueError, match=r"only Noising\(model\.noising\) can"):
        fit(model, guide, Batches(batch(2, 2)), epochs=1, progress=False)


@pytest.mark.parametrize("make", [CategoricalDiffusion, GaussianDiffusion, RectifiedFlow])
def test_a_net_that_is_called_otherwise_is_named(make: Any) -> None:
    with pytest.raises(ValueError, match=r"net must be called as .*Conv2d.*DenoisingUNet"):
        make(torch.nn.Conv2d(1, 2, 1), NAMES[:2])


def test_gradients_do_not_leave_out_what_passes_through_classes() -> None:
    """With a state of classes between image and mask, the image acts by way of it, too."""
    model = categorical()
    function = functions(model, point(model), draws=1)[0]
    image = batch(2, 2)["image"].requires_grad_()
    with pytest.raises(ValueError, match=r"'x3' .* pass no gradient .*method='occlusion'"):
        function(image).sum().backward()
    shown: Any = dict(region=torch.ones(4, 2, 2), method="occlusion", patch=1)
    maps = attribute(functions(model, point(model), draws=1), image.detach(), 1, **shown)
    assert bool(np.isfinite(maps["mean"]).all())


def test_gradients_of_continuous_states_are_those_of_the_whole_chain() -> None:
    """Against central differences, in which the image acts by way of every state."""
    model = numbers()
    function = functions(model, point(model), draws=1)[0]
    image = 0.3 * batch(2, 2)["image"]
    leaf = image.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(leaf)[:, 1].sum(), leaf)
    step = 1e-2 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        moved = function(image + step)[:, 1].sum() - function(image - step)[:, 1].sum()
    assert abs(float((2 * step * found).sum() - moved)) < 0.02 * abs(float(moved))


OTHERS: dict[str, tuple[Any, Any, str]] = {
    "steps": (categorical, lambda: longer(8), "num_steps=4, but .* num_steps=8"),
    "schedule": (categorical, lambda: categorical(schedule="linear"), "schedule='cosine', but"),
    "hardening": (categorical, lambda: categorical(hardening=0.5), r"hardening=1\.0, but"),
    "target": (numbers, lambda: numbers(target="v"), "target='x', but .* target='v'"),
    "classes": (categorical, lambda: categorical(num_classes=3), "does not fit the model.*shape"),
}


def longer(num_steps: int) -> CategoricalDiffusion:
    """A chain of another length over the same net."""
    return CategoricalDiffusion(TableNet(2, 2, 4), NAMES[:2], num_steps)


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_chain_says_what_differs(name: str, tmp_path: Path) -> None:
    make, other, message = OTHERS[name]
    model, path = make(), tmp_path / "run.pt"
    save(path, model, point(model))
    again = make(form="slow", sampling_steps=2, bound_steps=3)  # draws may differ
    load(path, again, point(again))
    with pytest.raises(ValueError, match=message):
        load(path, other(), point(other()))


@pytest.mark.parametrize("make", [categorical, numbers])
def test_a_resumed_run_is_the_uninterrupted_one(make: Any, tmp_path: Path) -> None:
    models = {name: make() for name in ("whole", "parts")}
    guides = {name: point(model) for name, model in models.items()}
    batches = Batches(batch(2, 2), batch_size=2, shuffle=True)
    options: dict[str, Any] = {"progress": False, "seed": 3}
    whole = fit(models["whole"], guides["whole"], batches, epochs=3, **options)
    path = tmp_path / "run.pt"
    fit(models["parts"], guides["parts"], batches, epochs=1, checkpoint=path, **options)
    options["resume"] = True
    parts = fit(models["parts"], guides["parts"], batches, epochs=3, checkpoint=path, **options)
    xr.testing.assert_equal(whole["elbo"], parts["elbo"])
    pairs = zip(guides["whole"].parameters(), guides["parts"].parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    other = make(schedule="linear")
    with pytest.raises(ValueError, match=r"written with schedule=.cosine., but .*linear"):
        fit(other, point(other), batches, epochs=4, checkpoint=path, **options)
