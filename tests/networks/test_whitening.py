"""The fixed first convolution: what it gives is white, and nothing trains or prunes it."""

import pytest
import torch
from torch import nn

from pipeline.ground.errors import SettingsError
from pipeline.networks.whitening import whitened
from pipeline.rounds import loop as rounds
from pipeline.rounds.building import build_job
from tests.conftest import settings

FAST = ["model=fast_cnn", "model.arguments.widths=[8,8]"]


def some_images(count=400):
    """Neighbouring pixels and the channels are alike, as in photographs."""
    noise = torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    grey = noise.mean(1, keepdim=True)
    return nn.functional.avg_pool2d(noise * 5 + 20 * grey, 3, 1)


@pytest.mark.parametrize(("size", "filters"), [(1, 6), (2, 24), (3, 24)])
def test_what_it_gives_has_mean_square_one_and_is_uncorrelated(size, filters):
    network, images = nn.Sequential(nn.Conv2d(3, filters, size)), some_images()
    whitened(network, "0", images)
    given = network(images).movedim(1, -1).flatten(0, 2)
    half = given[:, : filters // 2]
    assert torch.equal(half, -given[:, filters // 2 :])
    moments = half.T @ half / len(half)
    weakest = moments.diagonal().min()
    assert 0.5 < weakest <= 1 + 1e-4  # the constant under the root takes some of the weakest
    torch.testing.assert_close(moments, torch.diag(moments.diagonal()), atol=1e-4, rtol=0)
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("network", "name", "sentence"),
    [
        (nn.Conv2d(3, 26, 2), "0", "got '0' with 26 filters, takes an even number up to 24"),
        (nn.Conv2d(3, 23, 2), "0", "got '0' with 23 filters, takes an even number up to 24"),
        (nn.Conv2d(3, 8, 2), "conv", "got 'conv', which is no convolution of the images; takes 0"),
        (nn.Flatten(), "0", "got '0', which is no convolution of the images; takes null: it has none"),
    ],
)
def test_a_layer_that_cannot_be_whitened_is_a_sentence(network, name, sentence):
    with pytest.raises(SettingsError, match=sentence):
        whitened(nn.Sequential(network), name, some_images(4))


def test_rounds_neither_train_nor_prune_it_and_new_weights_keep_it(small_job):
    arguments = [*FAST, "~model.arguments.width", "retraining=reinitialisation", "pruning.rounds=1"]
    job, site = small_job(*arguments)
    done = rounds.run(job, site)
    first = job.initial(0)["patches.weight"]
    assert torch.equal(first, job.initial(1)["patches.weight"])
    assert not torch.equal(job.initial(0)["output.weight"], job.initial(1)["output.weight"])
    for ledger, index in ((site.dense, 0), (site.ledger, 1)):
        assert torch.equal(ledger.state(index).network["patches.weight"], first)
    assert "patches.weight" not in site.ledger.masks(1)
    assert done[1].density == pytest.approx(0.8, abs=1e-3)
    assert "left out of pruning: frozen weights patches (requires_grad is false at the start)" in job.notes


def test_other_filters_begin_as_the_identity(small_job):
    job, _ = small_job(*FAST, "~model.arguments.width")
    weights = job.initial(0)["features.2.4.weight"]
    assert torch.equal(weights, nn.init.dirac_(torch.empty_like(weights)))


def test_images_too_small_for_the_network_are_a_sentence():
    from pipeline.data import load
    from pipeline.networks import build_network

    chosen = settings("model=fast_cnn")
    with pytest.raises(SettingsError, match="images of 8x8 pixels are too small for 3 halvings"):
        build_network(chosen.model, load(chosen.data).example, 10, seed=0)


@pytest.mark.parametrize(
    ("example", "told"), [({"x": torch.zeros(3)}, "type dict"), (torch.zeros(3), "2 dimensions")], ids=["dict", "rows"]
)
def test_inputs_that_are_no_images_are_a_sentence(example, told, tmp_path):
    loader = torch.utils.data.DataLoader([(example, 0)] * 4, batch_size=2)
    with pytest.raises(SettingsError, match=f"model.whitened: got inputs of {told}, takes images"):
        build_job(settings("model.whitened=0"), tmp_path, nn.Sequential(nn.Linear(3, 2)), (loader,) * 3)
