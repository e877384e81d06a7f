"""Who knows the labels: a table of all of them, or a function that is asked for one at a time.

Answers of a function are written as they come, one small file each, so that an error, a full disk
or a kill loses none of them. A table can be read again and is not written.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ppl_med.checks import reject
from ppl_med.data import Batches
from ppl_med.inference.batches import BatchSpec
from ppl_med.storage.atomic import replacing

Oracle = Callable[[list[Any]], Iterable[Any]] | Mapping[Any, Any] | Sequence[Any] | np.ndarray
_PLAIN = {"shuffle": False, "drop_last": False, "augment": None, "transform": None}
_FILE = re.compile(r"label-(\d+)\.npy")


class Pool:
    """The cases that can be bought, without what they show.

    Args:
        batches: The cases; observations among their arrays are left out.
        site: Name of the observation, such as "label" or "mask".
        spec: What the model accepts.
    """

    def __init__(self, batches: Batches, site: str, spec: BatchSpec) -> None:
        if not isinstance(batches, Batches):
            raise TypeError(
                f"pool must be data.Batches, got {type(batches).__name__}; cases are chosen by "
                "their place, so hold them in arrays, patches and slices as cases of their own"
            )
        self.batches, self.site, self.spec = batches, site, spec
        self.ids = batches.ids
        self.place = {name: position for position, name in enumerate(self.ids)}

    def unlabelled(self, positions: Sequence[int], **settings: Any) -> Batches:
        """Batches to predict some of the cases, which hold no observation."""
        return self._made({}, positions, **_PLAIN, **settings)

    def labelled(self, answers: Mapping[int, Any], **settings: Any) -> Batches:
        """Batches of the cases with these answers, by position; settings are the pool's own.

        Raises:
            TypeError, ValueError: If an answer does not fit its case or the model.
        """
        positions = list(answers)
        values = [np.asarray(one) for one in answers.values()]
        shapes = {one.shape for one in values}
        if len(shapes) > 1:
            raise ValueError(f"answers have different shapes, {sorted(shapes)}")
        return self._made({self.site: np.stack(values)}, positions, **settings)

    def check(self, answers: Mapping[int, Any]) -> None:
        """Raise where answers do not fit, naming the case where there is one of them only.

        Raises:
            TypeError, ValueError: If one does not.
        """
        try:
            for batch in self.labelled(answers, **_PLAIN):
                self.spec.check(batch)
        except (TypeError, ValueError) as error:
            who = f" for case {self.ids[next(iter(answers))]!r}" if len(answers) == 1 else ""
            raise type(error)(f"oracle{who}: {error}") from error

    def _made(self, added: dict[str, Any], positions: Sequence[int], **settings: Any) -> Batches:
        part = self.batches.subset(np.asarray(positions, np.int64), **_PLAIN)
        arrays = {name: values for name, values in part.arrays.items() if name != self.site}
        own = ("batch_size", "shuffle", "seed", "augment", "transform", "drop_last")
        kept: dict[str, Any] = {name: getattr(self.batches, name) for name in own}
        kept |= {"loc": part.loc.flatten(), "scale": part.scale.flatten()} | settings
        kept["drop_last"] = kept["drop_last"] and len(positions) >= kept["batch_size"]
        return Batches({**arrays, **added}, **kept)


class KnownLabels:
    """A table of all labels, for studies after the fact.

    Args:
        labels: By id, or one for each case of the pool in its order.
        pool: The cases.
    """

    def __init__(self, labels: Any, pool: Pool) -> None:
        if isinstance(labels, Mapping):
            missing = [name for name in pool.ids if name not in labels]
            if missing:
                raise ValueError(
                    f"oracle has no label of {len(missing)} of the {len(pool.ids)} cases of the "
                    f"pool, first {missing[0]!r}; leave them out of the pool, or pass a function"
                )
            labels = [labels[name] for name in pool.ids]
        values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
        if values.ndim == 0 or len(values) != len(pool.ids):
            raise ValueError(
                f"oracle has shape {values.shape}; expected one label for each of the "
                f"{len(pool.ids)} cases of the pool, in its order"
            )
        pool.check(dict(enumerate(values)))
        self.values = values

    @property
    def name(self) -> str:
        """What a resumed run must share."""
        content = np.ascontiguousarray(self.values)
        text = content.tolist() if content.dtype.kind in "OU" else None
        data = repr(text).encode() if text is not None else content.tobytes()
        return f"labels:{hashlib.sha256(data).hexdigest()}"

    @property
    def classes(self) -> np.ndarray | None:
        """The class of every case; None where labels are no single classes."""
        single = self.values.ndim == 1 and self.values.dtype.kind in "biu"
        return self.values.astype(np.int64) if single else None

    def ask(self, positions: Sequence[int]) -> dict[int, Any]:
        """Labels by position."""
        return {position: self.values[position] for position in positions}


class AskedLabels:
    """A function that knows the labels, and the answers it has given so far.

    Args:
        function: From a list of ids to one label each, or a generator of them.
        pool: The cases.
        folder: Where answers are written.
        together: How many ids it is given at once.
    """

    name, classes = "function", None

    def __init__(
        self, function: Callable[[list[Any]], Any], pool: Pool, folder: Path, together: int
    ) -> None:
        self.function, self.pool, self.folder, self.together = function, pool, folder, together
        self.given = {
            position: np.load(path, allow_pickle=False)
            for position, path in sorted(answer_files(folder).items())
        }

    def ask(self, positions: Sequence[int]) -> dict[int, Any]:
        """Labels by position; whoever was not asked yet is asked now."""
        left = [position for position in positions if position not in self.given]
        for start in range(0, len(left), self.together):
            asked = left[start : start + self.together]
            for position, answer in self._answers(asked):
                self.pool.check({position: answer})
                self._keep(position, np.asarray(answer))
        return {position: self.given[position] for position in positions}

    def _answers(self, asked: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Answers one after the other, also where not as many come as should."""
        ids = [self.pool.ids[position] for position in asked]
        answers = self.function(list(ids))
        if isinstance(answers, Tensor):
            answers = answers.detach().cpu().numpy()
        known_length = getattr(answers, "ndim", 1) > 0 and hasattr(answers, "__len__")
        if isinstance(answers, str | bytes | Mapping) or not (
            known_length or isinstance(answers, Iterator)
        ):
            reject("oracle", "a function that gives a label for every id, such as [label]", answers)
        if known_length and len(answers) != len(ids):
            raise ValueError(
                f"oracle gave {len(answers)} labels for {len(ids)} cases, {_some(ids)}; it must "
                "give one each, in their order"
            )
        given = iter(answers)
        for number, position in enumerate(asked):
            try:
                answer = next(given)
            except StopIteration:
                raise ValueError(
                    f"oracle gave {number} labels for {len(ids)} cases, {_some(ids)}; those are "
                    "kept, and the next call asks for the others"
                ) from None
            yield position, answer

    def _keep(self, position: int, answer: np.ndarray) -> None:
        path = self.folder / f"label-{position}.npy"
        with replacing(path, "label", needed=answer.nbytes) as partial:
            with partial.open("xb") as file:
                np.save(file, answer, allow_pickle=False)
        self.given[position] = answer


def answer_files(folder: Path) -> dict[int, Path]:
    """Files of answers by position in the pool."""
    found = {path: _FILE.fullmatch(path.name) for path in folder.glob("label-*.npy")}
    return {int(match[1]): path for path, match in found.items() if match}


def _some(ids: Sequence[Any]) -> str:
    return ", ".join(map(repr, ids[:5])) + (", ..." if len(ids) > 5 else "")
