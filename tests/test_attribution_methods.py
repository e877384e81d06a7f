"""The table of all attribution methods: what every one of them keeps, under its name."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from attribution_nets import PooledNet, conv_net, images
from torch import nn

from ppl_med.explain import attribution
from ppl_med.explain.attribution import Method, attribute
from ppl_med.networks import AdditiveMIL, AttentionMIL


@dataclass(frozen=True)
class Row:
    """A method's options, and a net that it can explain.

    Args:
        options: Settings that keep it cheap.
        pooled: Whether it needs a net that ends in pooling and one linear layer.
        net: Makes a net of the kind that it needs, if that is another.
        knows_class: Whether maps of two classes differ.
        random: Whether it draws random numbers: then a case's map depends on its batch.
    """

    options: dict[str, Any]
    pooled: bool = False
    net: Any = None
    knows_class: bool = True
    random: bool = False


METHODS: dict[str, Row] = {
    "saliency": Row({}),
    "input_x_gradient": Row({}),
    "integrated_gradients": Row({"steps": 8}),
    "smooth_grad": Row({"samples": 3}, random=True),
    "var_grad": Row({"samples": 3}, random=True),
    "occlusion": Row({"patch": 3}),
    "cam": Row({}, pooled=True),
    "grad_cam": Row({}),
    "grad_cam_plus_plus": Row({}),
    "score_cam": Row({}),
    "guided_backprop": Row({}),
    "guided_grad_cam": Row({}),
    "lrp": Row({}),
    "deep_lift": Row({}),
    "full_gradient": Row({}),
    "additive": Row({}, net=lambda: AdditiveMIL(in_channels=2, num_outputs=3)),
    "attention": Row({}, net=lambda: AttentionMIL(in_channels=2, num_outputs=3), knows_class=False),
}


def net_of(row: Row) -> nn.Module:
    if row.net is not None:
        return row.net().double().eval()
    return (PooledNet() if row.pooled else conv_net()).double().eval()


def explained(name: str, batch_size: int = 256, target: int = 1) -> Any:
    torch.manual_seed(0)
    row = METHODS[name]
    nets, image = [net_of(row) for _ in range(2)], images().double()
    options = row.options | {"batch_size": batch_size, "tolerance": 10.0}
    return attribute(nets, image, target, method=name, keep_draws=True, **options)


def test_every_exported_method_stands_in_the_table() -> None:
    exported = [getattr(attribution, name) for name in attribution.__all__]
    kinds = [one for one in exported if isinstance(one, type) and issubclass(one, Method)]
    assert {kind.name for kind in kinds if kind is not Method} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_maps_have_the_axes_of_the_image_and_are_no_constant(name: str) -> None:
    found, image = explained(name), images()
    assert found.attribution.dims == ("chain", "draw", "case", "channel", "row", "col")
    shape = (2, len(image), found.sizes["channel"], *image.shape[2:])
    assert found.attribution.shape[1:] == shape
    assert np.isfinite(found.attribution).all()
    assert float(found.attribution.std()) > 0
    mean = found.attribution.mean(("chain", "draw"))  # kept in single precision
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if not row.random])
def test_a_case_is_explained_alone_as_in_company(name: str) -> None:
    one, all_ = explained(name, batch_size=1), explained(name)
    np.testing.assert_allclose(one.attribution, all_.attribution, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.knows_class])
def test_another_class_has_another_map(name: str) -> None:
    assert not np.allclose(explained(name, target=0)["mean"], explained(name, target=1)["mean"])
