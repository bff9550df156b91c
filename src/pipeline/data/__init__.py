"""Data: what a network learns from. Images in memory, images on disk, or batches of your own."""

from pipeline.data.dataset import ShippedDataset
from pipeline.data.own import A_LOSS, OwnBatches, Use
from pipeline.settings.groups import Data, ImagesInMemory, ImagesOnDisk

AnyDataset = ShippedDataset | OwnBatches


def load(data: Data, use: Use = A_LOSS) -> AnyDataset:
    """The data set that the settings name; ``use`` is what own data are for.

    Raises:
        SettingsError: if it cannot be had, or is too small for the split.
    """
    match data:
        case ImagesInMemory():
            from pipeline.data.memory import in_memory

            return in_memory(data)
        case ImagesOnDisk():
            from pipeline.data.disk import on_disk

            return on_disk(data)
        case _:
            from pipeline.data.own import own_batches, own_module

            return own_batches(own_module(data), use)
