"""Nearest training images, against brute force, and what tells a model that remembers from one that does not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_run import TRAIN, Run, call, pictures, save_pictures

from ddpm_ref.checks import Array
from ddpm_ref.experiments import neighbours
from ddpm_ref.experiments.features import feature_space
from ddpm_ref.experiments.neighbours import (
    Nearest,
    Space,
    exact_copies,
    k_nearest,
    nearest_by_features,
    nearest_by_pixels,
)
from ddpm_ref.files.data import ImageData


def brute(x: Array, train: Array, k: int) -> tuple[Array, Array]:
    distance = np.linalg.norm(x[:, None] - train[None], axis=2)
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distance, order, axis=1), order


@pytest.mark.parametrize("k", [1, 4, 30])
def test_they_are_those_of_brute_force_in_any_blocks(k: int, monkeypatch: Any, rng: np.random.Generator) -> None:
    x, train = rng.standard_normal((7, 5)), rng.standard_normal((30, 5))
    distance, index = brute(x, train, k)
    for numbers in (1, 50, 10_000):
        monkeypatch.setattr(neighbours, "NUMBERS", numbers)
        found = k_nearest(x, lambda i: train[i], 30, k)
        assert np.array_equal(found.index, index)
        np.testing.assert_allclose(found.distance, distance, rtol=1e-13)


def test_of_equally_near_rows_the_first_comes_first_and_a_copy_is_at_distance_0(monkeypatch: Any) -> None:
    train = np.array([[3.1, 0], [0, 0.3], [0, 0.3], [-3.1, 0], [0, 0.3]]) + 100
    for numbers in (1, 10_000):
        monkeypatch.setattr(neighbours, "NUMBERS", numbers)
        found = k_nearest(train[2:3], lambda i: train[i], 5, 5)
        assert found.index.tolist() == [[1, 2, 4, 0, 3]] and found.distance[0, :3].tolist() == [0, 0, 0]
        assert k_nearest(train[2:3], lambda i: train[i], 5, 2).index.tolist() == [[1, 2]]


def test_of_images_the_distance_is_the_rms_of_bytes_and_of_features_euclidean(rng: np.random.Generator) -> None:
    train = pictures(20, channels=3)
    images = rng.uniform(-1, 1, (4, 4, 4, 3))
    y = train.x_0(dtype=np.float64)
    distance, index = brute(images.reshape(4, -1), y.reshape(20, -1), 3)
    found = nearest_by_pixels(images, train, 3)
    assert np.array_equal(found.index, index)
    np.testing.assert_allclose(found.distance, 127.5 * distance / np.sqrt(48), rtol=1e-12)

    def features(x: Array) -> Array:
        return x.mean(axis=(1, 2)) ** 2

    distance, index = brute(features(images), features(y), 3)
    found = nearest_by_features(images, train, 3, features)
    assert np.array_equal(found.index, index)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-4)  # it is asked for float32 training images


def test_copies_are_found_whatever_the_rounding_and_near_ones_are_none(rng: np.random.Generator) -> None:
    train = pictures(20)  # 17 grey levels: 1/8 apart
    images = train.x_0([3, 3, 11, 19], np.float64)
    images += rng.uniform(-0.06, 0.06, images.shape)
    assert exact_copies(images, train) == 4
    images[2, 0, 0, 0] += 0.125 * (1 if images[2, 0, 0, 0] < 0 else -1)
    assert exact_copies(images, train) == 3
    floats = ImageData(train.x_0(), 1000, "floats")
    assert exact_copies(train.x_0(slice(5)), floats) == 5


def nearest(*distances: Any) -> Nearest:
    return Nearest(np.array(distances, float), np.zeros((len(distances), len(distances[0])), int))


def test_the_ratio_is_of_medians_and_one_much_nearer_neighbour_is_counted() -> None:
    ours, real = nearest([1, 2], [1, 3.01], [2, 7], [3, 3]), nearest([4, 5], [6, 6])
    space = Space(ours, real)
    assert space.ratio == 1.5 / 5 and ours.much_nearer == 0.5 and real.much_nearer == 0
    data = space.as_dict()
    assert data["samples"]["median"] == 1.5 and data["samples"]["quantiles"]["100"] == 3
    assert Space(ours, None).ratio is None and Space(ours, nearest([0, 1])).ratio is None
    assert nearest([1], [2]).much_nearer is None


# ---- the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("neighbours")
    data = save_pictures(folder / "data.npz", pictures(40, 8, levels=256))
    held = ("--held-out", 6, "--lr", 0.01, "--steps", 3)
    return Run(folder / "run", data, call(*TRAIN, "--data", data, *held, "--out", folder / "run"))


def measured(trained: Run, out: Path, *more: object) -> Any:
    done = call("neighbours", trained.folder, "--draw-batch", 5, "--out", out, *more)
    assert (done.status, done.err) == (0, "")
    assert [Path(line[6:]).name for line in done.out.splitlines() if line.startswith("wrote ")] == [
        "neighbours.json", "neighbours.png", "distances.png",
    ]  # fmt: skip
    return json.loads((out / "neighbours.json").read_text())


def test_the_command_writes_numbers_and_pictures_that_repeat(trained: Run, tmp_path: Path) -> None:
    one, other = (measured(trained, tmp_path / name, "--count", 7, "--seed", 3) for name in ("one", "other"))
    assert one["result"] == other["result"]
    for name in ("neighbours.png", "distances.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
        Image.open(tmp_path / "one" / name).verify()
    pixels = one["result"]["pixels"]
    assert (pixels["samples"]["n"], pixels["held_out"]["n"]) == (7, 6) and one["result"]["features"] is None
    assert call("sample", trained.folder, "--count", 7, "--seed", 3, "--out", tmp_path / "drawn").status == 0
    given = measured(trained, tmp_path / "given", "--samples", tmp_path / "drawn" / "samples.npz")["result"]
    assert given["pixels"]["held_out"] == pixels["held_out"]
    assert given["pixels"]["samples"]["median"] == pytest.approx(pixels["samples"]["median"], abs=0.5)


def test_remembered_images_are_seen_for_what_they_are(trained: Run, tmp_path: Path) -> None:
    from ddpm_ref.files.checkpoint import load_checkpoint
    from ddpm_ref.files.source import reopen_source

    _, train, held = reopen_source(load_checkpoint(trained.folder).data)
    assert held is not None
    for name, data in (("copies", train.take(slice(8))), ("new", held)):
        np.savez(tmp_path / f"{name}.npz", images=data.pixels)
    copies, new = (
        measured(trained, tmp_path / name, "--samples", tmp_path / f"{name}.npz", "--nearest", 2)["result"]
        for name in ("copies", "new")
    )
    assert copies["exact_copies"] == {"samples": 8, "held_out": 0} and copies["pixels"]["median_ratio"] == 0
    assert copies["pixels"]["samples"]["much_nearer_to_one"] == 1
    assert new["exact_copies"] == {"samples": 0, "held_out": 0} and new["pixels"]["median_ratio"] == pytest.approx(1)


def test_neighbours_in_a_feature_space_have_a_picture_of_their_own(trained: Run, tmp_path: Path) -> None:
    from ddpm_ref.cli import _parser
    from ddpm_ref.experiments.subject import open_subject

    subject = open_subject(_parser().parse_args(["neighbours", str(trained.folder)]))
    result = neighbours.measure(subject, count=3, k=2, features=lambda x: x.mean(axis=(1, 2)))
    paths = neighbours.save(tmp_path, result, {})
    assert [p.name for p in paths] == ["neighbours.json", "neighbours.png", "neighbours-features.png", "distances.png"]
    assert result.features is not None and "features" in result.table()
    json.dumps(result.as_dict(), allow_nan=False)


def test_the_command_learns_features_of_labelled_data(trained: Run, tmp_path: Path) -> None:
    from ddpm_ref.files.checkpoint import load_checkpoint
    from ddpm_ref.files.source import reopen_source

    _, train, _ = reopen_source(load_checkpoint(trained.folder).data)
    np.savez(tmp_path / "copies.npz", images=train.pixels[:4])
    out = tmp_path / "out"
    done = call("neighbours", trained.folder, "--samples", tmp_path / "copies.npz", "--features", "--out", out)
    assert (done.status, done.err) == (0, "") and (out / "neighbours-features.png").is_file()
    found = json.loads((out / "neighbours.json").read_text())["result"]["features"]
    assert found["samples"]["median"] == 0 and found["held_out"]["median"] > 0
    with pytest.raises(ValueError, match="features: wanted training images with labels"):
        feature_space(replace(train, labels=None))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--nearest", 0), r"--nearest: wanted an integer in 1..34, got 0"),
        (("--nearest", 35), r"--nearest: wanted an integer in 1..34, got 35"),
        (("--count", 0), "--count: wanted an integer >= 1, got 0"),
        (("--samples", "nowhere.npz", "--count", 0), "--count: wanted an integer >= 1, got 0"),
        (("--samples", "nowhere.npz", "--count", -1), "--count: wanted an integer >= 1, got -1"),
        (("--samples", "nowhere.npz"), "nowhere.npz: does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(trained: Run, tmp_path: Path, more: Any, message: str) -> None:
    assert message in call("neighbours", trained.folder, "--out", tmp_path / "new", *more).error
    assert not (tmp_path / "new").exists()


def test_samples_of_another_shape_are_refused(trained: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "small.npz", images=np.zeros((3, 4, 4, 1), np.uint8))
    done = call("neighbours", trained.folder, "--samples", tmp_path / "small.npz")
    assert "--samples: wanted images of (8, 8, 1) each, got (4, 4, 1)" in done.error
