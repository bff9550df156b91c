"""From settings to a job and its site: data, network, shares, identity, ledgers."""

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data import AnyDataset, load
from pipeline.data.dataset import unchanged
from pipeline.data.own import OwnBatches, Use, as_data_module, own_batches
from pipeline.ground.environment import environment, expanded
from pipeline.ground.errors import PipelineError, SettingsError, one_line
from pipeline.ground.randomness import seed_all, undisturbed
from pipeline.ground.tensors import packed, tensor_digest
from pipeline.networks import NETWORKS, build_module, build_network
from pipeline.networks.behaviour import answers_of, behaviour_digest
from pipeline.networks.costs import positions, run_on
from pipeline.networks.given import check_kept, check_loads, copied, keep, unwrapped
from pipeline.networks.layers import begin_training, layer_name, left_out, prunable, weight_layers
from pipeline.networks.weights import read_weights
from pipeline.networks.whitening import whitened
from pipeline.networks.zeros import restored
from pipeline.objective.own import own_score
from pipeline.objective.rehearsal import Rehearsed, rehearsed
from pipeline.objective.smallest import check_smallest
from pipeline.objective.supervised import Supervised as SupervisedModule
from pipeline.objective.supervised import score_of
from pipeline.pruning.channels import ChannelGroup, channel_groups
from pipeline.pruning.policy import read_policy, searched
from pipeline.rounds.job import Job, Site
from pipeline.rounds.ledger import Ledger, dense_home, run_home, search_home
from pipeline.rounds.planning import check_end
from pipeline.rounds.trainables import as_it_is, schedule_of, with_objective
from pipeline.settings.groups import Deploy, OwnObjective, Pruning, Settings, Supervised
from pipeline.settings.identity import amc_identity, dense_identity, run_identity
from pipeline.training.retraining import training_span
from pipeline.training.speed import resolved
from pipeline.training.state import unkept
from pipeline.training.trainer import Factory

WHITENED_BY = 5000 * 3 * 32 * 32
"""Numbers in the images that whitening looks at."""


def build_job(
    settings: Settings,
    runs: Path,
    network: nn.Module | Callable[[], nn.Module] | None = None,
    data: Any = None,
    trainer: Factory | None = None,
) -> tuple[Job, Site]:
    """Loads the data and builds the network or module, unless they are given; writes nothing.

    A ``network`` that is a class or function is called in the place of what the settings name.

    Raises:
        SettingsError: with all that is wrong about them.
    """
    objective, model, network = settings.objective, settings.model, unwrapped(network)
    limit = settings.trainer.get("limit_train_batches", 1.0)
    processes = settings.training.devices * settings.training.nodes
    use = Use(isinstance(objective, Supervised), limit if type(limit) is int else None, processes)
    dataset = load(settings.data, use) if data is None else own_batches(as_data_module(data), use)
    batches = dataset.steps_per_epoch(settings.training.batch_size)
    steps = _limited(batches, limit)
    _check_limits(settings.trainer, batches, dataset)
    training = resolved(settings.training, steps, compilable=isinstance(objective, Supervised))
    settings = dataclasses.replace(settings, training=training)
    if isinstance(network, nn.Module):
        made, anew = copied(network), partial(_redrawn, network, settings.seed)
    else:
        anew = partial(_made, settings, dataset, network)
        made = anew(0)
        check_kept(made)
    check_loads(made)
    if model.whitened is not None:
        whitened(made, model.whitened, _first_images(dataset))
    if settings.retraining.weights == "fresh":
        anew(1)  # said now, if it cannot be had
    initial = _initial(made, anew)
    start: dict[str, Any] = dense_identity(settings) | {"data_digest": dataset.digest}
    if processes > 1 and isinstance(dataset, OwnBatches):
        start["processes"] = processes  # each has batches of the module's size, so they change what a step sees
    if isinstance(network, nn.Module):
        start["initial_digest"] = tensor_digest(made.state_dict())

    own_code = _own_code(settings, dataset, network)
    if isinstance(objective, Supervised):
        span = training_span(training, steps)
        trainable = with_objective(settings, objective, dataset, made, span, trainer, "network" in own_code)
        score, schedule = score_of(objective), partial(schedule_of, settings, made, span)
    else:
        trainable, schedule = as_it_is(settings, dataset, made, trainer), None
    weights = prunable(made, settings.pruning.exclude, settings.pruning.include)
    notes: tuple[str, ...] = ()
    counted = None
    if own_code:
        found = rehearsed(trainable, type(made).__name__, settings.pruning.include, settings.retraining.copies)
        trainable, notes = found.trainable, found.notes
        if found.unkept:
            keep(made, found.unkept)
            check_kept(made)
            start["kept"] = sorted(found.unkept)
        if found.set_up:
            initial = _after_setup(initial, found.set_up)
            start["setup_digest"] = tensor_digest(found.set_up)
        if isinstance(trainable.module, SupervisedModule) and isinstance(dataset, OwnBatches):
            trainable.module.check_labels(dataset.labels)
        if isinstance(objective, OwnObjective):
            score = own_score(objective, found.logged, type(made).__name__)
            if score.test == score.validation and found.tested:
                notes += (
                    f"tables have no test figure: the test of {type(made).__name__} logs {', '.join(found.tested)}, of "
                    "which objective.test_score=NAME names one",
                )
            if isinstance(dataset, OwnBatches) and found.example is not None:
                dataset = dataclasses.replace(dataset, given=found.example)
        counted = _counted(made, dataset, found, settings.pruning.include)
        asked = made
        if "network" in own_code and not isinstance(network, nn.Module):  # of seed 0: all seeds share a fingerprint
            asked = _made(dataclasses.replace(settings, seed=0), dataset, network, 0)
        start["code"] = _code_digest(own_code, asked, dataset)

    check_smallest(made, dataset, settings, steps)
    trained = None
    if model.weights is not None:
        trained = read_weights(expanded(model.weights), made)
        start["weights_digest"] = tensor_digest(trained)
    pruning = _with_shares(settings, search_home(runs, settings.name, start | {"amc": amc_identity(settings)}))
    settings = dataclasses.replace(settings, pruning=pruning)
    identity = start | run_identity(settings)
    groups: tuple[ChannelGroup, ...] = ()
    if pruning.structure == "filter":
        groups, left = _removable(made, dataset.example, pruning)
    else:
        left = left_out(made, pruning.exclude, pruning.include)
        if own_code:
            _check_zeros(made, pruning)
    _check_patterns(pruning, groups, weights)
    if training.compile == "on":
        made.compile(dynamic=False)
    job = Job(
        network=made,
        dataset=dataset,
        trainable=trainable,
        score=score,
        steps_per_epoch=steps,
        training=training,
        pruning=pruning,
        groups=groups,
        retraining=settings.retraining,
        seed=settings.seed,
        initial=initial,
        trained=trained,
        schedule=schedule,
        counted=counted,
        notes=(*dataset.notes(), *notes, *left),
    )
    check_end(job)
    site = Site(
        dense=Ledger(*dense_home(runs, identity)),
        ledger=Ledger(run_home(runs, settings.name, identity), identity),
        environment=environment(),
    )
    if own_code and settings.deploy.sizes and site.dense.read(0) is None:
        job = dataclasses.replace(job, notes=(*job.notes, *_not_exportable(made, dataset.example, settings.deploy)))
    return job, site


def _check_zeros(network: nn.Module, pruning: Pruning) -> None:
    """Holds layers of a user's against what pruning is for.

    Raises:
        SettingsError: if one makes something of its weight that is not zero where that is.
    """
    if names := restored(network, prunable(network, pruning.exclude, pruning.include)):
        kind = type(weight_layers(network)[names[0]]).__name__
        layers = [layer_name(name) for name in names]
        raise SettingsError(
            [f"model.network: {kind} {layers[0]!r} computes what it multiplies by from its weight, and a pruned weight "
             f"is no zero of it; takes plain layers, pruning.structure=filter, or pruning.exclude={layers}"]
        )  # fmt: skip


def _not_exportable(network: nn.Module, example: Any, deploy: Deploy) -> Iterator[str]:
    """Before a training of hours: why no file of the network will be had."""
    from pipeline.deploy.export import exported  # no other training waits for ONNX

    try:
        with undisturbed():
            exported(copy.deepcopy(network), unchanged, example, deploy.dynamic_axes)
    except SettingsError:
        raise
    except PipelineError as error:
        yield f"warning: {error}; it is trained and pruned, but no file for a board can be made of it"


def _first_images(dataset: AnyDataset) -> Tensor:
    """The first training images as the network gets them, none augmented.

    Raises:
        SettingsError: if the inputs are no images.
    """
    images: list[Tensor] = []
    for inputs, _ in dataset.raw("train"):
        if not isinstance(inputs, Tensor) or inputs.ndim != 4:
            told = f"{inputs.ndim} dimensions" if isinstance(inputs, Tensor) else f"type {type(inputs).__name__}"
            raise SettingsError([f"model.whitened: got inputs of {told}, takes images (N, C, H, W)"])
        images.append(dataset.preprocessing.apply(inputs))
        if sum(each.numel() for each in images) >= WHITENED_BY:
            break
    return torch.cat(images)


def _limited(steps: int, limit: int | float) -> int:
    """Batches of an epoch under Lightning's ``limit_train_batches``: a number, or a share."""
    return min(steps, limit) if isinstance(limit, int) else int(steps * limit)


def _check_limits(trainer: Mapping[str, Any], batches: int, dataset: AnyDataset) -> None:
    """Holds shares of batches against how many there are.

    Raises:
        SettingsError: if one is less than a batch.
    """
    lengths: dict[str, Callable[[], list[int]]] = {
        "limit_train_batches": lambda: [batches],
        "limit_val_batches": lambda: dataset.lengths("validation"),
        "limit_test_batches": lambda: dataset.lengths("test"),
    }
    shares = {name: each for name in lengths if isinstance(each := trainer.get(name), float)}
    faults = [
        f"trainer.{name}: got {share}, which is none of {min(short)} batches; takes a whole number of batches from 1, "
        "or a share that is one at least"
        for name, share in shares.items()
        if (short := [each for each in lengths[name]() if int(each * share) < 1])
    ]
    if faults:
        raise SettingsError(faults)


def _made(settings: Settings, dataset: AnyDataset, make: Callable[[], nn.Module] | None, attempt: int) -> nn.Module:
    if settings.model.module is not None:
        return build_module(settings.model, settings.seed, attempt, make)
    return build_network(settings.model, dataset.example, len(dataset.classes), settings.seed, attempt, make)


def _initial(made: nn.Module, anew: Callable[[int], nn.Module]) -> Callable[[int], Mapping[str, Tensor]]:
    """Initial weights and buffers: of attempt 0 those of ``made`` now, of others new ones, each time all that its state
    dict holds then. Frozen parameters are always the first."""
    first = {name: tensor.clone() for name, tensor in _all_of(made).items()}
    names = {name for name, each in made.named_parameters(remove_duplicate=False) if not each.requires_grad}
    frozen = {name: tensor for name, tensor in first.items() if name in names}
    begin_training(made)

    def initial(attempt: int) -> Mapping[str, Tensor]:
        found = first if attempt == 0 else _all_of(anew(attempt)) | frozen
        held = made.state_dict().keys()
        return {name: tensor.clone() for name, tensor in found.items() if name in held}

    return initial


def _all_of(network: nn.Module) -> dict[str, Tensor]:
    """Its state dict, and the buffers that this leaves out."""
    return {**packed(network.state_dict()), **unkept(network)}


def _after_setup(
    initial: Callable[[int], Mapping[str, Tensor]], set_up: Mapping[str, Tensor]
) -> Callable[[int], Mapping[str, Tensor]]:
    """Initial weights, those of attempt 0 with what the module's ``setup()`` gives them."""
    return lambda attempt: {**initial(attempt), **(set_up if attempt == 0 else {})}


def _own_code(settings: Settings, dataset: AnyDataset, network: object) -> tuple[str, ...]:
    """What of a run is a user's own: the network or module, the data."""
    own = () if network is None and settings.model.network in NETWORKS else ("network",)
    return (*own, "data") if isinstance(dataset, OwnBatches) else own


def _counted(
    module: nn.Module, dataset: AnyDataset, found: Rehearsed, include: tuple[str, ...]
) -> Mapping[str, int] | None:
    """Uses of weights by an example, where ``forward`` cannot be called on one: as its steps use them."""
    try:
        with undisturbed():
            positions(module, dataset.example, include)
    except Exception:
        return found.positions
    return None


def _code_digest(own: tuple[str, ...], network: nn.Module, dataset: AnyDataset) -> str:
    """What the user's own code does, as a digest."""
    parts = []
    if "network" in own:
        answers = answers_of(network, lambda asked: run_on(asked, dataset.example))
        parts.append(behaviour_digest(network, answers))
    if isinstance(dataset, OwnBatches):
        parts.append(behaviour_digest(dataset.module))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _with_shares(settings: Settings, search: Path) -> Pruning:
    """The pruning with the shares of its policy file, whose name takes the place of its path; ``search`` is the folder
    of the search that the settings ask for.

    Raises:
        SettingsError: if the file is none, or the search is not complete.
    """
    pruning = settings.pruning
    if pruning.policy is None:
        return pruning
    if pruning.policy == "search" and not searched(search, settings.amc):
        raise SettingsError(
            [f"pruning.policy: got search, but that in {search} is not complete: the same settings with task=run do it"]
        )
    path = search / "policy.json" if pruning.policy == "search" else expanded(pruning.policy)
    name, shares = read_policy(path, pruning.structure)
    return dataclasses.replace(pruning, policy=name, shares=shares)


def _removable(network: nn.Module, example: Any, pruning: Pruning) -> tuple[tuple[ChannelGroup, ...], list[str]]:
    """The groups of channels that may go; and a sentence about layers that are left out without having been excluded.

    Raises:
        SettingsError: if there is no group.
    """
    try:
        groups, mistaken = channel_groups(network, example)
    except ValueError as error:
        raise SettingsError([f"pruning.structure: got filter, but {one_line(error)}; takes weight"]) from error
    groups = tuple(each for each in groups if not any(each.matches(pattern) for pattern in pruning.exclude))
    trained = {name for name, tensor in network.named_parameters(remove_duplicate=False) if tensor.requires_grad}
    free = tuple(each for each in groups if all(part.parameter in trained for part in each.makers + each.readers))
    left = []
    if len(free) < len(groups):
        taken = {each.name for each in free}
        layers = ", ".join(dict.fromkeys(layer for each in groups if each.name not in taken for layer in each.layers))
        left = [f"left out of pruning: filters of {layers} (frozen weights make or read them)"]
    groups = free
    if names := [name for name in mistaken if not any(fnmatchcase(name, pattern) for pattern in pruning.exclude)]:
        left += [
            f"left out of pruning: filters of {', '.join(names)} (their channels are shuffled, padded or mixed before "
            "they are read, so that the weights that read them cannot be told)"
        ]
    if not groups:
        raise SettingsError(
            ["pruning.structure: got filter, but no layer's filters can be removed; takes weight", *left]
        )
    return groups, left


def _check_patterns(pruning: Pruning, groups: Sequence[ChannelGroup], weights: Sequence[str]) -> None:
    """Every pattern of ``pruning.shares`` must be of a layer that can be pruned."""
    layers = [layer for group in groups for layer in group.layers] or [name.removesuffix(".weight") for name in weights]
    faults = [
        f"pruning.shares: got {pattern!r}, which matches no layer; the layers are {', '.join(layers)}"
        for pattern in pruning.shares or ()
        if not any(fnmatchcase(layer, pattern) for layer in layers)
    ]
    if faults:
        raise SettingsError(faults)


def _redrawn(network: nn.Module, seed: int, attempt: int) -> nn.Module:
    """A copy with new initial weights, by the layers' own ``reset_parameters``.

    Raises:
        SettingsError: if a parameter belongs to a layer that has none.
    """
    network = copy.deepcopy(network)
    with undisturbed():
        seed_all(seed, attempt, "initial weights")
        for name, layer in network.named_modules():
            reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
            if callable(reset):
                reset()
            elif next(layer.parameters(recurse=False), None) is not None:
                raise SettingsError(
                    [
                        f"retraining.weights: got fresh, but layer {name!r} has no reset_parameters() that draws its "
                        "weights anew; takes final or rewound, or a class or function that makes the network"
                    ]
                )
    return network
