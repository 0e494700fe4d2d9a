from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import Ridge

from carefl_secure.errors import DataError
from carefl_secure.evaluation.baselines import _ridge, colour_histogram, score_baselines, thumbnail


def noise(count: int, seed: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def drawn(count: int, seed: int, classes: int = 3) -> np.ndarray:
    return np.eye(classes)[np.random.default_rng(seed).integers(0, classes, count)]


def tinted(targets: np.ndarray, seed: int) -> np.ndarray:
    """Return images whose class is their colour."""
    images = noise(len(targets), seed) // 2
    images[np.arange(len(targets)), :, :, targets.argmax(1)] += 110
    return images


def halved(targets: np.ndarray, seed: int) -> np.ndarray:
    """Return images whose class is the bright half: same colours, other places."""
    images = noise(len(targets), seed) // 2
    left = targets[:, 0] == 1
    images[left, :, :16] += 128
    images[~left, :, 16:] += 128
    return images


def test_constant_is_the_prevalence_and_the_majority() -> None:
    train = np.eye(3)[[0] * 5 + [1] * 3 + [2] * 2]
    test = np.eye(3)[[0] * 6 + [1] * 2]
    found = score_baselines(noise(10, 0), train, noise(8, 1), test)["constant"]
    assert found["mAP"] == pytest.approx((6 / 8 + 2 / 8) / 2)
    assert found["macro_f1"] == pytest.approx((2 * 6 / (6 + 8) + 0) / 2)


def test_constant_with_several_labels_gives_every_label() -> None:
    train = np.array([[1, 1], [1, 0], [0, 0], [0, 0]])
    test = np.array([[1, 0], [1, 1], [0, 0], [1, 0]])
    found = score_baselines(noise(4, 0), train, noise(4, 1), test)["constant"]
    shares = test.mean(0)
    assert found["mAP"] == pytest.approx(shares.mean())
    assert found["macro_f1"] == pytest.approx((2 * shares / (1 + shares)).mean())


def test_colour_is_read_by_the_histogram() -> None:
    train, test = drawn(120, 0), drawn(60, 1)
    found = score_baselines(tinted(train, 2), train, tinted(test, 3), test)
    assert found["colour_histogram"]["mAP"] > 0.99
    assert found["colour_histogram"]["macro_f1"] > 0.95
    assert found["constant"]["mAP"] < 0.5


def test_place_is_read_by_the_pixels_only() -> None:
    train, test = drawn(120, 0, 2), drawn(80, 1, 2)
    found = score_baselines(halved(train, 2), train, halved(test, 3), test)
    assert found["pixel_probe"]["mAP"] > 0.99
    assert found["colour_histogram"]["mAP"] < 0.75


def test_noise_teaches_nothing() -> None:
    train, test = drawn(150, 0), drawn(150, 1)
    found = score_baselines(noise(150, 2), train, noise(150, 3), test)
    for scores in found.values():
        assert scores["mAP"] < 0.5


def test_several_labels_take_thresholds_from_the_training_records() -> None:
    train, test = drawn(200, 0), drawn(100, 1)
    train[::10], test[::10] = 0, 0  # some records carry nothing, so one label each no longer holds
    found = score_baselines(tinted(train, 2), train, tinted(test, 3), test)
    assert found["colour_histogram"]["macro_f1"] > 0.9


def test_histogram_and_thumbnail_by_hand() -> None:
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[0, :16] = (255, 64, 0)
    shares = colour_histogram(image)[0]
    assert shares[0] == shares[(3 * 4 + 1) * 4 + 0] == 0.5
    assert shares.sum() == 1
    small = thumbnail(image)[0].reshape(16, 16, 3)
    assert small[:8, :, 0].tolist() == [[1.0] * 16] * 8
    assert small[8:].max() == 0


def test_pil_images_of_any_size_give_what_arrays_give() -> None:
    images = noise(3, 0)
    pictures = [Image.fromarray(pixels) for pixels in images]
    assert np.array_equal(colour_histogram(pictures), colour_histogram(images))
    assert np.array_equal(thumbnail(pictures), thumbnail(images))
    odd = thumbnail([picture.resize((50, 37)) for picture in pictures])
    assert odd.shape == (3, 768)
    uneven = Image.new("RGB", (33, 47), (10, 20, 30))
    assert thumbnail([uneven]).reshape(-1, 3) == pytest.approx(np.tile([10, 20, 30], (256, 1)) / 255)


def test_leave_one_out_is_what_it_says() -> None:
    """Against refitting without each record, at the penalty that the closed form chose."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(20, 4)), (rng.random((20, 2)) < 0.4).astype(np.float64)
    left_out, scores = _ridge(x, labels, x[:3])
    z = (x - x.mean(0)) / x.std(0)
    matches = []
    for power in range(-3, 5):
        penalty = 20 * 10.0**power
        refit = np.array(
            [
                Ridge(penalty).fit(np.delete(z, i, 0), np.delete(labels, i, 0)).predict(z[i : i + 1])[0]
                for i in range(20)
            ]
        )
        error = float(((labels - refit) ** 2).mean())
        matches.append((error, penalty, refit))
    _, penalty, refit = min(matches, key=lambda match: match[0])
    assert left_out == pytest.approx(refit, abs=1e-9)
    assert scores == pytest.approx(Ridge(penalty).fit(z, labels).predict(z[:3]), abs=1e-9)


def test_what_does_not_fit_is_refused() -> None:
    one = drawn(4, 0)
    with pytest.raises(DataError, match="3 training images and 4"):
        score_baselines(noise(3, 0), one, noise(4, 0), one)
    with pytest.raises(DataError, match="test images"):
        score_baselines(noise(4, 0), one, noise(1, 0), one[:1])
    with pytest.raises(DataError, match="different labels"):
        score_baselines(noise(4, 0), one, noise(4, 0), drawn(4, 0, 2))
    with pytest.raises(DataError, match="uint8"):
        score_baselines(noise(4, 0)[..., :2], one, noise(4, 0), one)
