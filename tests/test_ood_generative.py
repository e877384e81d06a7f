"""Scores of models that generate the image, against the closed forms of a linear VAE."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from linear_vae import DiagonalPosterior, LinearImageVAE
from ood_trees import feature_tree
from PIL import Image
from sklearn.covariance import EmpiricalCovariance
from torch import Tensor

from ppl_med import storage
from ppl_med.analysis import ood, scoring
from ppl_med.analysis.ood import generative
from ppl_med.analysis.tree import blocks
from ppl_med.data import Batches, RandomPixels
from ppl_med.explain import likelihood_regret
from ppl_med.inference import ConditionalNormal, Ensemble, fit, predict
from ppl_med.inference.training.heldout import heldout_nll
from ppl_med.models import ImageVAE

SHAPE, LATENT, SCALE = (1, 4, 4), 3, 0.7
SINGLE = [name for name in generative.SCORES if name != "waic"]
Z = 5.0  # standard errors: false alarms of 6e-7 a comparison


def linear(seed: int = 0) -> LinearImageVAE:
    torch.manual_seed(seed)
    return LinearImageVAE(SHAPE, LATENT, SCALE)


def tree_of(
    model: Any, guide: Any, image: Tensor, prefix: str, draws: int = 8, **attrs: Any
) -> xr.DataTree:
    ids = [f"{prefix}{index}" for index in range(len(image))]
    batches = Batches({"image": image, "id": ids}, batch_size=64)
    tree = predict(model, guide, batches, draws=draws, progress=False, device="cpu")
    tree.attrs |= attrs
    return tree


@pytest.fixture(scope="module")
def model() -> LinearImageVAE:
    return linear()


@pytest.fixture(scope="module")
def trees(model: LinearImageVAE) -> dict[str, xr.DataTree]:
    """Training, held-out and further cases of the model, and others that are moved."""
    torch.manual_seed(1)
    guide = DiagonalPosterior(model)
    images = {name: model.sample(size) for name, size in {"t": 80, "v": 39, "i": 50}.items()}
    images["o"] = model.sample(50) + 1.5 * torch.randn(SHAPE)
    return {name: tree_of(model, guide, image, name) for name, image in images.items()}


def images_of(tree: xr.DataTree) -> Tensor:
    array: Any = tree["observed_data/image"]
    return torch.from_numpy(array.values)


def array(tree: xr.DataTree, path: str) -> np.ndarray:
    found: Any = tree[path]
    return np.asarray(found.values)


# --- the contract of every score


@pytest.mark.parametrize("name", SINGLE)
def test_a_score_has_a_value_a_spread_and_a_pvalue_of_every_case(
    name: str,
    trees: dict[str, xr.DataTree],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = ood.fit_reference(name, trees["t"], held_out=trees["v"])
    found = ood.score(trees["i"], reference)
    single = found["score_per_draw"]
    assert single.dims == ("chain", "draw", "case") and np.isfinite(single).all()
    spread = single.values[0].std(0, ddof=1)  # 0 where the exact posterior makes weights equal
    np.testing.assert_allclose(found["score_sd"], spread, atol=1e-9)
    assert ((found["pvalue"] >= 1 / 40) & (found["pvalue"] <= 1)).all()
    storage.save(reference, tmp_path / "reference.nc")
    loaded = storage.load(tmp_path / "reference.nc")
    assert isinstance(loaded, xr.Dataset)
    xr.testing.assert_equal(ood.score(trees["i"], loaded), found)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2**13)  # by runs of few cases, backwards
    backwards = ood.score(trees["i"].isel(case=slice(None, None, -1)), reference)
    xr.testing.assert_allclose(backwards.isel(case=slice(None, None, -1)), found)
    other = ood.score(trees["o"], reference)
    assert 0 < float(ood.evaluate(found, other, resamples=0)["auroc"]) <= 1


def test_false_alarms_are_as_rare_as_stated(model: LinearImageVAE) -> None:
    """A new case is the most extreme of 19 + 1 in 1 of 20 studies: 80 of them, P(>= 16) < 2e-6."""
    torch.manual_seed(2)
    guide = DiagonalPosterior(model, offset=0.3)
    tree = tree_of(model, guide, model.sample(80 * 29), "c", draws=2)
    alarms = 0
    for study in range(80):
        own = tree.isel(case=slice(29 * study, 29 * (study + 1)))
        t, v, i = (own.isel(case=slice(*part)) for part in ((0, 9), (9, 28), (28, 29)))
        name = SINGLE[study % len(SINGLE)]
        found = ood.score(i, ood.fit_reference(name, t, held_out=v))
        alarms += float(found["pvalue"][0]) <= 0.05
    assert alarms < 16


# --- each score against what defines it


def test_likelihood_is_the_evidence(model: LinearImageVAE, trees: dict[str, xr.DataTree]) -> None:
    """Under the exact posterior every weight is log p(x); under another their mean is."""
    image = images_of(trees["i"])
    truth = -model.log_density(image)
    reference = ood.fit_reference("likelihood", trees["v"])
    found = ood.score(trees["i"], reference)
    np.testing.assert_allclose(found["score_per_draw"][0, 3], truth, atol=1e-4)
    wide = DiagonalPosterior(model, offset=0.1, widen=1.3)
    tree = tree_of(model, wide, image, "i", draws=150)
    weight = array(tree, "log_likelihood/image") + array(tree, "log_prior/z")
    ratio = np.exp(weight[0] - array(tree, "log_guide/z")[0] + truth)
    error = ratio.std(0, ddof=1) / 150**0.5
    assert (np.abs(ratio.mean(0) - 1) < Z * error).all() and error.max() < 0.15
    held_out = tree_of(model, wide, model.sample(5), "v", draws=150)
    found = ood.score(tree, ood.fit_reference("likelihood", held_out))
    np.testing.assert_allclose(found["score"], truth - np.log(ratio.mean(0)), atol=1e-6)
    assert (found["score"] < found["score_per_draw"].mean(("chain", "draw"))).all()  # not the ELBO


def test_validation_of_a_vae_is_its_evidence(model: LinearImageVAE) -> None:
    """Not the likelihood given codes that have seen the image, which no KL would hold back."""
    torch.manual_seed(6)
    image = model.sample(30)
    batches = [{"image": image[:20]}, {"image": image[20:]}]
    found = heldout_nll(model, DiagonalPosterior(model), batches, torch.device("cpu"), 2, 0)
    assert found == pytest.approx(-model.log_density(image).mean(), abs=1e-5)


def test_reconstruction_is_that_of_the_exact_posterior(
    model: LinearImageVAE, trees: dict[str, xr.DataTree]
) -> None:
    """E |x - x_s|^2 = |x - W m - b|^2 + sum of |W_k|^2 s_k^2."""
    image = images_of(trees["i"])
    tree = tree_of(model, DiagonalPosterior(model), image, "i", draws=60)
    held_out = tree_of(model, DiagonalPosterior(model), model.sample(9), "v", draws=60)
    found = ood.score(tree, ood.fit_reference("reconstruction", held_out))
    with torch.no_grad():
        mean, sd = model.posterior(image)
        rest = (image - model.decode(mean)).flatten(1).square().sum(1)
        square = rest + (model.weight.square().sum(0) * sd.square()).sum()
    constant = 16 * np.log(SCALE * np.sqrt(2 * np.pi))
    truth = constant + square.numpy() / (2 * SCALE**2)
    gap = (found["score"] - truth) / (found["score_sd"] / 60**0.5)
    assert (np.abs(gap) < Z).all()
    single = constant + array(tree, "posterior/error") ** 2 / (2 * SCALE**2)
    np.testing.assert_allclose(found["score_per_draw"], single, rtol=1e-6)


def test_reconstruction_mahalanobis_is_that_of_scikit_learn(trees: dict[str, xr.DataTree]) -> None:
    codes = {name: array(tree, "posterior/z")[0].astype(float) for name, tree in trees.items()}
    errors = {name: array(tree, "posterior/error")[0] for name, tree in trees.items()}
    expected = []
    for draw, code in enumerate(codes["t"]):
        tied = EmpiricalCovariance().fit(code)
        distance = {name: np.sqrt(tied.mahalanobis(z[draw])) for name, z in codes.items()}
        parts = (
            (one["t"].std(), one["o"])
            for one in ({name: values[draw] for name, values in errors.items()}, distance)
        )
        expected.append(sum(new / sd for sd, new in parts))
    reference = ood.fit_reference("reconstruction_mahalanobis", trees["t"], held_out=trees["v"])
    found = ood.score(trees["o"], reference)
    np.testing.assert_allclose(found["score_per_draw"][0], expected, rtol=1e-5)
    np.testing.assert_allclose(found["score"], np.mean(expected, 0), rtol=1e-5)


def test_input_complexity_is_density_less_bits(
    model: LinearImageVAE, trees: dict[str, xr.DataTree]
) -> None:
    train, image = images_of(trees["t"]).numpy(), images_of(trees["i"])
    bits = []
    for one in image.numpy():
        file = io.BytesIO()
        level = np.clip((one[0] - train.min()) / (train.max() - train.min()), 0, 1)
        Image.fromarray(np.rint(255 * level).astype(np.uint8)).save(file, "PNG", optimize=True)
        bits.append(8 * len(file.getvalue()))
    expected = -model.log_density(image) - np.log(2) * np.array(bits)
    reference = ood.fit_reference("input_complexity", trees["t"], held_out=trees["v"])
    np.testing.assert_allclose(ood.score(trees["i"], reference)["score"], expected, atol=1e-4)
    turned = trees["i"].copy()
    seen = turned["observed_data"].to_dataset().transpose("row", "col", "channel", "case", ...)
    turned["observed_data"] = xr.DataTree(seen)
    xr.testing.assert_equal(ood.score(turned, reference), ood.score(trees["i"], reference))


def test_a_code_is_longer_for_noise_than_for_a_plain_image() -> None:
    random = np.random.default_rng(0)
    for shape in ((1, 16, 16), (3, 16, 16), (2, 5, 16, 16)):
        noise = random.integers(256, size=shape, dtype=np.uint8)
        plain = np.full(shape, 7, np.uint8)
        assert 8 * noise.size < generative.png_bits(noise) < 12 * noise.size + 8 * 100 * noise.size
        assert generative.png_bits(plain) < generative.png_bits(noise) / 2


def test_background_ratio_is_the_difference_of_both_evidences(
    model: LinearImageVAE, trees: dict[str, xr.DataTree]
) -> None:
    image, other = images_of(trees["i"]), linear(7)
    background = tree_of(other, DiagonalPosterior(other), image, "i")
    found = ood.background_ratio(trees["i"], background)
    truth = other.log_density(image) - model.log_density(image)
    np.testing.assert_allclose(found["score"], truth, atol=1e-4)
    held_out = ood.background_ratio(
        trees["v"], tree_of(other, DiagonalPosterior(other), images_of(trees["v"]), "v")
    )
    assert (ood.with_pvalues(found, held_out)["pvalue"] > 0).all()
    with pytest.raises(ValueError, match="same model"):
        ood.background_ratio(trees["i"], trees["i"])
    with pytest.raises(ValueError, match="same cases"):
        ood.background_ratio(trees["i"], trees["v"])


def test_waic_is_mean_less_variance_over_members(model: LinearImageVAE) -> None:
    torch.manual_seed(3)
    others = [model, linear(4), linear(5)]
    members = [(one, DiagonalPosterior(one)) for one in others]
    images = {"i": model.sample(12), "v": model.sample(9)}
    trees = {}
    for name, image in images.items():
        chains = [tree_of(*pair, image, name, 4) for pair in members]
        trees[name] = storage.join_chains(chains)
    found = ood.score(trees["i"], ood.fit_reference("waic", trees["v"]))
    log_p = np.stack([one.log_density(images["i"]) for one in others])
    expected = log_p.var(0, ddof=1) - log_p.mean(0)
    np.testing.assert_allclose(found["score"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="1 chain"):
        ood.fit_reference("waic", tree_of(*members[0], images["v"], "v", 2))


def test_novelty_takes_scores_of_generated_images(trees: dict[str, xr.DataTree]) -> None:
    names = ("reconstruction_mahalanobis", "likelihood")
    reference = ood.fit_novelty(trees["t"], trees["v"], components=names)
    one, other = (ood.novelty(trees[name], reference) for name in "io")
    assert float(ood.evaluate(one, other, resamples=0)["auroc"]) > 0.9


# --- likelihood regret


def test_the_regret_of_an_optimal_encoder_is_nothing(model: LinearImageVAE) -> None:
    torch.manual_seed(5)
    image = model.sample(20)
    found = likelihood_regret(model, DiagonalPosterior(model), image, steps=20)
    np.testing.assert_allclose(found["elbo"][0, 0], model.log_density(image), atol=1e-5)
    assert (found["score"] >= 0).all() and float(found["score"].max()) < 1e-8
    assert found["score_sd"].isnull().all()


def test_the_regret_is_the_divergence_from_the_best_code(model: LinearImageVAE) -> None:
    """L(best) - L(q) = KL(q || posterior) where the posterior is in the family."""
    torch.manual_seed(5)
    image = model.sample(20)
    guide = DiagonalPosterior(model, offset=0.4, widen=1.5)
    found = likelihood_regret(model, guide, image, steps=300, batch_size=7)
    loc, sd = model.posterior(image)
    best = torch.distributions.Normal(loc, sd)
    proposed = torch.distributions.Normal(loc + 0.4, 1.5 * sd)
    truth = torch.distributions.kl_divergence(proposed, best).sum(1).numpy()
    np.testing.assert_allclose(found["score"], truth, rtol=1e-3)
    np.testing.assert_allclose(found["elbo_refitted"][0, 0], model.log_density(image), atol=1e-3)


def test_the_regret_of_members_has_chains_and_pvalues() -> None:
    torch.manual_seed(0)
    model = ImageVAE(1, (8, 8), latent_dim=2, width=4)
    guide = Ensemble(model, posterior, members=2)
    ids = [[f"{prefix}{index}" for index in range(4)] for prefix in "iv"]
    found, held_out = (
        likelihood_regret(model, guide, torch.randn(4, 1, 8, 8), steps=3, case=case) for case in ids
    )
    assert found["score_per_draw"].shape == (2, 1, 4) and (found["score"] >= 0).all()
    assert (ood.with_pvalues(found, held_out)["pvalue"] >= 0.2).all()
    assert float(ood.evaluate(held_out, found, resamples=0)["prevalence"]) == 0.5


def posterior(model: ImageVAE) -> ConditionalNormal:
    return ConditionalNormal(model.posterior_net(), observation="image")


# --- what makes no sense


def test_misuse_is_told(model: LinearImageVAE, trees: dict[str, xr.DataTree]) -> None:
    with pytest.raises(ValueError, match="no class probabilities"):
        ood.fit_reference("mcp", trees["v"])
    with pytest.raises(ValueError, match="tree is of a classifier"):
        ood.fit_reference("likelihood", feature_tree(20, "v"))
    with pytest.raises(ValueError, match="after it has seen"):
        scoring.elpd_heldout(trees["i"])
    seen = trees["t"].copy()
    seen.attrs["log_likelihood_of"] = "training"
    with pytest.raises(ValueError, match="training cases"):
        ood.fit_reference("likelihood", seen)
    with pytest.raises(ValueError, match="share 80 case"):
        ood.score(
            trees["t"], ood.fit_reference("input_complexity", trees["t"], held_out=trees["v"])
        )
    bare = trees["i"].copy()
    bare["posterior"] = trees["i"]["posterior"].to_dataset().drop_vars("error")
    with pytest.raises(ValueError, match="holds no error"):
        ood.fit_reference("reconstruction_mahalanobis", bare)
    image = model.sample(2)
    for wrong, message in (
        ({"steps": 0}, "steps"),
        ({"particles": 5}, "particles must be even"),
        ({"particles": 4}, "particles must be 6 or more"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ):
        with pytest.raises(ValueError, match=message):
            likelihood_regret(model, DiagonalPosterior(model), image, **wrong)
    with pytest.raises(ValueError, match="guide must propose one code"):
        likelihood_regret(model, lambda image: None, image)


def test_random_pixels_replace_a_share() -> None:
    image = torch.full((50, 1, 20, 20), -3.0)
    found = RandomPixels(0.2, 0.0, 1.0)(image, torch.Generator().manual_seed(0))
    changed = found != -3
    error = (0.2 * 0.8 / changed.numel()) ** 0.5
    assert abs(float(changed.double().mean()) - 0.2) < Z * error
    assert found[changed].min() >= 0 and found[changed].max() <= 1
    error = (1 / 12 / int(changed.sum())) ** 0.5
    assert abs(float(found[changed].double().mean()) - 0.5) < Z * error
    for wrong in ((1.2, 0.0, 1.0), (0.2, 1.0, 1.0)):
        with pytest.raises(ValueError):
            RandomPixels(*wrong)


# --- a VAE that was trained


def bars(cases: int, seed: int) -> Tensor:
    """A bright bar, upright, at one of four places."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.1 * torch.randn(cases, 1, 8, 8, generator=generator)
    for one, place in zip(image, torch.randint(4, (cases,), generator=generator), strict=True):
        one[:, :, 2 * int(place) : 2 * int(place) + 2] += 1
    return image


def test_a_trained_vae_finds_bars_that_lie() -> None:
    torch.manual_seed(0)
    model = ImageVAE(1, (8, 8), latent_dim=2, width=4)
    guide = posterior(model)
    batches = Batches({"image": bars(160, 0)}, batch_size=32, shuffle=True)
    fit(model, guide, batches, epochs=50, learning_rate=0.01, progress=False)
    trees = {n: tree_of(model, guide, bars(40, s), n) for n, s in (("t", 1), ("v", 2), ("i", 3))}
    trees["o"] = tree_of(model, guide, bars(40, 4).transpose(-1, -2).contiguous(), "o")
    for name in SINGLE:
        reference = ood.fit_reference(name, trees["t"], held_out=trees["v"])
        scores = ood.score(trees["i"], reference), ood.score(trees["o"], reference)
        assert float(ood.evaluate(*scores, resamples=0)["auroc"]) > 0.95, name
