"""Draws joined into objects: the stated rule, on boxes made by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import optimize, stats

from ppl_med.analysis.detection import edge_coverage, objects
from ppl_med.analysis.tree import overlaps

EDGES = ["x_min", "y_min", "x_max", "y_max"]
Box = tuple[float, ...]


def draws_tree(
    cases: Sequence[Sequence[Sequence[Box]]],
    *,
    classes: Sequence[str] = ("nodule", "other"),
    noise: str = "normal",
    axis: str = "box",
    chains: int = 1,
    constant: dict[str, Any] | None = None,
) -> xr.DataTree:
    """Of every case and draw the boxes (x_min, y_min, x_max, y_max, sd, p of every class)."""
    room = max(1, *(len(boxes) for case in cases for boxes in case))
    number = len(cases[0])
    table = np.full((number, len(cases), room, 5 + len(classes)), np.nan)
    for case, draws in enumerate(cases):
        for draw, boxes in enumerate(draws):
            if boxes:
                table[draw, case, : len(boxes)] = boxes
    table = table.reshape(chains, number // chains, *table.shape[1:])
    sd = np.broadcast_to(table[..., 4:5], (*table.shape[:-1], 4))
    dims = ("chain", "draw", "case", axis)
    found: dict[str, Any] = {
        "edge_loc": ((*dims, "edge"), table[..., :4]),
        "edge_scale": ((*dims, "edge"), sd),
        "box_probs": ((*dims[:3], "class", axis), np.swapaxes(table[..., 5:], -1, -2)),
    }
    if noise == "laplace":
        found["edge_scale"] = ((*dims, "edge"), sd / 2**0.5)
        found["edge_variance"] = ((*dims, "edge"), sd**2)
    case_ids = {"case": [f"c{k}" for k in range(len(cases))]}
    groups = {
        "posterior": xr.Dataset(found, case_ids | {"class": list(classes), "edge": EDGES}),
        "constant_data": xr.Dataset(
            {name: (("case", f"{name}_axis"), values) for name, values in (constant or {}).items()},
            case_ids,
        ),
    }
    return xr.DataTree.from_dict(groups)


def one(*args: Any, **options: Any) -> xr.Dataset:
    """The objects of a single case, without the places after the last."""
    settings = {name: options.pop(name) for name in ("overlap", "level", "least", "merge")
                if name in options}  # fmt: skip
    found = objects(draws_tree(*args, **options), **settings)["objects"].to_dataset().isel(case=0)
    return found.isel(box=slice(int(found["num_objects"])))


def test_two_draws_of_one_object_by_hand() -> None:
    """Weights 0.9 / 1.5 and 0.6 / 1.5; edges 1 and 2 pixels apart."""
    found = one([[[(10, 20, 30, 40, 2.0, 0.8, 0.1)], [(11, 20, 32, 40, 1.0, 0.3, 0.3)]]])
    first = found.isel(box=0)
    assert found.sizes["box"] == 1 and int(first["num_members"]) == 2 and int(first["label"]) == 0
    assert float(first["p_exists"]) == pytest.approx(0.75)
    assert float(first["score_aleatoric"]) == pytest.approx((0.9 * 0.1 + 0.6 * 0.4) / 2)
    assert float(first["score_epistemic"]) == pytest.approx(0.15**2)
    np.testing.assert_allclose(first["class_probs"], [1.1 / 1.5, 0.4 / 1.5])
    np.testing.assert_allclose(first["edge_mean"], [10.4, 20, 30.8, 40])
    np.testing.assert_allclose(first["edge_aleatoric"], 0.6 * 4 + 0.4 * 1)
    np.testing.assert_allclose(
        first["edge_epistemic"], 0.6 * 0.4 * np.array([1, 0, 4, 0]), atol=1e-12
    )
    np.testing.assert_allclose(
        first["edge_covariance"].sel(edge="x_min", other_edge="x_max"), 0.24 * 2
    )
    assert found.attrs | {"level": 0.9, "draws": 2, "noise": "normal"} == found.attrs


def random_case(rng: np.random.Generator, draws: int, number: int = 4) -> list[list[Box]]:
    """Objects far apart, of which a draw finds some; p, edges and noise differ between draws."""
    case: list[list[Box]] = []
    for _ in range(draws):
        boxes = []
        for place in range(number):
            if rng.random() < 0.75:
                corner = 60 * place + rng.normal(0, 1, 2)
                p = rng.uniform(0.1, 0.95) * rng.dirichlet([4, 1])
                end = corner + 20 + rng.normal(0, 1, 2)
                boxes.append((*corner, *end, rng.uniform(0.5, 2), *p))
        rng.shuffle(boxes)
        case.append(boxes)
    return case


@pytest.mark.parametrize("seed", range(5))
def test_variances_add_up_and_chains_are_draws(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = random_case(rng, 8)
    found = one([case])
    assert found.sizes["box"] == 4, "objects far apart stay apart"
    p = found["p_exists"]
    total = found["score_aleatoric"] + found["score_epistemic"]
    np.testing.assert_allclose(total, p * (1 - p), rtol=1e-12)
    diagonal = np.diagonal(found["edge_covariance"], axis1=1, axis2=2)
    np.testing.assert_allclose(diagonal, found["edge_aleatoric"] + found["edge_epistemic"])
    assert (np.linalg.eigvalsh(found["edge_covariance"].values) > 0).all()
    np.testing.assert_allclose(found["class_probs"].sum("class"), 1)
    assert (np.diff(p) <= 0).all(), "sorted"
    expected = sum(sum(box[5:]) for boxes in case for box in boxes) / 8
    assert float(p.sum()) == pytest.approx(expected), "no box is lost or counted twice"
    xr.testing.assert_allclose(found, one([case], chains=2))


@pytest.mark.parametrize("noise", ["normal", "laplace"])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_limits_are_quantiles_of_the_mixture(noise: str, level: float) -> None:
    """Scipy's distribution functions, mixed, inverted by Brent's method; NumPy's draws agree."""
    boxes: list[Box] = [(10, 10, 40, 40, 0.3, 0.9, 0), (14, 10, 40, 41, 1.5, 0.5, 0.1),
                        (12, 8, 41, 44, 0.8, 0.2, 0)]  # fmt: skip
    found = one([[[box] for box in boxes]], noise=noise, level=level).isel(box=0)
    weight = np.array([0.9, 0.6, 0.2]) / 1.7
    name = {"normal": stats.norm, "laplace": stats.laplace}[noise]
    scale = np.array([box[4] for box in boxes]) / (1 if noise == "normal" else 2**0.5)
    for edge in range(4):
        loc = np.array([box[edge] for box in boxes])
        for end, q in (("edge_lower", (1 - level) / 2), ("edge_upper", (1 + level) / 2)):

            def gap(x: float, loc: Any = loc, q: float = q) -> float:
                return float(weight @ name.cdf(x, loc, scale) - q)

            value = optimize.brentq(gap, -50, 90, xtol=1e-10)
            assert float(found[end][edge]) == pytest.approx(value, abs=1e-7)


def shifted(share: float, side: float = 20.0) -> float:
    """How far apart two squares are whose intersection over union is ``share``."""
    return side * (1 - share) / (1 + share)


@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.7])
def test_boxes_of_two_draws_are_joined_from_the_overlap_on(overlap: float) -> None:
    for share, number in ((overlap + 1e-6, 1), (overlap - 1e-6, 2)):
        d = shifted(share)
        draws = [[(0, 0, 20, 20, 1, 0.9, 0)], [(d, 0, 20 + d, 20, 1, 0.8, 0)]]
        found = one([draws], overlap=overlap)
        assert found.sizes["box"] == number
        assert found["num_members"].values.tolist() == ([2] if number == 1 else [1, 1])


@pytest.mark.parametrize("d", [1.0, 4.0, 9.0, 15.0])
def test_what_one_draw_found_twice_stays_two(d: float) -> None:
    """However near: a draw that has both says that there are two."""
    pair: list[Box] = [(0, 0, 20, 20, 1, 0.9, 0), (d, 0, 20 + d, 20, 1, 0.7, 0)]
    found = one([[pair, pair[::-1], pair]])
    assert found["num_members"].values.tolist() == [3, 3]
    np.testing.assert_allclose(found["edge_mean"].sel(edge="x_min"), [0, d])
    single = one([[pair, [pair[0]], [pair[1]]]])
    # The third draw's box joins the object it overlaps most, which is its own.
    assert single["num_members"].values.tolist() == [2, 2]


def test_a_cloud_wider_than_the_rule_is_one_object() -> None:
    """Two halves that no draw has both of, whose ends do not overlap enough, but whose means do."""
    steps = [0.0, 6.0, 7.0, 1.0]  # the first joins 1 and 6 alone; 7 is new at first
    assert overlaps(np.array([[0.0, 0, 20, 20]]), np.array([[7.0, 0, 27, 20]]))[0, 0] < 0.5
    draws = [
        [(x, 0, 20 + x, 20, 1, p, 0)] for x, p in zip(steps, (0.9, 0.8, 0.7, 0.6), strict=True)
    ]
    found = one([draws])
    assert found.sizes["box"] == 1 and int(found["num_members"][0]) == 4
    both = [*draws, [draws[0][0], draws[2][0]]]
    assert one([both]).sizes["box"] == 2, "a draw with both keeps them apart"


def test_joining_goes_on_until_nothing_is_left_to_join() -> None:
    """An object joins the union of two others, neither of which it would have joined alone."""

    def box(x: float, y: float, p: float) -> list[Box]:
        return [(x, y, x + 20, y + 20, 1.0, p, 0.0)]

    first, upper = [box(0, 0, 0.95)], [box(7, 4, 0.9), box(7, 2, 0.8)]
    lower = [box(7, -4, 0.7), box(7, -2, 0.6)]
    for other in (upper, lower):
        assert one([[*first, *other]], overlap=0.45)["num_members"].values.tolist() == [2, 1]
    assert one([[*upper, *lower]], overlap=0.45)["num_members"].values.tolist() == [4]
    assert one([[*first, *upper, *lower]], overlap=0.45)["num_members"].values.tolist() == [5]


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_draws_and_places_does_not_matter(seed: int) -> None:
    """Also where scores are equal: crowded boxes, probabilities of two values alone."""
    rng = np.random.default_rng(seed)
    case: list[list[Box]] = []
    for _ in range(6):
        corners = rng.uniform(0, 24, (5, 2))
        case.append([(*map(float, c), *map(float, c + 16), 1.0, p, 0.0)
                     for c, p in zip(corners, rng.choice([0.5, 1.0], 5), strict=True)])  # fmt: skip
    first = one([case], overlap=0.4)
    for _ in range(5):
        other = [[boxes[k] for k in rng.permutation(5)] for boxes in case]
        again = one([[other[k] for k in rng.permutation(6)]], overlap=0.4)
        xr.testing.assert_allclose(first, again)


def test_one_draw_is_the_detector_itself() -> None:
    boxes: list[Box] = [(0, 0, 20, 20, 1.5, 0.5, 0.2), (5, 0, 25, 20, 0.5, 0.1, 0.8),
                        (60, 10, 70, 22, 1.0, 0.3, 0.1)]  # fmt: skip
    found = one([[boxes]])
    order = [1, 0, 2]
    np.testing.assert_allclose(found["p_exists"], [0.9, 0.7, 0.4])
    np.testing.assert_array_equal(found["edge_mean"], np.array(boxes)[order, :4])
    np.testing.assert_allclose(found["edge_aleatoric"][:, 0], np.array(boxes)[order, 4] ** 2)
    assert found["label"].values.tolist() == [1, 0, 0]
    assert not found["edge_epistemic"].any() and not found["score_epistemic"].any()
    z = stats.norm.ppf(0.95)
    np.testing.assert_allclose(
        found["edge_upper"], found["edge_mean"] + z * found["edge_aleatoric"] ** 0.5
    )


def test_p_exists_of_sure_boxes_is_a_multiple_of_one_over_the_draws() -> None:
    draws = [[(0, 0, 20, 20, 1, 1.0, 0)] if k < 3 else [] for k in range(8)]
    found = one([draws])
    assert float(found["p_exists"][0]) == 3 / 8 and int(found["num_members"][0]) == 3
    assert float(found["score_aleatoric"][0]) == 0
    assert float(found["score_epistemic"][0]) == pytest.approx(3 / 8 * 5 / 8)


def test_cases_are_padded_and_faint_objects_left_out() -> None:
    box: Box = (0, 0, 20, 20, 1, 0.9, 0)
    faint: Box = (50, 50, 60, 60, 1, 0.05, 0)
    tree = draws_tree([[[box, faint], [box]], [[], []], [[faint], [faint]]])
    found = objects(tree)["objects"].to_dataset()
    assert found["num_objects"].values.tolist() == [2, 0, 1] and found.sizes["box"] == 2
    absent = np.array([[False, False], [True, True], [False, True]])
    for name, values in found.data_vars.items():
        if name in ("label", "num_members"):
            np.testing.assert_array_equal(values.values == -1, absent)
        elif name != "num_objects":
            gone = np.isnan(values.values).reshape(3, 2, -1)
            np.testing.assert_array_equal(gone, np.broadcast_to(absent[..., None], gone.shape))
    assert objects(tree, least=0.1)["objects"].to_dataset()["num_objects"].values.tolist() == [
        1,
        0,
        0,
    ]
    nothing = objects(draws_tree([[[]], [[]]]))["objects"].to_dataset()
    assert nothing["num_objects"].values.tolist() == [0, 0] and nothing["p_exists"].isnull().all()


def test_two_hundred_objects_are_found_apart() -> None:
    rng = np.random.default_rng(0)
    row, col = np.divmod(np.arange(200), 20)
    case = [
        [(30.0 * c + dx, 30.0 * r, 30.0 * c + 20 + dx, 30.0 * r + 20, 1.0, 0.9, 0.0)
         for r, c, dx in zip(row, col, rng.normal(0, 1, 200), strict=True)]
        for _ in range(6)
    ]  # fmt: skip
    found = one([case])
    assert found.sizes["box"] == 200 and (found["num_members"] == 6).all()
    np.testing.assert_allclose(found["p_exists"], 0.9)
    assert len({tuple(edges) for edges in np.rint(found["edge_mean"].values / 30)}) == 200


def test_anchors_are_averaged_before_boxes_are_chosen() -> None:
    """Anchor 1 is suppressed by anchor 0 in the mean although it wins in the second draw."""
    draws: list[list[Box]] = [
        [(0, 0, 20, 20, 1, 0.9, 0), (2, 0, 22, 20, 1, 0.2, 0), (50, 0, 70, 20, 2, 0.1, 0.1)],
        [(1, 0, 21, 20, 1, 0.5, 0), (2, 0, 22, 20, 1, 0.6, 0), (52, 0, 72, 20, 2, 0.5, 0.1)],
    ]
    found = one([draws], axis="anchor", merge="anchors")
    np.testing.assert_allclose(found["p_exists"], [0.7, 0.4])
    np.testing.assert_allclose(found["edge_mean"].sel(edge="x_min"), [0.5 / 1.4, 50 + 2 * 0.75])
    assert found["num_members"].values.tolist() == [2, 2] and found.attrs["merge"] == "anchors"
    with pytest.raises(ValueError, match="merge is 'anchors', but the model kept its boxes"):
        one([draws], merge="anchors")
    with pytest.raises(ValueError, match="merge is 'boxes', but the model kept its anchors"):
        one([draws], axis="anchor")


def test_edges_in_mm_follow_the_spacing_of_rows_and_columns() -> None:
    box: Box = (10, 20, 30, 44, 1, 0.9, 0)
    spacing = np.array([[0.5, 2.0], [1.0, 3.0]])  # row, col
    tree = draws_tree([[[box]], [[box]]], constant={"spacing": spacing})
    found = objects(tree)["objects"].to_dataset()
    np.testing.assert_allclose(found["edge_mean_mm"][:, 0], [[20, 10, 60, 22], [30, 20, 90, 44]])
    width = (found["edge_upper"] - found["edge_lower"])[:, 0]
    in_mm = (found["edge_upper_mm"] - found["edge_lower_mm"])[:, 0]
    np.testing.assert_allclose(in_mm, width * spacing[:, [1, 0, 1, 0]])
    assert found["edge_mean_mm"].attrs["units"] == "mm"
    assert "edge_mean_mm" not in objects(draws_tree([[[box]]]))["objects"]


def test_readers_spread_is_covered_as_often_as_the_level_says() -> None:
    """Edges drawn from the stated mixture: 90 % intervals hold 90 %, at 1e-6 false alarms."""
    rng, number, draws = np.random.default_rng(3), 400, 5
    middle = 20 + rng.normal(0, 1.5, (number, draws, 4)) + [0, 0, 40, 40]
    cases = [[[(*edges, 1.0, 0.8, 0.0)] for edges in case] for case in middle]
    tree = objects(draws_tree(cases))
    which = rng.integers(0, draws, (number, 4))
    true = np.take_along_axis(middle, which[:, None], 1)[:, 0] + rng.normal(size=(number, 4))
    coords = {"case": tree["objects"]["case"].values, "edge": EDGES}
    tree["observed_data"] = xr.DataTree(xr.Dataset(
        {"box_edge": (("case", "box", "edge"), true[:, None]),
         "box_label": (("case", "box"), np.zeros((number, 1), np.int64))}, coords,
    ))  # fmt: skip
    covered = edge_coverage(tree)["coverage"]
    assert (abs(covered - 0.9) < 5.2 * np.sqrt(0.09 / number)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 0.0}, "overlap"),
        ({"overlap": 1.0}, "overlap"),
        ({"level": 1.0}, "level"),
        ({"least": 1.0}, "least"),
        ({"least": -0.1}, "least"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objects(draws_tree([[[(0, 0, 20, 20, 1, 0.9, 0)]]]), **options)


def test_other_trees_are_refused() -> None:
    with pytest.raises(ValueError, match="detection"):
        objects(xr.DataTree.from_dict({"posterior": xr.Dataset({"probs": ("case", [0.5])})}))
