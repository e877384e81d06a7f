"""What the library may read off a program besides running it: here, and nowhere else.

A model or guide needs none of this; a plain function is a program. Each attribute below is optional
and is read by the function of its name, which says what its absence means.

===================  ==================  =========================================================
Attribute            Of                  Meaning
===================  ==================  =========================================================
``coords``           model               Coordinates of axes, such as the class names.
``in_channels``      model               Image channels that the model takes.
``least_cases``      model               Fewest cases of a batch that it takes.
``likelihood``       model               Object with ``site`` and ``partial``, perhaps.
``prediction``       likelihood          From the model's output to what is explained.
``check_value``      likelihood          Raises on values that its site cannot have.
``training_inputs``  model               Arguments without a site: of factors, or of another's site.
``told_by_image``    model               Local latents that generate the image.
``network``          model               ``RandomWeights``, or a net; its name goes to the result.
``evidence_bound``   model               Whether only a bound of its log-density is known.
``loss_alone``       model               Whether no density judges it, only its training loss.
``training_loss``    part of a model     What is trained in the place of a log-density.
``no_density``       part of a model     Whether its log-density at prediction is that loss, too.
``settings``         part of a model     What a resumed run must share.
``trained_for``      part of a model     Settings under which alone saved weights are right.
``drawn_by``         model               Settings of its draws, for the result's attributes.
``after_step``       part of a model     Moves its buffers after an optimizer step.
``of_member``        view of a model     The same view of another model, an ensemble's member.
``left_to_prior``    guide               Local latents that follow the model's prior on purpose.
``sample_stats``     guide               Method: figures of its sampler, dims (chain, draw).
``independent``      part of a guide     Says that it is a normal of its ``loc`` and ``raw_scale``.
``spread``           part of a guide     Names of its parameters that are no location.
``follow_step``      part of a guide     Moves its buffers after an optimizer step.
``before_training``  part of a guide     Forgets what an earlier training has left in its buffers.
``after_training``   part of a guide     Fills its buffers when the training has ended.
``shortfall``        part of a guide     Method: what a training has not given it, or None.
===================  ==================  =========================================================

The value of a sample site is a tensor, or a lazily drawn one (``weights.estimators.LazyWeights``);
the distribution of such a site gives a plain draw by ``shared_draw()``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from ppl_med.programs.parameters import parts_of


class Model(Protocol):
    """A Pyro program with what it says of itself; every attribute is optional."""

    coords: Mapping[str, Sequence[Any]]
    in_channels: int
    likelihood: "Likelihood"
    network: nn.Module
    training_inputs: Sequence[str]

    def __call__(self, image: Any, *observations: Any, num_cases: int | None = None) -> Any:
        """Run the program once."""


@runtime_checkable
class Likelihood(Protocol):
    """What the library reads off a model's likelihood.

    ``partial`` says whether entries may be missing: -1 among classes, NaN among numbers.
    """

    site: str
    partial: bool


class Guide(Protocol):
    """A Pyro program with the model's signature."""

    left_to_prior: frozenset[str]

    def __call__(self, image: Any, *observations: Any, num_cases: int | None = None) -> Any:
        """Propose the model's latents once."""


def coords(model: Any) -> dict[str, Any]:
    """Coordinates by axis; none where the model states none."""
    return dict(getattr(model, "coords", {}))


def in_channels(model: Any) -> int | None:
    """Image channels; None where the model does not say."""
    found = getattr(model, "in_channels", None)
    return found if isinstance(found, int) else None


def least_cases(model: Any) -> int:
    """Fewest cases of a batch to predict; one where the model does not say."""
    return int(getattr(model, "least_cases", 1))


def likelihood(model: Any) -> Any:
    """The likelihood; None where the model names none."""
    return getattr(model, "likelihood", None)


def prediction(model: Any, output: Tensor) -> Tensor:
    """What explanations differentiate; the output itself where the likelihood does not say."""
    own = getattr(likelihood(model), "prediction", None)
    return output if own is None else own(output)


def partial_site(model: Any) -> str | None:
    """The site whose observations may be missing; None where all are needed."""
    own = likelihood(model)
    return own.site if isinstance(own, Likelihood) and own.partial else None


def value_checks(model: Any) -> dict[str, Callable[[Tensor], None]]:
    """By argument, what raises on its values; none where the likelihood does not say."""
    own = likelihood(model)
    check = getattr(own, "check_value", None)
    return {} if check is None else {own.site: check}


def training_inputs(model: Any) -> Sequence[str]:
    """Arguments that condition no site; none where the model names none."""
    return getattr(model, "training_inputs", ())


def told_by_image(model: Any) -> frozenset[str]:
    """Local latents that generate the image: drawn from the prior, they are none of its codes."""
    return frozenset(getattr(model, "told_by_image", ()))


def training_losses(model: Any) -> list[str]:
    """What parts of the model train in the place of a log-density; none in a plain posterior."""
    named = [getattr(part, "training_loss", None) for part in parts_of(model)]
    return [str(name) for name in named if name is not None]


def recorded_losses(model: Any) -> list[str]:
    """Of the training losses those that stand in the place of a log-density at prediction, too."""
    own = [part for part in parts_of(model) if getattr(part, "no_density", False)]
    return [str(part.training_loss) for part in own]


def after_steps(model: Any) -> list[Callable[..., None]]:
    """Programs that let parts of a model follow training in what is no parameter, as centroids do.

    ``fit`` runs each after every optimizer step, on the entries of the step's batch that it takes
    as arguments: in evaluation mode, without gradients, in float32, under a draw of the guide as it
    is after the step. They may change buffers, which stand in every checkpoint, and nothing else.
    """
    found = [getattr(part, "after_step", None) for part in parts_of(model)]
    return [program for program in found if callable(program)]


def independent_normals(guide: Any) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Of each part that is independent normals, location and raw scale, scale = softplus(raw)."""
    found = [part for part in parts_of(guide) if getattr(part, "independent", False)]
    return [(cast(nn.Parameter, part.loc), cast(nn.Parameter, part.raw_scale)) for part in found]


def spreads(guide: Any) -> list[nn.Parameter]:
    """Parameters of a guide that say how far it spreads, and how, but not where it is."""
    named = [(part, getattr(part, "spread", ())) for part in parts_of(guide)]
    return [cast(nn.Parameter, getattr(part, name)) for part, names in named for name in names]


def step_followers(guide: Any) -> list[Callable[[float], None]]:
    """Functions of the finished fraction of a run that ``fit`` calls after every optimizer step.

    They may change buffers of the guide, which stand in every checkpoint, and nothing else.
    """
    found = [getattr(part, "follow_step", None) for part in parts_of(guide)]
    return [function for function in found if callable(function)]


def before_trainings(guide: Any) -> list[Callable[[], None]]:
    """Functions that ``fit`` calls before it trains a guide, or trains it further.

    They may change buffers of the guide and nothing else.
    """
    found = [getattr(part, "before_training", None) for part in parts_of(guide)]
    return [function for function in found if callable(function)]


def after_trainings(guide: Any) -> list[Callable[..., None]]:
    """Functions that fill a guide when its training has ended, as a curvature does.

    ``fit`` calls each as ``function(model, visits, num_cases=..., kl_weight=...)``, the programs in
    evaluation mode as they are kept: ``visits`` are an epoch's batches, each with the factor by
    which its cases weigh more (``CaseScale``), and the KL weight is that at the end of the run.
    They may change buffers of the guide and nothing else.
    """
    found = [getattr(part, "after_training", None) for part in parts_of(guide)]
    return [function for function in found if callable(function)]


def shortfalls(guide: Any) -> list[str]:
    """Sentences on what a trained guide lacks, with the cure; none where it lacks nothing."""
    functions = [getattr(part, "shortfall", None) for part in parts_of(guide)]
    found = [function() for function in functions if callable(function)]
    return [sentence for sentence in found if sentence]


def of_member(model: Any, member: Any) -> Any:
    """The program of an ensemble's member that stands for a model, or for a view of one.

    A view is a program that returns something else of a model, such as its features.
    """
    view = getattr(model, "of_member", None)
    return member if view is None else view(member)


def evidence_bound(model: Any) -> bool:
    """Whether only a bound of the log-density of an observation is known, by model and guide."""
    return bool(getattr(model, "evidence_bound", False))


def loss_alone(model: Any) -> bool:
    """Whether its observed site has no log-density that scores, so that the loss alone judges it.

    ``predict`` stores no log-likelihood then, and held-out cases are judged by the loss in
    training.
    """
    return bool(getattr(model, "loss_alone", False))


def trained_for(model: Any) -> dict[str, Any]:
    """Settings of the parts of a model under which alone saved weights mean what they did."""
    own = [getattr(part, "trained_for", None) for part in parts_of(model)]
    return {name: value for part in own if callable(part) for name, value in part().items()}


def drawn_by(model: Any) -> dict[str, int]:
    """Settings of a model's draws by name; none where it has none."""
    own = getattr(model, "drawn_by", None)
    return dict(own()) if callable(own) else {}


def network_name(model: Any) -> str | None:
    """Class of the network inside ``model.network``; None where there is none."""
    network = getattr(getattr(model, "network", None), "net", None)
    return None if network is None else type(network).__name__


def left_to_prior(guide: Any) -> frozenset[str]:
    """Latents that a guide, or one of joined guides, leaves to the model's prior."""
    modules = guide.modules() if isinstance(guide, nn.Module) else [guide]
    names: list[frozenset[str]] = [getattr(one, "left_to_prior", frozenset()) for one in modules]
    return frozenset().union(*names)


def sample_stats(guide: Any) -> Any:
    """Dataset (chain, draw) of a sampler's figures; None where no sampler made the guide."""
    own = getattr(guide, "sample_stats", None)
    return own() if callable(own) else None
