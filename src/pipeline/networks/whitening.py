"""A first convolution that whitens patches of the training images: fixed filters in the place of learned ones."""

import torch
from torch import Tensor, nn

from pipeline.ground.errors import SettingsError

EPSILON = 5e-4
"""Added to each variance, so that components of next to none are not blown up."""


def whitened(network: nn.Module, name: str, images: Tensor) -> None:
    """Sets the filters of the convolution ``name`` to whiten patches of ``images`` (N, C, H, W), and freezes them.

    A filter is an eigenvector of the patches' second moments over the root of its eigenvalue, so that what it gives
    has mean square 1 (Page 2019, *How to train your ResNet*, part 8). The components of most variance come first, each
    twice with opposite signs, since a ReLU follows (Jordan 2024, *94% on CIFAR-10 in 3.29 seconds*, section 3.2).

    Raises:
        SettingsError: if there is no such convolution of images, or it has more or another number of filters than that.
    """
    layer = dict(network.named_modules()).get(name)
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.in_channels != images.shape[1]:
        convolutions = [
            known
            for known, module in network.named_modules()
            if isinstance(module, nn.Conv2d) and module.in_channels == images.shape[1]
        ]
        takes = f"takes {' or '.join(convolutions)}" if convolutions else "takes null: it has none"
        raise SettingsError([f"model.whitened: got {name!r}, which is no convolution of the images; {takes}"])
    size = layer.weight[0].numel()
    if layer.out_channels % 2 or layer.out_channels > 2 * size:
        raise SettingsError(
            [f"model.whitened: got {name!r} with {layer.out_channels} filters, takes an even number up to {2 * size}"]
        )
    patches = nn.functional.unfold(images.double(), layer.kernel_size).movedim(1, 2).reshape(-1, size)
    variances, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    most = range(size - 1, size - 1 - layer.out_channels // 2, -1)
    filters = torch.stack([vectors[:, each] / (variances[each] + EPSILON).sqrt() for each in most])
    with torch.no_grad():
        layer.weight.copy_(torch.cat([filters, -filters]).view_as(layer.weight))
        if layer.bias is not None:
            layer.bias.zero_()
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
