"""What a U-Net, its configuration and its presets refuse, and what they say."""

from typing import Any

import numpy as np
import pytest

from ddpm_ref.backend import Backend
from ddpm_ref.nn.plan import PRESETS, UNetConfig, preset
from ddpm_ref.nn.unet import UNet

# Three levels, so that sizes must be divisible by 4.
ODD = UNetConfig(2, 9, (1, 2, 1), 1, (0, 2), groups=3, dropout=0.3, learned_variance=True)


@pytest.mark.parametrize(
    ("shape", "dtype", "t", "message"),
    [
        (
            (2, 6, 8, 2),
            np.float64,
            1,
            r"wanted \(N, H, W, 2\), not empty, H and W divisible by 4, got shape \(2, 6, 8, 2\)",
        ),
        ((2, 8, 6, 2), np.float64, 1, r"x_t: wanted .* divisible by 4"),
        ((0, 8, 8, 2), np.float64, 1, r"x_t: wanted .* not empty"),
        ((2, 8, 8, 3), np.float64, 1, r"x_t: wanted \(N, H, W, 2\)"),
        ((8, 8, 2), np.float64, 1, r"x_t: wanted \(N, H, W, 2\)"),
        ((2, 4, 8, 2), np.float32, 1, "x_t: wanted the parameters' dtype, float64, got float32"),
        ((2, 4, 8, 2), np.uint8, 1, r"x_t: wanted a floating array .* got dtype uint8"),
        ((2, 4, 8, 2), np.float64, [1, 2, 3], r"t: wanted one integer >= 1 or \(2,\) of them"),
        ((2, 4, 8, 2), np.float64, [[1, 2]], "t: wanted"),
        ((2, 4, 8, 2), np.float64, 0, "t: wanted one integer >= 1"),
        ((2, 4, 8, 2), np.float64, [1, 0], "t: wanted one integer >= 1"),
        ((2, 4, 8, 2), np.float64, 1.0, "t: wanted one integer >= 1 .* got float64"),
        ((2, 4, 8, 2), np.float64, True, "t: wanted .* got bool"),
    ],
)
def test_images_or_steps_of_the_wrong_form_are_errors(shape: Any, dtype: type, t: Any, message: str) -> None:
    net = UNet(ODD)
    with pytest.raises(ValueError, match=message):
        net(net.init(0, np.float64), np.zeros(shape, dtype), t, Backend())


def test_parameters_of_another_network_are_an_error() -> None:
    net, other = UNet(ODD), UNet(UNetConfig(2, 9, (1, 2, 1), 1, (0,), groups=3))
    with pytest.raises(ValueError, match="params: not the parameters of this network"):
        net(other.init(0, np.float64), np.zeros((2, 4, 8, 2)), 1, Backend())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((name, [0, -1, 1.5, True]) for name in ("channels", "blocks", "groups", "image_size")),
        ("base", [1, 0, 64.0]),
        ("mult", [(), (1, 0), (1, 1.5)]),
        ("attention_levels", [(4,), (-1,), (0.5,)]),
        ("groups", [3, 256]),
        ("dropout", [1.0, -0.1, float("nan")]),
    ],
)
def test_a_field_of_the_configuration_out_of_range_is_an_error_that_names_it(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{name}: wanted"):
            UNetConfig(**{name: value})


def test_the_first_convolutions_width_must_be_divisible_by_the_groups_too() -> None:
    with pytest.raises(ValueError, match=r"groups: wanted a divisor of every width \[16, 32\], got 32"):
        UNetConfig(base=16, mult=(2,), attention_levels=(), groups=32)


def test_a_preset_takes_changes_and_an_unknown_one_lists_those_there_are() -> None:
    assert preset("cifar10") == UNetConfig() == PRESETS["cifar10"]
    changes = dict(dropout=0.0, mult=[1, 2], attention_levels=[0])
    assert preset("cifar10", **changes) == UNetConfig(dropout=0.0, mult=(1, 2), attention_levels=(0,))
    with pytest.raises(ValueError, match="preset: wanted one of digits, mnist, cifar10, celebahq256, got 'cifar'"):
        preset("cifar")
