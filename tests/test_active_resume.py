"""A run of active learning goes on where it was stopped, and no answer is asked for twice."""

from pathlib import Path
from typing import Any

import active_runs
import numpy as np
import pytest
import xarray as xr
from active_runs import BUDGET, LABELS, OWNERS, SIZE, arrays, group, ids, learn, person, program
from killed_runs import Moment
from processes import run_apart

from ppl_med import storage
from ppl_med.inference import load, predict
from ppl_med.inference.active.steps import step_seed


def test_an_oracle_that_fails_loses_no_answer(tmp_path: Path) -> None:
    whole, look = learn(tmp_path / "whole", person(tmp_path)), person(tmp_path)
    (tmp_path / "asked.txt").unlink()
    calls = 0

    def tired(names: list[str]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise ConnectionError("gone for lunch")
        return look(names)

    tree, failures = None, 0
    while tree is None:
        try:
            tree = learn(tmp_path / "run", tired)
        except ConnectionError:
            failures += 1
    assert failures == BUDGET // 2 - 1
    asked = (tmp_path / "asked.txt").read_text().split()
    assert sorted(asked) == sorted(ids(tree)) and len(set(asked)) == BUDGET
    xr.testing.assert_identical(tree, whole)


def test_what_a_generator_has_yielded_is_kept(tmp_path: Path) -> None:
    asked: list[str] = []

    def some(names: list[str]) -> Any:
        for number, name in enumerate(names):
            if number == 3:
                raise KeyboardInterrupt
            asked.append(name)
            yield LABELS[name]

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            learn(tmp_path / "run", some, together=SIZE)
    assert len(asked) == len(set(asked)) == 3 + 4 + 4
    assert len(list((tmp_path / "run").glob("label-*.npy"))) == 11


class Killed(BaseException):
    """In the place of a kill, in this process."""


@pytest.mark.parametrize(
    ("warm_start", "names"), [(False, ("training", "measuring")), (True, tuple(OWNERS))]
)
def test_a_run_stopped_anywhere_selects_the_same(
    warm_start: bool, names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = learn(tmp_path / "whole", person(tmp_path), warm_start=warm_start)
    rng = np.random.default_rng(int(warm_start))
    for name in names:
        owner, method = OWNERS[name]
        original = getattr(owner, method)
        left = int(rng.integers(1, 3))

        def stopping(*arguments: Any, _original: Any = original) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return _original(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(owner, method, stopping)
            with pytest.raises(Killed):
                learn(tmp_path / name, person(tmp_path), warm_start=warm_start)
        tree = learn(tmp_path / name, person(tmp_path), warm_start=warm_start)
        xr.testing.assert_identical(tree, whole)
        xr.testing.assert_identical(storage.load(tmp_path / name / "run.nc"), whole)
    in_memory = learn(None, warm_start=warm_start, balanced=False)
    in_memory.attrs = whole.attrs  # which say where the labels come from
    xr.testing.assert_identical(in_memory, whole)


@pytest.mark.slow
def test_a_run_killed_at_five_moments_selects_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(17)
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    places = {"training": 4, "answer": 3, "writing": 1, "measuring": 1}
    for where, calls in [*places.items(), ("writing", 1)]:
        moment = Moment(int(rng.integers(1, calls + 1)), float(rng.uniform(0, 0.005)))
        folder = tmp_path / "killed"
        assert run_apart(active_runs.learn_until_killed, folder, True, moment, where) == -9
    for name in ("whole", "killed"):
        assert run_apart(active_runs.learn_until_killed, tmp_path / name, True, None, "") == 0
    first, second = (
        storage.load(tmp_path / name / "run" / "run.nc") for name in ("whole", "killed")
    )
    assert isinstance(first, xr.DataTree) and isinstance(second, xr.DataTree)
    xr.testing.assert_identical(first, second)
    asked = (tmp_path / "killed" / "asked.txt").read_text().split()
    assert set(asked) == set(ids(second))
    assert len(asked) <= BUDGET + 2  # only the answer on its way when the process died


def test_more_budget_goes_on_and_a_finished_run_is_opened(tmp_path: Path) -> None:
    whole = learn(tmp_path / "whole")
    learn(tmp_path / "run", budget=8)
    tree = learn(tmp_path / "run")
    xr.testing.assert_identical(tree, whole)

    def nobody(model: Any) -> Any:
        raise AssertionError

    xr.testing.assert_identical(learn(tmp_path / "run", figures=nobody), whole)
    files = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert files == ["run.nc", "step-2.pt"]
    model, guide = program()
    load(tmp_path / "run" / "step-2.pt", model, guide)
    drawn: dict[str, Any] = {"draws": 3, "seed": step_seed(0, 2), "progress": False}
    scores = active_runs.surprise(predict(model, guide, active_runs.test_cases(), **drawn))
    assert float(scores["nll"]) == float(group(tree, "test")["nll"][-1])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda names: [2], "oracle for case 'pool-.*': label must be in 0..1"),
        (lambda names: [[0, 1]], "oracle for case 'pool-.*': label has shape"),
        (lambda names: [0.5], "oracle for case 'pool-.*': label has dtype torch.float64"),
        (lambda names: [None], "oracle for case 'pool-.*'"),
        (lambda names: [0, 1], "oracle gave 2 labels for 1 cases"),
        (lambda names: iter([]), "oracle gave 0 labels for 1 cases"),
        (lambda names: 1, "oracle must be a function that gives a label for every id"),
        (lambda names: "1", "oracle must be a function that gives a label for every id"),
        (lambda names: None, "oracle must be a function that gives a label for every id"),
    ],
)
def test_a_wrong_answer_is_refused_and_not_written(
    answer: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        learn(tmp_path, answer)
    assert not list(tmp_path.glob("label-*"))
    assert len(ids(learn(tmp_path, lambda names: [LABELS[name] for name in names]))) == BUDGET


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    learn(tmp_path, budget=4)
    with pytest.raises(FileExistsError, match="pass resume=True"):
        learn(tmp_path, resume=False)
    for name, value in {"acquisition": "bald", "seed": 5, "draws": 7, "size": 5}.items():
        with pytest.raises(ValueError, match=f"was begun with {name}"):
            learn(tmp_path, **{name: value})
    with pytest.raises(ValueError, match="was begun with oracle"):
        learn(tmp_path, 1 - arrays("pool")["label"], balanced=True)
    (tmp_path / "run.nc").unlink()
    (tmp_path / "label-3.npy").touch()
    with pytest.raises(FileExistsError, match=r"holds labels but no run\.nc"):
        learn(tmp_path)
