"""Draws in one pass by vmap: the same maps as one by one, and refusals."""

from typing import Any

import numpy as np
import pytest
import torch
from attribution_nets import PooledNet, conv_net, images, segmenter
from torch import nn

from ppl_med.explain.attribution import attribute
from ppl_med.explain.attribution.draw_groups import StackedDraws
from ppl_med.inference import BernoulliDropout, Ensemble, MeanFieldNormal, functions
from ppl_med.models import BayesianClassifier

METHODS: dict[str, dict[str, Any]] = {
    "saliency": {},
    "input_x_gradient": {},
    "integrated_gradients": {"steps": 7},
    "smooth_grad": {"samples": 3},
    "var_grad": {"samples": 3},
    "lrp": {"epsilon": 0.1},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", [2, 3])
def test_stacked_draws_equal_single_ones(method: str, space: int) -> None:
    nets, x, target = [conv_net(space) for _ in range(5)], images(space=space), [2, 0, 1]
    settings: dict[str, Any] = {"method": method, "keep_draws": True, "tolerance": 10}
    settings |= METHODS[method]
    results = [
        attribute(nets, x, torch.tensor(target), draws_at_once=size, batch_size=batch, **settings)
        for size, batch in ((None, 256), (2, 4), (5, 256))
    ]
    for result in results[1:]:
        assert set(result.data_vars) == set(results[0].data_vars)
        for name in result.data_vars:
            np.testing.assert_allclose(result[name], results[0][name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("guide", [MeanFieldNormal, BernoulliDropout, Ensemble])
def test_posterior_functions_stack(guide: Any) -> None:
    model = BayesianClassifier(conv_net().float().requires_grad_(), ["a", "b", "c"])
    made = functions(
        model,
        Ensemble(model, MeanFieldNormal, members=2) if guide is Ensemble else guide(model),
        draws=3,
    )
    x = images().float()
    one, all_ = (
        attribute(made, x, 1, method="lrp", draws_at_once=size, keep_draws=True)
        for size in (None, len(made))
    )
    np.testing.assert_allclose(one.attribution, all_.attribution, rtol=1e-3, atol=1e-5)
    assert float(one["sd"].max()) > 1e-4


def test_segmentation_stacks() -> None:
    nets, x = [segmenter() for _ in range(3)], images()
    region = torch.ones(3, 8, 8)
    one, all_ = (
        attribute(nets, x, 0, region=region, output="probability", draws_at_once=size)
        for size in (1, 3)
    )
    np.testing.assert_allclose(one["sd"], all_["sd"], atol=1e-9)


class Half(PooledNet):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


def test_refuses() -> None:
    x = images()
    with pytest.raises(ValueError, match="one by one"):
        attribute([PooledNet()] * 2, x, 0, method="grad_cam", draws_at_once=2)
    with pytest.raises(ValueError, match=r"cannot be stacked .*no torch module"):
        attribute([lambda v: v.flatten(1)] * 2, x, 0, draws_at_once=2)
    with pytest.raises(ValueError, match="differ in the parameters"):
        attribute([PooledNet(), conv_net()], x, 0, draws_at_once=2)
    with pytest.raises(ValueError, match="differ in more than parameters"):
        attribute([PooledNet(), Half()], x, 0, draws_at_once=2)
    with pytest.raises((ValueError, TypeError), match="draws_at_once"):
        attribute([PooledNet()], x, 0, draws_at_once=0)


def test_a_module_that_is_used_twice_keeps_its_parameters() -> None:
    def net() -> nn.Module:
        twice = nn.Linear(8, 8).double()
        return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), twice, nn.Tanh(), twice)

    nets, x = [net() for _ in range(2)], images()
    before = [parameter for one in nets for parameter in one.parameters()]
    one, all_ = (attribute(nets, x, 0, method="saliency", draws_at_once=size) for size in (None, 2))
    np.testing.assert_allclose(one["mean"], all_["mean"], atol=1e-12)
    after = [parameter for one in nets for parameter in one.parameters()]
    assert all(new is old for new, old in zip(after, before, strict=True))


def test_on_a_cpu_draws_are_visited_one_by_one_unless_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stacked: list[int] = []

    class Counted(StackedDraws):
        def __init__(self, functions: Any, *rest: Any) -> None:
            stacked.append(len(functions))
            super().__init__(functions, *rest)

    monkeypatch.setattr("ppl_med.explain.attribution.posterior_maps.StackedDraws", Counted)
    nets, x = [conv_net() for _ in range(3)], images()
    attribute(nets, x, 0, method="saliency")
    assert not stacked
    attribute(nets, x, 0, method="saliency", draws_at_once=3)
    assert stacked == [3]
