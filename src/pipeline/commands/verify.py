"""``task=verify``: the proof that a bundle runs on ARM."""

from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.data import load
from pipeline.deploy import bundle, verify
from pipeline.ground.documents import written
from pipeline.ground.environment import artifacts_folder
from pipeline.ground.errors import PipelineError, stoppable
from pipeline.settings.groups import Settings


def main(settings: Settings, runs: Path) -> None:
    """Runs the bundle on ARM; writes and prints what it did there.

    Raises:
        PipelineError: if there is no bundle or no way to run it, or it does not do there what it does here;
            ``verified.json`` then says ``not verified`` and why.
    """
    artifacts = artifacts_folder(settings.artifacts)
    folder, out = artifacts / "bundle", artifacts / "verified.json"
    if not (folder / "SHA256SUMS").exists():
        raise PipelineError(f"{folder} has no bundle: make it first, by the same command with task=bundle")
    out.unlink(missing_ok=True)
    facts: dict[str, Any] = {"bundle": bundle.digest(folder)}
    try:
        with Console(stderr=True).status("loading") as status, stoppable():
            facts |= {"status": "verified"} | verify.verified(
                folder, load(settings.data), settings.deploy, status.update
            )
    except PipelineError as error:
        facts |= {"status": "not verified", "reason": str(error)}
        raise
    finally:
        if "status" in facts:
            out.write_text(written(facts, indent=1) + "\n")
    print(written(facts, indent=1))
