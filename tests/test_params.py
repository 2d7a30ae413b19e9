"""Parameters: views of one vector, the networks' exact sizes, and how they are initialised."""

import itertools
import math
import re
from collections.abc import Iterator

import numpy as np
import pytest

from ddpm_ref import Purpose, uniform
from ddpm_ref.nn.params import Params, count
from ddpm_ref.nn.plan import PRESETS, UNetConfig, preset
from ddpm_ref.nn.unet import UNet

SHAPES = {"a/conv/W": (2, 3), "a/conv/b": (3,), "a_b/conv/W": (2,), "scalar": ()}


@pytest.fixture
def numbered() -> Params:
    return Params(np.arange(12.0), SHAPES)


# ---- one vector, many views


def test_names_and_numbers_stand_in_the_order_of_the_shapes(numbered: Params) -> None:
    assert list(numbered) == list(numbered.views) == list(SHAPES) and len(numbered) == 4
    assert [view.tolist() for view in numbered.views.values()] == [[[0, 1, 2], [3, 4, 5]], [6, 7, 8], [9, 10], 11]
    assert "a/conv/b" in numbered and "b" not in numbered
    assert count(SHAPES) == 12


def test_views_share_the_vectors_memory_and_assigning_writes_through(numbered: Params) -> None:
    assert all(np.shares_memory(view, numbered.vector) for view in numbered.views.values())
    numbered["a/conv/b"] = [60, 70, 80]
    numbered["scalar"] = 1
    numbered["a/conv/W"][1] += 100
    assert numbered.vector.tolist() == [0, 1, 2, 103, 104, 105, 60, 70, 80, 9, 10, 1]
    numbered.vector[:] = 0
    assert not numbered["a/conv/W"].any()


def test_assigning_a_wrong_shape_or_an_unknown_name_is_an_error(numbered: Params) -> None:
    with pytest.raises(ValueError):
        numbered["a/conv/b"] = np.zeros(4)
    for write in (False, True):
        with pytest.raises(KeyError, match="a/conv/c"):
            numbered.__setitem__("a/conv/c", 0) if write else numbered["a/conv/c"]


def test_under_a_prefix_names_are_shorter_and_still_write_through(numbered: Params) -> None:
    scope = numbered.under("a/conv")
    assert np.shares_memory(scope["W"], numbered["a/conv/W"])
    scope["b"] = -1
    assert numbered["a/conv/b"].tolist() == [-1, -1, -1] and numbered["a_b/conv/W"].tolist() == [9, 10]
    assert numbered.under("a_b")["conv/W"].tolist() == [9, 10]
    with pytest.raises(KeyError):
        numbered.under("a")["W"]


def test_like_names_another_vector_without_copying_it(numbered: Params) -> None:
    vector = np.ones(12, np.float32)
    other = numbered.like(vector)
    assert other.vector is vector and other.shapes == numbered.shapes
    other["scalar"] = 5
    assert vector[-1] == 5 and numbered["scalar"] == 11


def test_astype_is_a_copy_even_in_the_same_dtype(numbered: Params) -> None:
    for dtype in (np.float32, np.float64):
        copy = numbered.astype(dtype)
        assert copy.vector.dtype == dtype and list(copy) == list(numbered)
        np.testing.assert_array_equal(copy.vector, numbered.vector)
        assert not np.shares_memory(copy.vector, numbered.vector)


@pytest.mark.parametrize("shape", [(11,), (13,), (12, 1), ()])
def test_a_vector_of_the_wrong_size_is_an_error_that_gives_both_sizes(shape: tuple[int, ...]) -> None:
    wanted = f"vector: wanted shape (12,) for these 4 arrays, got {shape}"
    with pytest.raises(ValueError, match=f"^{re.escape(wanted)}$"):
        Params(np.zeros(shape), SHAPES)


# ---- the sizes of the paper's networks


@pytest.mark.parametrize(
    ("name", "learned_variance", "size"),
    [("cifar10", False, 35_746_307), ("cifar10", True, 35_749_766), ("celebahq256", False, 113_673_219)],
)
def test_a_preset_has_exactly_the_papers_number_of_parameters(name: str, learned_variance: bool, size: int) -> None:
    net = UNet(preset(name, learned_variance=learned_variance))
    assert net.size == size == sum(math.prod(shape) for shape in net.shapes.values())


@pytest.mark.parametrize(
    ("name", "images", "lowest", "attention", "groups", "dropout", "size"),
    [
        ("digits", (8, 8, 1), 4, {4}, 8, 0.0, 176_849),
        ("mnist", (32, 32, 1), 8, {8}, 8, 0.0, 1_623_169),
        ("cifar10", (32, 32, 3), 4, {16}, 32, 0.1, 35_746_307),
        ("celebahq256", (256, 256, 3), 8, {16}, 32, 0.0, 113_673_219),
    ],
)
def test_a_preset_is_for_the_images_it_says(
    name: str, images: tuple[int, ...], lowest: int, attention: set[int], groups: int, dropout: float, size: int
) -> None:
    """lowest: the size of the last level.  attention: sizes of the levels that have it (the paper's: 16)."""
    cfg = PRESETS[name]
    assert (cfg.image_size, cfg.image_size, cfg.channels) == images
    assert cfg.image_size / cfg.factor == lowest
    assert {cfg.image_size / 2**level for level in cfg.attention_levels} == attention
    assert (cfg.groups, cfg.dropout, cfg.learned_variance) == (groups, dropout, False)
    assert cfg.out_channels == cfg.channels
    assert UNet(cfg).size == size


CIFAR10 = {
    "temb": 328_704,
    "conv_in": 3_584,
    **dict.fromkeys(["down_0/block_0", "down_0/block_1"], 361_344),
    "down_0/downsample": 147_584,
    "down_1/block_0": 1_050_368,
    "down_1/block_1": 1_312_512,
    **dict.fromkeys(["down_1/attn_0", "down_1/attn_1", "mid/attn_1"], 263_680),
    **dict.fromkeys([f"up_1/attn_{j}" for j in range(3)], 263_680),
    **dict.fromkeys(["down_1/downsample", "down_2/downsample"], 590_080),
    **dict.fromkeys([f"down_{i}/block_{j}" for i in (2, 3) for j in range(2)], 1_312_512),
    **dict.fromkeys(["mid/block_1", "mid/block_2"], 1_312_512),
    **dict.fromkeys([f"up_{i}/block_{j}" for i in (3, 2) for j in range(3)], 2_034_176),
    **dict.fromkeys(["up_1/block_0", "up_1/block_1"], 2_034_176),
    **dict.fromkeys([f"up_{i}/upsample" for i in (3, 2, 1)], 590_080),
    "up_1/block_2": 1_706_240,
    "up_0/block_0": 706_048,
    "up_0/block_1": 541_952,
    "up_0/block_2": 541_952,
    "norm_out": 256,
    "conv_out": 3_459,
}


def test_every_part_of_the_cifar10_network_has_the_released_number_of_parameters() -> None:
    sizes: dict[str, int] = {}
    for name, shape in UNet(PRESETS["cifar10"]).shapes.items():
        parts = name.split("/")
        part = "/".join(parts[:2]) if parts[0].startswith(("down", "mid", "up")) else parts[0]
        sizes[part] = sizes.get(part, 0) + math.prod(shape)
    assert sizes == CIFAR10


@pytest.mark.parametrize(("name", "skips"), [("cifar10", 12), ("celebahq256", 18), ("digits", 4)])
def test_every_skip_is_kept_once_and_used_once_last_in_first_out(name: str, skips: int) -> None:
    plan = UNet(PRESETS[name]).plan
    kinds = [piece.kind for piece in plan]
    assert kinds.count("push") == kinds.count("pop") == skips
    kept: list[int] = []
    for i, piece in enumerate(plan):
        if piece.kind == "push":
            assert (piece.c_in, piece.c_out) == (0, 0)
            kept.append(plan[i - 1].c_out)
        elif piece.kind == "pop":
            assert piece.c_out == piece.c_in + kept.pop() == plan[i + 1].c_in
    assert kept == []


@pytest.mark.parametrize("name", PRESETS)
def test_each_piece_takes_the_width_that_the_one_before_gave_and_copies_are_named_for_their_blocks(name: str) -> None:
    plan = UNet(PRESETS[name]).plan
    last = plan[0]
    for piece, after in itertools.pairwise(plan[1:]):
        if piece.kind == "push":
            assert piece.name.replace("block", "attn") == last.name.replace("block", "attn")
            continue
        assert piece.c_in == last.c_out
        assert piece.kind not in ("attention", "down", "up") or piece.c_in == piece.c_out
        assert piece.kind != "pop" or piece.name == after.name
        last = piece


def test_the_last_layers_have_the_width_that_reaches_them() -> None:
    net = UNet(UNetConfig(3, 8, (2, 1), 1, (), groups=8))
    assert net.plan[-1].c_out == 16
    assert (net.shapes["norm_out/gamma"], net.shapes["conv_out/W"]) == ((16,), (3, 3, 16, 3))


# ---- initial parameters

CONFIG = UNetConfig(3, 16, (1, 2), 1, (1,), groups=8)


@pytest.fixture
def fresh() -> Params:
    return UNet(CONFIG).init(0)


def weights(params: Params) -> Iterator[tuple[str, np.ndarray, float]]:
    """Every weight with its name and the bound of its uniform distribution, √(3 scale / fan_avg)."""
    for name, W in params.views.items():
        if name.endswith("/W"):
            taps = 9 if W.ndim == 4 else 1
            fan_avg = taps * (W.shape[-2] + W.shape[-1]) / 2
            last = name.split("/")[-2] in ("conv2", "proj_out", "conv_out")
            yield name, W, math.sqrt(3 * (1e-10 if last else 1.0) / fan_avg)


def test_norms_start_at_1_and_0_and_biases_at_0(fresh: Params) -> None:
    for name, values in fresh.views.items():
        if not name.endswith("/W"):
            assert name.endswith(("/gamma", "/beta", "/b"))
            assert np.all(values == (1 if name.endswith("/gamma") else 0)), name


def test_weights_are_uniform_between_the_glorot_bounds(fresh: Params) -> None:
    normalised = []
    for name, W, bound in weights(fresh):
        u = np.float64(W).ravel() / bound
        assert np.abs(u).max() <= 1 + 1e-6, name
        assert np.abs(u).max() > 1 - 10 / u.size, f"{name} does not reach its bounds"
        assert abs(np.mean(u)) < 5 / math.sqrt(3 * u.size), f"{name} has not mean 0"
        assert abs(3 * np.mean(u**2) - 1) < 5 / math.sqrt(u.size), f"{name} has not the variance scale / fan_avg"
        normalised.append(u)
    everything = np.sort(np.concatenate(normalised))
    steps = np.linspace(-1, 1, everything.size)
    assert np.abs(everything - steps).max() < 0.01, "Kolmogorov-Smirnov distance from the uniform distribution"


def test_every_layer_draws_its_own_numbers(fresh: Params) -> None:
    starts = [tuple(np.round(W.ravel()[:8] / bound, 4)) for _, W, bound in weights(fresh)]
    assert len(set(starts)) == len(starts)


def test_a_layers_numbers_are_drawn_under_its_place_for_image_0_at_step_0(fresh: Params) -> None:
    """Fixed for good: a seed must begin the same run in every version."""
    for index, (name, W, bound) in {list(fresh).index(w[0]): w for w in weights(fresh)}.items():
        u = uniform(0, Purpose.INIT, 0, [0], W.shape, layer=index)[0].astype(np.float64)
        np.testing.assert_allclose(W, (2 * u - 1) * bound, rtol=1e-6, err_msg=name)


def test_a_seed_gives_the_same_bits_again_and_another_seed_others(fresh: Params) -> None:
    net = UNet(CONFIG)
    np.testing.assert_array_equal(net.init(0).vector, fresh.vector)
    other = net.init(1)
    for name, W, _ in weights(fresh):
        assert np.mean(other[name] == W) < 0.01, name


def test_float64_parameters_round_to_the_float32_ones(fresh: Params) -> None:
    exact = UNet(CONFIG).init(0, np.float64)
    assert fresh.vector.dtype == np.float32 and exact.vector.dtype == np.float64
    np.testing.assert_array_equal(exact.vector.astype(np.float32), fresh.vector)
    assert np.any(exact.vector != fresh.vector)
