"""The settings, typed: frozen dataclasses, one a config group, and the one strict way to build them.

``build`` turns a plain mapping into ``Settings`` and reports every fault at once, each as a sentence that names the
setting, what it got and what it takes. Nothing behind it ever sees a Hydra object.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from pipeline.ground.errors import SettingsError


@dataclass(frozen=True)
class Takes:
    """What a number must be, as a predicate and in words."""

    words: str
    holds: Callable[[Any], bool]


Count = Annotated[int, Takes("a whole number from 1", lambda n: n >= 1)]
Pixels = Annotated[int, Takes("a whole number from 1 to 4096", lambda n: 1 <= n <= 4096)]
Padding = Annotated[int, Takes("a whole number from 0 to 4096", lambda n: 0 <= n <= 4096)]
Natural = Annotated[int, Takes("a whole number from 0", lambda n: n >= 0)]
Positive = Annotated[float, Takes("a number above 0", lambda x: x > 0)]
NotNegative = Annotated[float, Takes("a number from 0", lambda x: x >= 0)]
Share = Annotated[float, Takes("a share above 0 and at most 1, such as 0.6 or 91/182", lambda x: 0 < x <= 1)]
ProperShare = Annotated[float, Takes("a share above 0 and below 1, such as 0.2 or 1/5", lambda x: 0 < x < 1)]
ShareFromZero = Annotated[float, Takes("a share from 0 to below 1", lambda x: 0 <= x < 1)]


@dataclass(frozen=True)
class Model:
    network: str
    """A name of the table in ``pipeline.networks``, or the dotted path of any ``torch.nn.Module`` class."""
    arguments: Mapping[str, Any]
    """The network's own arguments; those of the table get input shape and classes from the data."""
    weights: str | None
    """A file of trained weights (.safetensors, or a state dict in a .pt) that takes the place of round 0's training."""


@dataclass(frozen=True)
class ImagesInMemory:
    dataset: Literal["digits", "cifar10", "cifar100", "fashion_mnist"]
    """A name of the table in ``pipeline.data``."""
    source: str | None
    """Hub id, or a local folder in the hub's layout; null for data that a library ships."""
    test_images: Count | None
    """How many images test: null for all that the data set holds for it and validation does not take."""
    validation_images: Count
    """How many images validate: every choice is made on these alone."""
    validation_from: Literal["train", "test"]
    """Which of the data set's own parts gives its images to validation."""
    crop_padding: Padding
    """Training images are padded by so many zeros on each side and cropped back at random; 0 for not."""
    flip: bool
    """Training images are mirrored left to right, half of the time."""


@dataclass(frozen=True)
class ImagesOnDisk:
    dataset: Literal["imagefolder"]
    """Images of any size, in folders named after their classes or in the hub's parquet files."""
    source: str
    """A local folder: ``train/CLASS/IMAGE`` and so on, or parquet files; or a hub id."""
    test_images: Count | None
    """How many images test: null for all that the data set holds for it and validation does not take."""
    validation_images: Count
    """How many images validate: every choice is made on these alone."""
    validation_from: Literal["train", "validation", "test"]
    """Which of the data set's own parts gives its images to validation."""
    size: Pixels
    """Height and width that the network sees, in pixels."""
    shorter_side: Pixels
    """Evaluation scales the shorter side to so many pixels and takes the middle."""
    smallest_crop: Share
    """Training takes a random part of the image, at least this share of its area, and scales it to ``size``."""
    flip: bool
    """Training images are mirrored left to right, half of the time."""
    mean: tuple[ShareFromZero, ...]
    """Of each channel, as a share of the pixel range: what standardisation subtracts."""
    deviation: tuple[ProperShare, ...]
    """Of each channel, as a share of the pixel range: what standardisation divides by."""
    corrupt: Literal["error", "skip"]
    """An image that cannot be decoded: stop and name it, or leave it out and count it."""
    workers: Natural | None
    """Processes that decode images; null for one a core."""


@dataclass(frozen=True)
class OwnData:
    dataset: Literal["own"]
    """Batches of a ``LightningDataModule`` of yours."""
    module: str
    """Dotted path of its class."""
    arguments: Mapping[str, Any]
    """What the class is made with."""


Data = ImagesInMemory | ImagesOnDisk | OwnData


@dataclass(frozen=True)
class Step:
    kind: Literal["step"]
    milestones: tuple[ProperShare, ...]
    """Shares of the training at which the rate is multiplied by ``factor``, rising."""
    factor: Positive
    """What the rate is multiplied by."""
    warmup: ShareFromZero
    """Share of the training in which the rate rises from 0 in a straight line."""


@dataclass(frozen=True)
class Cosine:
    kind: Literal["cosine"]
    warmup: ShareFromZero
    """Share of the training in which the rate rises from 0 in a straight line."""


@dataclass(frozen=True)
class OneCycle:
    kind: Literal["one_cycle"]
    peak: ProperShare
    """Share of the training at which the rate is at its full height."""


@dataclass(frozen=True)
class Sgd:
    kind: Literal["sgd"]
    rate: Positive
    """The full learning rate, before the schedule's factor."""
    momentum: ShareFromZero
    """Heavy-ball momentum."""
    nesterov: bool
    """Nesterov's form of momentum."""
    weight_decay: NotNegative
    """L2, added to the gradient."""
    decay_norm_and_bias: bool
    """Whether one-dimensional parameters (normalisation, biases) decay too."""


@dataclass(frozen=True)
class AdamW:
    kind: Literal["adamw"]
    rate: Positive
    """The full learning rate, before the schedule's factor."""
    beta1: ShareFromZero
    """Decay of the running mean of gradients."""
    beta2: ShareFromZero
    """Decay of the running mean of squared gradients."""
    weight_decay: NotNegative
    """Decoupled decay, multiplied by the rate."""
    decay_norm_and_bias: bool
    """Whether one-dimensional parameters (normalisation, biases) decay too."""


Schedule = Step | Cosine | OneCycle
Optimizer = Sgd | AdamW


@dataclass(frozen=True)
class Training:
    epochs: Count
    """T, the length of one training in passes over the training images."""
    max_steps: Count | None
    """Ends T inside its last epochs after so many steps; null for whole epochs."""
    batch_size: Count
    """Images a step; the last batch of an epoch may be smaller."""
    label_smoothing: ShareFromZero
    """Label smoothing of the cross-entropy."""
    precision: Literal["auto", "float32", "bfloat16"]
    """Of layers' arithmetic (weights stay float32); auto: bfloat16 where the machine is fast at it."""
    compile: Literal["auto", "off", "on"]
    """Whether full training batches run compiled; auto: where one training is long enough to repay it."""
    devices: Count
    """Processes on this machine that share each batch, a device (GPU, or some cores) each."""
    nodes: Count
    """Machines that share each batch; the same command is started on each by torchrun or Slurm."""
    schedule: Schedule
    """Learning rate over the training; choose with ``training/schedule=``."""
    optimizer: Optimizer
    """Choose with ``training/optimizer=``."""


@dataclass(frozen=True)
class Pruning:
    structure: Literal["weight", "filter"]
    """Whether single weights go, or whole filters with all that reads what they make."""
    fraction: ProperShare | None
    """Share of the surviving weights that one round removes (of filters: so many that at least this share goes); null
    for that by which ``rounds`` rounds end at ``target_density``."""
    criterion: Literal["magnitude", "magnitude_per_mac", "random"]
    """What scores a weight or a filter; the lowest scores go."""
    mac_strength: NotNegative
    """Of ``magnitude_per_mac``: a magnitude is divided by the multiply-adds of its weight to this power; 0 is plain
    magnitude."""
    norm: Literal["l1", "l2"]
    """How the magnitudes of a filter's weights make one score."""
    scope: Literal["global", "layer"]
    """Whether weights compete over the whole network or within their layer; of filters: all layers lose one share."""
    measure: Literal["weights", "macs"]
    """What ``fraction`` and ``target_density`` are shares of; multiply-adds for ``structure=filter`` alone."""
    shares: Mapping[str, Share] | None
    """Pattern of layers -> share of their filters (or weights) that stay after all rounds (null: one round), of which
    each takes the same factor; null: ``fraction`` says what goes."""
    policy: str | None
    """A file that gives ``shares``; ``search`` for that which AMC finds by the settings ``amc``, before the run."""
    exclude: tuple[str, ...]
    """Patterns (as of file names) of layers that are never pruned, such as ``conv1`` or ``stage3.*``."""
    rounds: Natural | None
    """Stop after so many rounds; null for no limit."""
    target_density: ProperShare | None
    """Stop at this share of weights kept, to the weight: the last round removes fewer. Null for no target."""
    max_accuracy_drop: ShareFromZero | None
    """Stop once validation accuracy is so far under the dense network's (0.01 is one point). Null for no floor."""
    empty_layer: Literal["warn", "error"] | ProperShare
    """A layer about to lose its last weight: warn, stop with an error, or always keep this share of every layer."""


@dataclass(frozen=True)
class Retraining:
    weights: Literal["final", "rewound", "fresh"]
    """A round starts from the last round's final weights, round 0's at the rewind point, or fresh random ones."""
    rate: Literal["replay", "hold"]
    """The schedule from the rewind point to its end, or its last rate throughout."""
    length: Share
    """Length of a retraining as a share of T, in whole epochs: the rewind point is that long before T's end."""
    optimizer_state: Literal["keep", "reset"]
    """Whether momentum goes with the weights or starts anew."""


@dataclass(frozen=True)
class Amc:
    agent: Literal["ddpg", "random", "uniform"]
    """Who chooses: the learning agent; or, as controls, chance (its median is the policy) or one share for all."""
    budget: Literal["macs", "parameters", "latency"]
    """What is limited: multiply-adds, weights, or measured milliseconds of ONNX Runtime on this machine."""
    share: ProperShare | None
    """The limit, as a share of the dense network's; null for none (``reward=accuracy_guaranteed``)."""
    reward: Literal["resource_constrained", "accuracy_guaranteed"]
    """What an episode is worth: its accuracy, or -error x log(cost)."""
    floor: ProperShare
    """Share of every layer that stays in any case."""
    multiple: Count
    """Numbers of channels that stay are multiples of this."""
    warmup: Natural
    """Episodes of random actions before the agent learns."""
    episodes: Count
    """Episodes in all."""


@dataclass(frozen=True)
class Tracking:
    uri: str | None
    """MLflow's tracking URI; null for ``MLFLOW_TRACKING_URI``, or else a SQLite store in the runs folder."""


@dataclass(frozen=True)
class Deploy:
    round: Natural | None
    """Which round's network; null for the one within ``pruning.max_accuracy_drop``, or the last."""
    values: Literal["int8", "float32"]
    """What the bundle's model computes in."""
    max_accuracy_drop: ShareFromZero
    """How much validation accuracy int8 may lose against float32 (0.01 is one point)."""
    max_bytes: Count | None
    """How big the bundle's model may be; null for no limit."""
    measure: Literal["outcome", "all"]
    """Which rounds ``task=measure`` takes beside the dense network: ``round``, or all (with ARM half a minute each)."""
    sizes: bool
    """Whether a run ends with the bytes of every round's files (seconds a round)."""
    calibration_images: Count
    """How many training examples set the ranges of int8."""
    width_multiple: Count
    """Dead channels are taken out down to widths that are multiples of this: processors compute them 4 or 8 at once."""
    kernels: tuple[Literal["aarch64", "aarch64-fp16", "x86_64-avx2", "x86_64-avx512"], ...]
    """Processors that the bundle gets the sparse engine's library for."""
    runner: Literal["auto", "qemu", "native", "ssh"]
    """What verifies a bundle: emulated ARM, this machine, or a board; auto: this machine if it is ARM, else qemu."""
    host: str | None
    """The board's name for ssh."""
    board_python: str
    """The board's Python, which has what the bundle's requirements.txt names."""
    images: Count | None
    """How many test examples are scored on ARM; null for all."""


@dataclass(frozen=True)
class Compare:
    where: str | None
    """Which runs of the experiment are compared, as a filter of MLflow's; null for all."""
    document: str | None
    """A Markdown file that gets the tables between its lines ``<!-- comparison of NAME -->`` and ``<!-- end -->``."""


@dataclass(frozen=True)
class Settings:
    name: str
    """Name of the experiment, in MLflow and on disk."""
    task: Literal["run", "plan", "report", "search", "measure", "bundle", "verify", "compare", "conformance", "sync"]
    """``run`` prunes; ``search`` lets an agent find a policy (AMC); ``plan`` shows what a run would do; ``report``
    draws what has been run; ``measure`` takes the time of its rounds, here and on ARM; ``bundle`` makes of a run what
    goes to a board; ``verify`` runs that on ARM; ``compare`` sets the tracked methods side by side; ``conformance``
    holds them against the published figures; ``sync`` sends MLflow what it misses of a run."""
    seed: Natural
    """The trial: initial weights, order of images and every other draw follow from it."""
    runs: str | None
    """Folder of ledgers and tracking; null for ``runs`` in the project (installed: in the current folder)."""
    record: str | None
    """A file that names what a run ended with, for what depends on it; null for none."""
    artifacts: str | None
    """Folder of report, bundle and verification; null for ``artifacts`` in the project (or the current folder)."""
    model: Model
    data: Data
    training: Training
    pruning: Pruning
    retraining: Retraining
    amc: Amc
    deploy: Deploy
    tracking: Tracking
    compare: Compare


LENGTHENS = ("rounds", "max_accuracy_drop")
"""Pruning settings that change how far a run goes but no number on the way: they may change from call to call."""


NO_NUMBERS = {"model": {"weights"}, "data": {"source", "workers"}, "training": {"devices", "nodes"}}
"""Settings that say where and by how many hands, not what: the same run goes on with others."""


def dense_identity(settings: Settings) -> dict[str, Any]:
    """What determines the dense network: model, data, training and seed; not where the data lies."""
    parts = {part: dataclasses.asdict(getattr(settings, part)) for part in NO_NUMBERS}
    identity = {part: {k: v for k, v in parts[part].items() if k not in NO_NUMBERS[part]} for part in parts}
    return plain({"seed": settings.seed, **identity})


LATER: dict[str, Any] = {
    "structure": "weight", "mac_strength": 0.2, "norm": "l1", "measure": "weights", "shares": None, "policy": None,
}  # fmt: skip
"""Pruning settings that came later, at the values that earlier runs had: they are the same runs still."""


def run_identity(settings: Settings) -> dict[str, Any]:
    """What determines a pruned run: the dense network's identity, the pruning and the retraining."""
    pruning = dataclasses.asdict(settings.pruning)
    left_out = {key for key in pruning if key in LENGTHENS or (key in LATER and pruning[key] == LATER[key])}
    if settings.pruning.shares is not None:  # which are reached in those rounds
        left_out.remove("rounds")
    pruning = {key: value for key, value in pruning.items() if key not in left_out}
    return plain(dense_identity(settings) | {"pruning": pruning, "retraining": dataclasses.asdict(settings.retraining)})


def amc_identity(settings: Settings) -> dict[str, Any]:
    """What determines a search for a policy beside the dense network; not how long it is."""
    amc = {key: value for key, value in dataclasses.asdict(settings.amc).items() if key != "episodes"}
    return plain(amc | {"structure": settings.pruning.structure, "exclude": settings.pruning.exclude})


def plain(value: Any) -> Any:
    """The same value made of what JSON knows."""
    return json.loads(json.dumps(value))


def fingerprint(identity: Mapping[str, Any]) -> str:
    """SHA-256 of an identity without seed and data digest: equal settings, equal fingerprint."""
    settings = {key: value for key, value in identity.items() if key not in ("seed", "data_digest")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level of dotted names; empty mappings stay as values."""
    items: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            items |= flat(value, f"{prefix}{key}.")
        else:
            items[f"{prefix}{key}"] = value
    return items


def build(mapping: Mapping[str, Any]) -> Settings:
    """Builds ``Settings`` from a plain mapping.

    Raises:
        SettingsError: with a sentence for every unknown, missing, mistyped, out-of-range or impossible setting.
    """
    faults: list[str] = []
    settings = _build(Settings, mapping, "", faults)
    if not faults:
        settings = _with_fraction(settings)
        faults = list(_impossible(settings))
    if faults:
        raise SettingsError(faults)
    return typing.cast(Settings, settings)


def _with_fraction(settings: Settings) -> Settings:
    """The settings with the fraction that follows from rounds and target, where it is to follow from them."""
    pruning = settings.pruning
    if pruning.fraction is not None or not pruning.rounds or pruning.target_density is None:
        return settings
    fraction = 1 - pruning.target_density ** (1 / pruning.rounds)
    return dataclasses.replace(settings, pruning=dataclasses.replace(pruning, fraction=fraction))


def _impossible(settings: Settings) -> Iterator[str]:
    """Settings that are each right and together cannot be."""
    training, pruning = settings.training, settings.pruning
    optimizer, schedule = training.optimizer, training.schedule
    if settings.name.strip() != settings.name or not settings.name or set("/\\:") & set(settings.name):
        yield f"name: got {settings.name!r}, takes a word that can name a folder"
    yield from _impossible_data(settings.data)
    if settings.deploy.runner == "ssh" and not settings.deploy.host:
        yield "deploy.host: got null, takes the name of a board for deploy.runner=ssh"
    if settings.model.weights is not None and settings.retraining.weights == "rewound":
        yield (
            "retraining.weights: got rewound, but model.weights gives a network of which no earlier point is known; "
            "takes final or fresh (retraining=lr_rewinding, fine_tuning or reinitialisation)"
        )
    if isinstance(optimizer, Sgd) and optimizer.nesterov and not optimizer.momentum:
        yield "training.optimizer.nesterov: got true with momentum 0, takes a momentum above 0"
    if isinstance(schedule, Step) and list(schedule.milestones) != sorted(set(schedule.milestones)):
        yield f"training.schedule.milestones: got {list(schedule.milestones)}, takes rising shares"
    given = pruning.shares is not None or pruning.policy is not None
    if pruning.fraction is None and not given:
        yield (
            f"pruning.fraction: got null with pruning.rounds={_shown(pruning.rounds)} and "
            f"pruning.target_density={_shown(pruning.target_density)}, takes a share, or both of these"
        )
        return
    if pruning.rounds is None and pruning.target_density is None and pruning.max_accuracy_drop is None and not given:
        yield (
            "pruning: got rounds, target_density and max_accuracy_drop all null, takes at least one of them "
            "(else pruning would never end)"
        )
    if pruning.target_density is not None and pruning.rounds is not None and pruning.fraction is not None:
        reached = (1 - pruning.fraction) ** pruning.rounds
        if reached > pruning.target_density * (1 + 1e-9):
            needed = math.ceil(math.log(pruning.target_density) / math.log(1 - pruning.fraction) - 1e-9)
            yield (
                f"pruning.target_density: got {pruning.target_density}, which no round reaches: pruning.rounds="
                f"{pruning.rounds} of pruning.fraction={pruning.fraction} end at density {reached:.4f}; "
                f"takes pruning.rounds={needed} or more, or null"
            )
    yield from _impossible_shares(pruning)
    if pruning.criterion == "magnitude_per_mac" and pruning.structure == "filter":
        yield "pruning.criterion: got magnitude_per_mac with pruning.structure=filter, takes magnitude or random"
    if pruning.criterion == "magnitude_per_mac" and (pruning.scope == "layer" or given):
        yield (
            "pruning.criterion: got magnitude_per_mac where weights compete within their layer, which all save the "
            "same multiply-adds; takes magnitude or random, or pruning.scope=global without shares"
        )
    amc = settings.amc
    if (settings.task == "search" or pruning.policy == "search") and training.devices * training.nodes > 1:
        yield "training.devices: got several processes for a search, takes training.devices=1 and training.nodes=1"
    if amc.share is None and amc.reward == "resource_constrained":
        yield "amc.share: got null with amc.reward=resource_constrained, takes a share (else nothing would be pruned)"
    if amc.budget == "latency" and pruning.structure == "weight":
        yield "amc.budget: got latency with pruning.structure=weight, takes macs or parameters: zeros take their time"
    share, target = pruning.empty_layer, pruning.target_density
    if isinstance(share, float) and target is not None and share >= target:
        yield (
            f"pruning.empty_layer: got {share}, a share of every layer that is kept, "
            f"takes less than pruning.target_density={target}"
        )


def _impossible_shares(pruning: Pruning) -> Iterator[str]:
    given = "policy" if pruning.policy is not None else "shares"
    if pruning.measure == "macs" and pruning.structure == "weight":
        yield "pruning.measure: got macs with pruning.structure=weight, takes weights"
    if pruning.shares is not None and pruning.policy is not None:
        yield f"pruning.policy: got {pruning.policy!r} beside pruning.shares, takes null: one of them says what stays"
    if getattr(pruning, given) is not None and pruning.target_density is not None:
        yield f"pruning.target_density: got {pruning.target_density}, but pruning.{given} says how far; takes null"


def shares_of(mapping: Any, path: Any) -> dict[str, float]:
    """What ``pruning.shares`` takes, read from ``path``.

    Raises:
        SettingsError: if it does not take this.
    """
    hint = typing.get_args(typing.get_type_hints(Pruning, include_extras=True)["shares"])[0]
    shares = _matched(hint, mapping)
    if shares is _NO_MATCH or not shares:
        raise SettingsError([f"pruning.policy: {path} has shares {_shown(mapping)}, takes {_takes(hint)}"])
    return typing.cast(dict[str, float], shares)


def _impossible_data(data: Data) -> Iterator[str]:
    if isinstance(data, ImagesInMemory):
        if data.dataset != "digits" and data.source is None:
            yield f"data.source: got null, takes a hub id or a local folder for data.dataset={data.dataset}"
        if data.dataset == "digits" and data.source is not None:
            yield f"data.source: got {data.source!r}, takes null for data.dataset=digits, which needs no files"
    if isinstance(data, ImagesOnDisk):
        for name in ("mean", "deviation"):
            if len(getattr(data, name)) != 3:
                yield f"data.{name}: got {list(getattr(data, name))}, takes a number for each of red, green and blue"
        if data.shorter_side < data.size:
            yield f"data.shorter_side: got {data.shorter_side}, takes at least data.size={data.size}"


def _build(cls: Any, mapping: Any, path: str, faults: list[str]) -> Any:
    """One dataclass from one mapping; faults are appended, and the value is then not to be used."""
    if not isinstance(mapping, Mapping):
        faults.append(f"{path.rstrip('.') or 'settings'}: got {_shown(mapping)}, takes a group of settings")
        return None
    hints = typing.get_type_hints(cls, include_extras=True)
    for key in mapping:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {path}{near[0]}?" if near else f"takes {', '.join(sorted(hints))}"
            faults.append(f"{path}{key}: unknown setting; {hint}")
    values = {}
    for key, hint in hints.items():
        if key not in mapping:
            faults.append(f"{path}{key}: missing")
        else:
            values[key] = _value(hint, mapping[key], f"{path}{key}", faults)
    return cls(**values) if len(values) == len(hints) else None


def _value(hint: Any, got: Any, path: str, faults: list[str]) -> Any:
    """``got`` as the type of ``hint``, or a fault."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    if all(dataclasses.is_dataclass(option) for option in options):
        return _group(options, got, path, faults)
    for option in options:
        if (value := _matched(option, got)) is not _NO_MATCH:
            return value
    return _fault(path, got, " or ".join(_takes(option) for option in options), faults)


def _fault(path: str, got: Any, takes: str, faults: list[str]) -> None:
    faults.append(f"{path}: got {_shown(got)}, takes {takes}")


_NO_MATCH = object()


def _group(options: tuple[Any, ...], got: Any, path: str, faults: list[str]) -> Any:
    """A nested dataclass; of several, the one whose first field takes what the mapping has under its name."""
    if len(options) == 1:
        return _build(options[0], got, f"{path}.", faults)
    tag = dataclasses.fields(options[0])[0].name
    kinds = {kind: option for option in options for kind in typing.get_args(typing.get_type_hints(option)[tag])}
    choose = f"(choose with {path.replace('.', '/')}={_either(kinds)})"
    if not isinstance(got, Mapping):
        return _fault(path, got, f"a group of settings {choose}", faults)
    if not isinstance(got.get(tag), str) or got[tag] not in kinds:
        return _fault(f"{path}.{tag}", got.get(tag), f"{_either(kinds)} {choose}", faults)
    return _build(kinds[got[tag]], got, f"{path}.", faults)


def _matched(hint: Any, got: Any) -> Any:
    """``got`` as one simple type, or ``_NO_MATCH``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None) or hint is None:
        return None if got is None else _NO_MATCH
    if origin is Literal:
        if isinstance(got, bool) and {"on", "off"} <= set(arguments):  # what YAML makes of these words
            return "on" if got else "off"
        return got if isinstance(got, str) and got in arguments else _NO_MATCH
    if origin is Annotated:
        value = _matched(arguments[0], got)
        return value if value is not _NO_MATCH and arguments[1].holds(value) else _NO_MATCH
    if origin is tuple:
        if not isinstance(got, list | tuple):
            return _NO_MATCH
        values = tuple(_matched(arguments[0], item) for item in got)
        return _NO_MATCH if _NO_MATCH in values else values
    if hint is float:
        return _number(got)
    if origin is not None:
        if not isinstance(got, Mapping):
            return _NO_MATCH
        named = {key: value if arguments[1] is Any else _matched(arguments[1], value) for key, value in got.items()}
        return _NO_MATCH if any(value is _NO_MATCH for value in named.values()) else named
    return got if type(got) is hint else _NO_MATCH


def _number(got: Any) -> Any:
    """A finite float from a number or a fraction written ``a/b``."""
    try:
        if isinstance(got, str):
            above, below = got.split("/")
            value = float(above) / float(below)
        else:
            value = float(got) if isinstance(got, int | float) and not isinstance(got, bool) else math.nan
    except (ValueError, ZeroDivisionError):
        return _NO_MATCH
    return value if math.isfinite(value) else _NO_MATCH


def _takes(hint: Any) -> str:
    """What one simple type takes, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin is Literal:
        return _either(arguments)
    if origin is Annotated:
        return str(arguments[1].words)
    if origin is tuple:
        return f"a list, each item {_takes(arguments[0])}"
    names = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
    if origin is not None and arguments[1] is not Any:
        return f"a mapping of names, each to {_takes(arguments[1])}"
    return names.get(hint, "a mapping of names to values")


def _either(words: Any) -> str:
    return " or ".join(map(str, words))


def _shown(got: Any) -> str:
    return json.dumps(got, default=str)
