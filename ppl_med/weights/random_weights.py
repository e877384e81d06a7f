"""Parameters of any network as one random site with named views.

    weights  ~  prior                         one flat vector, outside every plate
    output   =  net(inputs; weights)          the net's own code, unchanged

Priors attach to parameters, never to layer classes, so torch, torchvision and MONAI nets work as
they are. One flat site costs a training step 6 to 10 times fewer kernels than one site a parameter.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any, Literal

import pyro
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from ppl_med.checks import choice
from ppl_med.weights.checkpointing_guard import noting_gradients, refuse_checkpointing
from ppl_med.weights.compiled_nets import asked_to_compile, compiled_call
from ppl_med.weights.drawn_weights import note_weights
from ppl_med.weights.estimators import LazyWeights
from ppl_med.weights.layout import Layout, Where
from ppl_med.weights.priors import FanInNormal, Prior
from ppl_med.weights.sliding_window import run_net
from ppl_med.weights.tied_parameters import call_with, tied_names

DROPOUT_RATES = (
    *("dropout", "attention_dropout", "dropout_rate", "dropout_prob"),
    *("drop_rate", "drop_prob"),
)


class RandomWeights(nn.Module):
    """A network whose weights are drawn from a prior: one Pyro site.

    The net is copied; the caller's stays as it was. Dropout layers of the copy are switched off,
    since a mask that no guide proposes is noise without a posterior; put dropout into the guide
    (``BernoulliDropout``) instead. Their rates are kept in ``dropout_rates``.

    Args:
        net: Any network.
        prior: Distribution over its weights before data; He-scaled normals by default.
        where: Which parameters are random: None for all but norm layers and PReLU,
            ``"last_layer"``, a pattern over names (``"layer4.*"``), a module type or tuple of
            types, or a function of (name, module). The others are trained as point estimates.
        batch_norm: ``"update"``: running statistics follow training and are frozen at predict;
            ``"frozen"``: never move (use it with a pretrained net).
        site: Name of the sample site.

    Raises:
        TypeError: If ``net`` is no module, or ``prior`` no prior.
        ValueError: If ``where`` selects nothing.
    """

    def __init__(
        self,
        net: nn.Module,
        prior: Prior | None = None,
        where: Where = None,
        *,
        batch_norm: Literal["update", "frozen"] = "update",
        site: str = "weights",
    ) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
        choice("batch_norm", batch_norm, ("update", "frozen"))
        if not (prior is None or isinstance(prior, Prior)):
            raise TypeError(
                f"prior must be one of ppl_med.weights.priors, such as Normal(1.0), got {prior!r}"
            )
        self.net = copy.deepcopy(net)
        self.prior = prior or FanInNormal()
        self.layout = Layout(self.net, where)
        self._ties = tied_names(self.net)
        self.site, self.batch_norm = site, batch_norm
        self.dropout_rates = _switch_off_dropout(self.net)
        chosen = set(self.layout.names)
        for name, parameter in self.net.named_parameters():
            if name in chosen:
                parameter.requires_grad_(False)
                owner = self.net.get_submodule(name.rpartition(".")[0])
                if refuse_checkpointing not in owner._forward_pre_hooks.values():
                    owner.register_forward_pre_hook(refuse_checkpointing)
        self._prior_names: list[str] = []
        for name, tensor in self.prior.parameters(self.layout, self.initial()).items():
            self.register_buffer(f"prior_{name}", tensor)
            self._prior_names.append(name)

    def initial(self) -> Tensor:
        """The net's own values of the random weights, dims (weight,); where guides start."""
        return self.layout.flatten(self.net)

    def prior_distribution(self) -> Any:
        """The prior over the flat vector."""
        tensors = {name: getattr(self, f"prior_{name}") for name in self._prior_names}
        return self.prior.distribution(self.layout.num_weights, **tensors)

    def train(self, mode: bool = True) -> "RandomWeights":
        """Set the mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if self.batch_norm == "frozen":
            for module in self.net.modules():
                if isinstance(module, _BatchNorm | _InstanceNorm):
                    module.eval()
        return self

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Draw the weights (or take the guide's) and run the net.

        Args:
            inputs: What the net takes; the first is a batch with the examples on axis 0.
            options: Keyword arguments of the net; the first is the batch if there is no input.
        """
        weights = pyro.sample(self.site, self.prior_distribution())
        if not isinstance(weights, LazyWeights):
            views = self.layout.views(weights)
            return run_net(lambda *x, **named: self._run(views, x, named), *inputs, **options)
        size = len(next(iter((*inputs, *options.values()))))
        output = self._run(self._per_example(weights, size), inputs, options)
        self._check_uses(weights)
        return output

    def drawn(self, num_examples: int) -> Callable[..., Any]:
        """Draw the weights (or take the guide's) once, for a program that runs the net repeatedly.

        Args:
            num_examples: Examples on axis 0 of the inputs, for estimators that give each its own.

        Returns:
            The net under these weights, a function of its inputs.
        """
        weights = pyro.sample(self.site, self.prior_distribution())
        if not isinstance(weights, LazyWeights):
            views = self.layout.views(weights)
            return lambda *inputs, **options: self._run(views, inputs, options)
        params = self._per_example(weights, num_examples)

        def run(*inputs: Any, **options: Any) -> Any:
            output = self._run(params, inputs, options)
            self._check_uses(weights)
            return output

        return run

    def _per_example(self, weights: LazyWeights, num_examples: int) -> dict[str, Tensor]:
        """Weights that an estimator draws in the layers."""
        if asked_to_compile(self.net):
            raise ValueError(
                "compile_nets must be False with a guide that gives every example weights of its "
                "own; build it with estimator='shared' (MeanFieldNormal) or per_example=False"
            )
        weights.num_examples = num_examples
        return weights.params

    def _check_uses(self, weights: LazyWeights) -> None:
        twice = [n for n in weights.per_example or () if weights.uses[n] > 1]
        if twice:
            raise RuntimeError(
                f"parameters {twice} were used once in the first pass and now more often; "
                "build the guide with estimator='shared', which is exact for such nets"
            )

    def _run(self, weights: dict[str, Tensor], inputs: Any, options: Any) -> Any:
        note_weights(weights)
        call = compiled_call if asked_to_compile(self.net) else call_with
        with noting_gradients():
            return call(self.net, weights, inputs, options, self._ties)


def _switch_off_dropout(net: nn.Module) -> dict[str, float]:
    """Set every dropout rate to 0, also of layers that drop by a function or drop whole paths."""
    rates = {}
    for name, module in net.named_modules():
        kind = type(module).__name__
        drops = isinstance(module, _DropoutNd) or "Drop" in kind or kind == "StochasticDepth"
        for attribute in ("p", *DROPOUT_RATES) if drops else DROPOUT_RATES:
            rate = vars(module).get(attribute)
            if isinstance(rate, float | int) and rate is not True and 0 < rate <= 1:
                rates[name if attribute == "p" else f"{name}.{attribute}"] = float(rate)
                setattr(module, attribute, 0.0)
    return rates


def find_random_weights(programs: Iterable[Any]) -> dict[str, RandomWeights]:
    """All ``RandomWeights`` inside some programs, by site name; plain functions hold none.

    Raises:
        ValueError: If two share a site name.
    """
    found: dict[str, RandomWeights] = {}
    for program in programs:
        for module in program.modules() if isinstance(program, nn.Module) else ():
            if isinstance(module, RandomWeights):
                if found.get(module.site, module) is not module:
                    raise ValueError(
                        f"two RandomWeights share the site name {module.site!r}; "
                        "give one of them another: RandomWeights(net, site=...)"
                    )
                found[module.site] = module
    return found
