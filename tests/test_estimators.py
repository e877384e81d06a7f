"""Gradient estimators: each example's weights follow q exactly, and all have the same expectation.

Truth: layers are linear in their weights, so their outputs' moments under q follow from the
Jacobian; losses and gradients of nets follow from plain reparameterised draws by ``torch.func``.
"""

import warnings
from collections.abc import Callable
from typing import Any

import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ppl_med.inference import BernoulliDropout, MeanFieldNormal, elbo_terms
from ppl_med.models import BayesianClassifier
from ppl_med.testing import assert_mean
from ppl_med.weights import RandomWeights

EXACT = ("shared", "flipout", "auto")
FALSE_ALARM = 1e-6


class Tokens(nn.Module):
    """(case, channel, row, col) to (case, token, feature) = (case, row, channel * col)."""

    def forward(self, image: Tensor) -> Tensor:
        return image.transpose(1, 2).flatten(2)


class MeanToken(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1)


class Twice(nn.Module):
    """One layer used twice: the same weight must serve both."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.layer(torch.tanh(self.layer(image.flatten(1)[:, :4]))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 4, 8) / 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, image: Tensor) -> Tensor:
        tokens = Tokens()(image) + self.position
        tokens = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(tokens.mean(1))


class Folded(nn.Module):
    """Rows of an image become examples of a layer, as the windows of a Swin transformer do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 3), nn.Linear(3, 2)

    def forward(self, image: Tensor) -> Tensor:
        rows = Tokens()(image)
        embedded = torch.tanh(self.embed(rows.flatten(0, 1)))
        return self.head(embedded.view(*rows.shape[:2], 3).mean(1))


NETS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 3), nn.Tanh(), nn.Linear(3, 2)),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 2, 2, groups=2, bias=False),
        nn.Flatten(),
        nn.Linear(2, 2),
    ),
    "transposed": lambda: nn.Sequential(
        nn.ConvTranspose2d(2, 2, 2, stride=2, output_padding=1, groups=2),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 2),
    ),
    "tokens": lambda: nn.Sequential(
        Tokens(), nn.Linear(8, 3), nn.Tanh(), MeanToken(), nn.Linear(3, 2)
    ),
    "twice": Twice,
    "attention": Attention,
    "folded": Folded,
}
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(3, 2), (3,)),
    "linear-tokens": (lambda: nn.Linear(3, 2), (2, 3)),
    "conv1d": (lambda: nn.Conv1d(2, 2, 2, dilation=2), (2, 4)),
    "conv2d": (lambda: nn.Conv2d(2, 2, 2, bias=False), (2, 3, 3)),
    "conv2d-strided": (lambda: nn.Conv2d(2, 2, 3, stride=2, padding=1), (2, 3, 3)),
    "conv2d-grouped": (lambda: nn.Conv2d(4, 4, 2, groups=2), (4, 2, 2)),
    "conv2d-circular": (
        lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"),
        (1, 2, 2),
    ),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 2, 2, 3)),
    "transposed1d": (lambda: nn.ConvTranspose1d(2, 1, 2, stride=3, output_padding=1), (2, 2)),
    "transposed2d": (lambda: nn.ConvTranspose2d(2, 2, 2, padding=1, groups=2), (2, 2, 2)),
    "transposed3d": (lambda: nn.ConvTranspose3d(1, 1, 2, bias=False), (1, 1, 1, 1)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def spread(guide: MeanFieldNormal, scale: float) -> MeanFieldNormal:
    """Set every standard deviation of a guide, varied a little so that mix-ups show."""
    part: Any = guide.parts["weights"]
    scales = scale * torch.linspace(0.5, 1.5, len(part.loc), dtype=part.loc.dtype)
    with torch.no_grad():
        part.raw_scale.copy_(scales + torch.log(-torch.expm1(-scales)))
    return guide


def guide_over(model: nn.Module, estimator: str, scale: float = 0.5) -> MeanFieldNormal:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="estimator='local' is biased")
        return spread(MeanFieldNormal(model, estimator=estimator), scale)  # type: ignore[arg-type]


def run(model: Any, guide: Any, *inputs: Tensor) -> Tensor:
    return poutine.replay(model, trace=poutine.trace(guide).get_trace())(*inputs)


def layer_outputs(layer: nn.Module, inputs: Tensor, estimator: str, passes: int) -> Tensor:
    """Centred outputs of a random layer, dims (pass, case, output)."""
    model = RandomWeights(layer.double())
    guide = guide_over(model, estimator)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        run(model, guide, inputs)  # counts the uses of every weight
        outputs = torch.stack([run(model, guide, inputs) for _ in range(passes)])
    return (outputs - layer(inputs)).flatten(2).detach()


def exact_covariance(layer: nn.Module, image: Tensor) -> Tensor:
    """Covariance of a layer's outputs for one image under q, dims (output, output)."""
    model = RandomWeights(layer)
    part: Any = guide_over(model, "shared").parts["weights"]

    def output(flat: Tensor) -> Tensor:
        return functional_call(model.net, model.layout.views(flat), (image[None],)).flatten()

    jacobian = torch.func.jacrev(output)(part.loc.detach())
    return jacobian @ torch.diag(part.scale.detach().square()) @ jacobian.T


@every_layer
@pytest.mark.parametrize("estimator", EXACT)
def test_outputs_of_one_example_have_the_covariance_of_q(name: str, estimator: str) -> None:
    layer, shape = LAYERS[name][0]().double(), LAYERS[name][1]
    image = torch.randn(shape).double()
    batch = image.expand(24, *shape)
    centred = layer_outputs(layer, batch, estimator, passes=200)
    chosen = torch.randperm(centred.shape[-1])[:6]
    centred = centred[..., chosen]
    assert_mean(centred.mean(1), torch.zeros(len(chosen)))
    products = (centred[..., :, None] * centred[..., None, :]).mean(1)
    assert_mean(products, exact_covariance(layer, image)[chosen][:, chosen])


@every_layer
@pytest.mark.parametrize("estimator", ["flipout", "auto"])
def test_examples_have_uncorrelated_weights(name: str, estimator: str) -> None:
    layer, shape = LAYERS[name][0]().double(), LAYERS[name][1]
    batch = torch.randn(shape).double().expand(24, *shape)
    centred = layer_outputs(layer, batch, estimator, passes=100)[..., :6]
    neighbours = centred[:, :-1, :, None] * centred[:, 1:, None, :]
    assert_mean(neighbours.mean(1), torch.zeros(neighbours.shape[2:]))
    assert centred.std(1).min() > 0


@every_layer
@pytest.mark.parametrize("estimator", ["shared", "flipout", "auto", "local"])
def test_without_noise_a_layer_is_itself(name: str, estimator: str) -> None:
    """Every option of the layer (stride, groups, output_padding, ...) reaches it."""
    layer, shape = LAYERS[name][0]().double(), LAYERS[name][1]
    model = RandomWeights(layer)
    guide = guide_over(model, estimator, scale=1e-9)
    inputs = torch.randn(3, *shape).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(2):
            torch.testing.assert_close(run(model, guide, inputs), layer(inputs), rtol=0, atol=1e-6)


def test_options_may_be_keywords() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = (
                nn.Parameter(torch.randn(2, 3, 2, 2)),
                nn.Parameter(torch.ones(4)),
            )

        def forward(self, image: Tensor) -> Tensor:
            return F.conv_transpose2d(
                input=image, weight=self.weight.transpose(0, 1).reshape(3, 2, 2, 2), stride=2
            ) + F.conv_transpose2d(
                image,
                weight=self.weight.transpose(0, 1),
                bias=self.bias[:2],
                output_padding=0,
                stride=2,
            )

    net, image = Keywords(), torch.randn(2, 3, 4, 4)
    model = RandomWeights(net)
    guide = guide_over(model, "flipout", 1e-9)
    for _ in range(2):
        torch.testing.assert_close(run(model, guide, image), net(image), rtol=0, atol=1e-4)


def batch_of(cases: int) -> tuple[Tensor, Tensor]:
    image = torch.randn(cases, 2, 4, 4).double()
    return image, torch.arange(cases) % 2


def reference(
    model: BayesianClassifier, image: Tensor, label: Tensor, draws: int
) -> tuple[Tensor, Tensor]:
    """Loss (draw) and gradient (draw, parameter) with one plain draw of weights a batch."""
    part: Any = guide_over(model, "shared").parts["weights"]
    loc, scale = part.loc.detach(), part.scale.detach()
    slope = -torch.expm1(-scale)  # derivative of softplus, where softplus is the scale

    def loss(weights: Tensor) -> Tensor:
        views = model.network.layout.views(weights)
        logits = functional_call(model.network.net, views, (image,))
        return F.cross_entropy(logits, label, reduction="sum")

    noise = torch.randn(draws, len(loc)).double()
    with sdpa_kernel(SDPBackend.MATH):
        gradient, value = vmap(grad_and_value(loss))(loc + scale * noise)
    return value, torch.cat([gradient, gradient * noise * slope], dim=1)


def estimates(
    model: BayesianClassifier, estimator: str, image: Tensor, label: Tensor, passes: int
) -> tuple[Tensor, Tensor]:
    """Loss (pass) and gradient (pass, parameter) as ``fit`` would use them."""
    guide = guide_over(model, estimator)
    part: Any = guide.parts["weights"]
    elbo_terms(model, guide, image, label)
    losses, gradients = [], []
    for _ in range(passes):
        loss = elbo_terms(model, guide, image, label)[0]["label"]
        losses.append(loss.detach())
        gradients.append(torch.cat(torch.autograd.grad(loss, [part.loc, part.raw_scale])))
    return torch.stack(losses), torch.stack(gradients)


def assert_unbiased(
    model: BayesianClassifier, estimator: str, image: Tensor, label: Tensor, passes: int = 250
) -> None:
    """Two-sample z-tests of loss and gradient against plain draws, 8 of them a pass."""
    copies = image.repeat(24, 1, 1, 1), label.repeat(24)
    for values, plain in zip(
        estimates(model, estimator, *copies, passes),
        reference(model, image, label, 8 * passes),
        strict=True,
    ):
        difference = values / 24 - plain.unflatten(0, (passes, 8)).mean(1)
        assert_mean(difference, torch.zeros(difference.shape[1:]))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("estimator", EXACT)
def test_estimators_have_one_expected_loss_and_gradient(name: str, estimator: str) -> None:
    model = BayesianClassifier(NETS[name]().double(), ["a", "b"])
    assert_unbiased(model, estimator, *batch_of(2))


@pytest.mark.parametrize("estimator", EXACT)
def test_estimators_agree_under_frozen_batch_norm(estimator: str) -> None:
    norm = nn.BatchNorm2d(2)
    layers = [nn.Conv2d(2, 2, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)]
    model = BayesianClassifier(nn.Sequential(*layers).double(), ["a", "b"], batch_norm="frozen")
    assert_unbiased(model.train(), estimator, *batch_of(2))


@pytest.mark.parametrize("name", ["dense", "conv"])
def test_auto_has_the_least_gradient_variance(name: str) -> None:
    """Total variance over parameters; squared distances from the mean, compared by z-tests."""
    model = BayesianClassifier(NETS[name]().double(), ["a", "b"])
    image, label = batch_of(32)
    distance = {}
    for estimator in EXACT:
        _, gradient = estimates(model, estimator, image, label, passes=400)
        distance[estimator] = (gradient - gradient.mean(0)).square().sum(1)

    def score(smaller: str, larger: str) -> float:
        difference = distance[larger] - distance[smaller]
        return float(difference.mean() / difference.std() * len(difference) ** 0.5)

    limit = float(stats.norm.isf(FALSE_ALARM))
    assert score("auto", "shared") > limit
    assert score("auto", "flipout") > (limit if name == "dense" else -limit)


def test_local_is_no_posterior_over_the_weights_of_a_convolution() -> None:
    """On a constant image all pixels are equal under every weight, and independent under local."""
    layer, image = nn.Conv2d(1, 1, 3, bias=False), torch.ones(24, 1, 5, 5).double()
    for estimator, expected in (("shared", 1.0), ("flipout", 1.0), ("auto", 1.0), ("local", 0.0)):
        centred = layer_outputs(layer, image, estimator, passes=100)
        scale = exact_covariance(layer.double(), image[0])[0, 0].sqrt()
        assert_mean((centred[..., 0] * centred[..., 5]).mean(1) / scale**2, expected)


def test_local_is_off_in_the_expected_loss_of_a_convolutional_net() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), Pooled()).double()
    model = BayesianClassifier(net, ["a", "b"])
    image, label = torch.full((1, 1, 4, 4), 3.0).double(), torch.tensor([0])
    for estimator in EXACT:
        assert_unbiased(model, estimator, image, label)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(model, "local", image, label)


class Pooled(nn.Module):
    """Mean over pixels: the average of independent pixels varies less than one pixel."""

    def forward(self, values: Tensor) -> Tensor:
        return values.unflatten(1, (2, -1)).mean(-1)


def test_local_on_convolutions_warns_when_it_is_built() -> None:
    model = BayesianClassifier(NETS["conv"](), ["a", "b"])
    with pytest.warns(UserWarning, match="biased on convolutions"):
        MeanFieldNormal(model, estimator="local")
    head = BayesianClassifier(NETS["conv"](), ["a", "b"], where="last_layer")
    MeanFieldNormal(head, estimator="local")


def test_local_on_tokens_warns_once() -> None:
    model = BayesianClassifier(NETS["tokens"](), ["a", "b"])
    guide = MeanFieldNormal(model, estimator="local")
    image, label = batch_of(3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            elbo_terms(model, guide, image.float(), label)
    assert len(caught) == 1 and "biased on linear layers with (batch, token" in str(
        caught[0].message
    )


def test_local_on_dense_nets_is_exact_and_silent() -> None:
    model = BayesianClassifier(NETS["dense"]().double(), ["a", "b"])
    assert_unbiased(model, "local", *batch_of(2))


OPTIONS: dict[Any, dict[str, Any]] = {
    BernoulliDropout: {"rate": 0.5, "skip_first": False},
    MeanFieldNormal: {"estimator": "auto"},
}


@pytest.mark.parametrize("guide", [MeanFieldNormal, BernoulliDropout])
def test_equal_examples_differ_only_where_every_weight_is_used_once(guide: Any) -> None:
    image = torch.randn(1, 2, 4, 4).expand(6, 2, 4, 4)
    for net, differ in ((NETS["conv"](), True), (Twice(), False)):
        model = RandomWeights(net, where=lambda name, module: "head" not in name)
        chosen = guide(model, **OPTIONS[guide])
        run(model, chosen, image)
        outputs = run(model, chosen, image)
        assert bool((outputs != outputs[:1]).any()) == differ


def test_a_weight_used_more_often_than_at_first_is_an_error() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.times = nn.Linear(2, 2), 1

        def forward(self, values: Tensor) -> Tensor:
            for _ in range(self.times):
                values = self.layer(values)
            return values

    model = RandomWeights(Moody())
    guide = MeanFieldNormal(model, estimator="auto")
    run(model, guide, torch.ones(3, 2))
    model.net.times = 2  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="estimator='shared'"):
        run(model, guide, torch.ones(3, 2))


def test_prediction_draws_plain_weights_whatever_the_estimator() -> None:
    for estimator in ("shared", "flipout", "auto", "local"):
        model = RandomWeights(NETS["dense"]())
        guide = guide_over(model, estimator).eval()
        value: Any = poutine.trace(guide).get_trace().nodes["weights"]["value"]
        assert isinstance(value, Tensor) and value.shape == (model.layout.num_weights,)


@pytest.mark.parametrize("name", ["conv", "twice"])
def test_what_a_pass_uses_is_part_of_the_state(name: str) -> None:
    """A guide loaded in mid-training goes on as the saved one would, to the last bit."""
    model = BayesianClassifier(NETS[name](), ["a", "b"])
    saved, loaded = (spread(MeanFieldNormal(model, estimator="auto"), 0.3) for _ in range(2))
    image, label = torch.randn(3, 2, 4, 4), torch.tensor([0, 1, 0])
    elbo_terms(model, saved, image, label)
    loaded.load_state_dict(saved.state_dict())
    terms = []
    for guide in (saved, loaded):
        torch.manual_seed(1)
        terms.append([elbo_terms(model, guide, image, label)[0]["label"] for _ in range(2)])
    assert terms[0] == terms[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"init_scale": 0.0}, "init_scale must be"), ({"init_scale": -1.0}, "init_scale")],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeanFieldNormal(BayesianClassifier(NETS["dense"](), ["a", "b"]), **options)
