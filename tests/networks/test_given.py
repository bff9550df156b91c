"""Networks of unusual parts go through both doors: they work, or end in one sentence before anything is trained."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.data import DataLoader, TensorDataset

from pipeline import prune_by_rewinding
from pipeline.ground.errors import SettingsError
from pipeline.networks.given import unwrapped
from pipeline.rounds import loop
from pipeline.rounds.building import build_job
from pipeline.rounds.choice import network_after
from pipeline.rounds.job import Watcher
from tests.conftest import settings

HERE = "tests.networks.test_given"
QUICK = ["training.epochs=1", "training.batch_size=600", "pruning.rounds=1", "deploy.sizes=false"]


def loaders(count=16, batch=8):
    """Images (1, 8, 8), labels 0 to 9; the same for training, validation and test."""
    images = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return (DataLoader(TensorDataset(images, torch.arange(count) % 10), batch_size=batch),) * 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.output = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x):
        return self.output(self.hidden(x.flatten(1)).relu())


class OneLinear(nn.Linear):
    def __init__(self):
        super().__init__(64, 10)

    def forward(self, x):
        return super().forward(x.flatten(1))


class OneConvolution(nn.Conv2d):
    def __init__(self):
        super().__init__(1, 10, 8)

    def forward(self, x):
        return super().forward(x).flatten(1)


class OneTransposed(nn.ConvTranspose2d):
    def __init__(self):
        super().__init__(1, 10, 3)

    def forward(self, x):
        return super().forward(x).mean((2, 3))


class OneInSequence(nn.Sequential):
    def __init__(self):
        super().__init__(OneLinear())


class WithBias(nn.Linear):
    """A layer that answers a pair."""

    def forward(self, x):
        return super().forward(x), self.bias


class Pairs(Net):
    def __init__(self):
        super().__init__()
        self.hidden = WithBias(64, 16)

    def forward(self, x):
        return self.output(self.hidden(x.flatten(1))[0])


class Typed(Net):
    dtype = torch.bfloat16

    def __init__(self):
        super().__init__()
        self.hidden.to(self.dtype)
        self.norm = nn.BatchNorm1d(16, dtype=self.dtype)

    def forward(self, x):
        return self.output(self.norm(self.hidden(x.flatten(1).to(self.dtype))).to(self.output.weight.dtype))


class Half(Typed):
    dtype = torch.float16


class Double(Typed):
    dtype = torch.float64


class AllBfloat16(Typed):
    def __init__(self):
        super().__init__()
        self.to(torch.bfloat16)


class Buffered(Net):
    """Multiplies by a buffer, or whatever it becomes as float."""

    buffer = staticmethod(lambda: torch.arange(64))

    def __init__(self):
        super().__init__()
        self.register_buffer("table", self.buffer())

    def forward(self, x):
        return super().forward(x.flatten(1) * self.table.float())


class Truths(Buffered):
    buffer = staticmethod(lambda: torch.arange(64) % 2 == 0)


class Eighths(Buffered):
    buffer = staticmethod(lambda: torch.ones(64).to(torch.float8_e4m3fn))


class Conjugates(Buffered):
    buffer = staticmethod(lambda: torch.ones(64, dtype=torch.complex64).conj())

    def forward(self, x):
        return Net.forward(self, x.flatten(1) * self.table.abs().float())


class Quantised(Buffered):
    buffer = staticmethod(lambda: torch.quantize_per_tensor(torch.ones(64), 0.1, 0, torch.qint8))

    def forward(self, x):
        return Net.forward(self, x.flatten(1) * self.table.dequantize())


class Sparse(Buffered):
    buffer = staticmethod(lambda: torch.ones(1, 64).to_sparse())

    def forward(self, x):
        return Net.forward(self, x.flatten(1) * self.table.to_dense())


class DoubleComplex(Conjugates):
    buffer = staticmethod(lambda: torch.ones(64, dtype=torch.complex128))


class Expanded(Buffered):
    buffer = staticmethod(lambda: torch.ones(1).expand(64))


class OnMeta(Net):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2, device="meta")


class Complex(Net):
    def __init__(self):
        super().__init__()
        self.phase = nn.Parameter(torch.ones(16, dtype=torch.complex64))

    def forward(self, x):
        return self.output((self.hidden(x.flatten(1)) * self.phase).abs())


class ComplexLayer(Net):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(64, 16, dtype=torch.complex64)

    def forward(self, x):
        return self.output(self.hidden(x.flatten(1).to(torch.complex64)).abs())


class NotInTheStateDict(Net):
    """Holds tensors that no file could hold where no file has to."""

    def __init__(self):
        super().__init__()
        self.register_buffer("sparse", torch.ones(1, 64).to_sparse(), persistent=False)
        self.register_buffer("expanded", torch.ones(1).expand(64), persistent=False)
        self.double_complex, self.meta = torch.ones(64, dtype=torch.complex128).conj(), torch.ones(2, device="meta")

    def forward(self, x):
        return super().forward(
            x.flatten(1) * self.sparse.to_dense() * self.expanded * self.double_complex.abs().float()
        )


class Counts(Net):
    """Counts its trainings steps in an extra state: a number."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x):
        self.seen += self.training
        return super().forward(x)

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, state):
        self.seen = state


class CountsInTensor(Counts):
    def get_extra_state(self):
        return torch.tensor(self.seen)

    def set_extra_state(self, state):
        self.seen = int(state)


class CountsInDict(Counts):
    def get_extra_state(self):
        return {"seen": self.seen, "tensors": [torch.ones(2)], "name": None}

    def set_extra_state(self, state):
        self.seen = state["seen"]


class KeepsNothing(Counts):
    def get_extra_state(self):
        return None

    def set_extra_state(self, state):
        assert state is None


class KeepsAnObject(Counts):
    def get_extra_state(self):
        return Net


class TakesNothingBack(Net):
    def get_extra_state(self):
        return 3


class LosesAName(Net):
    def state_dict(self, **named):
        state = super().state_dict(**named)
        del state["hidden.bias"]
        return state


class LazyOutput(Net):
    def __init__(self):
        super().__init__()
        self.output = nn.LazyLinear(10)


class LazyBuffers(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.LazyBatchNorm1d(affine=False)

    def forward(self, x):
        return super().forward(self.norm(x.flatten(1)))


class Reparametrised(Net):
    how = staticmethod(weight_norm)

    def __init__(self):
        super().__init__()
        self.hidden = self.how(self.hidden)


class Spectral(Reparametrised):
    how = staticmethod(spectral_norm)


class Parametrised(Reparametrised):
    how = staticmethod(parametrizations.weight_norm)


class SpectralParametrised(Reparametrised):
    how = staticmethod(parametrizations.spectral_norm)


class PrunedAlready(Reparametrised):
    how = staticmethod(lambda layer: prune.l1_unstructured(layer, "weight", 0.5))


WORKS = (
    OneLinear, OneConvolution, OneTransposed, OneInSequence, Pairs, Typed, Half, Double, AllBfloat16, Buffered, Truths,
    Eighths, Conjugates, NotInTheStateDict, Complex, ComplexLayer, Counts, CountsInTensor, CountsInDict, KeepsNothing,
)  # fmt: skip
NO_FILE = "which no file of tensors holds; takes dense tensors of usual types"
REFUSED = {
    Quantised: f"network: table is qint8, {NO_FILE}",
    Sparse: f"network: table is sparse_coo of float32, {NO_FILE}",
    DoubleComplex: f"network: table is complex128, {NO_FILE}",
    Expanded: r"network: table has one number in several places \(expand\(\)\), .*; takes it with clone\(\)",
    OnMeta: "network: spare.weight has no numbers, as it is on the meta device; takes a network with weights",
    KeepsAnObject: "network: _extra_state is a type, takes tensors, numbers, text and collections of these",
}
REFUSED |= {
    TakesNothingBack: "network: TakesNothingBack does not load its own state dict: .*_extra_state.*; takes one whose",
    LosesAName: "network: LosesAName does not load its own state dict: .*hidden.bias.*; takes one whose",
}
COMPUTED = r"model.network: the weight of layer 'hidden' is computed from others .*; takes plain layers"
LAZY = "has no shape before a first call; takes layers that are not lazy"
GIVEN_ALONE = {
    LazyOutput: (f"network: output.weight {LAZY}", None),
    LazyBuffers: (f"network: norm.running_mean {LAZY}", None),
    Reparametrised: (
        r"network: Reparametrised cannot be copied, for hidden.weight is computed from others; takes one w",
        COMPUTED,
    ),
    Spectral: (COMPUTED, COMPUTED),
    Parametrised: (COMPUTED, COMPUTED),
    SpectralParametrised: (COMPUTED, COMPUTED),
    PrunedAlready: (
        r"network: PrunedAlready cannot be copied, for hidden.weight is computed from others; takes one w",
        COMPUTED,
    ),
}
"""What is said of a network, and of its class, where they differ; None: it works."""


def by_command(kind, runs):
    chosen = settings("model=custom", f"model.network={HERE}.{kind.__name__}", *QUICK)
    return build_job(chosen, runs)


def test_the_tables_are_not_empty():
    assert (len(WORKS), len(REFUSED), len(GIVEN_ALONE)) == (20, 8, 7)


@pytest.mark.parametrize(
    "kind", [pytest.param(each, marks=() if n % 4 == 0 else pytest.mark.slow) for n, each in enumerate(WORKS)]
)
def test_a_network_of_unusual_parts_is_pruned_and_what_it_keeps_goes_on(kind, tmp_path):
    job, site = by_command(kind, tmp_path)
    done = loop.run(job, site)
    assert [round(each.density, 2) for each in done] == [1, 0.8]
    before, after = job.initial(0), site.dense.state(0).network
    assert not any(torch.equal(before[name], after[name]) for name in job.whole())
    network = network_after(job, site, 1)
    assert sum(int((each == 0).sum()) for name, each in network.named_parameters() if name in job.whole()) > 0
    if isinstance(network, Counts) and kind is not KeepsNothing:
        assert network.seen == len(done) * job.steps_per_epoch


@pytest.mark.parametrize("kind", [AllBfloat16])
def test_the_same_given_in_python(kind, tmp_path):
    done = prune_by_rewinding(kind(), loaders(), *QUICK, f"runs={tmp_path}")
    assert [round(each.density, 2) for each in done.rounds] == [1, 0.8]
    assert type(done.network()) is kind


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_round_could_keep_is_a_sentence_at_both_doors(kind, tmp_path):
    for door in (
        lambda: by_command(kind, tmp_path),
        lambda: prune_by_rewinding(kind(), loaders(), *QUICK, f"runs={tmp_path}"),
    ):
        with pytest.raises(SettingsError, match=REFUSED[kind]) as error:
            door()
        assert len(error.value.faults) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", GIVEN_ALONE)
def test_layers_that_are_lazy_or_computed(kind, tmp_path):
    given, made = GIVEN_ALONE[kind]
    with pytest.raises(SettingsError, match=given) as error:
        prune_by_rewinding(kind(), loaders(), *QUICK, f"runs={tmp_path}")
    assert len(error.value.faults) == 1
    if made is None:
        by_command(kind, tmp_path)
    else:
        with pytest.raises(SettingsError, match=made):
            by_command(kind, tmp_path)
    assert not list(tmp_path.iterdir())


class Died(Exception):
    pass


class DiesAfterAnEpoch(Watcher):
    def epoch_done(self, index, history):
        if (index, len(history)) == (1, 1):
            raise Died


@pytest.mark.parametrize("kind", [Counts, CountsInDict])
def test_an_extra_state_goes_on_with_a_continued_round(kind, tmp_path):
    chosen = settings("model=custom", f"model.network={HERE}.{kind.__name__}", *QUICK, "training.epochs=3")
    job, site = build_job(chosen, tmp_path)
    with pytest.raises(Died):
        loop.run(job, dataclasses.replace(site, watcher=DiesAfterAnEpoch()))
    job, site = build_job(chosen, tmp_path)
    loop.run(job, site)
    assert network_after(job, site, 1).seen == (3 + job.span.last - job.span.first) * job.steps_per_epoch


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda net: torch.compile(nn.DataParallel(net))])
def test_what_only_runs_a_network_is_taken_off(wrap, tmp_path):
    network = Net()
    assert unwrapped(wrap(network)) is network
    job, site = build_job(settings("data=digits", *QUICK), tmp_path, wrap(network), loaders())
    assert type(job.network) is Net
    _, same_site = build_job(settings("data=digits", *QUICK), tmp_path, network, loaders())
    assert same_site.ledger.folder == site.ledger.folder


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("compile", [torch.jit.script, lambda network: torch.jit.trace(network, torch.zeros(2, 64))])
def test_a_network_of_torchscript_is_a_sentence(compile, tmp_path):
    with pytest.raises(SettingsError, match="network: got one that is compiled to TorchScript; takes the module that"):
        prune_by_rewinding(compile(Net()), loaders(), *QUICK, f"runs={tmp_path}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "refused"), [(Half, True), (AllBfloat16, False), (Double, False)])
def test_adamw_in_float16_is_a_sentence(kind, refused, tmp_path):
    chosen = settings("model=custom", f"model.network={HERE}.{kind.__name__}", *QUICK, "training/optimizer=adamw")
    if refused:
        with pytest.raises(SettingsError, match=r"training.optimizer: got adamw for weights in float16, .*; takes sgd"):
            build_job(chosen, tmp_path)
        assert not list(tmp_path.iterdir())
    else:
        assert len(loop.run(*build_job(chosen, tmp_path))) == 2
