"""Boxes around objects, from the output of a detector at its anchors.

For every anchor a, with c_a its class or "nothing" and t_a its edges in units of the anchor,

    c_a  ~  Categorical(softmax(0, logits_a))                          of all anchors
    t_a  ~  Normal or Laplace(place_a, exp(log_variance_a / 2))        of those of an object

so softmax(0, logits) is p(nothing), p(class 1), ...; what stands for which object is told by the
overlaps (``anchors.match_anchors``). With ``match="best"`` an object has one anchor and the product
is a density of the encoded boxes. With "all" and "centre" an object has several anchors, and its
edges count once: by the mean of their log-densities. That, like the focal loss, is no density but a
loss in the place of one: the tree says so (``training_loss``), and scores of the log-likelihood,
leave-one-out and samplers refuse. Of a reader that found nothing all anchors are background;
several readers of a case are independent observations of it, and the scale of the edges is then
what they differ by.

References: Lin et al., "Focal loss for dense object detection", ICCV 2017 (anchors, matching, the
start of the class bias); He et al., "Bounding box regression with uncertainty", CVPR 2019, and
Kendall and Gal, NeurIPS 2017 (a variance for every edge); Tian et al., "FCOS", ICCV 2019.
"""

from collections.abc import Sequence
from typing import Any, Literal

import pyro
from torch import Tensor

from ppl_med.axes import EDGES, dims
from ppl_med.checks import choice, different_names, finite, inside, reject, whole
from ppl_med.likelihoods.anchors import Encoding, Match
from ppl_med.likelihoods.box_field import EXTRA, PLACES, BoxField, FieldSettings
from ppl_med.likelihoods.interface import Likelihood, check_tensor, precision


class Boxes(Likelihood):
    """Sets of boxes, from (case, class + 13, anchor).

    The channels are the logits of the classes, the 4 encoded edges, their 4 log-variances, the 4
    edges of the anchor in pixels, and its kind: 1, or 0 of a proposal, whose first logit says
    whether there is any object, or -1 of a place without an anchor. The last 5 are constants.

    ``predict`` stores ``edge_loc`` and ``edge_scale`` in pixels (chain, draw, case, box, edge), for
    Laplace noise ``edge_variance`` too, and ``box_probs`` (chain, draw, case, class, box), whose
    sum over the classes is the probability that the box is an object; ``box_edge`` and
    ``box_label`` are what was observed or drawn.

    Args:
        classes: Names of the classes of objects, without a background.
        noise: Of the encoded edges.
        encoding: Of the edges; see ``anchors``.
        match: Which anchors stand for an object; see ``anchors.match_anchors``.
        focal: Exponent of the focal loss in the place of the class's log-probability; 0 for none.
        least_score: Boxes are kept from this probability of an object on. Low ones carry the tail
            of the posterior, so threshold after draws are merged.
        nms: Overlap from which on the less probable of two boxes is left out, in (0, 1).
        most: Boxes kept of a case and draw.
        keep: "boxes", or "anchors" to store all anchors unmerged, whose draws can be averaged
            before boxes are chosen; not with proposals, which are others in every draw.
        proposals: Whether the network proposes boxes first (Faster R-CNN), so that every object is
            observed at both stages.
    """

    event = ("box", "edge")
    site = "box"

    def __init__(
        self,
        classes: Sequence[str],
        *,
        noise: Literal["laplace", "normal"] = "laplace",
        encoding: Encoding = "edges",
        match: Match = "all",
        focal: float = 0.0,
        least_score: float = 0.05,
        nms: float = 0.5,
        most: int = 100,
        keep: Literal["boxes", "anchors"] = "boxes",
        proposals: bool = False,
    ) -> None:
        super().__init__()
        self.classes = different_names("classes", classes)
        self.noise = choice("noise", noise, ("laplace", "normal"))
        self.encoding = choice("encoding", encoding, ("edges", "deltas"))
        self.match = choice("match", match, ("all", "best", "centre"))
        self.focal = finite("focal", focal)
        if focal < 0:
            reject("focal", "0 or more", focal)
        if not 0 <= finite("least_score", least_score) < 1:
            reject("least_score", "in [0, 1)", least_score)
        self.least_score, self.nms = float(least_score), inside("nms", nms)
        self.most = whole("most", most)
        self.keep = choice("keep", keep, ("boxes", "anchors"))
        if keep == "anchors" and proposals:
            raise ValueError(
                "keep='anchors' stores the same anchors in every draw, but proposals are others in "
                "each; use keep='boxes'"
            )
        self.proposals = proposals
        losses = [f"focal loss of the classes, gamma {focal:g}"] if focal else []
        if match != "best":
            losses.append("edges of an object as the mean over its anchors")
        if proposals:
            losses.append("objects observed by proposals and by boxes")
        if losses:
            self.training_loss, self.no_density = "; ".join(losses), True

    @property
    def num_outputs(self) -> int:
        """Channels that the network must have: the classes and 13."""
        return len(self.classes) + EXTRA

    @property
    def coords(self) -> dict[str, list[Any]]:
        """Names of the classes and of the edges."""
        return {"class": list(self.classes), "edge": list(EDGES)}

    def distribution(self, output: Tensor) -> BoxField:
        """The field of boxes, batch dims (..., case)."""
        settings = FieldSettings(
            len(self.classes),
            *(self.noise, self.encoding, self.match, self.focal, self.least_score, self.nms),
            *(self.most, self.keep == "anchors", self.proposals),
        )
        return BoxField(output, settings)

    def forward(self, output: Tensor, value: Tensor | None) -> None:
        """Observe the site; the value is that of ``pack_boxes``, dims (case, box, 5 x grader)."""
        output = output.to(precision(output, training=self.training))
        if value is not None and (
            value.dim() != 3 or len(value) != output.shape[-3] or value.shape[-1] % PLACES
        ):
            raise ValueError(
                f"box has shape {tuple(value.shape)}, but ({output.shape[-3]}, box, {PLACES} x "
                "grader) is needed, as pack_boxes makes it of boxes and labels"
            )
        infer = dims(*self.event)
        pyro.sample(self.site, self.distribution(output), obs=value, infer=infer)

    def check_output(self, output: Any, image: Tensor) -> None:
        """Raise a ``ValueError`` unless there are so many channels at some anchors."""
        check_tensor(output)
        expected = (len(image), self.num_outputs)
        if output.dim() != 3 or tuple(output.shape[:2]) != expected:
            raise ValueError(
                f"net gave an output of shape {tuple(output.shape)} but ({expected[0]}, "
                f"{expected[1]}, anchor) is needed: {len(self.classes)} classes and {EXTRA} of "
                "edges and anchors, as networks.SmallDetector gives them; "
                f"Boxes takes {expected[1]} output(s) per anchor"
            )
