"""A job as a search sees it: the steps of the walk, what they cost, and how accurate the network is under a choice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import set_stance

from pipeline.amc import costs, latency
from pipeline.amc.compressed import IMAGES, Choice, accuracy, channels, normals, single_weights
from pipeline.amc.environment import Environment, Step, choices
from pipeline.data.dataset import Shard
from pipeline.ground.errors import PipelineError
from pipeline.ground.randomness import generator
from pipeline.networks.costs import positions
from pipeline.networks.layers import prunable, weight_layers
from pipeline.rounds.choice import network_after
from pipeline.rounds.job import Job, Site
from pipeline.settings.groups import Amc


@dataclass(frozen=True)
class Problem:
    """``accurate`` measures a choice of counts on the validation split; ``macs`` and ``parameters`` count its costs."""

    environment: Environment
    accurate: Callable[[Sequence[int]], float]
    macs: Callable[[Sequence[int]], int]
    parameters: Callable[[Sequence[int]], int]


def problem(job: Job, site: Site, amc: Amc, table: latency.Table, told: Callable[[str], None]) -> Problem:
    """The search of a job whose round 0 is complete; ``table`` holds measured latencies, and gets those it misses.

    Raises:
        PipelineError: if the budget is out of reach.
    """
    network = network_after(job, site, 0)
    example = job.dataset.example
    used = positions(network, example)
    layers = weight_layers(network)
    weights = {name: network.get_parameter(name).detach() for name in layers}
    places = _places(network, example)
    if job.groups:
        order = list(layers)
        groups = sorted(job.groups, key=lambda group: min(order.index(each.parameter) for each in group.readers))
        readers = [[each.parameter for each in group.readers] for group in groups]
        names, sizes = [group.name for group in groups], [group.size for group in groups]
        products = costs.products(weights, groups, used)
        told("sampling feature maps")
        choice: Choice = channels(network, groups, normals(network, _refitted(layers, readers), *_samples(job)))
    else:
        names = prunable(network, job.pruning.exclude)
        readers, sizes = [[name] for name in names], [weights[name].numel() for name in names]
        products = costs.single(used, names, {name: weight.numel() for name, weight in weights.items()})
        choice = single_weights(network, names)
    multiple = amc.multiple if job.groups else 1
    steps = []
    for name, size, reads in zip(names, sizes, readers, strict=True):
        place, weight = places[reads[0]], weights[reads[0]]
        steps.append(
            Step(
                name.removesuffix(".weight"),
                size,
                choices(size, amc.floor, multiple),
                outputs=weight.shape[0],
                inputs=weight.shape[1],
                height=max(1, place.height),
                width=max(1, place.width),
                stride=place.stride[0],
                kernel=place.kernel[0],
                macs=sum(weights[each].numel() * used[each] for each in reads),
            )
        )
    macs, parameters = costs.macs(products), costs.parameters(products)
    cost: Callable[[Sequence[int]], float] = {"macs": macs, "parameters": parameters}.get(amc.budget, macs)
    if amc.budget == "latency":
        cost = latency.latency(products, places, [step.choices for step in steps], table, told)
    whole = cost([step.size for step in steps])
    try:
        environment = Environment(tuple(steps), cost, None if amc.share is None else amc.share * whole)
    except ValueError as error:
        raise PipelineError(
            f"amc.share: got {amc.share} of amc.budget={amc.budget}, but {error} (amc.floor)"
        ) from error
    batches = [(batch.inputs, batch.labels) for batch in job.dataset.evaluation("validation", Shard())]
    low = job.training.precision == "bfloat16"
    return Problem(environment, lambda counts: accuracy(network, choice(counts), batches, low), macs, parameters)


def _refitted(layers: dict[str, nn.Module], readers: Sequence[Sequence[str]]) -> list[str]:
    """The weights that are refit: those that read a group's channels, if their layer pads with zeros."""
    plain = {
        name
        for name, layer in layers.items()
        if not isinstance(layer, nn.Conv2d) or (isinstance(layer.padding, tuple) and layer.padding_mode == "zeros")
    }
    return [name for reads in readers for name in reads if name in plain]


def _samples(job: Job) -> tuple[list[Tensor], torch.Generator]:
    """The first training images as the network sees them (none augmented), and the draws of places."""
    batches, left = [], IMAGES
    for inputs, _ in job.dataset.raw("train"):
        batches += [job.dataset.preprocessing.apply(piece) for piece in inputs[:left].split(50)]
        left -= len(inputs)
        if left <= 0:
            break
    return batches, generator(job.seed, "places of a refit")


@torch.no_grad()
def _places(network: nn.Module, example: Tensor) -> dict[str, latency.Geometry]:
    """Where each layer stands when the network looks at an example."""
    found: dict[str, latency.Geometry] = {}

    def look(name: str, layer: Any, given: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            padding = layer.padding if isinstance(layer.padding, tuple) else (0, 0)
            height, width = given.shape[2:]
            kernel, stride = layer.kernel_size, layer.stride
            place = latency.Geometry(height, width, kernel, stride, padding, depthwise=layer.groups > 1)  # type: ignore[arg-type]
        else:
            place = latency.Geometry(0, 0, (1, 1), (1, 1), (0, 0), depthwise=False)
        found[name] = place

    hooks = [
        layer.register_forward_pre_hook(lambda m, i, name=name: look(name, m, i[0]))  # type: ignore[misc]
        for name, layer in weight_layers(network).items()
    ]
    try:
        with set_stance("force_eager"):
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return found
