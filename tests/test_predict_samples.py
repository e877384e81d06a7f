"""Several samples of every draw of the weights: ``predict(..., samples=S)``."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_med import storage
from ppl_med.analysis import augmentation, segmentation
from ppl_med.axes import dims
from ppl_med.data import Batches, symmetries
from ppl_med.inference import (
    ConditionalNormal,
    Ensemble,
    Guides,
    MeanFieldNormal,
    Noising,
    PointEstimate,
    functions,
    predict,
    predict_augmented,
    predictive,
)
from ppl_med.inference.guides.kept_draws import KeptChains
from ppl_med.models import BayesianClassifier, CategoricalDiffusion, ProbabilisticUNet
from ppl_med.networks import CompactCNN, DenoisingUNet
from ppl_med.weights import RandomWeights

CASES, DRAWS, SAMPLES = 6, 3, 4
OF_DRAWS = ("posterior", "posterior_predictive", "log_likelihood")


def model(image: Tensor, mask: Tensor | None = None, *, num_cases: int | None = None) -> Tensor:
    """Random weights w, and a level z of each case."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("case", num_cases or len(image), subsample=image):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1), infer=dims("latent"))
        logit = image[:, 0] + w[0] + z[..., None]
        logits = torch.stack([torch.zeros_like(logit), logit], -1)
        fn = dist.Categorical(logits=logits).to_event(2)
        pyro.sample("mask", fn, infer=dims("row", "col"))
    return logit


def guide(image: Tensor, mask: Tensor | None = None, *, num_cases: int | None = None) -> None:
    """A posterior of the weights alone."""
    pyro.sample("w", dist.Normal(torch.tensor([0.3, 0.0]), 0.7).to_event(1))


def cases(batch_size: int = 4, number: int = CASES) -> Batches:
    random = np.random.default_rng(0)
    arrays = {
        "image": random.normal(size=(number, 1, 3, 4)).astype(np.float32),
        "mask": random.integers(0, 2, (number, 3, 4)),
        "id": [f"c{place}" for place in range(number)],
    }
    return Batches(arrays, batch_size=batch_size)


def drawn(**options: Any) -> Any:
    settings = {"draws": DRAWS, "samples": SAMPLES, "progress": False} | options
    return predict(model, guide, settings.pop("batches", cases()), **settings)


def test_samples_of_a_draw_follow_each_other_and_share_its_weights() -> None:
    tree = drawn(prior_draws=2)
    assert (tree.attrs["draws"], tree.attrs["samples"]) == (DRAWS, SAMPLES)
    for name, number in {**dict.fromkeys(OF_DRAWS, DRAWS), "prior": 2}.items():
        group = tree[name].to_dataset()
        assert group.sizes["draw"] == number * SAMPLES
        assert group["weights"].dims == ("draw",)
        np.testing.assert_array_equal(group["weights"], np.repeat(np.arange(number), SAMPLES))
    w = tree["posterior/w"].values.reshape(DRAWS, SAMPLES, 2)
    assert (w == w[:, :1]).all() and len(np.unique(w[:, 0, 0])) == DRAWS
    z = tree["posterior/z"].values.ravel()
    assert len(np.unique(z)) == z.size
    drawn_masks = tree["posterior_predictive/mask"].values[0]
    assert len({mask.tobytes() for mask in drawn_masks}) == DRAWS * SAMPLES


def test_the_noise_of_samples_is_independent() -> None:
    """Correlations of z between samples, draws and cases; 1e-6 a test, of 12 pairs."""
    z = drawn(batches=cases(300, 600))["posterior/z"].values[0, ..., 0]  # (draw, case)
    pairs = np.corrcoef(z)[np.triu_indices(len(z), 1)] * z.shape[1] ** 0.5
    assert np.abs(pairs).max() < 5.7  # 66 pairs: 1e-6 together
    assert abs(z.mean()) < 5 / z.size**0.5 and abs(z.var() - 1) < 5 * (2 / z.size) ** 0.5


@pytest.mark.parametrize("batch_size", [1, 6])
def test_batches_change_no_sample(batch_size: int) -> None:
    expected, found = drawn(prior_draws=2), drawn(batches=cases(batch_size), prior_draws=2)
    for name in (*OF_DRAWS, "prior", "prior_predictive"):
        xr.testing.assert_allclose(found[name].to_dataset(), expected[name].to_dataset())


def test_one_sample_is_what_it_was_and_the_first_of_several() -> None:
    one, two, four = (drawn(samples=number) for number in (1, 2, 4))
    assert "samples" not in one.attrs and "weights" not in one["posterior"].coords
    assert (
        drawn(samples=1).attrs.keys()
        == predict(model, guide, cases(), draws=DRAWS, progress=False).attrs.keys()
    )
    for name in OF_DRAWS:
        for variable in one[name].data_vars:
            wanted = four[name][variable].values
            np.testing.assert_array_equal(one[name][variable], wanted[:, ::4])
            first = wanted.reshape(1, DRAWS, 4, *wanted.shape[2:])[:, :, :2]
            np.testing.assert_array_equal(
                two[name][variable], first.reshape(1, -1, *wanted.shape[2:])
            )


@pytest.mark.parametrize("suffix", ["zarr", "nc"])
def test_a_store_holds_the_same(suffix: str, tmp_path: Path, monkeypatch: Any) -> None:
    whole = drawn(prior_draws=2)
    monkeypatch.setattr(predictive, "CHUNK_CASES", 4)
    path = tmp_path / f"run.{suffix}"
    drawn(prior_draws=2, store=path)
    found = storage.load(path)
    for name in (*OF_DRAWS, "prior", "prior_predictive"):
        xr.testing.assert_equal(found[name].to_dataset().load(), whole[name].to_dataset())


def test_a_store_of_other_samples_is_refused_and_resumed_with_the_same(
    tmp_path: Path, monkeypatch: Any
) -> None:
    from ppl_med.inference.prediction import sinks

    path, append = tmp_path / "run.zarr", sinks.ZarrSink.append
    monkeypatch.setattr(predictive, "CHUNK_CASES", 4)

    def once(self: Any, chunk: Any) -> None:
        if chunk.start:
            raise KeyboardInterrupt
        append(self, chunk)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sinks.ZarrSink, "append", once)
        drawn(store=path)
    for other in (1, 2):
        with pytest.raises(ValueError, match="another samples"):
            drawn(store=path, samples=other, resume=True)
    found = drawn(store=path, resume=True)
    xr.testing.assert_equal(
        found["posterior"].to_dataset().load(), drawn()["posterior"].to_dataset()
    )
    with pytest.raises(ValueError, match="another samples"):
        drawn(store=path, samples=1, resume=True)
    plain = tmp_path / "plain.zarr"
    drawn(store=plain, samples=1)
    with pytest.raises(ValueError, match="another samples"):
        drawn(store=plain, resume=True)


def test_members_and_kept_draws() -> None:
    chains = KeptChains(
        [{"w": torch.tensor([[float(c), d] for d in range(5)])} for c in range(2)],
        [{"diverging": torch.tensor([False, True, False, False, False])}] * 2,
    )
    tree: Any = predict(model, chains, cases(), samples=2, progress=False)
    w = tree["posterior/w"].values
    np.testing.assert_array_equal(w[1, :, 1], np.repeat(np.arange(5), 2))
    assert (w[0, :, 0] == 0).all() and (w[1, :, 0] == 1).all()
    stats = tree["sample_stats"].to_dataset()
    np.testing.assert_array_equal(stats["weights"], tree["posterior"]["weights"])
    np.testing.assert_array_equal(stats["diverging"][0], np.repeat([0, 1, 0, 0, 0], 2) == 1)
    few: Any = predict(model, chains, cases(), draws=3, samples=2, progress=False)
    np.testing.assert_array_equal(few["posterior/w"][0, :, 1], [0, 0, 2, 2, 4, 4])


class Raters(PyroModule):
    """A net with random weights whose outlines move with the level z of a rater."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = RandomWeights(nn.Conv2d(1, 1, 3, padding=1))

    def forward(
        self, image: Tensor, mask: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        output = self.network(image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            logit = 3 * (output[:, 0] + z[..., None, None])
            logits = torch.stack([torch.zeros_like(logit), logit], -1)
            fn = dist.Categorical(logits=logits).to_event(2)
            pyro.sample("mask", fn, infer=dims("row", "col"))
        return logit


IMAGES = {"image": torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))}


def test_summaries_and_kept_outputs_repeat_within_a_draw_of_the_weights() -> None:
    net = Raters()
    spread = MeanFieldNormal(net, init_scale=0.3)
    tree: Any = predict(net, spread, [IMAGES], draws=2, samples=3, progress=False)
    norms = tree["posterior/weight_norm"].values.reshape(2, 3, -1)
    assert (norms == norms[:, :1]).all() and (norms[0] != norms[1]).any()
    assert np.unique(tree["posterior/z"].values).size == 18


def test_functions_have_the_weights_of_the_draws() -> None:
    net = Raters()
    spread = MeanFieldNormal(net, init_scale=0.3)
    tree: Any = predict(net, spread, [IMAGES], draws=2, samples=3, progress=False)
    group = tree["posterior"].to_dataset()
    logs: Any = np.log(group["probs"].astype(float))
    logit = logs.isel({"class": 1}) - logs.isel({"class": 0})
    plain = (logit - 3 * group["z"]).values[0]  # what the net gives, (draw, case, row, col)
    with torch.no_grad():
        for weights, function in enumerate(functions(net, spread, draws=2)):
            output = function(IMAGES["image"]).numpy()
            expected = output[..., 1, :, :] - output[..., 0, :, :] if output.ndim > 3 else output
            shift = expected - plain[3 * weights]  # one noise a function, the same for all cases
            np.testing.assert_allclose(shift, shift.flat[0], atol=1e-3)
            own = plain[3 * weights : 3 * weights + 3]
            np.testing.assert_allclose(own, own[:1].repeat(3, 0), atol=1e-3)


def test_members_of_an_ensemble_have_their_own() -> None:
    ensemble = Ensemble(Raters(), PointEstimate, members=2)
    tree: Any = predict(
        ensemble.members[0][0], ensemble, [IMAGES], draws=1, samples=3, progress=False
    )
    probs = tree["posterior/probs"]
    assert probs.sizes["chain"] == 2 and probs["weights"].values.tolist() == [0, 0, 0]
    assert np.unique(tree["posterior/z"].values).size == 18


def test_augmentations_share_the_noise_of_a_sample() -> None:
    net = Raters()
    options: Any = {"draws": 2, "samples": 3, "progress": False}
    tree: Any = predict(net, MeanFieldNormal(net), [IMAGES], **options)
    moved: Any = predict_augmented(net, MeanFieldNormal(net), [IMAGES], symmetries(2), **options)
    assert moved["posterior"]["weights"].values.tolist() == [0, 0, 0, 1, 1, 1]
    plain = moved["posterior/probs"].isel(augmentation=0)
    np.testing.assert_allclose(plain.values, tree["posterior/probs"].values, atol=1e-6)
    assert augmentation.summary(moved).attrs["num_functions"] == 2


def test_a_net_of_the_zoo_with_latents() -> None:
    net = ProbabilisticUNet(1, ["a", "b"], latent_dim=2, channels=(4, 6), num_convolutions=1)
    both: Any = ConditionalNormal(net.posterior_net(), observation="mask")
    tree: Any = predict(net, both, [IMAGES], draws=2, samples=3, progress=False)
    assert tree["posterior/probs"].sizes["draw"] == 6


def test_chains_of_a_diffusion_share_a_draw_of_the_weights() -> None:
    torch.manual_seed(0)
    net = DenoisingUNet(1, 2, 2, channels=(4, 4), image_channels=(4, 4), norm_groups=2)
    chain = CategoricalDiffusion(net, ["a", "b"], num_steps=4)
    both = Guides(MeanFieldNormal(chain, init_scale=0.05), Noising(chain.noising))
    batch = {**IMAGES, "mask": torch.randint(0, 2, (3, 8, 8))}
    tree: Any = predict(chain, both, [batch], draws=3, samples=2, progress=False)
    one: Any = predict(chain, both, [batch], draws=3, progress=False)
    for path in ("posterior/probs", "posterior_predictive/mask", "evidence_bound/mask"):
        values = tree[path].values
        np.testing.assert_array_equal(values[:, ::2], one[path].values)
        assert (values[:, 1::2] != values[:, ::2]).any()
        assert tree[path]["weights"].values.tolist() == [0, 0, 1, 1, 2, 2]
    norms = tree["posterior/weight_norm"].values[0]
    assert (norms[::2] == norms[1::2]).all()
    found = segmentation.rater_and_weight_variance(tree)
    assert (found.attrs["num_weight_draws"], found.attrs["samples_per_draw"]) == (3, 2)
    with pytest.raises(ValueError, match="one sample of each draw of the weights"):
        segmentation.rater_and_weight_variance(one)


def test_samples_that_would_be_copies_are_refused() -> None:
    net = BayesianClassifier(CompactCNN(width=2), ["a", "b"])
    images = {"image": torch.randn(3, 1, 16, 16)}
    with pytest.raises(ValueError, match=r"samples=2: the model has no latent of a case.*draws"):
        predict(net, MeanFieldNormal(net), [images], draws=2, samples=2, progress=False)
    with pytest.raises(ValueError, match="samples"):
        drawn(samples=0)


def test_a_site_of_the_name_of_the_coordinate_is_refused() -> None:
    def other(image: Tensor, *, num_cases: int | None = None) -> None:
        weights = pyro.sample("weights", dist.Normal(0.0, 1.0))
        with pyro.plate("case", num_cases or len(image), subsample=image):
            z = pyro.sample("z", dist.Normal(weights, 1.0))
            pyro.sample("label", dist.Normal(z, 1.0))

    images = [{"image": torch.randn(3, 1, 2, 2)}]
    predict(other, None, images, draws=2, progress=False)
    with pytest.raises(ValueError, match=r"'weights'.*rename"):
        predict(other, None, images, draws=2, samples=2, progress=False)
