"""The same step by other packages for Bayesian networks: ``pip install -e ".[bench]"``.

Each converts the network in its own way, with its own prior and its own KL (closed form or
sampled). They are imported when they are built, and what a network asks of them that they cannot do
is reported, not worked around.
"""

from collections.abc import Callable

from problems import NUM_CASES, Problem
from torch import Tensor, nn
from variants import Variant, from_loss

Replacement = dict[type[nn.Module], Callable[[nn.Module], nn.Module]]


def _replace(module: nn.Module, makers: Replacement) -> None:
    for name, child in list(module.named_children()):
        if type(child) in makers:
            setattr(module, name, makers[type(child)](child))
        else:
            _replace(child, makers)


def _trained(net: nn.Module, loss: Callable[[], Tensor], problem: Problem) -> Variant:
    net.to(problem.image.device).train()
    variant = from_loss(loss, [p for p in net.parameters() if p.requires_grad])

    def draw(image: Tensor) -> Tensor:
        net.eval()
        output: Tensor = net(image)
        return output

    variant.draw = draw
    return variant


def bayesian_torch(problem: Problem, kind: str) -> Variant:
    """bayesian-torch, ``dnn_to_bnn``.

    Args:
        problem: What is timed.
        kind: ``"Reparameterization"`` or ``"Flipout"``.
    """
    from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss

    net = problem.net()
    settings = {
        "prior_mu": 0.0,
        "prior_sigma": 1.0,
        "posterior_mu_init": 0.0,
        "posterior_rho_init": -4.0,
        "type": kind,
        "moped_enable": False,
    }
    dnn_to_bnn(net, settings)
    return _trained(
        net, lambda: problem.loss(net(problem.image)) + get_kl_loss(net) / NUM_CASES, problem
    )


def _convolution(kind: Callable[..., nn.Module], layer: nn.Module) -> nn.Module:
    return kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=layer.bias is not None,
    )


def _linear(kind: Callable[..., nn.Module], layer: nn.Module) -> nn.Module:
    return kind(layer.in_features, layer.out_features, bias=layer.bias is not None)


def blitz(problem: Problem) -> Variant:
    """BLiTZ; transposed convolutions stay deterministic, as it has none."""
    from blitz.losses import kl_divergence_from_nn
    from blitz.modules import BayesianConv2d, BayesianLinear

    net = problem.net()
    makers: Replacement = {
        nn.Conv2d: lambda layer: _convolution(BayesianConv2d, layer),
        nn.Linear: lambda layer: _linear(BayesianLinear, layer),
    }
    _replace(net, makers)
    return _trained(
        net,
        lambda: problem.loss(net(problem.image)) + kl_divergence_from_nn(net) / NUM_CASES,
        problem,
    )


def torch_uncertainty(problem: Problem) -> Variant:
    """TorchUncertainty; transposed convolutions stay deterministic, as it has none."""
    from torch_uncertainty.layers.bayesian import BayesConv2d, BayesLinear
    from torch_uncertainty.losses import ELBOLoss

    net = problem.net()
    makers: Replacement = {
        nn.Conv2d: lambda layer: _convolution(BayesConv2d, layer),
        nn.Linear: lambda layer: _linear(BayesLinear, layer),
    }
    _replace(net, makers)

    class Loss(nn.Module):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return problem.loss(output)

    elbo = ELBOLoss(net, Loss(), kl_weight=1 / NUM_CASES, num_samples=1)
    return _trained(net, lambda: elbo(problem.image, problem.target).sum(), problem)


def torch_blue(problem: Problem) -> Variant:
    """torch_blue, ``convert_to_vimodule``, one sample; its sampled KL."""
    from torch_blue import vi

    net = problem.net()
    vi.convert_to_vimodule(net, keep_weights=True)

    def loss() -> Tensor:
        output = net(problem.image, samples=1)
        log_prior, log_posterior = output.log_probs.reshape(-1, 2).mean(0)
        nll = problem.loss(output.as_subclass(Tensor)[0])
        return nll + (log_posterior - log_prior) / NUM_CASES

    variant = _trained(net, loss, problem)
    variant.draw = lambda image: net.eval()(image, samples=1).as_subclass(Tensor)[0]
    return variant


PEERS: dict[str, Callable[[Problem], Variant]] = {
    "bayesian-torch, reparameterization": lambda p: bayesian_torch(p, "Reparameterization"),
    "bayesian-torch, flipout": lambda p: bayesian_torch(p, "Flipout"),
    "blitz": blitz,
    "torch-uncertainty": torch_uncertainty,
    "torch_blue": torch_blue,
}


def failure(error: Exception) -> str:
    """What a row says of a package that is not there, or cannot do what a network asks of it.

    Args:
        error: What importing, building or running it raised.
    """
    if isinstance(error, ImportError):
        return f"not installed ({error.name})" if error.name else "not installed"
    return f"fails: {str(error).strip().splitlines()[0][:90]}"
