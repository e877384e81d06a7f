"""What every likelihood must do: one table, and a row for every one that is exported.

A new likelihood is one line in ``ROWS``: how to build it, a setting to change, and its log-density.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from scipy import special, stats
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import Distribution

import ppl_med.likelihoods
from ppl_med.data import Batches
from ppl_med.inference import Ensemble, PointEstimate, fit, predict
from ppl_med.likelihoods import (
    Bernoulli,
    Boxes,
    Categorical,
    ClassLikelihood,
    DividedLogits,
    Findings,
    FocalLoss,
    Gaussian,
    KernelClasses,
    LabelNoise,
    LabelSmoothing,
    LaplaceNoise,
    Likelihood,
    LogitNormal,
    MarginSmoothing,
    NeighbourAware,
    Ordinal,
    Quantiles,
    SpatialSmoothing,
    StudentT,
    in_double,
    log_prob_in_double,
    stored_parameters,
)
from ppl_med.likelihoods.inverse_transform import quantile, transformed
from ppl_med.models import (
    BayesianClassifier,
    BayesianDetector,
    BayesianRegressor,
    BayesianSegmenter,
    DenseRegressor,
    FindingsClassifier,
)

FALSE_ALARM = 1e-6
PIXELS = ("row", "col")
FINDING = ("finding",)
BOX = ("box", "edge")
SITES = {
    "class": ("label", "mask"),
    "number": ("value", "depth"),
    "finding": ("", "findings"),
    "box": ("", "box"),
}
CLASSES = ("a", "b", "c")


def of_class(log_probs: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Log-probability of the label, from those of all classes on axis 1."""
    return np.take_along_axis(log_probs, value[:, None], 1)[:, 0]


def softmax_logpmf(_: Any, output: np.ndarray, value: np.ndarray, __: Any) -> np.ndarray:
    return of_class(special.log_softmax(output, 1), value)


def bernoulli_logpmf(_: Any, output: np.ndarray, value: np.ndarray, __: Any) -> np.ndarray:
    return stats.bernoulli.logpmf(value, special.expit(output[:, 0]))


def findings_logpmf(_: Any, output: np.ndarray, value: np.ndarray, __: Any) -> np.ndarray:
    return stats.bernoulli.logpmf(value, special.expit(output))


def cumulative_logpmf(one: Any, output: np.ndarray, value: np.ndarray, _: Any) -> np.ndarray:
    lowest, *rises = one.raw_cutpoints.detach().double().numpy()
    cutpoints = np.cumsum([lowest, *np.log1p(np.exp(rises))])
    cutpoints = cutpoints.reshape(-1, *[1] * (output.ndim - 2))
    edges = [np.zeros_like(output), special.expit(cutpoints - output), np.ones_like(output)]
    return of_class(np.log(np.diff(np.concatenate(edges, 1), axis=1)), value)


def noisy_label_logpmf(one: Any, output: np.ndarray, value: np.ndarray, _: Any) -> np.ndarray:
    probs = (1 - one.noise) * special.softmax(output, 1) + one.noise / len(one.classes)
    return of_class(np.log(probs), value)


def noisy_logit_logpmf(one: Any, output: np.ndarray, value: np.ndarray, _: Any) -> np.ndarray:
    """By the points of the integral; how near they come to it is a test of its own."""
    mean, log_variance = np.split(output, 2, 1)
    noise = one.points.numpy().reshape(1, -1, 3, *[1] * len(one.event))
    probs = special.softmax(mean[:, None] + np.exp(log_variance / 2)[:, None] * noise, 2).mean(1)
    return of_class(np.log(probs), value)


def kernel_logpmf(_: Any, output: np.ndarray, value: np.ndarray, __: Any) -> np.ndarray:
    """By the kernels themselves: Bernoullis, given that exactly one of them is 1."""
    kernel = special.expit(output)
    alone = [
        np.prod(
            np.where(
                np.arange(output.shape[1]) == label,
                np.moveaxis(kernel, 1, -1),
                1 - np.moveaxis(kernel, 1, -1),
            ),
            -1,
        )
        for label in range(output.shape[1])
    ]
    return of_class(np.log(np.stack(alone, 1) / np.sum(alone, 0)[:, None]), value)


def quotient_logpmf(_: Any, output: np.ndarray, value: np.ndarray, __: Any) -> np.ndarray:
    logits = output[:, :-1] / special.expit(output[:, -1:])
    return of_class(special.log_softmax(logits, 1), value)


def located_logpdf(law: Callable[..., Any]) -> Callable[..., np.ndarray]:
    def logpdf(one: Any, output: np.ndarray, value: np.ndarray, _: Any) -> np.ndarray:
        found: np.ndarray = law(one, output[:, 0], np.exp(output[:, 1] / 2)).logpdf(value)
        return found

    return logpdf


def pinball_logpdf(one: Any, output: np.ndarray, value: np.ndarray, _: Any) -> np.ndarray:
    rises = np.log1p(np.exp(output[:, 1:]))
    quantiles = np.concatenate([output[:, :1], rises], 1).cumsum(1)
    found = []
    for index, level in enumerate(one.coords["level"]):
        kappa = np.sqrt(level / (1 - level))
        law = stats.laplace_asymmetric(kappa, quantiles[:, index], kappa / level)
        found.append(law.logpdf(value))
    return np.mean(found, 0)


def boxes_logpdf(one: Any, output: np.ndarray, value: np.ndarray, _: Any) -> np.ndarray:
    """Anchor by anchor, by the rule of RetinaNet; edges of an object by their mean."""
    return np.array([boxes_of_case(one, *pair) for pair in zip(output, value, strict=True)])


def boxes_of_case(one: Any, output: np.ndarray, value: np.ndarray) -> float:
    num, there = len(one.classes), value[:, 4] >= 0
    log_probs = special.log_softmax(
        np.concatenate([np.zeros((1, output.shape[1])), output[:num]]), 0
    )
    anchors = output[num + 8 : num + 12].T
    shared = np.array([[pairwise_overlap(a, b) for b in value] for a in anchors])
    shared[:, ~there] = 0
    owner, total = np.where(shared.max(1) >= 0.5, shared.argmax(1), -1), 0.0
    for index in np.flatnonzero(there & (shared.max(0) > 0)):
        owner[shared[:, index].argmax()] = index
    for number, anchor in enumerate(anchors):
        if owner[number] < 0 and shared[number].max() < 0.4:
            total += log_probs[0, number]
        elif owner[number] >= 0:
            total += log_probs[1 + int(value[owner[number], 4]), number]
            width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
            size = np.array([width, height, width, height])
            scale = np.exp(output[num + 4 : num + 8, number] / 2) / np.sqrt(2)
            code = (value[owner[number], :4] - anchor) / size
            density = stats.laplace.logpdf(code, output[num : num + 4, number], scale).sum()
            total += density / (owner == owner[number]).sum()
    return float(total)


def pairwise_overlap(one: np.ndarray, other: np.ndarray) -> float:
    sides = np.minimum(one[2:4], other[2:4]) - np.maximum(one[:2], other[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    areas = [float(np.prod(box[2:4] - box[:2])) for box in (one, other)]
    return common / (sum(areas) - common)


def box_data(num_outputs: int, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Nine anchors of 4 pixels at steps of 2, and three places of boxes near some of them."""
    start = torch.cartesian_prod(*[torch.arange(0.0, 5.0, 2.0)] * 2)
    anchors = torch.cat([start, start + 4], 1).T.expand(number, -1, -1)
    output = torch.randn(number, num_outputs - 5, 9, generator=generator)
    output = torch.cat([output, anchors, torch.ones(number, 1, 9)], 1)
    chosen = torch.tensor([0, 4, 8])
    edges = anchors[:, :, chosen].mT + 0.3 * torch.randn(number, 3, 4, generator=generator)
    label = torch.randint(num_outputs - 13, (number, 3, 1), generator=generator)
    value = torch.cat([edges, label], 2)
    for case in range(number):  # 0 to 3 boxes
        value[case, case % 4 :] = torch.tensor([torch.nan] * 4 + [-1.0])
    return output, value


class BoxNet(nn.Module):
    """Four anchors of one pixel each and half the image wide."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, num_outputs - 5, (2, 2), stride=2)

    def forward(self, image: Tensor) -> Tensor:
        output = self.layer(image).flatten(2)
        anchors = torch.tensor([[0.0, 2, 0, 2], [0, 0, 2, 2], [2, 4, 2, 4], [2, 2, 4, 4]])
        parts = [output, anchors.expand(len(image), -1, -1), torch.ones(len(image), 1, 4)]
        return torch.cat(parts, 1)


@dataclass
class Row:
    """How to check one likelihood."""

    kind: Callable[..., Any]
    logpdf: Callable[..., np.ndarray] = softmax_logpmf
    changed: Mapping[str, Any] = field(default_factory=dict)
    family: str = "class"
    classes: tuple[str, ...] = CLASSES
    axes: tuple[tuple[str, ...], ...] = ((), PIXELS)
    partial: bool = True
    value: Callable[[Tensor], Tensor] = torch.clone  # from normal numbers into the support

    def build(self, event: tuple[str, ...], **settings: Any) -> Any:
        site = SITES[self.family][bool(event)]
        classes = () if self.family == "number" else (self.classes,)
        return self.kind(*classes, **{"event": event, "site": site, **settings})

    def data(self, likelihood: Likelihood, number: int = 6) -> tuple[Tensor, Tensor]:
        """Output and observation, seeded."""
        generator = torch.Generator().manual_seed(0)
        if self.family == "box":
            return box_data(likelihood.num_outputs, number, generator)
        space = {(): (), PIXELS: (4, 5), FINDING: (len(self.classes),)}[likelihood.event]
        shape = (number, likelihood.num_outputs, *space)
        if likelihood.event == FINDING:  # which the outputs are
            shape = number, likelihood.num_outputs
        output = torch.randn(shape, generator=generator)
        if self.family != "number":
            num = len(likelihood.classes)  # type: ignore[arg-type]
            return output, torch.randint(num, (number, *space), generator=generator)
        return output, self.value(torch.randn(number, *space, generator=generator))

    def model(self, likelihood: Likelihood) -> Any:
        layer = nn.Conv2d(1, likelihood.num_outputs, 1)
        flat = nn.Sequential(nn.Flatten(), nn.Linear(20, likelihood.num_outputs))
        net = layer if likelihood.event == PIXELS else flat
        if isinstance(likelihood, Boxes):
            return BayesianDetector(BoxNet(likelihood.num_outputs), likelihood)
        if isinstance(likelihood, Findings):
            return FindingsClassifier(net, likelihood)
        if isinstance(likelihood, ClassLikelihood):
            kind = BayesianSegmenter if likelihood.event else BayesianClassifier
            return kind(net, likelihood.classes, likelihood=likelihood)
        return (DenseRegressor if likelihood.event else BayesianRegressor)(net, likelihood)

    def arrays(self, likelihood: Likelihood, image: Tensor) -> dict[str, Tensor]:
        """Of ``Batches``."""
        value = self.data(likelihood)[1]
        if self.family != "box":
            return {"image": image, likelihood.site: value}
        label = value[..., 4].long()
        box = value[..., :4].clamp(torch.zeros(4), torch.tensor([5.0, 4.0, 5.0, 4.0]))
        flat = (box[..., 2:] - box[..., :2] <= 0).any(-1) & (label >= 0)
        box = torch.where(flat[..., None], torch.tensor([0.0, 0.0, 2.0, 2.0]), box)
        return {"image": image, "box": box, "box_label": label}


MASKS_ONLY: dict[str, Any] = {"axes": (PIXELS,)}
NUMBER: dict[str, Any] = {"family": "number"}
ROWS: dict[str, Row] = {
    "Categorical": Row(Categorical, changed={"partial": True}),
    "Bernoulli": Row(Bernoulli, bernoulli_logpmf, classes=("a", "b"), partial=False),
    "Findings": Row(
        lambda names, event, **settings: Findings(names, **settings),
        findings_logpmf,
        {"partial": False},
        family="finding",
        axes=(FINDING,),
    ),
    "Ordinal": Row(Ordinal, cumulative_logpmf, {"partial": True}),
    "KernelClasses": Row(
        KernelClasses, kernel_logpmf, {"classes": ("a", "b", "other")}, partial=False
    ),
    "DividedLogits": Row(
        DividedLogits, quotient_logpmf, {"classes": ("a", "b", "other")}, partial=False
    ),
    "LogitNormal": Row(LogitNormal, noisy_logit_logpmf, {"samples": 9}),
    "LabelNoise": Row(LabelNoise, noisy_label_logpmf, {"noise": 0.3}),
    "LabelSmoothing": Row(LabelSmoothing, changed={"smoothing": 0.3}),
    "MarginSmoothing": Row(MarginSmoothing, changed={"margin": 1.0}),
    "FocalLoss": Row(FocalLoss, changed={"class_weights": (1.0, 2.0, 3.0)}),
    "SpatialSmoothing": Row(SpatialSmoothing, changed={"sigma": 2.0}, **MASKS_ONLY),
    "NeighbourAware": Row(NeighbourAware, changed={"weight": 0.3}, **MASKS_ONLY),
    "Boxes": Row(
        lambda names, event, site, **settings: Boxes(names, **{"most": 3, **settings}),
        boxes_logpdf,
        {"focal": 2.0},
        family="box",
        axes=(BOX,),
        partial=False,
    ),
    "Gaussian": Row(
        Gaussian, located_logpdf(lambda _, *at: stats.norm(*at)), {"beta": 0.5}, **NUMBER
    ),
    "LaplaceNoise": Row(
        LaplaceNoise, located_logpdf(lambda _, *at: stats.laplace(*at)), {"partial": True}, **NUMBER
    ),
    "StudentT": Row(
        StudentT,
        located_logpdf(lambda one, *at: stats.t(one.df.item(), *at)),
        {"df": 7.0},
        **NUMBER,
    ),
    "Quantiles": Row(
        Quantiles, pinball_logpdf, {"levels": (0.1, 0.2, 0.5, 0.8, 0.9)}, partial=False, **NUMBER
    ),
}
CELLS = [(name, event) for name, row in ROWS.items() for event in row.axes]
every_cell = pytest.mark.parametrize(
    ("name", "event"),
    CELLS,
    ids=[f"{name}-{event[-1] if event else 'case'}" for name, event in CELLS],
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Stop:
    """A transform of batches that does nothing, but for the last of a few."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, batch: Any, generator: Any) -> Any:
        self.left -= 1
        if not self.left:
            raise InterruptedError
        return batch


def traced(likelihood: Any, output: Tensor, value: Tensor | None) -> Any:
    with pyro.plate("case", output.shape[0]):
        return poutine.trace(likelihood).get_trace(output, value)


def test_every_exported_likelihood_is_in_the_table() -> None:
    exported = {
        name
        for name in ppl_med.likelihoods.__all__
        if inspect.isclass(kind := getattr(ppl_med.likelihoods, name))
        and issubclass(kind, Likelihood)
        and not inspect.isabstract(kind)
    }
    assert exported <= ROWS.keys()


@every_cell
def test_the_log_density_is_exact_in_double_and_near_it_in_single(
    name: str, event: tuple[str, ...]
) -> None:
    row = ROWS[name]
    likelihood = row.build(event).eval()
    output, value = row.data(likelihood)
    trace = traced(likelihood, output, value)
    fn = trace.nodes[likelihood.site]["fn"]
    by_entry = row.logpdf(likelihood, output.double().numpy(), value.numpy(), trace)
    expected = by_entry.reshape(len(output), -1).sum(1)
    found = log_prob_in_double(fn, value)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-9)
    if name == "LogitNormal":  # its training draws noise of its own
        return
    single = traced(likelihood.train(), output, None).nodes[likelihood.site]["fn"]
    near = single.log_prob(value)
    assert near.dtype == torch.float32
    np.testing.assert_allclose(near.detach(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(log_prob_in_double(single, value).detach(), expected, rtol=1e-5)


@every_cell
def test_stored_parameters_have_named_axes(name: str, event: tuple[str, ...]) -> None:
    row = ROWS[name]
    likelihood = row.build(event).eval()
    output, value = row.data(likelihood)
    fn = traced(likelihood, output, None).nodes[likelihood.site]["fn"]
    stored = stored_parameters(in_double(fn), ["case", *event])
    sizes = dict(zip(("case", *event), value.shape, strict=True))
    sizes |= {axis: len(names) for axis, names in likelihood.coords.items()}
    assert stored
    for names, values in stored.values():
        assert values.shape == tuple(sizes[axis] for axis in names)
    if "probs" in stored:
        np.testing.assert_allclose(stored["probs"][1].detach().sum(1), 1, rtol=1e-12)


@every_cell
def test_draws_by_inverse_transform_are_of_the_distribution(
    name: str, event: tuple[str, ...]
) -> None:
    """Draws at uniform numbers against the distribution's own sampler."""
    row, number = ROWS[name], 4000
    likelihood = row.build(event).eval()
    output = row.data(likelihood)[0][:1]
    output = output.expand(number, *output.shape[1:]).contiguous()
    with torch.no_grad():
        fn = traced(likelihood, output, None).nodes[likelihood.site]["fn"]

    def uniform(shape: torch.Size, suffix: str = "") -> Tensor:
        return torch.rand(shape, dtype=torch.float64)

    drawn, sampled = (x.double().reshape(number, -1) for x in (transformed(fn, uniform), fn()))
    assert drawn.shape == sampled.shape
    if name == "Boxes":  # labels of -1 and up, and edges where there is a box
        drawn, sampled = drawn[:, [4, 9, 14]] + 1, sampled[:, [4, 9, 14]] + 1
        edges = [one[~one.isnan()] for one in (transformed(fn, uniform)[:, 0, 0], fn()[:, 0, 0])]
        assert stats.ks_2samp(*edges).pvalue > FALSE_ALARM
    for one, other in zip(drawn.T[:3].numpy(), sampled.T[:3].numpy(), strict=True):
        if hasattr(likelihood, "classes"):
            counts = [np.bincount(x.astype(int), minlength=4)[:4] for x in (one, other)]
            table = np.array(counts)[:, np.sum(counts, 0) > 0]
            assert stats.chi2_contingency(table).pvalue > FALSE_ALARM
        else:
            assert stats.ks_2samp(one, other).pvalue > FALSE_ALARM


@every_cell
@pytest.mark.parametrize("training", [True, False])
def test_missing_entries_have_no_influence(
    name: str, event: tuple[str, ...], training: bool
) -> None:
    row = ROWS[name]
    if not row.partial:
        assert not row.build(event).partial
        return
    likelihood = row.build(event, partial=True).train(training)
    output, value = row.data(likelihood)
    missing = -1 if hasattr(likelihood, "classes") else float("nan")
    whole, cases = value.clone(), slice(0, 2)
    value[cases] = missing
    output.requires_grad_()

    def log_prob(value: Tensor) -> Tensor:
        torch.manual_seed(1)
        fn = traced(likelihood, output, value).nodes[likelihood.site]["fn"]
        found: Tensor = fn.log_prob(value)
        return found

    some = log_prob(value)
    assert (some[cases] == 0).all()
    torch.testing.assert_close(some[2:], log_prob(whole)[2:], rtol=0, atol=0)
    some.sum().backward()
    gradient = output.grad
    assert gradient is not None and gradient.isfinite().all()
    assert not gradient[cases].any() and gradient[2:].any()


@every_cell
def test_an_observation_of_another_shape_is_refused(name: str, event: tuple[str, ...]) -> None:
    row = ROWS[name]
    likelihood = row.build(event)
    output, value = row.data(likelihood)
    for wrong in (value[:1], value.unsqueeze(1)):
        with pytest.raises(ValueError, match=f"{likelihood.site} has shape .* is needed"):
            traced(likelihood, output, wrong)
    model = row.model(likelihood)
    with pytest.raises(ValueError, match=r"takes \d+ output\(s\) per"):
        likelihood.check_output(output[:, :0], torch.zeros(6, 1, 4, 5))
    assert model.coords == likelihood.coords


@every_cell
def test_a_resumed_run_needs_the_same_settings(
    name: str, event: tuple[str, ...], tmp_path: Path
) -> None:
    row = ROWS[name]
    changed = row.changed or {"classes": ("a", "other")}
    path = tmp_path / "run.pt"
    site = row.build(event).site
    arrays = row.arrays(row.build(event), torch.randn(6, 1, 4, 5))

    def run(likelihood: Likelihood, resume: bool, stop: int = 0) -> Any:
        torch.manual_seed(0)
        model = row.model(likelihood)
        guide = PointEstimate(model)
        batches = Batches(arrays, batch_size=3, transform=Stop(stop))
        history = fit(
            model, guide, batches, epochs=3, checkpoint=path, resume=resume, progress=False
        )
        return history, predict(model, guide, [arrays], draws=1, progress=False)

    def other() -> Any:
        if "classes" in changed:
            return row.kind(changed["classes"], event=event, site=site)
        return row.build(event, **changed)

    with pytest.raises(InterruptedError):
        run(row.build(event), False, stop=4)
    with pytest.raises(ValueError, match="settings of the model"):
        run(other(), True)
    resumed, tree = run(row.build(event), True)
    path.unlink()
    whole, _ = run(row.build(event), False)
    np.testing.assert_array_equal(resumed["nll"], whole["nll"])
    assert f"{name}(" in tree.attrs["settings"]


@every_cell
def test_members_of_an_ensemble_start_anew(name: str, event: tuple[str, ...]) -> None:
    likelihood = ROWS[name].build(event)
    start = [parameter.clone() for parameter in likelihood.parameters()]
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter += 1
    model = ROWS[name].model(likelihood)
    for member, _ in Ensemble(model, PointEstimate, members=2).members:
        found: Any = member
        for parameter, begun in zip(found.likelihood.parameters(), start, strict=True):
            torch.testing.assert_close(parameter, begun)


@every_cell
@pytest.mark.parametrize("training", [True, False])
def test_it_runs_on_any_device(name: str, event: tuple[str, ...], training: bool) -> None:
    """Fake tensors of another device: an operator that mixes two of them raises."""
    row = ROWS[name]
    with FakeTensorMode():
        with torch.device("cuda"):
            likelihood = row.build(event).train(training)
        shape = (6, likelihood.num_outputs, *((4, 5) if event == PIXELS else ()))
        output = torch.empty(shape, device="cuda")
        kind = torch.long if hasattr(likelihood, "classes") else torch.float32
        per_case = shape[1:] if event == FINDING else shape[2:]
        if event == BOX:
            output = torch.empty(*shape, 9, device="cuda")
            per_case, kind = torch.Size((3, 5)), torch.float32
        value = torch.empty(6, *per_case, device="cuda", dtype=kind)
        with pyro.validation_enabled(False):
            fn = traced(likelihood, output, value).nodes[likelihood.site]["fn"]
            log_probs = [fn.log_prob(value)]
            log_probs += [] if training else [log_prob_in_double(fn, value)]
            stored: Any = {}
            # The variance of torch's Student's t and the suppression of boxes look at values, which
            # fake ones do not have.
            if not training and name not in ("StudentT", "Boxes"):
                stored = stored_parameters(in_double(fn), ["case", *event])
    for found in [*log_probs, *(values for _, values in stored.values())]:
        assert found.device.type == "cuda"


# --- a user's own


class Cauchy(dist.Cauchy):
    """A distribution that nothing here knows."""


class CauchyNoise(Likelihood):
    """A likelihood that no file of the library names."""

    num_outputs = 1
    event, site = (), "value"

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def distribution(self, output: Tensor) -> Any:
        return Cauchy(output[:, 0], torch.as_tensor(self.scale).to(output))


def test_a_likelihood_of_the_user_is_accepted_and_part_of_the_resume_check(tmp_path: Path) -> None:
    arrays = {"image": torch.randn(6, 1, 4, 5), "value": torch.randn(6)}

    def run(scale: float, resume: bool = False) -> Any:
        model = ROWS["Gaussian"].model(CauchyNoise(scale))
        guide, path = PointEstimate(model), tmp_path / "run.pt"
        batches = Batches(arrays, batch_size=6)
        fit(model, guide, batches, epochs=1, checkpoint=path, resume=resume, progress=False)
        return predict(model, guide, batches, draws=2, progress=False)

    tree = run(1.0)
    assert tree["log_likelihood/value"].shape == (1, 2, 6)
    with pytest.raises(ValueError, match="settings of the model"):
        run(2.0, resume=True)


@pytest.mark.parametrize("wrong", [{"site": "other"}, {"event": PIXELS}])
def test_a_likelihood_of_another_site_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="likelihood must be of site 'value' and axes"):
        BayesianRegressor(nn.Flatten(), Gaussian(**wrong))


# --- stock distributions, in programs without a likelihood

ONES = torch.ones(5)
STOCK: dict[str, tuple[Distribution, set[str], bool]] = {
    "normal": (dist.Normal(ONES, 2), {"loc", "scale"}, True),
    "torch_normal": (torch.distributions.Normal(ONES, 2), {"loc", "scale"}, True),
    "laplace": (dist.Laplace(ONES, 2), {"loc", "scale", "variance"}, True),
    "student": (dist.StudentT(3 * ONES, 0, 2), {"loc", "scale", "variance"}, True),
    "categorical": (dist.Categorical(logits=torch.zeros(5, 3)), {"probs"}, True),
    "bernoulli": (dist.Bernoulli(logits=ONES), {"probs"}, True),
    "gamma": (dist.Gamma(2 * ONES, 3.0), {"mean", "variance"}, False),
    "beta": (dist.Beta(2 * ONES, 3.0), {"mean", "variance"}, False),
    "poisson": (dist.Poisson(ONES), {"mean", "variance"}, False),
    "maps": (dist.Normal(torch.ones(5, 2), 2).to_event(1), {"loc", "scale"}, True),
}


@pytest.mark.parametrize("name", STOCK)
def test_stock_distributions_are_known(name: str) -> None:
    fn, parameters, doubled = STOCK[name]
    assert stored_parameters(fn, ["case"]).keys() == parameters
    value = fn.sample()
    found = log_prob_in_double(fn, value)
    assert found.dtype == (torch.float64 if doubled else torch.float32)
    torch.testing.assert_close(found.float(), fn.log_prob(value))
    half = torch.full((5,), 0.5, dtype=torch.float64)
    if name in {"normal", "torch_normal", "laplace", "student"}:
        torch.testing.assert_close(quantile(fn, half), fn.loc)  # type: ignore[attr-defined]
