"""The rounds on disk: the truth that a run continues from.

    <folder>/round-03/weights.safetensors      the network's plain state dict
                      optimizer.safetensors    what the optimizer remembers
                      masks.safetensors        the round's masks
                      tape.safetensors         of round 0: the rates of all its steps
                      round.json               its record: written last, so its being there means "complete"
                      partial.safetensors      the last finished epoch of a round under way
             round-00/epoch-0012.safetensors   round 0 after 12 epochs, kept as a rewind point
                      again.safetensors        the last finished epoch of round 0 trained again, to a point not kept

Every file appears whole, by a rename, after its bytes are on the disk; a record is never overwritten. Every tensor file
carries a digest of its tensors.
"""

import copy
import dataclasses
import getpass
import json
import os
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from pipeline.ground import documents
from pipeline.ground.errors import PipelineError, one_line
from pipeline.ground.files import write_file
from pipeline.ground.tensors import read_tensors, remedy, write_tensors
from pipeline.networks.costs import LayerCost, density
from pipeline.pruning.masks import Masks
from pipeline.settings.identity import fingerprint, flat
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.state import Epoch, State, UnderWay
from pipeline.training.tape import Tape

FORMAT = 1
PARTIAL = "partial.safetensors"
AGAIN = "again.safetensors"


def partial_name(copy: int) -> str:
    """The file of a round's training under way, of several from one mask of number ``copy``."""
    return f"partial-{copy}.safetensors" if copy else PARTIAL


P = ParamSpec("P")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Round:
    """A complete round: what it cost, how it trained, what it reached."""

    index: int
    """0 is the dense network."""
    layers: tuple[LayerCost, ...]
    """Of each layer: ``name``, ``weights``, ``kept``, ``sparsity``, ``macs_kept``."""
    history: tuple[Epoch, ...]
    """The epochs of its training, and behind them what was validated without one."""
    epochs: int
    """How many of these were trained."""
    examples: int | None
    """How many it was shown, each time counted; None where that is not known."""
    test: Mapping[str, float]
    """What it reached on the test data."""
    seconds: float
    """Of its training."""
    finished_ms: int
    """When it ended, in milliseconds since 1970."""

    @property
    def density(self) -> float:
        """The share of prunable weights that is left."""
        return density(self.layers)

    @property
    def macs_dense(self) -> int:
        """Multiply-adds of one inference of the dense network."""
        return sum(layer.macs for layer in self.layers)

    @property
    def macs_kept(self) -> int:
        """Of these the ones whose weight is not zero."""
        return sum(layer.macs_kept for layer in self.layers)

    @property
    def figures(self) -> dict[str, float]:
        """The round in numbers: what the table, the tracking and the curves are made of."""
        return {
            "density": self.density,
            "sparsity": 1 - self.density,
            "compression_ratio": 1 / self.density if self.density else float("inf"),
            **self.history[-1].metrics,
            **self.test,
            "macs_dense": self.macs_dense,
            "macs_kept": self.macs_kept,
            "epochs": self.epochs,
            **({} if self.examples is None else {"examples": self.examples}),
            "seconds": self.seconds,
        }


def led(method: Callable[Concatenate["Ledger", P], Found]) -> Callable[Concatenate["Ledger", P], Found]:
    """A method that the leader alone does; what it finds, or fails with, all processes get."""

    @wraps(method)
    def by_leader(ledger: "Ledger", /, *given: P.args, **named: P.kwargs) -> Found:
        return ledger.ranks.from_leader(lambda: method(ledger, *given, **named))

    return by_leader


class Ledger:
    """The rounds of one identity (settings, seed and data) in one folder."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity, self.ranks = folder, identity, ALONE
        self._lock = FileLock(folder / "lock")

    def shared(self, ranks: Ranks) -> "Ledger":
        """The same ledger for several processes that train together."""
        other = copy.copy(self)
        other.ranks = ranks
        return other

    @contextmanager
    def locked(self, wait: Callable[[str], None] | None = None) -> Iterator[None]:
        """Holds the folder for this process (again and again, if nested). The lock ends with the process.

        Raises:
            PipelineError: naming the holder, if another process has it and ``wait`` is not given; with ``wait``, that
                is called with the holder's name, once, and the lock is waited for.
        """
        with ExitStack() as held:
            self.ranks.from_leader(lambda: held.enter_context(self._held(wait)))
            yield

    @contextmanager
    def _held(self, wait: Callable[[str], None] | None) -> Iterator[None]:
        if self._lock.is_locked:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        owner = self.folder / "owner"
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            holder = owner.read_text() if owner.exists() else "another process"
            if wait is None:
                raise PipelineError(f"{self.folder} is in use by {holder}: wait for it to end, or stop it") from None
            wait(holder)
            self._lock.acquire()
        try:
            owner.write_text(f"process {os.getpid()} of {getpass.getuser()} on {socket.gethostname()}")
            yield
        finally:
            owner.unlink(missing_ok=True)
            self._lock.release()

    def path(self, index: int) -> Path:
        """Folder of a round."""
        return self.folder / f"round-{index:02d}"

    @led
    def read(self, index: int) -> Round | None:
        """A round's record, or None if it is not complete.

        Raises:
            PipelineError: if the record cannot be read, or was written with other settings or data.
        """
        record = self._record(index)
        if record is None:
            return None
        try:
            return Round(
                index=index,
                layers=tuple(LayerCost(**layer) for layer in record["layers"]),
                history=_history(record),
                epochs=record.get("epochs", len(record["history"])),
                examples=record.get("examples"),
                test=documents.numbers(record["test"]),
                seconds=record["seconds"],
                finished_ms=record["finished_ms"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(self.path(index) / "round.json", error) from error

    @led
    def digest(self, index: int) -> str:
        """SHA-256 of the weights of a complete round."""
        record = self._record(index)
        assert record is not None
        return str(record["digests"]["weights"])

    @led
    def parent(self, index: int) -> str | None:
        """SHA-256 of the weights that a complete round was pruned from; None of round 0, and where none is recorded."""
        record = self._record(index)
        assert record is not None
        return record.get("parent")

    @led
    def state(self, index: int) -> State:
        """Weights and optimizer state at the end of a complete round."""
        return State(self._load(index, "weights"), self._load(index, "optimizer"))

    @led
    def masks(self, index: int) -> dict[str, Tensor]:
        """Masks of a complete round."""
        return self._load(index, "masks")

    @led
    def tape(self) -> Tape | None:
        """The rates of round 0, if it recorded them."""
        record = self._record(0)
        return Tape.of(self._load(0, "tape")) if record is not None and "tape" in record["digests"] else None

    @led
    def write(self, round_: Round, reached: UnderWay, masks: Masks, facts: Mapping[str, Any]) -> None:
        """Completes a round: tensors first, then the record, which tells the ``facts`` too: ``score`` as of
        ``Score.text``, ``parent``, the digest of the weights that it was pruned from, and the ``environment``."""
        folder = self.path(round_.index)
        parts = {"weights": reached.state.network, "optimizer": reached.state.optimizer, "masks": masks}
        parts |= {} if reached.tape is None else {"tape": reached.tape.tensors()}
        digests = {name: write_tensors(folder / f"{name}.safetensors", tensors) for name, tensors in parts.items()}
        record = {
            "format": FORMAT,
            "identity": self.identity,
            **dataclasses.asdict(round_),
            **facts,
            "digests": digests,
        }
        write_file(folder / "round.json", documents.written(record, indent=1).encode())

    @led
    def clear(self, index: int, name: str = "partial*.safetensors") -> None:
        """Removes what is left of the trainings of a complete round."""
        for path in self.path(index).glob(name):
            path.unlink(missing_ok=True)

    @led
    def partial(self, index: int, name: str = PARTIAL) -> tuple[UnderWay, tuple[Epoch, ...]] | None:
        """What a round under way goes on from, and its history, after its last finished epoch."""
        found = self._load_state(self.path(index) / name)
        if found is None:
            return None
        under_way, metadata = found
        return under_way, _history(metadata)

    @led
    def write_partial(self, index: int, reached: UnderWay, history: tuple[Epoch, ...], name: str = PARTIAL) -> None:
        """Keeps the last finished epoch of a round under way."""
        told = [dataclasses.asdict(epoch) for epoch in history]
        self._write_state(self.path(index) / name, reached, {"history": told})

    @led
    def rewind_points(self) -> list[int]:
        """Epochs of round 0 whose states are kept."""
        return sorted(int(path.stem.removeprefix("epoch-")) for path in self.path(0).glob("epoch-*.safetensors"))

    @led
    def rewind_point(self, epoch: int) -> State | None:
        """Round 0 after so many epochs, if it was kept."""
        found = self._load_state(self._rewind_path(epoch))
        return found[0].state if found else None

    @led
    def keep_rewind_point(self, epoch: int, state: State) -> None:
        """Keeps round 0 after so many epochs."""
        if not self._rewind_path(epoch).exists():
            self._write_state(self._rewind_path(epoch), UnderWay(state), {})

    def _rewind_path(self, epoch: int) -> Path:
        return self.path(0) / f"epoch-{epoch:04d}.safetensors"

    def _record(self, index: int) -> dict[str, Any] | None:
        path = self.path(index) / "round.json"
        record = _read_record(path)
        if record is not None:
            self._check_identity(path, record["identity"])
        return record

    def _check_identity(self, path: Path, written: Mapping[str, Any]) -> None:
        was, now = (flat(documents.named(each)) for each in (written, self.identity))
        differing = [
            f"{key} was {was.get(key)}, is {now.get(key)}" for key in {**was, **now} if was.get(key) != now.get(key)
        ]
        if differing:
            raise PipelineError(
                f"{path} was written with other settings or data: {'; '.join(differing)}; runs=ANOTHER_FOLDER keeps "
                "both, or delete that round's folder"
            )

    def _load(self, index: int, name: str) -> dict[str, Tensor]:
        record = self._record(index)
        if record is None:
            raise PipelineError(f"round {index} is not complete: {self.path(index)} has no record")
        path = self.path(index) / f"{name}.safetensors"
        tensors, metadata = read_tensors(path)
        if metadata["digest"] != record["digests"][name]:
            raise PipelineError(f"{path} is not the file that the round's record names; {remedy(path.parent)}")
        return tensors

    def _write_state(self, path: Path, reached: UnderWay, metadata: Mapping[str, Any]) -> None:
        tensors = {f"network:{name}": tensor for name, tensor in reached.state.network.items()}
        tensors |= {f"optimizer:{name}": tensor for name, tensor in reached.state.optimizer.items()}
        if reached.tape is not None:
            tensors |= {f"tape:{name}": tensor for name, tensor in reached.tape.tensors().items()}
        tensors |= {f"mask:{name}": mask for name, mask in reached.masks.items()}
        tensors |= {f"average:{name}": tensor for name, tensor in reached.average.items()}
        if reached.rest:
            tensors["rest:"] = torch.frombuffer(bytearray(reached.rest), dtype=torch.uint8)
        write_tensors(path, tensors, {"identity": self.identity, **metadata})

    def _load_state(self, path: Path) -> tuple[UnderWay, Mapping[str, Any]] | None:
        if not path.exists():
            return None
        tensors, metadata = read_tensors(path)
        self._check_identity(path, metadata["identity"])
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, tensor in tensors.items():
            part, name = key.split(":", 1)
            parts[part][name] = tensor
        tape = Tape.of(parts["tape"]) if parts["tape"] else None
        rest = parts["rest"][""].numpy().tobytes() if parts["rest"] else b""
        state = State(parts["network"], parts["optimizer"])
        return UnderWay(state, tape, rest, parts["mask"], parts["average"]), metadata


def _history(told: Mapping[str, Any]) -> tuple[Epoch, ...]:
    return tuple(Epoch(**epoch | {"metrics": documents.numbers(epoch["metrics"])}) for epoch in told["history"])


def round_0_is_gone(folder: Path, dense: Path) -> str:
    """A sentence on the rounds in ``folder``, whose round 0 is not in ``dense`` any more."""
    return (
        f"the rounds in {folder} were pruned from a round 0 that is gone from {dense}: put it back, or delete these "
        "rounds too"
    )


def dense_home(runs: Path, identity: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Folder and identity of the dense network that a run of this identity starts from."""
    dense = {key: value for key, value in identity.items() if key not in ("pruning", "retraining")}
    return runs / "dense" / fingerprint(dense)[:8] / f"seed-{identity['seed']}", dense


def run_home(runs: Path, name: str, identity: Mapping[str, Any]) -> Path:
    """Folder of a pruned run, which follows from its identity."""
    return runs / f"{name}-{fingerprint(identity)[:8]}" / f"seed-{identity['seed']}"


def search_home(runs: Path, name: str, identity: Mapping[str, Any]) -> Path:
    """Folder of a search for a policy, which follows from its identity."""
    return runs / f"{name}-amc-{fingerprint(identity)[:8]}" / f"seed-{identity['seed']}"


def recorded_identity(path: Path) -> dict[str, Any] | None:
    """The identity that a record was written with, or None if there is no record."""
    record = _read_record(path)
    return record and record["identity"]


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights of the complete round in a folder, by its record.

    Raises:
        PipelineError: if it has none.
    """
    record = _read_record(folder / "round.json")
    if record is None:
        raise PipelineError(f"{folder} has no record: the round is not complete")
    return str(record["digests"]["weights"])


def recorded_score(path: Path) -> str | None:
    """What a record says of its score, as ``Score.text`` wrote it; None of one of before there were others."""
    record = _read_record(path)
    return None if record is None else record.get("score")


def _read_record(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        if record["format"] != FORMAT:
            raise PipelineError(f"{path} has format {record['format']}, this version reads {FORMAT}")
        record["identity"]["seed"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    return record


def _damaged(path: Path, error: Exception) -> PipelineError:
    return PipelineError(f"{path} is damaged ({one_line(error)}); {remedy(path.parent)}")
