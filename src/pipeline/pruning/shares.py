"""How many weights each layer keeps where its size says it, not the competition of all weights."""

from collections.abc import Mapping, Sequence


def erdos_renyi_kernel(shapes: Mapping[str, Sequence[int]], limits: Mapping[str, int], total: int) -> dict[str, int]:
    """How many weights of each layer stay so that ``total`` do: densities as (n_in + n_out + w + h) / (n_in n_out w h).

    So a layer keeps in proportion to the sum of its dimensions, and small layers stay denser than large ones (Mocanu
    et al. 2018; with kernels Evci et al. 2020, *Rigging the Lottery*, section 3, 1). Where that would be more than a
    layer's limit, which are the weights that it has left, it keeps those and the others share the rest. The larger
    fractions are rounded up, of equal ones the earlier layer's.

    Args:
        shapes: of the weights, such as (n_out, n_in, h, w).
        limits: what each layer has left.
        total: at most the sum of the limits.
    """
    full: set[str] = set()
    while True:
        free = [name for name in shapes if name not in full]
        rest = total - sum(limits[name] for name in full)
        scale = rest / sum(sum(shapes[name]) for name in free) if free else 0.0
        exact = {name: scale * sum(shapes[name]) for name in free}
        beyond = [name for name in free if exact[name] >= limits[name]]
        if not beyond:
            break
        full |= set(beyond)
    kept = {name: limits[name] if name in full else int(exact[name]) for name in shapes}
    missing = total - sum(kept.values())
    for name in sorted(free, key=lambda name: kept[name] - exact[name])[:missing]:
        kept[name] += 1
    return kept
