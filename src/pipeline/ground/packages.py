"""Lightning exists twice, as ``pytorch_lightning`` and as ``lightning.pytorch``: which one a user's class is of."""

import logging
import sys
import warnings
from typing import Any

NAMES = ("pytorch_lightning", "lightning.pytorch")


def package_of(thing: object) -> Any:
    """The package whose LightningModule or LightningDataModule something is; the first for anything else.

    They hold the same code, and a Trainer takes modules of its own package alone.
    """
    for name in NAMES:
        package = sys.modules.get(name)
        kinds = [getattr(package, kind, None) for kind in ("LightningModule", "LightningDataModule")]
        if any(isinstance(kind, type) and isinstance(thing, kind) for kind in kinds):
            return package
    import pytorch_lightning

    return pytorch_lightning


def is_lightning_module(thing: object) -> bool:
    """Whether it is a LightningModule of either package."""
    return isinstance(thing, package_of(thing).LightningModule)


def is_data_module(thing: object) -> bool:
    """Whether it is a LightningDataModule of either package."""
    return isinstance(thing, package_of(thing).LightningDataModule)


def quiet() -> None:
    """Keeps what Lightning says of devices and products to itself; it sets its loggers anew when it is imported."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")  # of copies, by torch itself
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning|lightning_fabric|torch.utils._pytree")
