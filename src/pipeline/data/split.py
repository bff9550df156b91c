"""Which example trains, validates and tests: a rule of the settings alone, the same for every seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from pipeline.ground.errors import SettingsError
from pipeline.ground.randomness import generator
from pipeline.settings.groups import ImagesInMemory, ImagesOnDisk


@dataclass(frozen=True)
class Pool:
    """All images of a data set, part after part: ``sizes`` holds the number of images of its own parts."""

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    sizes: Mapping[str, int]


def split(sizes: Mapping[str, int], data: ImagesInMemory | ImagesOnDisk) -> dict[str, Tensor]:
    """Indices of the train, validation and test examples, counted through all parts; parts are never mixed.

    ``sizes`` are those of the data set's own parts: train, and perhaps validation and test. A data set that has train
    alone is shuffled once (by a fixed draw) and its first ``test_images`` are held out; one that has validation and no
    test is tested on that. Validation images are a fixed draw from the part that ``validation_from`` names.

    Raises:
        SettingsError: if a part is missing, or too small for what is asked of it.
    """
    every = torch.randperm(sum(sizes.values()), generator=generator("split", sum(sizes.values())))
    ends = dict(zip(sizes, accumulate(sizes.values()), strict=True))
    parts = {name: every[(every >= end - sizes[name]) & (every < end)] for name, end in ends.items()}
    giver = data.validation_from
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
        giver = "test" if giver == "validation" else giver
    elif "test" not in parts:
        if data.test_images is None:
            raise SettingsError(
                [f"data.test_images: got null, takes a number: {data.dataset} has no test set of its own"]
            )
        parts = {"train": every[data.test_images :], "test": every[: data.test_images]}
    if giver not in parts:
        raise SettingsError([f"data.validation_from: got {giver}, takes a part that there is: {' or '.join(sizes)}"])
    available = " and ".join(f"{size} {name}" for name, size in sizes.items())
    validation, parts[giver] = parts[giver].tensor_split([data.validation_images])
    wanted = data.test_images or len(parts["test"])
    if len(validation) < data.validation_images or not len(parts["train"]) or not 0 < wanted <= len(parts["test"]):
        raise SettingsError(
            [
                f"data: got validation_images={data.validation_images} from {data.validation_from} and "
                f"test_images={data.test_images}, takes no more than {data.dataset} has: "
                f"{available} images"
            ]
        )
    return {"train": parts["train"], "validation": validation, "test": parts["test"][:wanted]}
