"""Random weights: which parameters, where they stand, and that the net is otherwise untouched."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from monai.networks.layers.drop_path import DropPath
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ppl_med.inference import MeanFieldNormal, PointEstimate, fit, load, predict, save
from ppl_med.models import BayesianClassifier, BayesianSegmenter
from ppl_med.weights import FanInNormal, Layout, Normal, RandomWeights, Where, find_random_weights


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.PReLU(),
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Linear(4 * 4 * 4, 3),
    )


def images(cases: int = 5) -> Tensor:
    return torch.randn(cases, 2, 6, 6)


def is_bias(name: str, module: nn.Module) -> bool:
    return name.endswith("bias") and isinstance(module, nn.Conv2d)


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (None, ["0.weight", "0.bias", "3.weight", "6.weight", "6.bias"]),
        ("last_layer", ["6.weight", "6.bias"]),
        ("0.*", ["0.weight", "0.bias"]),
        ("*.weight", ["0.weight", "1.weight", "2.weight", "3.weight", "4.weight", "6.weight"]),
        (nn.Linear, ["6.weight", "6.bias"]),
        ((nn.PReLU, nn.BatchNorm2d), ["1.weight", "1.bias", "2.weight"]),
        (is_bias, ["0.bias"]),
    ],
)
def test_where_selects(where: Where, names: list[str]) -> None:
    model = RandomWeights(small_net(), where=where)
    assert model.layout.names == names
    trained = {name for name, p in model.net.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.net.named_parameters()} - set(names)
    assert model(images()).shape == (5, 3)


@pytest.mark.parametrize("where", ["9.*", nn.Conv3d, lambda name, module: False])
def test_a_selection_of_nothing_is_named(where: Where) -> None:
    with pytest.raises(ValueError, match="selects no parameter of Sequential; its parameters are"):
        Layout(small_net(), where)


def test_arguments_of_the_wrong_type_are_refused() -> None:
    with pytest.raises(TypeError):
        Layout(small_net(), 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        RandomWeights(lambda image: image)  # type: ignore[arg-type]


def test_the_last_layer_needs_a_layer() -> None:
    with pytest.raises(ValueError, match="has no linear or conv layer"):
        Layout(nn.Sequential(nn.PReLU()), "last_layer")


def test_norm_layers_and_prelu_are_deterministic_by_default() -> None:
    norms = [nn.BatchNorm2d(2), nn.InstanceNorm2d(2, affine=True), nn.GroupNorm(1, 2)]
    norms += [nn.LayerNorm([2, 6, 6]), nn.RMSNorm([2, 6, 6]), nn.PReLU(2)]
    net = nn.Sequential(*norms, nn.Conv2d(2, 1, 1))
    assert Layout(net).names == ["6.weight", "6.bias"]


def test_views_are_the_flat_vector() -> None:
    net = small_net()
    layout = Layout(net)
    flat = layout.flatten(net)
    assert len(flat) == layout.num_weights == sum(layout.sizes)
    for name, view in layout.views(flat).items():
        assert torch.equal(view, dict(net.named_parameters())[name])
        assert view.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("net", "fan_in"),
    [
        (nn.Linear(5, 2), [5, 5]),
        (nn.Conv2d(4, 6, 3, groups=2), [18, 18]),
        (nn.Conv3d(2, 3, (1, 2, 3)), [12, 12]),
        (nn.ConvTranspose2d(6, 3, 2, groups=3), [8, 8]),
        (nn.ConvTranspose1d(6, 4, 5), [30, 30]),
        (nn.MultiheadAttention(8, 2), [8, 1, 8, 8]),
        (nn.ParameterList([torch.zeros(1, 7, 16), torch.zeros(3)]), [16, 1]),
    ],
    ids=["linear", "grouped", "3d", "transposed-grouped", "transposed", "attention", "position"],
)
def test_fan_in_is_what_an_output_unit_sums_over(net: nn.Module, fan_in: list[int]) -> None:
    assert [entry.fan_in for entry in Layout(net).entries] == fan_in


def test_fan_in_of_layers_is_the_number_of_inputs_that_matter() -> None:
    """Against derivatives: inputs that move the centre output of a stride-1 layer."""
    for layer, size in (
        (nn.Conv2d(4, 6, 3, groups=2, padding=1), (1, 4, 7, 7)),
        (nn.ConvTranspose2d(6, 4, 3, groups=2, padding=1), (1, 6, 7, 7)),
        (nn.Linear(5, 4), (1, 5)),
    ):
        inputs = torch.randn(size, requires_grad=True)
        output = layer(inputs)
        centre = output[0, 0, 3, 3] if output.dim() == 4 else output[0, 0]
        (gradient,) = torch.autograd.grad(centre, inputs)
        assert int((gradient != 0).sum()) == Layout(layer).entries[0].fan_in


def test_guides_start_narrower_where_more_inputs_are_summed() -> None:
    model = BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), ["a", "b"])
    part: Any = MeanFieldNormal(model, init_scale=0.2).parts["weights"]
    torch.testing.assert_close(part.scale.detach(), torch.full((34,), 0.2 / math.sqrt(16)))


def test_the_net_at_its_own_weights_is_the_net() -> None:
    net = small_net().eval()
    model = RandomWeights(net).eval()
    batch = images()
    with pyro.condition(data={"weights": model.initial()}):
        output = model(batch)
    torch.testing.assert_close(output, net(batch), rtol=0, atol=0)


def test_the_callers_net_stays_as_it_was() -> None:
    net = nn.Sequential(small_net(), nn.Dropout(0.3))
    before = copy.deepcopy(net.state_dict())
    model = RandomWeights(net).train()
    model(images()).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert net[1].p == 0.3 and not set(map(id, net.parameters())) & set(map(id, model.parameters()))


class FunctionalDropout(nn.Module):
    """Drops by a function and an attribute, as torchvision's DenseNet and Swin do."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_rate, self.attention_dropout = 0.4, 0.2

    def forward(self, values: Tensor) -> Tensor:
        for rate in (self.drop_rate, self.attention_dropout):
            values = nn.functional.dropout(values, rate, self.training)
        return values


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(36, 2, dropout=0.3, batch_first=True)

    def forward(self, image: Tensor) -> Tensor:
        tokens = image.flatten(2)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


@pytest.mark.parametrize(
    ("layer", "rates"),
    [
        (nn.Dropout(0.5), {"0": 0.5}),
        (nn.Dropout2d(0.1), {"0": 0.1}),
        (nn.AlphaDropout(0.1), {"0": 0.1}),
        (StochasticDepth(0.2, "row"), {"0": 0.2}),
        (DropPath(0.2), {"0.drop_prob": 0.2}),
        (FunctionalDropout(), {"0.attention_dropout": 0.2, "0.drop_rate": 0.4}),
        (Attention(), {"0.attention.dropout": 0.3}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_dropout_of_the_net_is_switched_off(layer: nn.Module, rates: dict[str, float]) -> None:
    """Whatever randomness is left in a training pass is the weights' own."""
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(72, 2)).train()
    assert not torch.equal(net(images()), net(images()))
    model = RandomWeights(net).train()
    assert model.dropout_rates == rates
    batch = images()
    with pyro.condition(data={"weights": model.initial()}):
        torch.testing.assert_close(model(batch), model(batch), rtol=0, atol=0)


def running(model: nn.Module) -> Tensor:
    buffers = [b for name, b in model.named_buffers() if "running" in name]
    assert buffers
    return torch.cat([buffer.reshape(-1).clone() for buffer in buffers])


def test_running_statistics_move_in_training_only() -> None:
    model = RandomWeights(small_net())
    start = running(model)
    model.eval()(images())
    assert torch.equal(running(model), start)
    batch = images()
    model.train()(batch)
    moved = running(model)
    first: Any = model.net[0]  # type: ignore[index]
    assert not torch.equal(moved, start) and moved.shape == (8,)
    assert first.weight.requires_grad is False
    model.eval()(batch)
    assert torch.equal(running(model), moved)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(2), nn.InstanceNorm2d(2, track_running_stats=True)]
)
def test_frozen_running_statistics_never_move(norm: nn.Module) -> None:
    net = nn.Sequential(norm, nn.Flatten(), nn.Linear(72, 2))
    model = BayesianClassifier(net, ["a", "b"], batch_norm="frozen")
    start = running(model)
    model.train()
    assert model.network.net.training and not model.network.net[0].training  # type: ignore[index]
    model(images(), torch.zeros(5, dtype=torch.int64))
    assert torch.equal(running(model), start)


def test_a_shared_parameter_is_one_parameter() -> None:
    first = nn.Linear(4, 4, bias=False)
    second = nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    model = RandomWeights(nn.Sequential(first, second))
    assert model.layout.names == ["0.weight"]
    flat, inputs = torch.randn(16), torch.randn(3, 4)
    with pyro.condition(data={"weights": flat}):
        output = model(inputs)
    weight = flat.view(4, 4)
    torch.testing.assert_close(output, inputs @ weight.T @ weight.T)


def test_a_module_under_two_names_trains_and_keeps_its_parameters(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)
            self.all_modules = nn.Sequential(self.conv, nn.ReLU())

        def forward(self, image: Tensor) -> Tensor:
            return self.all_modules(image)

    model = BayesianSegmenter(Block(), ["no", "yes"])
    before = dict(model.named_parameters(remove_duplicate=False))
    x = images()
    batches = [{"image": x, "mask": (x[:, 0] > 0).long()}]
    history = fit(model, PointEstimate(model), batches, epochs=1, progress=False)
    assert np.isfinite(history["nll"]).all()
    guide = MeanFieldNormal(model)
    history = fit(model, guide, batches, epochs=60, learning_rate=0.1, progress=False)
    assert float(history["nll"][-1]) < 0.5 * float(history["nll"][0])
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is parameter for name, parameter in before.items())
    tree = predict(model, guide, batches, draws=2, progress=False)
    save(tmp_path / "run.pt", model, guide)
    again = BayesianSegmenter(Block(), ["no", "yes"])
    other = MeanFieldNormal(again)
    load(tmp_path / "run.pt", again, other)
    same = predict(again, other, batches, draws=2, progress=False)
    assert np.array_equal(same["posterior"]["probs"], tree["posterior"]["probs"])


def test_a_net_may_take_keywords_only() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, *, image: Tensor) -> Tensor:
            return self.layer(image)

    class Program(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = RandomWeights(Keywords())

        def forward(self, image: Tensor) -> Tensor:
            return self.network(image=image)

    program = Program()
    guide = MeanFieldNormal(program, estimator="flipout")
    for _ in range(2):
        trace = pyro.poutine.trace(guide).get_trace()
        assert pyro.poutine.replay(program, trace=trace)(torch.randn(3, 4)).shape == (3, 2)


def test_random_weights_are_found_by_site() -> None:
    class Two(nn.Module):
        def __init__(self, *sites: str) -> None:
            super().__init__()
            self.nets = nn.ModuleList(RandomWeights(nn.Linear(2, 2), site=site) for site in sites)

    assert set(find_random_weights([Two("a", "b"), lambda: None])) == {"a", "b"}
    with pytest.raises(ValueError, match="share the site name 'a'"):
        find_random_weights([Two("a", "a")])


def test_priors_follow_the_net_to_its_type() -> None:
    for prior in (FanInNormal(), Normal(0.1, loc="pretrained")):
        model = RandomWeights(small_net().double(), prior)
        assert model(images().double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("classes", "kind", "message"),
    [
        (["a"], "categorical", "two or more different names"),
        (["a", "a"], "categorical", "two or more different names"),
        (["a", "b"], "cauchy", "likelihood must be one of"),
        (["a", "b", "c"], "bernoulli", "takes two classes"),
    ],
)
def test_wrong_classes_are_named(classes: list[str], kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BayesianClassifier(small_net(), classes, likelihood=kind)


@pytest.mark.parametrize(("classes", "kind"), [("abc", "categorical"), ("ab", "bernoulli")])
def test_a_net_with_the_wrong_outputs_is_named(classes: str, kind: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 2))
    model = BayesianClassifier(net, list(classes), likelihood=kind)
    with pytest.raises(ValueError, match=r"output of shape \(5, 2\) but"):
        model(images())
