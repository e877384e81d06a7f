"""What is timed: a network, a batch of noise images for it, and the Pyro model around it."""

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ppl_med.likelihoods import Categorical
from ppl_med.models import BayesianClassifier
from ppl_med.networks import LeNet
from ppl_med.weights import FanInNormal, RandomWeights

NUM_CASES = 10_000  # size of the data set that a batch is said to come from
NUM_CLASSES = 10
CLASSES = [f"class {index}" for index in range(NUM_CLASSES)]


class Segmenter(nn.Module):
    """One class a pixel: the Bayesian U-Net of the tables.

    Args:
        net: From images to logits, dims (case, class, row, col).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.network = RandomWeights(net, FanInNormal())
        self.likelihood = Categorical(("background", "object"), ("row", "col"), site="mask")
        self.coords = {"class": ["background", "object"]}

    def forward(
        self, image: Tensor, mask: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        """The program; returns logits."""
        output = self.network(image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            self.likelihood(output, mask)
        return output


@dataclass
class Problem:
    """A network and data for it.

    Attributes:
        name: Short name, as on the command line.
        title: Heading of its table.
        make: Build the network; the seed decides its start.
        image: One batch, dims (case, channel, row, col).
        target: Classes, dims (case,) or (case, row, col).
        site: Name of the observation.
    """

    name: str
    title: str
    make: Callable[..., nn.Module]
    image: Tensor
    target: Tensor
    site: str

    def net(self) -> nn.Module:
        """The network, with the same start each time."""
        torch.manual_seed(0)
        return self.make().to(self.image.device)

    def model(self) -> nn.Module:
        """The Bayesian model of the network, under He-scaled normal priors."""
        wrap = Segmenter if self.site == "mask" else classifier
        return wrap(self.net()).to(self.image.device)

    def batch(self) -> dict[str, Tensor]:
        """The data as the model's arguments."""
        return {"image": self.image, self.site: self.target}

    def loss(self, output: Tensor) -> Tensor:
        """Mean over cases of the negative log-likelihood, in nats."""
        return cross_entropy(output, self.target, reduction="sum") / len(self.target)


def classifier(net: nn.Module) -> nn.Module:
    """A model of ``NUM_CLASSES`` classes."""
    return BayesianClassifier(net, CLASSES, prior=FanInNormal())


def _alexnet(num_classes: int = NUM_CLASSES) -> nn.Module:
    from torchvision.models import alexnet

    net = alexnet(num_classes=num_classes)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net


def _resnet18(num_classes: int = NUM_CLASSES) -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=num_classes)


def _lenet(num_classes: int = NUM_CLASSES) -> nn.Module:
    return LeNet(1, num_classes, 28)


def _unet(num_classes: int = 2) -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=num_classes,
        channels=(16, 32, 64, 128),
        strides=(2, 2, 2),
        num_res_units=2,
    )


NETS: dict[str, tuple[str, Callable[..., nn.Module], int, int]] = {
    "lenet": ("LeNet, 28x28", _lenet, 1, 28),
    "alexnet": ("AlexNet (torchvision), 64x64", _alexnet, 3, 64),
    "resnet18": ("ResNet-18 (torchvision), 64x64", _resnet18, 3, 64),
    "unet": ("U-Net 2D (MONAI), 64x64", _unet, 1, 64),
}


def problem(name: str, num_images: int, device: torch.device, size: int | None = None) -> Problem:
    """A problem of ``NETS`` with a batch of noise.

    Args:
        name: Key of ``NETS``.
        num_images: Cases in the batch.
        device: Where it lives.
        size: Rows and columns; None for those of ``NETS``.
    """
    title, make, channels, own = NETS[name]
    size = own if size is None else size
    title = title.replace(f"{own}x{own}", f"{size}x{size}")
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(num_images, channels, size, size, generator=generator)
    shape = (num_images, size, size) if name == "unet" else (num_images,)
    num_classes = 2 if name == "unet" else NUM_CLASSES
    target = torch.randint(0, num_classes, shape, generator=generator)
    site = "mask" if name == "unet" else "label"
    return Problem(name, title, make, image.to(device), target.to(device), site)
