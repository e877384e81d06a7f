"""A training step never waits for the device: no tensor is read on the host.

The reads are seen by a dispatch mode, so no GPU is needed: what would make the host wait on a GPU
is the same operator on the CPU.
"""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from monai.networks.nets.unet import UNet
from torch import Tensor, nn
from torchvision.models import resnet18

from ppl_med.axes import dims
from ppl_med.inference import (
    BernoulliDropout,
    ConditionalNormal,
    Geco,
    Guides,
    MeanFieldNormal,
    Noising,
    PointEstimate,
    elbo_terms,
    fit,
)
from ppl_med.inference.training.trainer import Trainer
from ppl_med.likelihoods import Boxes, Categorical
from ppl_med.models import (
    BayesianClassifier,
    BayesianDetector,
    CategoricalDiffusion,
    DUQClassifier,
    GaussianDiffusion,
    LatentClassifier,
)
from ppl_med.networks import AlexNet, DenoisingUNet, GaussianEncoder, LeNet, SmallDetector
from ppl_med.programs.elbo import total
from ppl_med.programs.host_reads import NoHostReads
from ppl_med.weights import RandomWeights


class Segmenter(nn.Module):
    """One class a pixel: what BayesianClassifier is for one class an image."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.network = RandomWeights(net)
        self.likelihood = Categorical(["background", "lesion"], ("row", "col"), "mask")

    def forward(
        self, image: Tensor, mask: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        output = self.network(image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            self.likelihood(output, mask)
        return output


def unet() -> UNet:
    return UNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,))


Case = tuple[nn.Module, Tensor, Tensor]
NETS: dict[str, Callable[[], Case]] = {
    "LeNet": lambda: classifier(LeNet(1, 2, size=16), 1, 16),
    "AlexNet": lambda: classifier(AlexNet(1, 2), 1, 32),
    "ResNet-18": lambda: classifier(resnet18(num_classes=2), 3, 32),
    "U-Net": lambda: (
        Segmenter(unet()),
        torch.randn(2, 1, 8, 8),
        torch.randint(2, (2, 8, 8)),
    ),
}
GUIDES: dict[str, Callable[[Any], nn.Module]] = {
    "point": PointEstimate,
    "auto": lambda model: MeanFieldNormal(model, estimator="auto"),
    "flipout": lambda model: MeanFieldNormal(model, estimator="flipout"),
    "shared": lambda model: MeanFieldNormal(model, estimator="shared"),
    "dropout": BernoulliDropout,
    "dropout per batch": lambda model: BernoulliDropout(model, per_example=False),
}


def classifier(net: nn.Module, channels: int, size: int) -> Case:
    image = torch.randn(2, channels, size, size)
    return BayesianClassifier(net, ["a", "b"]), image, torch.tensor([0, 1])


def check_step(model: Any, guide: Any, image: Tensor, *observed: Tensor) -> None:
    """The loss and its gradient, as fit computes them, with all reads forbidden."""
    pair = nn.ModuleList([model, guide]).train()
    with pyro.validation_enabled(False):
        with torch.no_grad():  # the first pass finds out which weights are used once
            elbo_terms(model, guide, image, *observed, num_cases=8)
        with NoHostReads():
            nll, kl = elbo_terms(model, guide, image, *observed, num_cases=8)
            loss = (total(nll) + total(kl)) / 8
            loss.backward()
    assert any(p.grad is not None for p in pair.parameters())


LARGE = ("AlexNet", "ResNet-18")  # millions of weights: one guide by default, all with -m slow
STEPS = [
    pytest.param(
        NETS[net],
        GUIDES[guide],
        id=f"{net}-{guide}",
        marks=pytest.mark.slow if net in LARGE and guide != "auto" else (),
    )
    for net in NETS
    for guide in GUIDES
]


@pytest.mark.parametrize(("case", "guide"), STEPS)
def test_a_step_reads_nothing(case: Callable[[], Case], guide: Callable[[Any], nn.Module]) -> None:
    model, image, observed = case()
    check_step(model, guide(model), image, observed)


def test_a_step_by_local_reparameterisation_reads_nothing() -> None:
    """On a net without convolutions, for which that estimator is meant."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))
    model, image, label = classifier(net, 1, 4)
    check_step(model, MeanFieldNormal(model, estimator="local"), image, label)


def test_a_step_with_a_code_per_case_reads_nothing() -> None:
    model = LatentClassifier(1, ["a", "b"], width=2)
    guide = ConditionalNormal(GaussianEncoder(1, 2, 2, num_classes=2))
    check_step(model, guide, torch.randn(2, 1, 8, 8), torch.tensor([0, 1]))


@pytest.mark.parametrize("match", ["all", "best", "centre"])
def test_a_step_of_a_detector_reads_nothing(match: Any) -> None:
    """Neither how many boxes there are nor which anchors are theirs."""
    net = SmallDetector(1, 2, width=8)
    model = BayesianDetector(net, Boxes(["a", "b"], match=match))
    box = torch.tensor([[[2.0, 2, 12, 12], [4, 4, 30, 30]], [[torch.nan] * 4] * 2])
    label = torch.tensor([[0, 1], [-1, -1]])
    check_step(model, MeanFieldNormal(model), torch.randn(2, 1, 32, 32), box, label)


class Both(nn.Module):
    """Random weights and a latent code per case."""

    def __init__(self) -> None:
        super().__init__()
        self.latent = LatentClassifier(1, ["a", "b"], width=2)
        self.network = RandomWeights(self.latent.head)
        self.latent.head = self.network  # type: ignore[assignment]

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        features = self.latent.features(image)
        encoder = self.latent.prior
        plate = pyro.plate("case", num_cases or len(image), subsample=image)
        with plate:
            z = pyro.sample("z", encoder(image), infer=dims("latent"))
        logits = self.network(torch.cat([features, z], dim=1))
        with plate:
            self.latent.likelihood(logits, label)
        return logits


def test_a_step_with_joined_guides_reads_nothing() -> None:
    model = Both()
    encoder = GaussianEncoder(1, 2, 2, num_classes=2)
    guide = Guides(MeanFieldNormal(model), ConditionalNormal(encoder))
    check_step(model, guide, torch.randn(2, 1, 8, 8), torch.tensor([0, 1]))


@pytest.mark.filterwarnings("ignore:the KL is")  # of so few cases
def test_a_step_of_fit_reads_nothing_however_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipped, accumulated, and with layers at paces of their own."""
    step, steps = Trainer._step, 0

    def watched(self: Any, *arguments: Any) -> None:
        nonlocal steps
        steps += 1
        with NoHostReads():
            step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", watched)
    model, image, label = classifier(LeNet(1, 2, size=16), 1, 16)
    fit(
        model,
        MeanFieldNormal(model),
        [{"image": image, "label": label}] * 3,
        clip_norm=0.1,
        accumulate=2,
        average=0.99,
        rate_warm_up=0.5,
        objective=Geco(0.5),
        learning_rate={"*features*": 0.0, "*weight": 1e-4, "*": 1e-3},
        progress=False,
        device="cpu",
    )
    assert steps == 3


def test_a_step_that_centroids_follow_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer._step

    def watched(self: Any, *arguments: Any) -> None:
        with NoHostReads():
            step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", watched)
    model = DUQClassifier(LeNet(1, 5, size=16), ["a", "b"], 5)
    batch = {"image": torch.randn(2, 1, 16, 16), "label": torch.tensor([0, 1])}
    before = model.centroids.total.clone()
    fit(model, PointEstimate(model), [batch] * 2, epochs=1, progress=False, device="cpu")
    assert not torch.equal(model.centroids.total, before)


READS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "equal": lambda x: torch.equal(x, x),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "isnan": lambda x: x.isnan().any().item(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_the_mode_sees_a_read(read: Callable[[Tensor], Any]) -> None:
    x = torch.randn(5)
    with NoHostReads():
        (2 * x).sum()  # arithmetic may pass
        with pytest.raises(RuntimeError, match="makes the host wait"):
            read(x)


def test_the_mode_sees_a_read_in_the_program() -> None:
    """A model that looks at its logits on the way."""

    class Looking(BayesianClassifier):
        def forward(self, *inputs: Any, **options: Any) -> Tensor:
            logits = super().forward(*inputs, **options)
            assert logits.isfinite().all()
            return logits

    model = Looking(LeNet(1, 2, size=16), ["a", "b"])
    with pytest.raises(RuntimeError, match="_local_scalar_dense"):
        check_step(model, PointEstimate(model), torch.randn(2, 1, 16, 16), torch.tensor([0, 1]))


@pytest.mark.parametrize("form", ["fast", "slow"])
@pytest.mark.parametrize("kind", [CategoricalDiffusion, GaussianDiffusion])
def test_a_step_of_a_diffusion_reads_nothing(kind: Any, form: Any) -> None:
    noised = 2 if kind is CategoricalDiffusion else 1
    net = DenoisingUNet(1, noised, 2, (8, 8), (4, 4))
    model = kind(net, ["background", "lesion"], 3, form=form)
    guide = Guides(MeanFieldNormal(model), Noising(model.noising))
    check_step(model, guide, torch.randn(2, 1, 4, 4), torch.randint(2, (2, 4, 4)))
