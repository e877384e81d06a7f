"""Small seeded runs of every kind of program, to be compared with what an earlier version gave.

    python tests/frozen_runs.py --digest        print a digest per result, to compare bit for bit
    python tests/frozen_runs.py --write FOLDER  write the results, two checkpoints and two stores

Only the public interface is used, so that the same script runs before and after a change. The
files in ``tests/frozen`` were written by commit bb788ef; written anew they would prove nothing.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import frozen_analyses
import frozen_explanations
import frozen_store
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from frozen_store import Results, named
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from ppl_med import inference, storage
from ppl_med.data import Batches
from ppl_med.explain import AttributionConstrained, NoPositiveAttribution, RightReasons
from ppl_med.inference import (
    BernoulliDropout,
    BestHead,
    ConditionalHierarchy,
    ConditionalNormal,
    Ensemble,
    FromPrior,
    Geco,
    Guides,
    ImportanceWeighted,
    PointEstimate,
    fit,
    predict,
    save,
)
from ppl_med.likelihoods import Gaussian, LaplaceNoise, Quantiles, StudentT
from ppl_med.models import (
    BayesianClassifier,
    BayesianRegressor,
    BayesianSegmenter,
    ConditionalVAE,
    ConfounderFreeClassifier,
    DenseRegressor,
    HierarchicalProbabilisticUNet,
    ImageToImageVAE,
    LatentClassifier,
    MultiHeadUNet,
    ProbabilisticUNet,
    SiteTemperature,
    StochasticSegmentationNetwork,
)
from ppl_med.networks import GaussianEncoder, UNet

FOLDER = Path(__file__).parent / "frozen"
CLASSES = ("a", "b")
CASES, SIZE, BATCH = 8, 8, 4
SMALL: dict[str, Any] = {"channels": (3, 4), "num_convolutions": 1}
PIXEL = ("row", "col")
MeanFieldNormal: Any = partial(inference.MeanFieldNormal, estimator="auto")  # the default then
PLAIN_UNIT: Any = {"loc": 0.0, "scale": 1.0}  # values as they are, as when the runs were frozen
Pair = tuple[Any, Any]
FIT: dict[str, Any] = {"epochs": 2, "learning_rate": 0.01, "seed": 3, "progress": False}
PREDICT: dict[str, Any] = {"draws": 3, "seed": 5, "progress": False}


def prior(name: str, *settings: Any) -> Any:
    """A prior over weights."""
    return named(name, "ppl_med.weights", "ppl_med.priors")(*settings)


# --- data


def arrays(*names: str, cases: int = CASES, size: int = SIZE, first: int = 0) -> dict[str, Any]:
    """Two classes told apart by the brightness of the left half; the named columns besides."""
    rng = np.random.default_rng(first + size)
    label = (np.arange(cases) + first) % 2
    image = rng.normal(size=(cases, 1, size, size))
    image[..., : size // 2] += (2 * label - 1)[:, None, None, None]
    mask = np.zeros((cases, size, size), np.int64)
    mask[..., : size // 2] = label[:, None, None]
    noise = 0.1 * rng.normal(size=(cases, size, size))
    depth = (2.0 * mask - 1 + noise).astype("float32")
    holes = depth.copy()
    holes[:, 0, :2] = np.nan
    torn = mask.copy()
    torn[:, -1, :3] = -1
    irrelevant = np.zeros((cases, size, size), bool)
    irrelevant[..., size // 2 :] = True
    every = {
        "label": label,
        "mask": mask,
        "value": (2.0 * label - 1 + noise[:, 0, 0]).astype("float32"),
        "depth": depth,
        "holes": holes,
        "torn": torn,
        "confounder": noise[:, 0, 1].astype("float32"),
        "irrelevant": irrelevant,
        "age": rng.normal(50, 10, cases),
    }
    ids = [f"case {first + index}" for index in range(cases)]
    renamed = {"holes": "depth", "torn": "mask"}
    columns = {renamed.get(name, name): every[name] for name in names}
    return {"image": image.astype("float32"), **columns, "id": ids}


def training(*names: str, **options: Any) -> Batches:
    return Batches(arrays(*names, **options), batch_size=BATCH, shuffle=True, seed=1)


def held_out(*names: str, size: int = SIZE) -> Batches:
    return Batches(arrays(*names, cases=4, size=size, first=100), batch_size=3)


# --- networks and programs


def dense_net(outputs: int = 2) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, outputs))


def small_net(outputs: int = 2) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, bias=False),
        nn.BatchNorm2d(3),
        nn.PReLU(),
        nn.Conv2d(3, 3, 3, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(3, outputs),
    )


def small_unet(outputs: int = 2) -> nn.Module:
    return nn.Sequential(UNet(1, **SMALL), nn.Conv2d(3, outputs, 1))


def classifier(
    guide: Callable[[Any], Any],
    net: Callable[..., Any] = small_net,
    outputs: int = 2,
    **options: Any,
) -> Pair:
    model = BayesianClassifier(net(outputs), CLASSES, **options)
    return model, guide(model)


def segmenter(guide: Callable[[Any], Any], outputs: int = 2, **options: Any) -> Pair:
    model = BayesianSegmenter(small_unet(outputs), CLASSES, **options)
    return model, guide(model)


def regressor(likelihood: Any, guide: Callable[[Any], Any] = MeanFieldNormal) -> Pair:
    model = BayesianRegressor(small_net(likelihood.num_outputs), likelihood)
    return model, guide(model)


def dense_regressor(likelihood: Any = None) -> Pair:
    if likelihood is None:
        likelihood = LaplaceNoise(PIXEL, site="depth", partial=True, **PLAIN_UNIT)
    outputs = likelihood.num_outputs
    model = DenseRegressor(small_unet(outputs), likelihood)
    return model, MeanFieldNormal(model)


def coded(kind: Any, **options: Any) -> Pair:
    model = kind(1, CLASSES, latent_dim=2, **SMALL, **options)
    return model, ConditionalNormal(model.posterior_net(), observation="mask")


def hierarchical() -> Pair:
    model = HierarchicalProbabilisticUNet(1, CLASSES, (2, 1), (4, 5, 5), num_blocks=1)
    return model, ConditionalHierarchy(model.posterior_net())


def latent() -> Pair:
    model = LatentClassifier(1, CLASSES, latent_dim=2, width=3)
    return model, ConditionalNormal(GaussianEncoder(1, 2, 3, num_classes=2))


def conditional_vae() -> Pair:
    model = ConditionalVAE(1, CLASSES, (SIZE, SIZE), latent_dim=2, width=3)
    return model, ConditionalNormal(model.posterior_net())


def multi_head() -> Pair:
    model = MultiHeadUNet(1, CLASSES, heads=3, **SMALL)
    return model, BestHead(model)


def stochastic_segmentation(rank: int) -> Pair:
    model = StochasticSegmentationNetwork(1, CLASSES, rank=rank, **SMALL)
    return model, FromPrior("z", "noise")


def confounder_free() -> Pair:
    features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten())
    model = ConfounderFreeClassifier(features, nn.Linear(72, 2), CLASSES, 72)
    return model, BernoulliDropout(model)


def constrained() -> Pair:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(72, 2))
    constraints: list[Any] = [RightReasons(0.1), NoPositiveAttribution(0.1)]
    model = AttributionConstrained(BayesianClassifier(net, CLASSES), constraints)
    return model, MeanFieldNormal(model)


def own_program(image: Tensor, value: Tensor | None = None, *, num_cases: int | None = None) -> Any:
    """Linear regression on the mean of the image, with noise of unknown size."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    mean = slope[0] + slope[1] * image.flatten(1).mean(1)
    with pyro.plate("case", num_cases or len(image), subsample=image):
        pyro.sample("value", dist.Normal(mean, scale), obs=value)


class TwoLatents(nn.Module):
    """A code per case and a slope over all cases, for two guides joined."""

    def forward(
        self, image: Tensor, value: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("case", num_cases or len(image), subsample=image):
            code = pyro.sample("code", dist.Normal(0.0, 1.0))
            mean = slope * image.flatten(1).mean(1) + code
            pyro.sample("value", dist.Normal(mean, 0.3), obs=value)


def joined() -> Pair:
    model = TwoLatents()
    slope: Any = AutoNormal(pyro.poutine.block(model, expose=["slope"]))
    return model, Guides(slope, FromPrior("code"))


# --- runs: a pair, its data, what fit and predict are told

Run = Callable[[], Results]


def run(name: str, pair: Callable[[], Pair], columns: tuple[str, ...], **options: Any) -> Results:
    """Train and predict; the history and every group of the tree."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    size = options.pop("size", SIZE)
    told = {key: options.pop(key) for key in ("prior_draws", "window", "blend") if key in options}
    model, guide = pair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        history = fit(model, guide, training(*columns, size=size), **FIT | options)
        tree = predict(
            model,
            guide,
            held_out(*columns, size=size + bool(told.get("window")) * 5),
            **PREDICT | told,
        )
    return {f"{name}/history": history, **frozen_store.groups_of(tree, name)}


def site_temperature(name: str) -> Results:
    rng = np.random.default_rng(2)
    image = rng.normal(size=(12, 2, 1, 1)).astype("float32")
    columns = {
        "image": torch.tensor(image),
        "site": torch.tensor(np.arange(12) % 2),
        "label": torch.tensor((image[:, 1, 0, 0] > 0).astype("int64")),
        "id": [f"case {index}" for index in range(12)],
    }
    pyro.clear_param_store()
    torch.manual_seed(0)
    model = SiteTemperature(["north", "south"], CLASSES)
    guide = AutoNormal(model)
    history = fit(model, guide, [columns], **FIT)
    tree = predict(model, guide, [columns], **PREDICT)
    return {f"{name}/history": history, **frozen_store.groups_of(tree, name)}


L, M, V, D = ("label",), ("mask",), ("value",), ("depth",)
mean_field = partial(partial, MeanFieldNormal)
PLAIN: dict[str, tuple[Callable[[], Pair], tuple[str, ...], dict[str, Any]]] = {
    "shared": (partial(classifier, mean_field(estimator="shared")), (*L, "age"), {}),
    "flipout": (partial(classifier, mean_field(estimator="flipout")), L, {}),
    "local": (partial(classifier, mean_field(estimator="local"), dense_net), L, {}),
    "auto": (
        partial(classifier, MeanFieldNormal),
        L,
        {"validation": held_out(*L), "schedule": "cosine", "kl_weight": lambda done: done},
    ),
    "dropout": (partial(classifier, BernoulliDropout), L, {}),
    "point": (partial(classifier, PointEstimate), L, {}),
    "maximum-likelihood": (partial(classifier, partial(PointEstimate, use_prior=False)), L, {}),
    "ensemble": (
        partial(classifier, partial(Ensemble, guide_factory=PointEstimate, members=2)),
        L,
        {},
    ),
    "ensemble-of-normals": (
        partial(classifier, partial(Ensemble, guide_factory=MeanFieldNormal, members=2), dense_net),
        L,
        {},
    ),
    "last-layer": (partial(classifier, MeanFieldNormal, where="last_layer"), L, {"prior_draws": 2}),
    "laplace-prior": (
        lambda: classifier(MeanFieldNormal, dense_net, prior=prior("Laplace", 0.3)),
        L,
        {},
    ),
    "mixture-prior": (
        lambda: classifier(BernoulliDropout, dense_net, prior=prior("ScaleMixture")),
        L,
        {},
    ),
    "pretrained-prior": (
        lambda: classifier(MeanFieldNormal, dense_net, prior=prior("Normal", 0.5, "pretrained")),
        L,
        {},
    ),
    "bernoulli": (partial(classifier, MeanFieldNormal, outputs=1, likelihood="bernoulli"), L, {}),
    "logit-normal": (
        partial(classifier, BernoulliDropout, outputs=4, likelihood="logit_normal"),
        L,
        {},
    ),
    **{
        name: (partial(classifier, MeanFieldNormal, likelihood=name), L, {})
        for name in ("label_noise", "label_smoothing", "margin_smoothing", "focal")
    },
    "latent-classifier": (latent, L, {}),
    "conditional-vae": (conditional_vae, L, {}),
    "confounder-free": (confounder_free, (*L, "confounder"), {}),
    "constrained": (constrained, (*L, "irrelevant"), {}),
    "segmenter": (partial(segmenter, MeanFieldNormal), M, {}),
    "segmenter-torn": (partial(segmenter, BernoulliDropout), ("torn",), {}),
    **{
        name: (partial(segmenter, BernoulliDropout, likelihood=name), M, {})
        for name in ("spatial_smoothing", "neighbour_aware")
    },
    "windowed": (partial(segmenter, MeanFieldNormal), M, {"window": (8, 8)}),
    "probabilistic-unet": (partial(coded, ProbabilisticUNet), M, {"prior_draws": 2}),
    "mixture-unet": (partial(coded, ProbabilisticUNet, prior_components=2), M, {}),
    "image-to-image": (partial(coded, ImageToImageVAE), M, {}),
    "hierarchical": (hierarchical, M, {"objective": Geco(20.0)}),
    "low-rank": (partial(stochastic_segmentation, 2), M, {"objective": ImportanceWeighted(3)}),
    "multi-head": (multi_head, M, {}),
    "gaussian": (lambda: regressor(Gaussian(**PLAIN_UNIT)), V, {}),
    "gaussian-beta": (
        lambda: regressor(Gaussian(beta=0.5, heteroscedastic=False, **PLAIN_UNIT)),
        V,
        {},
    ),
    "laplace-noise": (lambda: regressor(LaplaceNoise(**PLAIN_UNIT), BernoulliDropout), V, {}),
    "student-t": (lambda: regressor(StudentT(**PLAIN_UNIT)), V, {}),
    "quantiles": (lambda: regressor(Quantiles((0.1, 0.5, 0.9), **PLAIN_UNIT)), V, {}),
    "dense": (dense_regressor, D, {}),
    "dense-holes": (
        lambda: dense_regressor(Gaussian(PIXEL, site="depth", partial=True, **PLAIN_UNIT)),
        ("holes",),
        {},
    ),
    "own-program": (lambda: (own_program, AutoNormal(own_program)), V, {}),
    "joined-guides": (joined, V, {}),
}
RUNS: dict[str, Run] = {
    name: partial(run, name, pair, columns, **options)
    for name, (pair, columns, options) in PLAIN.items()
}
RUNS["site-temperature"] = partial(site_temperature, "site-temperature")


# --- files that must still open


class Stop(Exception):
    """Ends a run in the middle."""


class Interrupted:
    """Batches that end the run after some."""

    def __init__(self, batches: Any, after: int) -> None:
        self.batches, self.left = batches, after

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["batches"], name)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            if self.left == 0:
                raise Stop
            self.left -= 1
            yield batch


def filed_pair() -> Pair:
    torch.manual_seed(0)
    pyro.clear_param_store()
    return classifier(MeanFieldNormal)


def filed_batches() -> Batches:
    return Batches(arrays("label"), batch_size=BATCH, seed=1)


def stored_batches() -> Batches:
    return Batches(arrays("label", cases=6, first=100), batch_size=2)


def filed_fit(pair: Pair, batches: Any, **options: Any) -> Any:
    model, guide = pair
    return fit(model, guide, batches, **FIT, **options)


def write_files(folder: Path) -> None:
    """A saved pair, a checkpoint of half a run, a tree as netCDF, half a tree as Zarr."""
    pair = filed_pair()
    with contextlib.suppress(Stop):
        half = Interrupted(filed_batches(), 3)
        filed_fit(pair, half, checkpoint=folder / "half.pt", checkpoint_every=0)
    pair = filed_pair()
    filed_fit(pair, filed_batches())
    save(folder / "saved.pt", *pair)
    storage.save(predict(pair[0], pair[1], held_out("label"), **PREDICT), folder / "tree.nc")
    predictive: Any = import_module("ppl_med.inference.predictive")
    predictive.CHUNK_CASES = 2
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(Stop):
        store = Path(name) / "half.zarr"
        try:
            predict(pair[0], pair[1], Interrupted(stored_batches(), 2), store=store, **PREDICT)
        finally:
            shutil.make_archive(str(folder / "half.zarr"), "zip", name)


def every_result() -> Results:
    """All runs, and the analyses and explanations of given inputs."""
    found: Results = {}
    for name, one in RUNS.items():
        print(name, file=sys.stderr)
        found |= one()
    found |= frozen_analyses.of_predicted(found)
    for made in (frozen_analyses, frozen_explanations):
        for group in made.GROUPS:
            found |= made.result(group)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digest", action="store_true")
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = every_result()
    if given.digest:
        for name, digest in sorted(frozen_store.digests(found).items()):
            print(digest, name)
    if given.write:
        given.write.mkdir(parents=True)
        frozen_store.write(given.write / "results.npz", found)
        write_files(given.write)


if __name__ == "__main__":
    main()
