"""What is installed beside the core: a part that needs more says so in a sentence, before any training."""

from importlib.util import find_spec

from pipeline.ground.errors import SettingsError

EXTRAS = {
    "deploy": ("onnx", "onnxruntime", "onnxscript", "pandas"),
    "hub": ("datasets",),
    "compare": ("plotly",),
    "ui": ("flask",),
    "system": ("psutil",),
}
"""Extras of the distribution that settings ask for, and what each brings."""


def missing(extra: str) -> str | None:
    """The sentence on an extra that is not installed; None where it is."""
    absent = [name for name in EXTRAS[extra] if find_spec(name) is None]
    return f"takes {', '.join(absent)}: pip install 'rewind-pipeline[{extra}]'" if absent else None


def needed(extra: str, by: str) -> None:
    """Sees that an extra is there.

    Raises:
        SettingsError: if it is not; ``by`` is the setting that asks for it.
    """
    if told := missing(extra):
        raise SettingsError([f"{by}: {told}"])
