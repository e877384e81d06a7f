"""Generalized ODIN: its logits written out, its scores, and its step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from scipy.special import expit, softmax
from torch import Tensor, nn

from ppl_med.analysis import ood
from ppl_med.explain import choose_epsilon, odin
from ppl_med.inference import Ensemble, MeanFieldNormal, PointEstimate, fit, functions, predict
from ppl_med.models import ConfounderFreeClassifier, GeneralizedODINClassifier

CLASSES = ("a", "b", "c")
SIZE, FEATURES, CASES = 4, 5, 10
SIMILARITIES = ("inner", "euclidean", "cosine")


def model(similarity: str = "cosine", **options: Any) -> GeneralizedODINClassifier:
    features = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, FEATURES), nn.Tanh())
    return GeneralizedODINClassifier(features, CLASSES, FEATURES, similarity=similarity, **options)


def batch(cases: int = CASES, **more: Any) -> dict[str, Any]:
    image = torch.randn(cases, 1, SIZE, SIZE)
    return {"image": image, "label": torch.arange(cases) % len(CLASSES), **more}


def trained(similarity: str, guide: Callable[[Any], nn.Module] = PointEstimate) -> tuple[Any, Any]:
    program = model(similarity)
    its_guide = guide(program)
    fit(program, its_guide, [batch()], epochs=3, learning_rate=0.05, progress=False)
    return program, its_guide


# --- what it is


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_logits_are_those_written_out(similarity: str) -> None:
    """By NumPy, from the weights: the dividend, and the divisor by BatchNorm's own numbers."""
    program, guide = trained(similarity)
    values = batch()
    tree = predict(program, guide, [values], draws=1, progress=False)
    net: Any = program.network.net
    weights = {n: p.detach().double().numpy() for n, p in net.named_parameters()}
    flat = guide.parts["weights"].value.detach()
    weights |= {n: v.double().numpy() for n, v in program.network.layout.views(flat).items()}
    x = values["image"].double().flatten(1).numpy()
    f = np.tanh(x @ weights["features.1.weight"].T + weights["features.1.bias"])
    norm = net.divisor[1]
    a = (f @ weights["divisor.0.weight"].T + weights["divisor.0.bias"])[:, 0]
    a = (a - norm.running_mean.item()) / np.sqrt(norm.running_var.item() + norm.eps)
    g = expit(a * weights["divisor.1.weight"] + weights["divisor.1.bias"])
    w = weights["dividend.weight"]
    h = {
        "inner": lambda: f @ w.T + weights["dividend.bias"],
        "euclidean": lambda: -(np.linalg.norm(f[:, None] - w, axis=2) ** 2),
        "cosine": lambda: (
            (f @ w.T) / np.linalg.norm(f, axis=1)[:, None] / np.linalg.norm(w, axis=1)
        ),
    }[similarity]()
    group: Any = tree["posterior"].isel(chain=0, draw=0)
    assert group["dividend"].dims == ("case", "class") and group["divisor"].dims == ("case",)
    np.testing.assert_allclose(group["dividend"], h, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(group["divisor"], g, rtol=1e-4)
    np.testing.assert_allclose(group["probs"], softmax(h / g[:, None], 1), rtol=1e-3, atol=1e-6)


def test_a_divisor_of_zero_divides_all_the_same() -> None:
    program = model("inner").eval()
    output = torch.tensor([[1.0, -2.0, 0.5, -1e4]])
    for mode in (True, False):
        fn: Any = poutine.trace(_plated(program.train(mode).likelihood, 1)).get_trace(output, None)
        fn = fn.nodes["label"]["fn"]
        assert fn.logits.isfinite().all() and fn.logits.argmax() == 0


def _plated(likelihood: Any, cases: int) -> Callable[..., None]:
    def program(output: Tensor, value: Any) -> None:
        with pyro.plate("case", cases):
            likelihood(output, value)

    return program


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_places_among_features_have_no_prior_unless_asked(similarity: str) -> None:
    names = model(similarity).network.layout.names
    assert ("dividend.weight" in names) == (similarity == "inner")
    assert {"features.1.weight", "divisor.0.weight"} <= set(names)
    assert not any(name.startswith("divisor.1") for name in names)  # BatchNorm
    asked = model(similarity, where="dividend*").network.layout.names
    assert set(asked) <= {"dividend.weight", "dividend.bias"} and "dividend.weight" in asked
    program, _ = trained(similarity)
    net: Any = program.network.net
    assert net.dividend.weight.requires_grad == (similarity != "inner")


# --- its scores


def test_scores_are_those_of_the_kept_arrays() -> None:
    program, guide = trained("cosine", MeanFieldNormal)
    options: dict[str, Any] = {"draws": 4, "progress": False}
    tree = predict(program, guide, [batch()], **options)
    other = predict(program, guide, [batch(id=[f"v{i}" for i in range(CASES)])], **options)
    group: Any = tree["posterior"]
    largest, divisor = group["dividend"].max("class"), group["divisor"]
    for name, kept in {"generalized_odin": largest, "generalized_odin_divisor": divisor}.items():
        found = ood.score(tree, ood.fit_reference(name, other))
        np.testing.assert_allclose(found["score"], -kept.mean(("chain", "draw")))
        np.testing.assert_allclose(found["score_per_draw"], -kept)


@pytest.mark.parametrize("part", ["dividend", "divisor"])
def test_without_a_step_odin_is_the_score(part: str) -> None:
    program, guide = trained("euclidean", MeanFieldNormal)
    values = batch()
    tree = predict(program, guide, [values], draws=3, progress=False)
    kept: Any = tree["posterior"][part]
    kept = kept.max("class") if part == "dividend" else kept
    draws = functions(program.score_program(part), guide, draws=3)
    found = odin(draws, values["image"], epsilon=0.0, confidence="output")
    np.testing.assert_allclose(found["score_per_draw"], -kept, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["score"], -kept.mean(("chain", "draw")), rtol=1e-5, atol=1e-6)
    assert found.attrs["confidence"] == "output" and "temperature" not in found.attrs


# --- its step


def test_the_step_follows_the_gradient_of_the_largest_output() -> None:
    """Of linear functions f_s = A_s x in closed form: the sign of the mean of their rows."""
    random = np.random.default_rng(0)
    matrices = [torch.tensor(random.normal(size=(3, 16)), dtype=torch.float32) for _ in range(2)]
    draws = [lambda x, a=a: x.flatten(1) @ a.T for a in matrices]
    image = torch.randn(CASES, 1, SIZE, SIZE)
    x = image.flatten(1).double().numpy()
    rows = [a.double().numpy()[(x @ a.double().numpy().T).argmax(1)] for a in matrices]
    expected = {"predictive": [np.sign(np.mean(rows, 0))] * 2, "draw": [np.sign(r) for r in rows]}
    for gradient, steps in expected.items():
        found = odin(draws, image, epsilon=0.1, gradient=gradient, confidence="output")
        single = [
            -((x + 0.1 * step) @ a.double().numpy().T).max(1)
            for step, a in zip(steps, matrices, strict=True)
        ]
        np.testing.assert_allclose(found["score_per_draw"][0], single, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["score"], np.mean(single, 0), rtol=1e-4, atol=1e-5)


def test_epsilon_is_chosen_by_the_output_on_familiar_images() -> None:
    program, guide = trained("cosine")
    image = batch()["image"]
    draws = functions(program.score_program("dividend"), guide, draws=1)
    grid = (0.0, 0.01, 5.0)
    found = choose_epsilon(draws, image, grid=grid, confidence="output")
    for epsilon, mean in zip(grid, found.values, strict=True):
        score = odin(draws, image, epsilon=epsilon, confidence="output")["score"]
        assert mean == pytest.approx(-float(score.mean()))
    assert found.attrs["best"] == grid[int(found.values.argmax())] != 0.0
    assert found.attrs["units"] == found.attrs["confidence"] == "output"
    with pytest.raises(ValueError, match="confidence must"):
        choose_epsilon(draws, image, confidence="logit")


def test_views_of_an_ensemble_are_of_its_members() -> None:
    """Every chain is its own member; without their own views all would be logits."""
    program = model("cosine")
    ensemble = Ensemble(program, PointEstimate, members=2)
    values = batch()
    fit(program, ensemble, [values], epochs=2, progress=False)
    tree = predict(program, ensemble, [values], draws=1, progress=False)
    draws = functions(program.score_program("dividend"), ensemble, draws=1)
    found = odin(draws, values["image"], epsilon=0.0, confidence="output")
    kept: Any = tree["posterior"]["dividend"]
    np.testing.assert_allclose(found["score_per_draw"], -kept.max("class"), rtol=1e-5, atol=1e-6)
    assert (np.abs(kept[0] - kept[1]) > 1e-4).any()
    free = ConfounderFreeClassifier(nn.Flatten(), nn.Linear(16, 2), ("a", "b"), 16)
    members = Ensemble(free, PointEstimate, members=2)
    for one in functions(free.feature_program(), members, draws=1):
        torch.testing.assert_close(one(values["image"]), values["image"].flatten(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: model("dot"), "similarity must"),
        (lambda: model().score_program("h"), "part must"),
        (lambda: GeneralizedODINClassifier(nn.Flatten(), ["a", "a"], 9), "different names"),
        (lambda: GeneralizedODINClassifier(nn.Flatten(), CLASSES, 8)(batch()["image"]), "=16"),
        (lambda: model().train()(batch(1)["image"]), "training batch has one case"),
    ],
)
def test_refuses(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_logits_of_its_network_are_not_kept() -> None:
    """They are K + 1 numbers, of which none is a logit."""
    program, guide = trained("cosine")
    with pytest.raises(ValueError, match=r"keep=.logit.: .* gives 4 numbers of a case"):
        predict(program, guide, [batch()], draws=1, keep=("logit",), progress=False)
