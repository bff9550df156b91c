"""Every image that lies under a source is used, or counted and named; labels of any kind."""

import gc
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from pipeline.data import load
from pipeline.ground.errors import SettingsError
from tests.data.test_disk import data_of


def tree(folder, *paths):
    """Images (and, by other endings, other files) at these paths, each another."""
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith((".jpg", ".png", "noending", ".2021", ".1", "=100")):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / path, "PNG")
        else:
            (folder / path).write_text("words")
    return folder


def classes(*names, count=20, part=""):
    return [f"{part}{name}/{number:02d}.jpg" for name in names for number in range(count)]


def loaded(folder, *overrides):
    few = ["data.validation_images=2", *([] if (folder / "train").is_dir() else ["data.test_images=2"])]
    return load(data_of(folder, *few, *overrides))


WHOLE = {
    "a class with the word of a part": (classes("test_tube", "train_station", "cat"), ("cat", "test_tube", "train_station"), 60),
    "two such classes alone": (classes("test_tube", "train_station"), ("test_tube", "train_station"), 40),
    "a class called train": (classes("bus", "car", "train"), ("bus", "car", "train"), 60),
    "files with the words of parts": ([f"cat/train_{n}.jpg" for n in range(9)] + [f"dog/val-{n}.jpg" for n in range(9)], ("cat", "dog"), 18),
    "files at another depth": ([*classes("cat", "dog"), "cat/2019/may/a.jpg", "dog/old/b.jpg"], ("cat", "dog"), 42),
    "stray files": ([*classes("cat", "dog"), "README.md", "labels.csv", "cat/Thumbs.db", "dog/notes.txt"], ("cat", "dog"), 40),
    "endings in capitals, and none": ([*classes("cat", "dog"), "cat/A.JPG.png", "dog/noending"], ("cat", "dog"), 42),
    "other endings": ([*classes("cat", "dog"), "cat/photo.2021", "cat/img.jpg.1", "dog/a.jpg?w=100"], ("cat", "dog"), 43),
    "training and validation in one": (classes("cat", "dog", part="trainval/") + classes("cat", "dog", part="test/"), ("cat", "dog"), 80),
    "two spellings of one letter": ([*classes("caf\u00e9", "dog", part="train/"), *classes("cafe\u0301", "dog", part="test/")], ("caf\u00e9", "dog"), 80),
    "brackets in names": (classes("cat [old]", "dog*"), ("cat [old]", "dog*"), 40),
    "words that are no Latin letters": (classes("кошка", "猫"), ("кошка", "猫"), 40),
    "parts with their classes": (classes("cat", "dog", part="train/") + classes("cat", "dog", part="test/"), ("cat", "dog"), 80),
    "parts by other words": (classes("cat", "dog", part="Training/") + classes("cat", "dog", part="val/"), ("cat", "dog"), 80),
    "parts with more in their names": (classes("cat", "dog", part="images_train/") + classes("cat", "dog", part="images_test/"), ("cat", "dog"), 80),
    "a class for testing alone": (classes("cat", "dog", part="train/") + classes("cat", "owl", part="test/"), ("cat", "dog", "owl"), 80),
    "one folder in which the parts lie": (classes("cat", "dog", part="archive/train/") + classes("cat", "dog", part="archive/test/"), ("cat", "dog"), 80),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_every_image_is_used_and_no_class_is_lost(name, tmp_path):
    paths, names, count = WHOLE[name]
    own_tests = "data.test_images=null" if count == 80 else "data.test_images=2"
    dataset = loaded(tree(tmp_path / "photos", *paths), own_tests)
    assert dataset.classes == names
    assert len(dataset.files) == count
    indices = [index.numpy() for index in dataset.splits.values()]
    assert len(np.unique(np.concatenate(indices))) == count
    for entry, label in zip(dataset.files["image"], dataset.labels.tolist(), strict=True):
        assert names[label] in unicodedata.normalize("NFC", entry["path"]).split("/")


CATS = classes("cat", "dog")
PARTED = classes("cat", "dog", part="train/") + classes("cat", "dog", part="test/", count=5)
LEFT_OUT = {
    "beside the classes": ([*CATS, "a.jpg", "b.png"], "2 images lie in no folder of a class and are left out: a.jpg, b.png"),
    "beside the parts": ([*PARTED, *classes("x", part="unlabelled/", count=7)], r"7 images lie beside the parts (test, train) and are left out: unlabelled/x/00.jpg, "),
    "in no class of a part": ([*PARTED, "train/loose.jpg"], "1 images lie in no folder of a class and are left out: train/loose.jpg"),
    "hidden": ([*CATS, ".cache/a.jpg", "cat/._00.jpg"], "2 images are hidden and are left out: .cache/a.jpg, cat/._00.jpg"),
    "no UTF-8": ([*CATS, "cat/caf\udce9.jpg"], "1 images have names or folders that are no UTF-8 and are left out: cat/caf\\udce9.jpg"),
    "of a kind without a reader": ([*CATS, "cat/a.heic", "dog/b.NEF", "dog/c.svg"], "3 images are of a kind that Pillow does not read and are left out: cat/a.heic, dog/b.NEF, dog/c.svg"),
    "no image of a class": ([*PARTED, "test/owl/1.jpg"], "no image of owl is for training"),
    "deeper": ([*CATS, "cat/old/a.jpg"], "the class of an image is its first folder, others lie in it: cat/old"),
    "another folder": ([*CATS, "annotations/cat.json"], "folders without images are no classes: annotations"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_is_counted_and_named(name, tmp_path):
    paths, sentence = LEFT_OUT[name]
    notes = loaded(tree(tmp_path / "photos", *paths)).notes()
    assert [note for note in notes if sentence in note], notes


def test_an_empty_folder_is_a_class_without_images(tmp_path):
    folder = tree(tmp_path / "photos", *CATS)
    (folder / "owl").mkdir()
    dataset = loaded(folder)
    assert dataset.classes == ("cat", "dog", "owl")
    assert "warning: no image of owl is for training" in dataset.notes()


def test_folders_and_files_are_reached_by_links(tmp_path):
    tree(tmp_path / "pool", *classes("a", "b"))
    folder = tmp_path / "photos"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "cat").symlink_to(tmp_path / "pool" / "a")
    (folder / "train" / "dog").mkdir()
    for file in sorted((tmp_path / "pool" / "b").iterdir()):
        (folder / "train" / "dog" / file.name).symlink_to(file)
    (folder / "train" / "dog" / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    (folder / "train" / "dog" / "itself.jpg").symlink_to("itself.jpg")
    (folder / "train" / "itself").symlink_to("itself")
    (folder / "train" / "dog" / "around").symlink_to(folder)
    dataset = loaded(folder, "data.test_images=2")
    assert dataset.classes == ("cat", "dog")
    assert len(dataset.files) == 40
    assert any(
        "2 images are links that lead nowhere" in note and "train/dog/gone.jpg" in note for note in dataset.notes()
    )


def _linked(folder):
    tree(folder, *PARTED)
    (folder / "test" / "dog" / "same.jpg").symlink_to(folder / "train" / "dog" / "00.jpg")


REFUSED = {
    "one class": (classes("cat"), r"which has one class \(cat\); takes two or more"),
    "one class in parts": (classes("cat", part="train/") + classes("cat", part="test/"), r"which has one class \(cat\)"),
    "parts without classes": (["train/1.jpg", "train/2.jpg", "test/1.jpg"], "test, train hold images and no folders of classes"),
    "parts within classes": (classes("train", "test", part="cat/") + classes("train", "test", part="dog/"), r"folders of classes hold those of parts \(test, train\)"),
    "numbered parts": (classes("cat", "dog", part="train_1/") + classes("cat", "dog", part="train_2/") + classes("cat", "dog", part="test/"), "test, train_1, train_2 hold the same folders of classes"),
    "nothing for training": (["a.jpg", "b.jpg"], "no images for training .*2 images lie in no folder of a class"),
    "a file that trains and tests": (_linked, r"test/dog/same.jpg and train/dog/00.jpg are one file|train/dog/00.jpg and test/dog/same.jpg"),
    "nothing": (["README.md"], r"put images in folders by part and class"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_apart_is_refused_for_what_it_is(name, tmp_path):
    made, sentence = REFUSED[name]
    made(tmp_path / "photos") if callable(made) else tree(tmp_path / "photos", *made)
    with pytest.raises(SettingsError, match=sentence):
        loaded(tmp_path / "photos")


def table(folder, name="train-00000-of-00001", images=30, **columns):
    """A parquet file of images and columns, without the hub's description of what they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = [_png(number) for number in range(images)]
    rows = {"image": [{"bytes": each, "path": None} for each in content]} | columns
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows), folder / f"{name}.parquet")
    return folder


def _png(number):
    import io

    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


WORDS, NUMBERS = ["dog", "cat", "owl"] * 10, [7, 3, 5] * 10
COLUMNS = {
    "words": ({"label": WORDS}, ("cat", "dog", "owl"), [1, 0, 2]),
    "whole numbers": ({"label": [0, 1, 2] * 10}, ("0", "1", "2"), [0, 1, 2]),
    "numbers with gaps": ({"label": NUMBERS}, ("3", "5", "7"), [2, 0, 1]),
    "yes and no": ({"label": [True, False, True] * 10}, ("False", "True"), [1, 0, 1]),
    "another name": ({"species": WORDS}, ("cat", "dog", "owl"), [1, 0, 2]),
    "a name among others": ({"photographer": ["x"] * 30, "class": WORDS}, ("cat", "dog", "owl"), [1, 0, 2]),
}


def classed(folder, **columns):
    """A parquet file in which lists of numbers are columns of classes (a, b, c), as the hub's library writes them."""
    from datasets import ClassLabel, Dataset, Features, Image, Value

    numbers = {name for name, each in columns.items() if isinstance(each[0], int)}
    kinds = {
        name: ClassLabel(names=["a", "b", "c"])
        if name in numbers
        else Value("string")
        if isinstance(each[0], str)
        else Image()
        for name, each in columns.items()
    }
    folder.mkdir(parents=True)
    Dataset.from_dict(columns, Features(kinds)).to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


CLASSED = [0, 1, 2] * 10
PNGS = [{"bytes": _png(number), "path": None} for number in range(30)]
DARK = [{"bytes": _png(255), "path": None}] * 30
CHOICES = {
    "classes by name": ({"image": PNGS, "age": [*CLASSED[1:], 0], "label": CLASSED}, "label", "not of age"),
    "words called label": ({"image": PNGS, "source": CLASSED, "label": WORDS}, "label", "not of source"),
    "the image among images": ({"mask": DARK, "image": PNGS, "label": CLASSED}, "label", "not of mask"),
    "several classes": ({"image": PNGS, "age": CLASSED, "race": CLASSED}, None, "whose labels may be age, race; takes"),
    "several images": ({"left": PNGS, "right": PNGS, "label": CLASSED}, None, "whose images may be left, right; takes"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_among_several_columns_the_name_decides_and_is_told(name, tmp_path):
    columns, column, sentence = CHOICES[name]
    data = data_of(classed(tmp_path / "hub", **columns), "data.validation_images=2", "data.test_images=2")
    if column is None:
        with pytest.raises(SettingsError, match=sentence):
            load(data)
        return
    dataset = load(data)
    assert any(sentence in note for note in dataset.notes())
    told = columns[column]
    assert [dataset.classes[each] for each in dataset.labels[:3].tolist()] == [
        each if isinstance(each, str) else "abc"[each] for each in told[:3]
    ]
    assert [each["bytes"] for each in dataset.files["image"][:]] == [each["bytes"] for each in PNGS]


@pytest.mark.parametrize("name", COLUMNS)
def test_labels_of_any_kind(name, tmp_path):
    columns, names, first = COLUMNS[name]
    dataset = load(data_of(table(tmp_path / "hub", **columns), "data.validation_images=2", "data.test_images=2"))
    assert dataset.classes == names
    assert dataset.labels[:3].tolist() == first
    assert len(dataset.files) == 30


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"score": [0.5] * 30}, "which has no labels"),
        ({"label": [0.5] * 30}, "which has no labels"),
        (
            {"first": WORDS, "second": WORDS},
            "whose labels may be first, second; takes one column of them, or one called",
        ),
        ({"label": ["cat"] * 30}, r"which has one class \(cat\)"),
    ],
)
def test_columns_that_hold_no_labels(columns, sentence, tmp_path):
    with pytest.raises(SettingsError, match=sentence):
        load(data_of(table(tmp_path / "hub", **columns), "data.validation_images=2", "data.test_images=2"))


def test_images_without_a_label_and_files_of_no_part_are_counted(tmp_path):
    table(tmp_path / "hub", label=[None, "cat", "dog", "", "cat", "dog"] * 5)
    table(tmp_path / "hub", "extra", label=WORDS)
    dataset = load(data_of(tmp_path / "hub", "data.validation_images=2", "data.test_images=2"))
    assert len(dataset.files) == 20
    assert "warning: 10 images have no label (label) and are left out" in dataset.notes()
    assert "warning: 1 files belong to no part and are left out: extra.parquet" in dataset.notes()


def test_rows_without_an_image_are_counted(tmp_path):
    images = [*PNGS[:28], None, None]
    dataset = load(
        data_of(
            classed(tmp_path / "hub", image=images, label=CLASSED), "data.validation_images=2", "data.test_images=2"
        )
    )
    assert len(dataset.files) == 28
    assert "warning: 2 rows have no image (image) and are left out" in dataset.notes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the hub's library leaves files open
def test_a_list_of_labels_beside_the_images(tmp_path):
    folder = tree(tmp_path / "photos", *[f"{number:02d}.jpg" for number in range(22)])
    rows = "".join(f"{number:02d}.jpg,{'cat' if number % 2 else 'dog'}\n" for number in range(20))
    (folder / "metadata.csv").write_text("file_name,label\n" + rows)
    dataset = load(data_of(folder, "data.validation_images=2", "data.test_images=2"))
    gc.collect()
    assert dataset.classes == ("cat", "dog")
    assert len(dataset.files) == 20
    assert any("2 files belong to no part and are left out: 20.jpg, 21.jpg" in note for note in dataset.notes())


def test_a_folder_that_may_not_be_entered_is_told(tmp_path):
    if os.getuid() == 0:
        pytest.skip("root may enter all folders")
    folder = tree(tmp_path / "photos", *CATS)
    (folder / "owl").mkdir(mode=0)
    with pytest.raises(SettingsError, match="Permission denied"):
        loaded(folder)
