"""Which image trains, validates and tests: a rule of the settings alone, the same for every seed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import SettingsError
from pipeline.randomness import generator
from pipeline.settings import Data


@dataclass(frozen=True)
class Pool:
    """All images of a data set; the last ``official_test`` of them are its own test set (0: it has none)."""

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    official_test: int


def split(pool: Pool, data: Data) -> dict[str, Tensor]:
    """Indices of the train, validation and test images; the data set's own two parts are never mixed.

    A data set without a test set of its own has its images shuffled once (by a fixed draw) and the first
    ``test_images`` held out. Validation images are a fixed draw from the part that ``validation_from`` names.

    Raises:
        SettingsError: if a part is too small for what is asked of it.
    """
    every = torch.randperm(len(pool.labels), generator=generator("split", len(pool.labels)))
    held_out = pool.official_test or data.test_images
    if held_out is None:
        raise SettingsError([f"data.test_images: got null, takes a number: {data.dataset} has no test set of its own"])
    is_test = every >= len(every) - pool.official_test if pool.official_test else torch.arange(len(every)) < held_out
    parts = {"train": every[~is_test], "test": every[is_test]}

    giver = parts[data.validation_from]
    validation, parts[data.validation_from] = giver.tensor_split([data.validation_images])
    wanted = data.test_images or len(parts["test"])
    if len(validation) < data.validation_images or not len(parts["train"]) or not 0 < wanted <= len(parts["test"]):
        raise SettingsError(
            [
                f"data: got validation_images={data.validation_images} from {data.validation_from} and "
                f"test_images={data.test_images}, takes no more than {data.dataset} has: "
                f"{int((~is_test).sum())} train and {int(is_test.sum())} test images"
            ]
        )
    return {"train": parts["train"], "validation": validation, "test": parts["test"][:wanted]}
