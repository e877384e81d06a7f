"""Batches of freshly generated cases: no case is ever seen twice, yet every run can be repeated."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ppl_med.checks import whole
from ppl_med.data.batches import Batches, Epochs


class FreshBatches(Epochs):
    """Re-iterable batches from a generator of synthetic cases, new ones in every epoch.

    Batch b of epoch e is a function of (seed, e, b) alone, as with ``Batches``: a run that was
    killed and resumed sees the same cases as one that was not. Ids are "<epoch>/<case>".

    Args:
        generate: ``generate(num_cases, seed=...)`` returns the arrays of that many cases, as
            ``scenes``, ``lesions`` and ``blood_smear`` do; settings of theirs are fixed by
            ``functools.partial(lesions, num_graders=None)``.
        batch_size: Cases per batch.
        num_batches: Batches per epoch.
        seed: Seed of the cases, together with the epoch and the batch's index.
        keep: Names of the arrays to yield, besides "id"; None for all.
        settings: Further arguments of ``Batches``, such as ``loc``, ``scale`` or ``transform``.

    Attributes:
        num_cases: Cases per epoch, also as ``cases_per_epoch``.
        epoch: The epoch that iteration will use.

    Raises:
        ValueError: A size is below 1, the seed is negative, or a name to keep is not generated.
    """

    def __init__(
        self,
        generate: Callable[..., Mapping[str, Any]],
        *,
        batch_size: int = 32,
        num_batches: int = 100,
        seed: int = 0,
        keep: Sequence[str] | None = None,
        **settings: Any,
    ) -> None:
        """Check the settings on a first batch; see the class."""
        whole("batch_size", batch_size)
        whole("num_batches", num_batches)
        whole("seed", seed, 0)
        self.batch_size, self.num_batches, self.seed = batch_size, num_batches, seed
        self.num_cases = self.cases_per_epoch = batch_size * num_batches
        self._generate, self._keep, self._settings = generate, keep, settings
        self._batch(0, 0)

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.num_batches

    def iterate(self, epoch: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the batches of one epoch, from 0, from batch ``start`` on, at no cost before."""
        for batch in range(start, self.num_batches):
            yield self._batch(epoch, batch)

    def _batch(self, epoch: int, batch: int) -> dict[str, Any]:
        sequence = np.random.SeedSequence(self.seed, spawn_key=(epoch, batch))
        own, other = (int(word) for word in sequence.generate_state(2, np.uint64))
        arrays = dict(self._generate(self.batch_size, seed=own))
        if self._keep is not None:
            missing = set(self._keep) - arrays.keys()
            if missing:
                raise ValueError(f"keep names {sorted(missing)}; generated are {sorted(arrays)}")
            arrays = {name: arrays[name] for name in self._keep}
        first = batch * self.batch_size
        arrays["id"] = [f"{epoch}/{first + k:06d}" for k in range(self.batch_size)]
        settings = {"batch_size": self.batch_size, "seed": other} | self._settings
        return next(iter(Batches(arrays, **settings)))
