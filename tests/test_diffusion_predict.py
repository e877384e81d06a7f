"""Masks and bounds that ``predict`` gives of a diffusion: exact, reproducible, marked as bounds."""

from pathlib import Path
from typing import Any

import arviz_stats
import numpy as np
import pytest
import torch
import xarray as xr
from noised_masks import Classes, TableNet, point
from torch import Tensor

from ppl_med.analysis import scoring
from ppl_med.data import Batches
from ppl_med.inference import Guides, MeanFieldNormal, Noising, PointEstimate, fit, predict
from ppl_med.models import CategoricalDiffusion, GaussianDiffusion
from ppl_med.testing import assert_mean

NAMES = ("a", "b", "c")


def categorical(num_steps: int = 4, num_classes: int = 2, **settings: Any) -> CategoricalDiffusion:
    net = TableNet(num_classes, num_classes, num_steps)
    return CategoricalDiffusion(net, NAMES[:num_classes], num_steps, **settings)


def numbers(num_steps: int = 4, **settings: Any) -> GaussianDiffusion:
    return GaussianDiffusion(TableNet(1, 2, num_steps), NAMES[:2], num_steps, **settings)


def data(*size: int, cases: int = 5) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    image = torch.randn(cases, 1, *size, generator=generator)
    return {"image": image, "mask": (image[:, 0] > 0).long(), "id": [f"p{n}" for n in range(cases)]}


def drawn(model: Any, arrays: dict[str, Any], batch_size: int = 5, **options: Any) -> Any:
    guide = options.pop("guide", None) or point(model)
    settings = {"draws": 3, "seed": 2, "progress": False} | options
    return predict(model, guide, Batches(arrays, batch_size=batch_size), **settings)


def exact_bound(model: CategoricalDiffusion, image: float, mask: int) -> float:
    """Of one pixel, by all paths."""
    net, number = model.network.net, model.noising.num_classes

    def logits(t: int, state: tuple[int, ...]) -> Any:
        noised = torch.tensor(2.0 * np.eye(number)[list(state)].T - 1).float()
        step, features = torch.tensor([t / model.noising.num_steps]), torch.full((1, 1, 1), image)
        with torch.no_grad():
            found = net(features=features, noised=noised[None], step=step)
        return found[0].T.double().numpy()

    return Classes(model.noising.kept, number).bound(logits, (mask,))


@pytest.mark.parametrize(("form", "bound_steps"), [("fast", 1), ("fast", 4), ("slow", 1)])
def test_the_mean_of_the_stored_bounds_is_the_sum_over_all_paths(
    form: Any, bound_steps: int
) -> None:
    model = categorical(form=form, bound_steps=bound_steps)
    arrays = {"image": torch.full((500, 1, 1, 1), 0.4), "mask": torch.ones(500, 1, 1).long()}
    tree = drawn(model, arrays, 500, draws=6)
    bound = tree["evidence_bound/mask"]
    assert bound.dims == ("chain", "draw", "case") and bound.attrs["units"] == "nats"
    assert_mean(bound.values.ravel(), exact_bound(model, 0.4, 1))
    if bound_steps > 1:  # steps of a case in strata vary less than as many apart
        one = drawn(categorical(form=form), arrays, 500, draws=6)["evidence_bound/mask"]
        assert float(bound.var()) < float(one.var()) / bound_steps


def test_the_drawn_masks_follow_the_chain() -> None:
    """All paths without a mask give the chance of every class, also by steps of two."""
    for sampling_steps in (None, 2, 1):
        model = categorical(num_classes=3, sampling_steps=sampling_steps)
        truth, number = Classes(model.noising.kept, 3), 3
        law = np.full(number, 1 / 3)
        for later, earlier in model.noising.grid(sampling_steps):
            step = torch.full((3,), later / 4)
            noised = (2 * torch.eye(3) - 1).view(3, 3, 1, 1)
            with torch.no_grad():
                net = model.network.net
                found = net(features=torch.full((3, 1, 1, 1), 0.4), noised=noised, step=step)
            weight = found[:, :, 0, 0].double().exp().numpy() * truth.step(later, 0).T
            probs = weight / weight.sum(1, keepdims=True)
            law = np.einsum("t,tk,kts->s", law, probs, truth.posterior(later, earlier))
        arrays = {"image": torch.full((1000, 1, 1, 1), 0.4)}
        tree = drawn(model, arrays, 1000, draws=2)
        masks = tree["posterior_predictive/mask"].values.ravel()
        assert_mean(masks[:, None] == np.arange(3), law)
        assert_mean(tree["posterior/probs"].values.reshape(-1, 3), law)


@pytest.mark.parametrize("make", [categorical, numbers])
@pytest.mark.parametrize("size", [(4, 2), (2, 4, 2)])
def test_draws_and_bounds_do_not_depend_on_the_batch(make: Any, size: tuple[int, ...]) -> None:
    form = "slow" if len(size) == 2 else "fast"  # every state that is drawn has a part in a bound
    model = make(spatial_dims=len(size), sampling_steps=2, bound_steps=2, form=form)
    whole = drawn(model, data(*size), 5)
    space = ("depth", "row", "col")[-len(size) :]
    assert whole["posterior_predictive/mask"].dims == ("chain", "draw", "case", *space)
    assert whole["posterior/probs"].dims == ("chain", "draw", "case", "class", *space)
    assert set(whole["posterior"].data_vars) == {"probs", "weight_norm"}, "states are not stored"
    assert "log_likelihood" not in whole
    assert whole.attrs["sampling_steps"] == 2 and whole.attrs["bound_steps"] == 2
    parts = drawn(model, data(*size), 2)
    xr.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        whole["posterior_predictive/mask"], parts["posterior_predictive/mask"]
    )
    more = drawn(model, data(*size), 5, draws=4)  # draw s is draw s, however many there are
    xr.testing.assert_equal(more["evidence_bound/mask"][:, :3], whole["evidence_bound/mask"])
    other = drawn(model, data(*size), 5, seed=3)
    assert (other["evidence_bound/mask"] != whole["evidence_bound/mask"]).any()


class Recorder(TableNet):
    """Notes one of its weights whenever it is called."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.seen: list[float] = []

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        self.seen.append(float(self.table.flatten()[0]))
        return super().forward(*inputs, **options)


def test_one_draw_of_the_weights_serves_a_chain_and_its_bound() -> None:
    model = CategoricalDiffusion(Recorder(2, 2, 4), NAMES[:2], 4, bound_steps=2)
    guide = Guides(MeanFieldNormal(model, init_scale=5.0), Noising(model.noising))
    drawn(model, data(2, 2), 3, guide=guide, draws=4)
    seen: Any = model.network.net.seen
    # Two batches: each the image and four steps, then the image and one pass for the bound.
    blocks = np.array(seen[-4 * 2 * (5 + 2) :]).reshape(4, -1)
    assert (blocks == blocks[:, :1]).all()
    assert len(np.unique(blocks[:, 0])) == 4


def graded() -> dict[str, Any]:
    arrays = data(2, 3)
    first = arrays["mask"]
    arrays["mask"] = torch.stack([first, 1 - first, first], 1)
    arrays["mask"][3, 1] = -1
    return arrays


def test_graders_who_saw_no_image_have_no_bound() -> None:
    model = categorical()
    tree = drawn(model, graded(), 2)
    bound = tree["evidence_bound/mask"].transpose("chain", "draw", "case", "grader").values
    assert np.isnan(bound[:, :, 3, 1]).all() and np.isnan(bound).sum() == 3
    alone = drawn(model, {**graded(), "mask": graded()["mask"][:, 2]}, 5)
    np.testing.assert_allclose(bound[..., 2], alone["evidence_bound/mask"].values, rtol=1e-5)
    read = scoring.evidence_bound(tree)
    assert read["bound"].sizes == {"case": 5, "grader": 3} and np.isfinite(read["bound_mean"])
    expected = float(read["bound_mean"]) / 6
    np.testing.assert_allclose(float(read["bound_per_pixel"]), expected)


def test_a_bound_per_pixel_is_by_the_pixels_that_were_seen() -> None:
    """Cases of two sizes, padded, and pixels that nobody annotated; one value of a known bound."""
    seen = np.zeros((3, 2, 4, 5), bool)
    seen[0] = seen[1, 0] = True
    seen[2, :, :2, :3] = True
    bound = -0.7 * seen.sum((2, 3)).astype(float)
    bound[1, 1] = np.nan  # a grader who saw no image
    dims = ("case", "grader", "row", "col")
    tree = xr.DataTree.from_dict(
        {
            "/evidence_bound": xr.Dataset(
                {"mask": (("chain", "draw", *dims[:2]), np.repeat(bound[None, None], 4, 1))}
            ),
            "/observed_data": xr.Dataset({"mask": (dims, np.where(seen, 1, -1))}),
        }
    )
    read = scoring.evidence_bound(tree)
    np.testing.assert_allclose(float(read["bound_per_pixel"]), -0.7)
    np.testing.assert_allclose(float(read["bound_mean"]), -0.7 * (20 + 20 + 6) / 3)
    image = np.zeros((3, 2, 4, 5))
    image[2, :, 2:] = np.nan  # behind the end of a smaller one
    many = xr.DataTree.from_dict(
        {
            "/evidence_bound": xr.Dataset(
                {"image": (("chain", "draw", "case"), np.array([[[-20.0, -20.0, -10.0]] * 4]))}
            ),
            "/observed_data": xr.Dataset({"image": (("case", "channel", "row", "col"), image)}),
        }
    )
    np.testing.assert_allclose(float(scoring.evidence_bound(many)["bound_per_pixel"]), -1.0)


def test_bounds_are_no_densities() -> None:
    tree = drawn(categorical(), data(2, 2), log_likelihood_of="training")
    for analysis in (scoring.elpd_heldout, scoring.elpd_loo):
        with pytest.raises(ValueError, match="no log_likelihood but lower bounds"):
            analysis(tree)
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        arviz_stats.loo(tree)


@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_bounds_are_stored(name: str, tmp_path: Path) -> None:
    model = categorical()
    whole, path = drawn(model, graded(), 2), tmp_path / name
    kept = drawn(model, graded(), 2, store=path)
    xr.testing.assert_equal(
        kept["evidence_bound"].to_dataset(), whole["evidence_bound"].to_dataset()
    )
    if name.endswith("nc"):
        with xr.open_datatree(path) as again:
            xr.testing.assert_equal(again["evidence_bound/mask"], whole["evidence_bound/mask"])
    else:
        once_more = drawn(model, graded(), 2, store=path, resume=True)
        xr.testing.assert_equal(once_more["evidence_bound/mask"], whole["evidence_bound/mask"])
        with pytest.raises(ValueError, match="sampling_steps"):
            drawn(categorical(sampling_steps=2), graded(), 2, store=path, resume=True)


def test_a_guide_without_the_noising_process_is_refused() -> None:
    model = categorical()
    with pytest.raises(ValueError, match=r"does not propose the latent site 'x4'.*Guides"):
        drawn(model, data(2, 2), guide=PointEstimate(model, use_prior=False))


def test_validation_is_by_the_bound() -> None:
    """The mask's density at the end of another chain says nothing of it."""
    arrays = {"image": torch.full((300, 1, 1, 1), 0.4), "mask": torch.ones(300, 1, 1).long()}
    model, batches = categorical(), Batches(arrays, batch_size=300)
    options: dict[str, Any] = {"learning_rate": 1e-12, "progress": False}
    history = fit(model, point(model), batches, epochs=1, validation=batches, **options)
    exact = -exact_bound(model, 0.4, 1)
    spread = float(drawn(model, arrays, 300)["evidence_bound/mask"].std())
    found = float(history["validation_nll"].values.ravel()[-1])
    assert abs(found - exact) < 5 * spread / np.sqrt(300 * 8)
