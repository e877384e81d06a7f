"""Bayesian detector: a network that finds boxes, with its weights drawn from a prior.

Program:

    weights          ~  prior                                   one vector for all cases
    box | image      ~  Boxes(net(image; weights))              a set of boxes with labels

Sites and their dimensions: weights (weight), no unit; box (case, box, 5 x grader), edges in pixels
and the label, of one reader or of several.

Input: ``image`` (case, channel, row, col), float, standardised.

References: Lin et al., "Focal loss for dense object detection", ICCV 2017 (RetinaNet); Harakeh et
al., "BayesOD", ICRA 2020. Departs from them in the weights, which are random, in the classes, which
are categorical by default, and in how draws are joined (``analysis.detection.objects``).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyro
from torch import Tensor, nn

from ppl_med.likelihoods import Boxes, pack_boxes
from ppl_med.weights import FanInNormal, Normal, NormalByName, Prior, RandomWeights, Where
from ppl_med.weights.layout import DETERMINISTIC, Layout


class BayesianDetector(nn.Module):
    """The joint p(boxes, weights | image) of a network.

    The bias of the class logits starts at a small probability of an object, since nearly all
    anchors are background. A normal prior around 0 pulls it to 0, where every anchor is an object,
    so by default it has a prior of its own: a normal around the start, of standard deviation 1.

    Args:
        net: ``networks.SmallDetector``, torchvision's through ``networks.DetectorOutput``, or any
            other that gives (case, class + 13, anchor).
        classes: Names of the classes of objects, without a background; or a ``Boxes`` with
            settings.
        prior: Prior over the random weights; by default He-scaled normals and the above.
        where: Which parameters are random; see ``RandomWeights``. ``"head"`` chooses the layers
            after the features: classes, edges and their noise.
        batch_norm: Whether running statistics follow training; see ``RandomWeights``.

    Raises:
        TypeError: ``net`` is a detector of torchvision as it is.
        ValueError: If two classes share a name, the likelihood is of another site, or reads edges
            otherwise than the net says that it gives them; on a run, if the network's output does
            not fit.
    """

    training_inputs = ("box_label", "reader_present")

    def __init__(
        self,
        net: nn.Module,
        classes: Sequence[str] | Boxes,
        prior: Prior | None = None,
        where: Where = None,
        batch_norm: Literal["update", "frozen"] = "update",
    ) -> None:
        super().__init__()
        if type(net).__module__.startswith("torchvision.models.detection."):
            raise TypeError(
                f"net is torchvision's {type(net).__name__}, which gives lists of boxes; "
                "give networks.DetectorOutput(net), which gives what every anchor says"
            )
        stated: dict[str, Any] = {
            name: getattr(net, name)
            for name in ("encoding", "match", "proposals")
            if hasattr(net, name)
        }
        self.likelihood = classes if isinstance(classes, Boxes) else Boxes(classes, **stated)
        self.likelihood.check_fits("box", ("box", "edge"))
        for name in stated.keys() & {"encoding", "proposals"}:
            if (given := getattr(self.likelihood, name)) != stated[name]:
                raise ValueError(
                    f"classes is a Boxes with {name}={given!r}, but {type(net).__name__} gives "
                    f"{stated[name]!r}; give Boxes(..., {name}={stated[name]!r})"
                )
        bias = getattr(net, "class_bias", None)
        where = _in_head(net) if where == "head" else where
        if prior is None and bias in Layout(net, where).names:
            prior = NormalByName({bias: Normal(1.0, loc="pretrained")}, FanInNormal())
        self.network = RandomWeights(net, prior, where, batch_norm=batch_norm)
        self.coords = self.likelihood.coords

    def forward(
        self,
        image: Tensor,
        box: Tensor | None = None,
        box_label: Tensor | None = None,
        reader_present: Tensor | None = None,
        *,
        num_cases: int | None = None,
    ) -> Tensor:
        """Run once, conditioned on boxes if given: output (case, class + 13, anchor).

        Args:
            image: A batch of images, dims (case, channel, row, col).
            box: x_min, y_min, x_max, y_max in pixels, dims (case, box, 4) or (case, grader, box,
                4), NaN where there is none; None draws them.
            box_label: Their classes from 0, dims as ``box`` without the last, -1 where there is
                none.
            reader_present: Whether a reader looked at the case, dims (case, grader); by default all
                did, and a reader without boxes found nothing.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        value = None
        if box is not None:
            if box_label is None:
                raise ValueError(
                    "box_label is missing: boxes need their classes; of one class give zeros where "
                    "there is a box and -1 elsewhere"
                )
            value = pack_boxes(box, box_label, reader_present)
        output = self.network(image)
        self.likelihood.check_output(output, image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            self.likelihood(output, value)
        return output


def _in_head(net: nn.Module) -> Callable[[str, nn.Module], bool]:
    """Parameters of a detector's head but for its norm layers."""
    head = getattr(net, "head", None)
    if not isinstance(head, tuple):
        raise ValueError(
            f"where='head': {type(net).__name__} does not say which layers are its head; give a "
            "pattern over names"
        )
    return lambda name, module: name.startswith(head) and not isinstance(module, DETERMINISTIC)
