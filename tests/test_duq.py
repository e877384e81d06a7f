"""DUQ: kernels, penalty and centroids against formulas written out, and what it finds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from sklearn.datasets import make_moons
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, one_hot

from ppl_med.analysis import ood
from ppl_med.data import Batches
from ppl_med.inference import (
    Ensemble,
    MeanFieldNormal,
    PointEstimate,
    checkpoint,
    fit,
    load,
    predict,
    save,
)
from ppl_med.models import BayesianClassifier, DUQClassifier
from ppl_med.models.duq_classifier import SITE, Centroids, log_odds

CLASSES = ("a", "b", "c")
SIZE, FEATURES, DIM = 3, 5, 4


def model(**options: Any) -> DUQClassifier:
    features = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, FEATURES), nn.Tanh())
    given: dict[str, Any] = {"centroid_dim": DIM, "length_scale": 1.0, "batch_size": 6} | options
    return DUQClassifier(features, CLASSES, FEATURES, **given)


def batch(cases: int = 6, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    image = torch.randn(cases, 1, SIZE, SIZE, dtype=dtype)
    return {"image": image, "label": torch.arange(cases) % len(CLASSES)}


def written_out(program: DUQClassifier, flat: Tensor, image: Tensor) -> Tensor:
    """Kernels (class,) of one image, from the weights: W_c f, its centroid, the mean square."""
    views = program.network.layout.views(flat)
    hidden = views["features.1.weight"] @ image.flatten() + views["features.1.bias"]
    f, matrices = torch.tanh(hidden), views["projection.weight"].view(len(CLASSES), DIM, FEATURES)
    found = []
    for c in range(len(CLASSES)):
        centroid = program.centroids.total[c] / program.centroids.count[c]
        squares = [(matrices[c, d] @ f - centroid[d]) ** 2 for d in range(DIM)]
        square = torch.stack(squares).sum() / DIM
        found.append(torch.exp(-square / (2 * program.length_scale**2)))
    return torch.stack(found)


# --- what it is


def test_loss_and_penalty_are_those_written_out_and_so_are_their_gradients() -> None:
    program = model(penalty=0.7, length_scale=0.8).double().train()
    values = batch(dtype=torch.float64)
    flat = program.network.initial().requires_grad_()
    with pyro.condition(data={"weights": flat}):
        nodes: Any = poutine.trace(program).get_trace(**values, num_cases=60).nodes
    by_case, penalty = [], []
    for image, label in zip(values["image"], values["label"], strict=True):
        point = image.clone().requires_grad_()
        kernel = written_out(program, flat, point)
        target = one_hot(label, len(CLASSES)).double()
        by_case.append(binary_cross_entropy(kernel, target, reduction="sum"))
        slope = torch.autograd.grad(kernel.sum(), point, create_graph=True)[0]
        penalty.append(len(CLASSES) * 0.7 * (slope.square().sum().sqrt() - 1) ** 2)
    for name, expected in (("label", by_case), (SITE, penalty)):
        node = nodes[name]
        found = -node["fn"].log_prob(node["value"])
        assert node["scale"] == 10 and found.shape == (6,)
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-10, atol=1e-12)
        slopes = [
            torch.autograd.grad(x.sum(), flat, retain_graph=True)[0]
            for x in (found, torch.stack(expected))
        ]
        torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-10)
        assert slopes[0].any()


def test_log_odds_are_exact_in_both_tails() -> None:
    exponent = np.array([1e-6, 1e-3, 0.1, 1.0, 50.0, 700.0, 1e5])
    wide = np.asarray(exponent, np.longdouble)
    expected = -wide - np.log(-np.expm1(-wide))
    found = log_odds(torch.tensor(exponent))
    np.testing.assert_allclose(found, expected.astype(float), rtol=1e-12)
    single = log_odds(torch.tensor(exponent, dtype=torch.float32).requires_grad_())
    np.testing.assert_allclose(single.detach(), expected.astype(float), rtol=1e-5)
    at_centroid = log_odds(torch.zeros(1))
    assert at_centroid.isfinite().all() and float(at_centroid) > 16


def test_far_cases_have_a_gradient() -> None:
    """At kernels of e^-5000, where the cross-entropy of the kernels as numbers has none."""
    program = model(length_scale=0.01, penalty=0.0).train()
    flat = program.network.initial().requires_grad_()
    with pyro.condition(data={"weights": flat}):
        node: Any = poutine.trace(program).get_trace(**batch()).nodes["label"]
    loss = -node["fn"].log_prob(node["value"]).sum()
    assert float(loss.detach()) > 1000
    slope = torch.autograd.grad(loss, flat)[0]
    assert slope.isfinite().all() and slope.abs().max() > 1


def test_centroids_are_moving_averages() -> None:
    random = np.random.default_rng(0)
    centroids = Centroids(3, DIM, 0.9, 2.0)
    count = centroids.count.numpy().copy().astype(float)
    total = centroids.total.numpy().copy().astype(float)
    assert (count == 2).all() and 0.01 < (total / 2).std() < 0.12  # chi2(12) at 1e-8
    for _ in range(20):
        z = random.normal(size=(7, 3, DIM))
        label = random.integers(2, size=7)  # the third class never comes
        for c in range(3):
            mine = z[label == c, c]
            count[c] = 0.9 * count[c] + (1 - 0.9) * len(mine)
            total[c] = 0.9 * total[c] + (1 - 0.9) * mine.sum(0)
        centroids.follow(torch.tensor(z, dtype=torch.float32), torch.tensor(label))
    np.testing.assert_allclose(centroids.count, count, rtol=1e-5)
    np.testing.assert_allclose(centroids.total, total, rtol=1e-4, atol=1e-6)
    z = random.normal(size=(5, 3, DIM))
    expected = ((z - total / count[:, None]) ** 2).mean(2)
    np.testing.assert_allclose(centroids.distance(torch.tensor(z)), expected, rtol=1e-4)


def test_fit_moves_them_by_the_net_after_the_step_with_running_statistics() -> None:
    features = nn.Sequential(
        nn.Flatten(), nn.Linear(SIZE * SIZE, FEATURES), nn.BatchNorm1d(FEATURES)
    )
    program = DUQClassifier(features, CLASSES, FEATURES, centroid_dim=DIM, batch_size=6)
    guide: Any = PointEstimate(program)
    count, total = (x.double().numpy().copy() for x in program.centroids.buffers())
    values = batch(12)
    label = values["label"].numpy()

    def naive(news: Any) -> None:
        """One batch an epoch, so every call is after a step; the net as ``predict`` would run."""
        nonlocal count, total
        with torch.no_grad(), pyro.condition(data={"weights": guide.parts["weights"].value}):
            z = program.eval().network(values["image"]).double().numpy()
        for c in range(3):
            count[c] = 0.999 * count[c] + 0.001 * (label == c).sum()
            total[c] = 0.999 * total[c] + 0.001 * z[label == c, c].sum(0)

    start = total.copy()
    fit(program, guide, [values], epochs=5, learning_rate=0.05, callbacks=[naive], progress=False)
    assert np.abs(total - start).max() > 1e-4
    np.testing.assert_allclose(program.centroids.count, count, rtol=1e-5)
    np.testing.assert_allclose(program.centroids.total, total, rtol=1e-4, atol=1e-6)


def test_a_batch_is_seen_by_one_function() -> None:
    program = model().train()
    guide = MeanFieldNormal(program).train()  # local reparameterization on linear layers
    alike = {name: value[:1].expand(6, *value.shape[1:]) for name, value in batch().items()}
    for _ in range(3):
        proposed = poutine.trace(guide).get_trace(**alike)
        trace = poutine.trace(poutine.replay(program, trace=proposed)).get_trace(**alike)
        output: Any = trace.nodes["_RETURN"]["value"]
        torch.testing.assert_close(output, output[:1].expand(6, 3))


# --- what predict gives, and what is kept


def test_predict_gives_kernels_and_the_class_given_that_there_is_one() -> None:
    program = model()
    guide = MeanFieldNormal(program, init_scale=0.5)
    values = batch(9)
    fit(program, guide, [values], epochs=3, progress=False)
    tree = predict(program, guide, [values], draws=4, progress=False)
    group: Any = tree["posterior"]
    kernel, probs = group["kernel"], group["probs"]
    assert kernel.dims == probs.dims == ("chain", "draw", "case", "class")
    assert list(kernel["class"].values) == list(CLASSES) and kernel.dtype == np.float64
    assert ((kernel > 0) & (kernel < 1)).all() and (np.abs(kernel.sum("class") - 1) > 0.01).any()
    odds = kernel / (1 - kernel)
    np.testing.assert_allclose(probs, odds / odds.sum("class"), rtol=1e-9)
    assert (kernel.argmax("class") == probs.argmax("class")).all()
    losses = "binary cross-entropy of every class; gradient penalty of kernels, weight 0.5"
    assert sorted(tree.attrs["training_loss"].split("; ")) == sorted(losses.split("; "))
    other = predict(program, guide, [{**values, "id": list("qrstuvwxy")}], draws=4, progress=False)
    found = ood.score(tree, ood.fit_reference("duq", other))
    np.testing.assert_allclose(found["score"], 1 - kernel.mean(("chain", "draw")).max("class"))
    np.testing.assert_allclose(found["score_per_draw"], 1 - kernel.max("class"))


def test_trees_of_other_models_have_no_such_score() -> None:
    plain = BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), CLASSES)
    tree = predict(plain, PointEstimate(plain), [batch()], draws=1, progress=False)
    for name, model_name in {
        "duq": "DUQClassifier",
        "generalized_odin": "GeneralizedODINClassifier",
        "generalized_odin_divisor": "GeneralizedODINClassifier",
    }.items():
        with pytest.raises(ValueError, match=f"stores of a {model_name} alone"):
            ood.fit_reference(name, tree)


def test_centroids_stand_in_every_file(tmp_path: Any) -> None:
    program = model()
    guide = PointEstimate(program)
    path = tmp_path / "run.pt"
    batches = [batch()]
    fit(program, guide, batches, epochs=3, checkpoint=path, progress=False)
    save(tmp_path / "saved.safetensors", program, guide)
    for file in (path, tmp_path / "saved.safetensors"):
        kept = checkpoint.read(file)["states"][0]["model"][""]
        torch.testing.assert_close(kept["centroids.total"], program.centroids.total)
        other = model()
        assert not torch.equal(other.centroids.total, program.centroids.total)
        load(file, other, PointEstimate(other))
        assert torch.equal(other.centroids.total, program.centroids.total)
        assert torch.equal(other.centroids.count, program.centroids.count)
    for change in ({"length_scale": 0.5}, {"momentum": 0.9}, {"penalty": 0.1}):
        other = model(**change)
        with pytest.raises(ValueError, match="settings of the model"):
            fit(
                other, PointEstimate(other), batches, epochs=3, checkpoint=path, resume=True,
                progress=False,
            )  # fmt: skip


def test_members_of_an_ensemble_start_from_centroids_apart() -> None:
    program = model()
    members: list[Any] = list(Ensemble(program, PointEstimate, members=2).models)
    totals = [program.centroids.total, *(member.centroids.total for member in members)]
    assert len({float(total[0, 0]) for total in totals}) == 3


# --- what it is for


def moons(cases: int, seed: int) -> dict[str, Any]:
    point, label = make_moons(cases, noise=0.1, random_state=seed)
    return {"image": point.astype(np.float32).reshape(-1, 2, 1, 1), "label": label}


def test_around_two_moons_it_is_unsure() -> None:
    """On a ring about them; the probabilities of a plain net, and its own, are sure there."""
    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Flatten(), nn.Linear(2, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU()
    )
    program = DUQClassifier(
        features, ("up", "down"), 20, centroid_dim=10, length_scale=0.3, penalty=0.5,
        momentum=0.99, batch_size=64,
    )  # fmt: skip
    guide = PointEstimate(program, use_prior=False)
    batches = Batches(moons(640, 0), batch_size=64, shuffle=True)
    fit(program, guide, batches, epochs=30, learning_rate=0.01, progress=False)
    inside = predict(program, guide, Batches(moons(200, 1)), draws=1, progress=False)
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    ring = np.stack([0.5 + 3.5 * np.cos(angle), 0.25 + 3.5 * np.sin(angle)], 1)
    image = ring.astype(np.float32).reshape(-1, 2, 1, 1)
    far = {"image": image, "id": [f"far {i}" for i in range(200)]}
    outside = predict(program, guide, Batches(far), draws=1, progress=False)
    group: Any = inside["posterior/probs"]
    correct = group.argmax("class").values.ravel() == moons(200, 1)["label"]
    assert correct.mean() > 0.95
    auroc = {}
    for name in ("duq", "mcp"):
        reference = ood.fit_reference(name, inside.isel(case=slice(100)))
        trees = inside.isel(case=slice(100, None)), outside
        pairs = [ood.score(tree, reference)["score"].values for tree in trees]
        truth = np.repeat([0, 1], [len(one) for one in pairs])
        auroc[name] = roc_auc_score(truth, np.concatenate(pairs))
    print(f"AUROC of a ring about two moons: {auroc}")
    assert auroc["duq"] > 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: model(length_scale=0.0), "length_scale must"),
        (lambda: model(penalty=-1.0), "penalty must"),
        (lambda: model(momentum=1.0), "momentum must"),
        (lambda: model(batch_size=0), "batch_size must"),
        (lambda: model(centroid_dim=0), "centroid_dim must"),
        (lambda: DUQClassifier(nn.Flatten(), ["a", "a"], 9), "different names"),
        (lambda: DUQClassifier(nn.Flatten(), CLASSES, 8)(batch()["image"]), "num_features=9"),
    ],
)
def test_refuses(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_logits_of_its_network_are_not_kept() -> None:
    program = model()
    guide = PointEstimate(program)
    options: dict[str, Any] = {"draws": 1, "progress": False}
    with pytest.raises(ValueError, match=r"keep='logit'.*not one row"):
        predict(program, guide, [batch()], keep=("logit",), **options)
    tree = predict(program, guide, [batch()], keep=("feature:features",), **options)
    assert tree["posterior"]["feature:features"].shape == (1, 1, 6, FEATURES)
