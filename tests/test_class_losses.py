"""Class likelihoods trained by a loss: equal to references, and ordinary at prediction.

Oracles: torch's and torchvision's own losses, MONAI's, SciPy's convolution, and loops.
"""

import itertools
import math
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
import xarray as xr
from monai.losses import FocalLoss as MonaiFocalLoss
from monai.losses import NACLLoss
from scipy import ndimage, optimize
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.ops import sigmoid_focal_loss

from ppl_med.analysis import conformal, scoring
from ppl_med.inference import (
    BernoulliDropout,
    Ensemble,
    MeanFieldNormal,
    PointEstimate,
    fit,
    predict,
)
from ppl_med.likelihoods import (
    FLSD_53,
    OF_CASES,
    OF_PIXELS,
    Categorical,
    FocalLoss,
    LabelNoise,
    LabelSmoothing,
    LossLikelihood,
    MarginSmoothing,
    NeighbourAware,
    SpatialSmoothing,
)
from ppl_med.likelihoods.neighbourhood import shares
from ppl_med.models import BayesianClassifier, BayesianSegmenter

CLASSES = ("a", "b", "c")
PIXEL, VOXEL = ("row", "col"), ("depth", "row", "col")
LOSSES = (LabelSmoothing, MarginSmoothing, FocalLoss, SpatialSmoothing, NeighbourAware)
NEW = [LabelNoise, *LOSSES]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def trained_law(likelihood: Any, output: Tensor, label: Tensor) -> Any:
    """The distribution of one entry that is trained."""
    with pyro.plate("case", len(output)):
        trace = poutine.trace(likelihood.train()).get_trace(output, label)
    fn: Any = trace.nodes[likelihood.site]["fn"]
    return fn


def loss_of(likelihood: Any, output: Tensor, label: Tensor) -> Tensor:
    """Of every case, in nats."""
    fn: Tensor = -trained_law(likelihood, output, label).log_prob(label)
    return fn


def cases(number: int = 40, num_classes: int = 3) -> tuple[Tensor, Tensor]:
    return 3 * torch.randn(number, num_classes).double(), torch.randint(num_classes, (number,))


def maps(*space: int, number: int = 3) -> tuple[Tensor, Tensor]:
    """Logits, and masks of blobs with borders."""
    logits = 2 * torch.randn(number, 3, *space).double()
    noise = ndimage.gaussian_filter(torch.randn(number, *space).numpy(), (0, *[1] * len(space)))
    return logits, torch.from_numpy(np.digitize(noise, [-0.1, 0.15]))


# --- each loss and its reference


def test_label_smoothing_is_torchs() -> None:
    logits, label = cases()
    for smoothing in (0.0, 0.1, 0.5):
        expected = cross_entropy(logits, label, label_smoothing=smoothing, reduction="none")
        found = loss_of(LabelSmoothing(CLASSES, smoothing), logits, label)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    output, mask = maps(5, 6)
    expected = cross_entropy(output, mask, label_smoothing=0.1, reduction="none").sum((1, 2))
    found = loss_of(LabelSmoothing(CLASSES, 0.1, PIXEL, "mask"), output, mask)
    torch.testing.assert_close(found, expected)


def test_focal_loss_is_torchvisions_and_monais() -> None:
    logits, label = cases(num_classes=2)
    difference = logits[:, 1] - logits[:, 0]
    for gamma in (0.5, 2.0, 5.0):
        found = loss_of(FocalLoss(("a", "b"), gamma), logits, label)
        expected = sigmoid_focal_loss(difference, label.double(), alpha=-1, gamma=gamma)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    logits, label = cases()
    options: dict[str, Any] = {"use_softmax": True, "to_onehot_y": True, "reduction": "none"}
    for weights in (None, (0.5, 1.0, 3.0)):
        monai = MonaiFocalLoss(gamma=3.0, weight=weights, **options)(logits, label[:, None])
        found = loss_of(FocalLoss(CLASSES, 3.0, weights), logits, label)
        torch.testing.assert_close(found.float(), monai.sum(1), atol=1e-6, rtol=1e-5)


def test_the_focal_schedule_follows_the_probability_of_the_true_class() -> None:
    """Mukhoti et al., section 5: gamma 5 below 0.2, 3 from there on."""
    logits, label = cases(200)
    p = logits.softmax(1)[torch.arange(200), label]
    gamma = torch.where(p < 0.2, 5.0, 3.0).double()
    assert 20 < int((p < 0.2).sum()) < 180
    found = loss_of(FocalLoss(CLASSES, FLSD_53), logits, label)
    torch.testing.assert_close(found, -((1 - p) ** gamma) * p.log(), atol=1e-6, rtol=1e-6)


def test_margin_smoothing_by_a_loop() -> None:
    logits, label = cases()
    found = loss_of(MarginSmoothing(CLASSES, 2.0, 0.3), logits, label)
    for row, chosen, loss in zip(logits.tolist(), label.tolist(), found.tolist(), strict=True):
        entropy = math.log(sum(map(math.exp, row))) - row[chosen]
        penalty = sum(max(0.0, max(row) - one - 2.0) for one in row) / 3
        assert loss == pytest.approx(entropy + 0.3 * penalty, abs=1e-6)


@pytest.mark.parametrize("space", [(7, 6), (5, 4, 6)])
def test_svls_is_a_convolution_whose_centre_weighs_as_all_neighbours(space: Any) -> None:
    output, mask = maps(*space)
    kernel = np.zeros([3] * len(space))
    for offset in itertools.product(range(3), repeat=len(space)):
        kernel[offset] = math.exp(-0.5 * sum((o - 1) ** 2 for o in offset) / 1.5**2)
    centre = (1,) * len(space)
    kernel[centre] = 0
    kernel /= 2 * kernel.sum()
    kernel[centre] = 0.5
    log_probs = output.log_softmax(1).numpy()
    expected = np.zeros(len(mask))
    for case, k in itertools.product(range(len(mask)), range(3)):
        one_hot = (mask[case] == k).numpy().astype(float)
        target = ndimage.convolve(one_hot, kernel, mode="nearest")
        expected[case] -= (target * log_probs[case, k]).sum()
    event = PIXEL if len(space) == 2 else VOXEL
    found = loss_of(SpatialSmoothing(CLASSES, event, sigma=1.5), output, mask)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_svls_targets_sum_to_one_and_are_the_label_inside_a_region() -> None:
    likelihood = SpatialSmoothing(CLASSES)
    _, mask = maps(9, 9)
    seen = torch.ones_like(mask, dtype=torch.bool)
    target = shares(mask, seen, 3, likelihood.kernel)
    torch.testing.assert_close(target.sum(-1), torch.ones(mask.shape), atol=1e-6, rtol=0)
    one_hot = nn.functional.one_hot(mask, 3).float()
    flat = torch.from_numpy(
        np.stack([ndimage.maximum_filter(m, 3) == ndimage.minimum_filter(m, 3) for m in mask])
    )
    assert flat.any() and not flat.all()
    torch.testing.assert_close(target[flat], one_hot[flat], atol=1e-6, rtol=0)
    own = target.gather(-1, mask[..., None])[..., 0]
    assert (own[~flat] < 1).all() and (own >= 0.5 - 1e-6).all()
    output, _ = maps(9, 9)
    alike = torch.full_like(mask, 2)
    plain = loss_of(Categorical(CLASSES, PIXEL, "mask"), output, alike)
    torch.testing.assert_close(loss_of(likelihood, output, alike), plain, atol=0, rtol=1e-6)


@pytest.mark.parametrize("space", [(7, 6), (5, 4, 6)])
def test_nacl_is_monais_with_the_image_continued(space: Any) -> None:
    output, mask = maps(*space)
    dims = len(space)
    monai = NACLLoss(classes=3, dim=dims)
    wide = torch.from_numpy(np.pad(mask.numpy(), [(0, 0), *[(1, 1)] * dims], mode="edge"))
    inside: Any = (..., *[slice(1, -1)] * dims)
    target = monai.get_constr_target(wide)[inside]
    penalty = (target - output).abs().mean(1)
    expected = cross_entropy(output, mask, reduction="none") + 0.1 * penalty
    event = PIXEL if dims == 2 else VOXEL
    found = loss_of(NeighbourAware(CLASSES, event), output, mask)
    torch.testing.assert_close(found, expected.flatten(1).sum(1), atol=1e-6, rtol=1e-6)


# --- limits


@pytest.mark.parametrize(
    "likelihood",
    [
        LabelSmoothing(CLASSES, 0.0),
        LabelNoise(CLASSES, 0.0),
        MarginSmoothing(CLASSES, math.inf),
        MarginSmoothing(CLASSES, weight=0.0),
        FocalLoss(CLASSES, 0.0),
        FocalLoss(CLASSES, 0.0, (1, 1, 1)),
        NeighbourAware(CLASSES, weight=0.0, partial=False),
    ],
    ids=lambda likelihood: type(likelihood).__name__,
)
def test_without_its_effect_a_loss_is_the_categorical(likelihood: Any) -> None:
    if likelihood.event:
        output, label = maps(5, 5)
        plain = Categorical(CLASSES, PIXEL, "mask")
    else:
        (output, label), plain = cases(), Categorical(CLASSES)
    found = loss_of(likelihood, output, label)
    torch.testing.assert_close(found, loss_of(plain, output, label), atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize("kind", LOSSES)
def test_in_evaluation_a_loss_is_the_categorical_with_and_without_labels(kind: Any) -> None:
    output, mask = maps(4, 4)
    for label in (mask, None):
        with pyro.plate("case", 3):
            trace = poutine.trace(of_maps(kind).eval()).get_trace(output, label)
        fn: Any = trace.nodes["mask"]["fn"]
        expected = -cross_entropy(output, mask, reduction="none").sum((1, 2))
        torch.testing.assert_close(fn.log_prob(mask), expected)


def of_maps(kind: Any, **settings: Any) -> Any:
    return kind(CLASSES, event=PIXEL, site="mask", partial=True, **settings)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
@pytest.mark.parametrize("kind", NEW)
def test_extreme_logits_keep_gradients_finite(kind: Any, size: float) -> None:
    _, mask = maps(5, 5)
    mask[0, 0] = -1
    output = size * torch.randn(3, 3, 5, 5)
    output[1] = 0.0
    output.requires_grad_()
    settings: list[dict[str, Any]] = [{}]
    if kind is FocalLoss:
        settings = [{"gamma": gamma} for gamma in (0.3, 1.0, 2.0, FLSD_53)]
    for one in settings:
        loss = loss_of(of_maps(kind, **one), output, mask)
        (gradient,) = torch.autograd.grad(loss.sum(), output)
        assert loss.isfinite().all() and gradient.isfinite().all()


def test_gradients_of_the_focal_loss_near_certainty() -> None:
    logits = torch.tensor([[9.0, -9.0, 0.0], [-9.0, 9.0, 0.0]]).double().requires_grad_()
    label = torch.tensor([0, 0])
    for gamma in (0.5, 1.0, 3.0):
        likelihood = FocalLoss(CLASSES, gamma)
        assert torch.autograd.gradcheck(lambda x, kind=likelihood: loss_of(kind, x, label), logits)


# --- what is a density, and what is not


def sums_over_labels(likelihood: Any, output: Tensor) -> Tensor:
    """Sum over the labels of exp(-loss), of every case."""
    labels = [torch.full((len(output),), k) for k in range(3)]
    return torch.stack([(-loss_of(likelihood, output, y)).exp() for y in labels]).sum(0)


def test_noisy_labels_have_a_density_and_losses_have_none() -> None:
    logits, label = cases()
    ones = torch.ones(40).double()
    torch.testing.assert_close(sums_over_labels(LabelNoise(CLASSES, 0.2), logits), ones)
    noisy = 0.8 * logits.softmax(1) + 0.2 / 3
    expected = -noisy[torch.arange(40), label].log()
    torch.testing.assert_close(loss_of(LabelNoise(CLASSES, 0.2), logits, label), expected)
    assert (sums_over_labels(LabelSmoothing(CLASSES, 0.2), logits) < 1).all()
    assert (sums_over_labels(MarginSmoothing(CLASSES, 0.1), logits) < 1).all()
    assert (sums_over_labels(FocalLoss(CLASSES), logits) > 1).all()


def test_label_smoothing_made_a_density_is_a_temperature() -> None:
    logits, label = cases()
    likelihood = LabelSmoothing(CLASSES, 0.2)
    normalised = loss_of(likelihood, logits, label) + sums_over_labels(likelihood, logits).log()
    torch.testing.assert_close(normalised, cross_entropy(0.8 * logits, label, reduction="none"))


def test_where_losses_are_smallest() -> None:
    """At the smoothed frequencies; and for the focal loss at less certainty than the truth."""

    def best(likelihood: Any, truth: float) -> float:
        def risk(logit: float) -> float:
            output = torch.tensor([[0.0, logit]]).double().expand(2, 2)
            first, second = loss_of(likelihood, output, torch.tensor([0, 1])).tolist()
            return (1 - truth) * first + truth * second

        logit = optimize.minimize_scalar(risk, (0.0, 1.0), tol=1e-10).x
        return float(1 / (1 + np.exp(-logit)))

    for truth in (0.6, 0.9):
        assert best(Categorical(("a", "b")), truth) == pytest.approx(truth, abs=1e-5)
        smoothed = 0.8 * truth + 0.1
        assert best(LabelSmoothing(("a", "b"), 0.2), truth) == pytest.approx(smoothed, abs=1e-5)
        assert 0.5 < best(FocalLoss(("a", "b"), 2.0), truth) < truth - 0.03
    noisy = 0.8 * best(LabelNoise(("a", "b"), 0.2), 0.7) + 0.1
    assert noisy == pytest.approx(0.7, abs=1e-5), "noise is taken off, and the label's law is right"


# --- pixels that nobody annotated, batches, particles


@pytest.mark.parametrize("kind", NEW)
def test_what_was_not_annotated_has_no_influence(kind: Any) -> None:
    output, mask = maps(6, 6)
    mask[0, :2], mask[1, :, 4] = -1, -1
    output.requires_grad_()
    loss = loss_of(of_maps(kind), output, mask)
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    missing = (mask < 0)[:, None].expand_as(gradient)
    assert not gradient[missing].any() and gradient[~missing].any()
    if kind not in (SpatialSmoothing, NeighbourAware):
        rows = kind(CLASSES)
        pixels = loss_of(rows, output.movedim(1, -1).reshape(-1, 3), mask.clamp(min=0).flatten())
        by_case = (pixels.view(3, 6, 6) * (mask >= 0)).sum((1, 2))
        torch.testing.assert_close(loss, by_case)


def test_neighbourhoods_count_annotated_pixels_only() -> None:
    _, mask = maps(6, 6)
    mask[torch.rand(mask.shape) < 0.4] = -1
    weights = SpatialSmoothing(CLASSES).kernel
    found = shares(mask.clamp(min=0), mask >= 0, 3, weights)
    for case, row, col in itertools.product(range(3), range(6), range(6)):
        count = np.zeros(3)
        for down, right in itertools.product((-1, 0, 1), repeat=2):
            label = int(mask[case, min(max(row + down, 0), 5), min(max(col + right, 0), 5)])
            if label >= 0:
                count[label] += float(weights[down + 1, right + 1])
        expected = count / max(count.sum(), 1e-30)
        np.testing.assert_allclose(found[case, row, col], expected, atol=1e-6)


@pytest.mark.parametrize("kind", NEW)
def test_particles_and_mini_batches(kind: Any) -> None:
    """Leading dims are taken along; mini-batches of a partition average to the whole data set."""
    output, mask = maps(5, 4, number=6)
    likelihood = of_maps(kind)
    alone = trained_law(likelihood, output, mask).log_prob(mask)
    both = torch.stack([output, output.flip(0)])
    with pyro.plate("particle", 2, dim=-2), pyro.plate("case", 6):
        trace = poutine.trace(likelihood.train()).get_trace(both, mask)
    fn: Any = trace.nodes["mask"]["fn"]
    torch.testing.assert_close(fn.log_prob(mask)[0], alone)
    assert fn.expand((3, 2, 6)).log_prob(mask).shape == (3, 2, 6)
    model = BayesianSegmenter(nn.Conv2d(1, 3, 1), CLASSES, likelihood=likelihood).train()
    image = torch.randn(6, 1, 5, 4)
    weights = model.network.initial()

    def scaled(part: slice) -> Tensor:
        with pyro.condition(data={"weights": weights}):
            trace = poutine.trace(model).get_trace(image[part], mask[part], num_cases=6)
        trace.compute_log_prob()
        node: Any = trace.nodes["mask"]
        total: Tensor = node["log_prob_sum"]
        return total

    parts = [scaled(slice(start, start + 2)) for start in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), scaled(slice(None)))


# --- with models and guides

GUIDES: dict[str, Any] = {
    "mean_field": MeanFieldNormal,
    "dropout": BernoulliDropout,
    "ensemble": lambda model: Ensemble(model, PointEstimate, members=2),
}


def num_outputs(likelihood: Any) -> int:
    return 1 if likelihood == "ordinal" else 2


def classifier(likelihood: Any) -> BayesianClassifier:
    last = nn.Linear(6, num_outputs(likelihood))
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), last)
    return BayesianClassifier(net, ("a", "b"), likelihood=likelihood)


def segmenter(likelihood: Any) -> BayesianSegmenter:
    last = nn.Conv2d(4, num_outputs(likelihood), 1)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), last)
    return BayesianSegmenter(net, ("a", "b"), likelihood=likelihood)


def batch(site: str) -> dict[str, Any]:
    label = torch.arange(24) % 2
    image = torch.randn(24, 1, 4, 4) + 2.0 * label[:, None, None, None]
    mask = label[:, None, None].expand(24, 4, 4).clone()
    mask[:, :2], mask[0, 3, 3] = 0, -1
    return {"image": image, "id": list(range(24)), site: label if site == "label" else mask}


OLD = ("categorical", "bernoulli", "logit_normal")
PROGRAMS = [
    *((classifier, name, guide) for name in OF_CASES if name not in OLD for guide in GUIDES),
    *((segmenter, name, guide) for name in OF_PIXELS if name not in OLD for guide in GUIDES),
]


@pytest.mark.parametrize(("make", "name", "guide"), PROGRAMS)
def test_every_name_trains_and_predicts(make: Any, name: str, guide: str) -> None:
    site = "label" if make is classifier else "mask"
    model, batches = make(name), [batch(site)]
    program = GUIDES[guide](model)
    fit(model, program, batches, epochs=2, learning_rate=0.02, progress=False)
    tree = predict(model, program, batches, draws=2, progress=False)
    probs, log_likelihood = tree["posterior/probs"], tree[f"log_likelihood/{site}"]
    label = tree[f"observed_data/{site}"]
    seen = label >= 0
    chosen = probs.isel({"class": label.where(seen, 0).astype(int)}).drop_vars("class")
    logs = xr.ufuncs.log(chosen.where(seen, 1.0))
    total = logs if site == "label" else logs.sum(("row", "col"))
    np.testing.assert_allclose(log_likelihood, total, rtol=1e-5, atol=1e-6)
    by_loss = isinstance(model.likelihood, LossLikelihood)
    assert ("training_loss" in tree.attrs) == by_loss
    assert by_loss == (name not in ("label_noise", "ordinal"))


def test_leaving_cases_out_is_refused_after_training_by_a_loss() -> None:
    trees = {}
    for name in ("focal", "label_noise"):
        model = classifier(name)
        guide = MeanFieldNormal(model)
        batches = [batch("label")]
        fit(model, guide, batches, epochs=3, progress=False)
        options: dict[str, Any] = {"draws": 40, "progress": False}
        tree = predict(model, guide, batches, log_likelihood_of="training", **options)
        other = [{**batch("label"), "id": [f"test {i}" for i in range(24)]}]
        trees[name] = tree, predict(model, guide, other, **options)
    with pytest.raises(ValueError, match="not what was trained, which is focal loss, gamma 2"):
        conformal.leave_one_out_sets(*trees["focal"], alpha=0.2)
    with pytest.raises(ValueError, match="focal loss"):
        conformal.bayes_sets(*trees["focal"], alpha=0.2)
    assert np.isfinite(scoring.elpd_heldout(trees["focal"][1])["elpd_sum"])
    assert trees["focal"][1].attrs["training_loss"] == "focal loss, gamma 2"
    sets = conformal.leave_one_out_sets(*trees["label_noise"], alpha=0.2, pareto_k=0.9)
    assert set(sets["prediction_set"].dims) == {"case", "class"}


def test_a_likelihood_moves_and_is_saved_with_its_model() -> None:
    model = classifier(FocalLoss(("a", "b"), FLSD_53, (1.0, 2.0)))
    plain = classifier("categorical")
    assert set(model.state_dict()) == set(plain.state_dict()), "settings are code, not weights"
    assert {buffer.dtype for buffer in model.double().likelihood.buffers()} == {torch.float64}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelSmoothing(CLASSES, 1.0), "smoothing must be"),
        (lambda: LabelNoise(CLASSES, -0.1), "noise must be"),
        (lambda: MarginSmoothing(CLASSES, -1.0), "margin must be"),
        (lambda: MarginSmoothing(CLASSES, weight=math.inf), "weight must be"),
        (lambda: FocalLoss(CLASSES, -1.0), "gamma must be"),
        (lambda: FocalLoss(CLASSES, ((0.5, 3.0), (0.4, 2.0), (1.0, 1.0))), "bounds that rise"),
        (lambda: FocalLoss(CLASSES, ((0.5, 3.0),)), "bounds that rise"),
        (lambda: FocalLoss(CLASSES, 2.0, (1.0, 1.0)), "class_weights must be 3"),
        (lambda: SpatialSmoothing(CLASSES, ()), "no neighbours"),
        (lambda: SpatialSmoothing(CLASSES, size=4), "size must be"),
        (lambda: SpatialSmoothing(CLASSES, sigma=0.0), "sigma must be"),
        (lambda: NeighbourAware(CLASSES, weight=-1.0), "weight must be"),
        (lambda: classifier("spatial_smoothing"), "likelihood must be one of"),
        (lambda: classifier(FocalLoss(CLASSES)), "likelihood must be of the classes"),
        (lambda: segmenter(FocalLoss(("a", "b"))), "likelihood must be of"),
    ],
)
def test_settings_that_make_no_sense_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("event", [(), ("row", "col")], ids=["case", "pixel"])
def test_class_weights_of_the_categorical_are_those_of_torch_in_training_alone(
    event: tuple[str, ...],
) -> None:
    weights = (1.0, 4.0, 0.5)
    one = Categorical(CLASSES, event, partial=True, class_weights=weights)
    shape = (5, 3, *[4] * len(event))
    output, label = torch.randn(shape), torch.randint(-1, 3, (5, *shape[2:]))
    with pyro.plate("case", 5):
        trained = poutine.trace(one.train()).get_trace(output, label)
        scored = poutine.trace(one.eval()).get_trace(output, label)
        plain = poutine.trace(Categorical(CLASSES, event, partial=True)).get_trace(output, label)
    options: dict[str, Any] = {"ignore_index": -1, "reduction": "none"}
    expected = -cross_entropy(output, label, torch.tensor(weights), **options)
    total = expected.flatten(1).sum(1) if event else expected
    node: Any = trained.nodes["label"]
    torch.testing.assert_close(node["fn"].log_prob(label), total)
    nodes: list[Any] = [trace.nodes["label"] for trace in (scored, plain)]
    at_prediction, unweighted = (node["fn"].log_prob(label) for node in nodes)
    torch.testing.assert_close(at_prediction, unweighted.to(at_prediction))


def test_class_weights_shift_the_probabilities_as_another_population_would() -> None:
    """Without features: the MAP under weights w and shares q is w q, normalised."""
    model = classifier(Categorical(("a", "b"), class_weights=(1.0, 5.0)))
    assert model.likelihood.training_loss == "log-probability, weighted 1 5"
    with pytest.raises(ValueError, match="class_weights must be 2 numbers above 0"):
        Categorical(("a", "b"), class_weights=(1.0, 0.0))
    found = optimize.minimize_scalar(
        lambda p: -(0.8 * math.log(1 - p) + 5 * 0.2 * math.log(p)), bounds=(0.01, 0.99)
    )
    assert found.x == pytest.approx(5 * 0.2 / (0.8 + 5 * 0.2), abs=1e-4)
    likelihood = model.likelihood.train()
    logit = torch.zeros(1, requires_grad=True)
    label = torch.tensor([0] * 8 + [1] * 2)
    optimizer = torch.optim.LBFGS([logit], max_iter=50)

    def loss() -> Tensor:
        optimizer.zero_grad()
        output = torch.stack([torch.zeros(10), logit.expand(10)], 1)
        with pyro.plate("case", 10):
            trace = poutine.trace(likelihood).get_trace(output, label)
        value = torch.as_tensor(-trace.log_prob_sum())
        value.backward()
        return value

    optimizer.step(loss)
    assert float(logit.detach().sigmoid()) == pytest.approx(found.x, abs=1e-4)
