"""Data against plain per-image code, and the rules of the splits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import load
from pipeline.data.batches import cropped, mirrored, standardised, standardised_alike
from pipeline.data.dataset import Shard
from pipeline.ground.errors import SettingsError
from pipeline.ground.randomness import derived_seed, generator
from tests.conftest import settings as composed


def some_images(count=6, channels=3, size=8, seed=0):
    return torch.randint(0, 256, (count, channels, size, size), generator=generator(seed), dtype=torch.uint8)


@given(seed=st.integers(0, 1000), padding=st.integers(0, 4), fill=st.sampled_from(["zeros", "reflect"]))
@settings(max_examples=50, deadline=None)
def test_crops_are_those_of_per_image_code(seed, padding, fill):
    images = some_images(seed=seed)
    offsets = torch.randint(2 * padding + 1, (len(images), 2), generator=generator(seed, "crop"))
    crops = cropped(images, padding, offsets, fill)
    mode = {"zeros": "constant", "reflect": "reflect"}[fill]
    for image, crop, (down, right) in zip(images.numpy(), crops.numpy(), offsets.tolist(), strict=True):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode=mode)
        assert (crop == padded[:, down : down + 8, right : right + 8]).all()


def test_flips_mirror_the_marked_and_leave_the_rest():
    images, which = some_images(), torch.tensor([True, False, True, True, False, False])
    for image, flipped, marked in zip(images.numpy(), mirrored(images, which).numpy(), which, strict=True):
        assert (flipped == (image[:, :, ::-1] if marked else image)).all()


def test_an_epoch_mirrors_about_half_of_its_images_and_crops_them_everywhere():
    dataset = load(composed("data.flip=true", "data.crop_padding=1").data)
    plain = {bytes(pixels.numpy()) for pixels in standardised(dataset.train.pixels)}
    batches = list(dataset.training(64, 19, (0, 0, 0), Shard()))
    unchanged = sum(bytes(image.contiguous().numpy()) in plain for batch in batches for image in batch.inputs)
    assert 1197 / 18 * 0.6 < unchanged < 1197 / 18 * 1.6  # one of nine crops, half of them mirrored


def test_alternating_flips_show_each_image_as_it_is_and_mirrored_in_turn():
    data = composed("data.flip=alternate").data
    dataset = load(data)
    plain = {bytes(image.contiguous().numpy()): n for n, image in enumerate(standardised(dataset.train.pixels))}
    epochs = []
    for epoch in range(4):
        batches = dataset.training(64, 19, (0, 1, epoch), Shard())
        seen = [bytes(image.contiguous().numpy()) for batch in batches for image in batch.inputs]
        epochs.append({plain[each] for each in seen if each in plain})
        assert len(seen) == 1197
    assert epochs[0] == epochs[2] != epochs[1] == epochs[3]
    assert 400 < len(epochs[0]) < 800
    assert epochs[0] | epochs[1] == set(plain.values())


def test_a_reflection_wider_than_the_images_is_a_sentence():
    with pytest.raises(
        SettingsError, match=r"data.crop_padding: got 8 with data.crop_fill=reflect, takes at most 7 for"
    ):
        load(composed("data.crop_padding=8", "data.crop_fill=reflect").data)


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_standardisation_by_channel_takes_out_the_given_mean_and_deviation(seed):
    images = some_images(seed=seed)
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (images.numpy() / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(deviation, (3, 1, 1))
    assert standardised(images, mean, deviation).numpy() == pytest.approx(expected, abs=1e-5)


def test_standardisation_is_tensorflows_formula():
    images = some_images(count=4)
    images[3] = 77
    for image, got in zip(images.numpy().astype(np.float64), standardised(images).numpy(), strict=True):
        deviation = max(image.std(), 255 / np.sqrt(image.size))
        assert got == pytest.approx((image - image.mean()) / deviation, abs=1e-5)


def test_digits_splits_are_disjoint_complete_and_those_of_the_settings():
    dataset = load(composed().data)
    parts = [dataset.train, dataset.validation, dataset.test]
    assert [len(part) for part in parts] == [1197, 200, 400]
    assert dataset.example.shape == (1, 1, 8, 8)
    from sklearn.datasets import load_digits

    pixels = np.concatenate([part.pixels.numpy().reshape(len(part), -1) for part in parts])
    original = (load_digits().data * 255 / 16).round().astype(np.uint8)
    assert sorted(map(bytes, pixels)) == sorted(map(bytes, original))
    assert load(composed().data).digest == dataset.digest
    assert load(composed("data.validation_images=100").data).digest != dataset.digest


def test_an_epoch_shows_every_image_once_in_an_order_of_its_key():
    dataset = load(composed().data)

    def labels(*key):
        return torch.cat([batch.labels for batch in dataset.training(64, 19, key, Shard())])

    assert torch.equal(labels(0, 1, 2).sort().values, dataset.train.labels.sort().values)
    assert torch.equal(labels(0, 1, 2), labels(0, 1, 2))
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert not torch.equal(labels(0, 1, 2), labels(*other))


def test_a_cut_epoch_is_the_beginning_of_the_whole_one():
    dataset = load(composed().data)
    whole = list(dataset.training(64, 19, (0, 0, 0), Shard()))
    cut = list(dataset.training(64, 5, (0, 0, 0), Shard()))
    assert len(whole) == 19
    assert len(whole[-1].labels) == 1197 - 18 * 64
    assert len(cut) == 5
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(whole, cut, strict=False))


def test_seeds_depend_on_the_whole_key():
    keys = [(0, 1, 2, "order"), (0, 12, "order"), (0, 1, 2, "crop"), (1, 1, 2, "order"), ("0", 1, 2, "order")]
    assert len({derived_seed(*key) for key in keys}) == len(keys)
    assert derived_seed(0, 1) == derived_seed(0, 1)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.validation_images=1397"], "takes no more than digits has: 1797 train images"),
        (["data.test_images=1797"], "takes no more than digits has: 1797 train images"),
        (
            ["data.test_images=null"],
            "data.test_images: got null, takes a number: digits has no test set of its own",
        ),
    ],
)
def test_a_split_that_cannot_be(overrides, sentence):
    with pytest.raises(SettingsError, match=sentence):
        load(composed(*overrides).data)


@pytest.mark.slow
def test_cifar10_from_a_folder_has_the_papers_split(cifar10):
    dataset = load(composed("+experiment=resnet20", f"data.source={cifar10}").data)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [50_000, 2_000, 8_000]
    assert dataset.example.shape == (1, 3, 32, 32)
    assert dataset.classes[:3] == ("airplane", "automobile", "bird")
    assert torch.bincount(dataset.train.labels).tolist() == [5000] * 10
    held_out = torch.cat([dataset.validation.labels, dataset.test.labels])
    assert torch.bincount(held_out).tolist() == [1000] * 10


def test_a_folder_in_the_hubs_layout_with_png_images(tmp_path):
    """A small folder made here: the same code reads the hub's parquet."""
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as Pillow

    features = Features({"img": Image(), "label": ClassLabel(names=["dark", "bright"])})
    for part, count in (("train", 12), ("test", 8)):
        rows = {
            "img": [Pillow.new("RGB", (32, 32), (200 * (i % 2), 10, 20)) for i in range(count)],
            "label": [i % 2 for i in range(count)],
        }
        Dataset.from_dict(rows, features=features).to_parquet(
            tmp_path / "plain_text" / f"{part}-00000-of-00001.parquet"
        )
    dataset = load(composed("data=cifar10", f"data.source={tmp_path}", "data.validation_images=2").data)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [12, 2, 6]
    bright = dataset.train.pixels[dataset.train.labels == 1]
    assert bright[0, :, 0, 0].tolist() == [200, 10, 20]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ({"img": [1, 2], "label": [0, 1]}, r"which has no images; put a copy"),
        (
            {"img": [{"bytes": b"no image"}] * 2, "label": [0, 1]},
            r"whose images cannot be read \(in no format of images",
        ),
    ],
)
def test_columns_that_hold_no_images_end_in_a_sentence(rows, sentence, tmp_path):
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({"img": Image(), "label": ClassLabel(names=["dark", "bright"])})
    for part in ("train", "test"):
        Dataset.from_dict(rows, features=None if isinstance(rows["img"][0], int) else features).to_parquet(
            tmp_path / "plain_text" / f"{part}-00000-of-00001.parquet"
        )
    with pytest.raises(SettingsError, match=sentence):
        load(composed("data=cifar10", f"data.source={tmp_path}", "data.validation_images=2").data)


@given(seed=st.integers(0, 1000), channels=st.sampled_from([1, 3]), level=st.integers(0, 255))
@settings(max_examples=25, deadline=None)
def test_the_deployed_standardisation_is_that_of_training_and_no_order_of_sums_changes_a_bit(seed, channels, level):
    images = some_images(channels=channels, seed=seed)
    images[0] = level
    images[1] = images[1] // 64
    alike = standardised_alike(images)
    assert torch.allclose(alike, standardised(images), atol=2e-5)
    turned = standardised_alike(images.flip((2, 3)).contiguous()).flip((2, 3))
    assert torch.equal(turned, alike)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_raw_inputs_become_those_of_evaluation(split):
    dataset = load(composed().data)
    pairs = list(zip(dataset.raw(split), dataset.evaluation(split, Shard()), strict=True))
    assert pairs
    for (inputs, labels), batch in pairs:
        assert inputs.dtype == torch.uint8
        assert torch.allclose(dataset.preprocessing.apply(inputs), batch.inputs, atol=2e-5)
        assert torch.equal(labels, batch.labels)
    assert sum(len(labels) for _, labels in dataset.raw("train")) == len(dataset.train)
