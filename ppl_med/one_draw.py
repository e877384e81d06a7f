"""One function for a whole batch, where an estimator would give every example its own weights.

Losses that compare the cases of a batch, or that differentiate an output in the image, are of one
function. Flipout, local reparameterization and dropout masks per example are not; inside
``OneDraw`` they draw once for the batch.
"""

from typing import Any

from pyro.poutine.messenger import Messenger

from ppl_med.laws import LazyWeights


class OneDraw(Messenger):
    """Context in which weights of estimators by example are one draw for the whole batch."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["value"], LazyWeights):
            msg["value"].per_example = None
