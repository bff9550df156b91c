"""The settings, typed: frozen dataclasses, one a config group. What every key means and takes stands here, once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pipeline.settings.strict import Takes

Count = Annotated[int, Takes("a whole number from 1", lambda n: n >= 1)]
Pixels = Annotated[int, Takes("a whole number from 1 to 4096", lambda n: 1 <= n <= 4096)]
Padding = Annotated[int, Takes("a whole number from 0 to 4096", lambda n: 0 <= n <= 4096)]
Block = Annotated[int, Takes("2, 4 or 8", lambda n: n in (2, 4, 8))]
Natural = Annotated[int, Takes("a whole number from 0", lambda n: n >= 0)]
Positive = Annotated[float, Takes("a number above 0", lambda x: x > 0)]
NotNegative = Annotated[float, Takes("a number from 0", lambda x: x >= 0)]
Share = Annotated[float, Takes("a share above 0 and at most 1, such as 0.6 or 91/182", lambda x: 0 < x <= 1)]
ProperShare = Annotated[float, Takes("a share above 0 and below 1, such as 0.2 or 1/5", lambda x: 0 < x < 1)]
ShareFromZero = Annotated[float, Takes("a share from 0 to below 1", lambda x: 0 <= x < 1)]


@dataclass(frozen=True)
class Model:
    network: str | None
    """A name of the table in ``pipeline.networks``, or the dotted path of what makes a ``torch.nn.Module``: a class, a
    function, a class method. Null where ``module`` is given."""
    module: str | None
    """The dotted path of what makes a ``LightningModule`` of yours, which is trained as it is (``objective=own``)."""
    arguments: Mapping[str, Any]
    """What it is made with; networks of the table get input shape and classes from the data."""
    whitened: str | None
    """Name of the first convolution, whose filters are set to whiten patches of the training images, and frozen; null
    for none."""
    weights: str | None
    """A file of trained weights (.safetensors, or a state dict in a .pt or a checkpoint) that takes the place of round
    0's training."""


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
    """Training images are padded by so many pixels on each side and cropped back at random; 0 for not."""
    crop_fill: Literal["zeros", "reflect"]
    """What those pixels are: zeros, or the image mirrored at its border."""
    flip: bool | Literal["alternate"]
    """Training images are mirrored left to right, half of the time; alternate: each in every other epoch."""


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
class StepDecay:
    kind: Literal["step"]
    """The rate falls by steps."""
    milestones: tuple[ProperShare, ...]
    """Shares of the training at which the rate is multiplied by ``factor``, rising."""
    factor: Positive
    """What the rate is multiplied by."""
    warmup: ShareFromZero
    """Share of the training in which the rate rises from 0 in a straight line."""


@dataclass(frozen=True)
class Cosine:
    kind: Literal["cosine"]
    """The rate falls as half a cosine, to zero."""
    warmup: ShareFromZero
    """Share of the training in which the rate rises from 0 in a straight line."""


@dataclass(frozen=True)
class OneCycle:
    kind: Literal["one_cycle"]
    """The rate rises in a straight line and falls in another, to zero."""
    peak: ProperShare
    """Share of the training at which the rate is at its full height."""


@dataclass(frozen=True)
class Sgd:
    kind: Literal["sgd"]
    """Stochastic gradient descent with momentum."""
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
    rates: Mapping[str, Positive]
    """Pattern of parameters, or of the last part of their names -> what their rate is multiplied by, such as
    ``{bias: 64}``; the first that matches."""


@dataclass(frozen=True)
class AdamW:
    kind: Literal["adamw"]
    """Adam with decoupled weight decay."""
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
    rates: Mapping[str, Positive]
    """Pattern of parameters, or of the last part of their names -> what their rate is multiplied by, such as
    ``{bias: 64}``; the first that matches."""


Schedule = StepDecay | Cosine | OneCycle
Optimizer = Sgd | AdamW
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Supervised:
    kind: Literal["supervised"]
    """A plain network with a loss: ``objective=classification``, ``multilabel``, ``regression``, ``segmentation``."""
    loss: str
    """Dotted path of a loss of torch, or of yours, that takes (outputs, targets)."""
    loss_arguments: Mapping[str, Any]
    """What the loss is made with, such as ``{label_smoothing: 0.1}``; a list of numbers becomes a tensor."""
    metrics: Mapping[str, Mapping[str, Any]]
    """Name -> ``metric``, the dotted path of a torchmetrics class, beside its arguments. Numbers of classes and labels
    follow from the network's outputs."""
    score: str
    """The metric, or ``loss``, that choices are made by and that tables show."""
    better: Better | None
    """Whether more or less of the score is better; null for what the metric says of itself."""


@dataclass(frozen=True)
class OwnObjective:
    kind: Literal["own"]
    """What your ``LightningModule`` trains for."""
    score: str | None
    """The figure, as the module logs it in validation, that choices are made by and that tables show."""
    better: Better | None
    """Whether more or less of the score is better."""
    test_score: str | None
    """The same figure as the module logs it in its test; null for the same name with ``test``."""


Objective = Supervised | OwnObjective


@dataclass(frozen=True)
class Training:
    epochs: Count
    """T, the length of one training in passes over the training examples."""
    max_steps: Count | None
    """Ends T inside its last epochs after so many batches; null for whole epochs."""
    batch_size: Count
    """Images a step; the last batch of an epoch may be smaller. Data of your own have their own."""
    precision: Literal["auto", "float32", "bfloat16"]
    """Of layers' arithmetic (weights stay float32); auto: bfloat16 where the machine is fast at it."""
    compile: Literal["auto", "off", "on"]
    """Whether full training batches run compiled; auto: where one training is long enough to repay it."""
    ema: ProperShare | None
    """Decay, a step, of an average of the weights that each training ends with, such as 0.99; null for none."""
    teacher: Literal["dense", "previous"] | None
    """Whose answers retrained networks learn beside the targets: the dense network's, those of the round before, or
    nobody's."""
    devices: Count
    """Processes on this machine that share each batch, a device (GPU, or some cores) each."""
    nodes: Count
    """Machines that share each batch; the same command is started on each by torchrun or Slurm."""
    schedule: Schedule
    """Learning rate over the training; choose with ``training/schedule=``. A LightningModule has its own."""
    optimizer: Optimizer
    """Choose with ``training/optimizer=``. A LightningModule has its own."""


@dataclass(frozen=True)
class Pruning:
    structure: Literal["weight", "block", "filter"]
    """Whether single weights go; or blocks of neighbouring filters' weights at one input and place, which the sparse
    engine computes together; or whole filters with all that reads what they make."""
    block: Literal["auto"] | Block
    """Filters in a block (``structure=block``); auto: as many as the engine computes together."""
    fraction: ShareFromZero | None
    """Share of the surviving weights that one round removes (of filters: so many that at least this share goes); null
    for that by which ``rounds`` rounds end at ``target_density``; 0 for a control in which nothing goes."""
    schedule: Literal["at_once", "cubic"]
    """Whether a round's weights go before its training, or within its first three quarters, ever fewer."""
    criterion: Literal["magnitude", "magnitude_per_mac", "lamp", "random"]
    """What scores a weight or a filter; the lowest scores go. lamp: magnitude scaled by layer."""
    mac_strength: NotNegative
    """Of ``magnitude_per_mac``: a magnitude is divided by the multiply-adds of its weight to this power; 0 is plain
    magnitude."""
    norm: Literal["l1", "l2"]
    """How the magnitudes of the weights of a block or filter make one score."""
    scope: Literal["global", "layer", "erk"]
    """Whether weights compete over the whole network or within their layer; of filters: all layers lose one share.
    erk: within layers, which lose the more the larger they are (Erdos-Renyi kernel)."""
    measure: Literal["weights", "macs"]
    """What ``fraction`` and ``target_density`` are shares of; multiply-adds for ``structure=filter`` alone."""
    shares: Mapping[str, Share] | None
    """Pattern of layers -> share of their filters (or weights) that stay after all rounds (null: one round), of which
    each takes the same factor; null: ``fraction`` says what goes."""
    policy: str | None
    """A file that gives ``shares``; ``search`` for that which AMC finds by the settings ``amc``, before the run."""
    exclude: tuple[str, ...]
    """Patterns (as of file names) of layers that are never pruned, such as ``conv1`` or ``stage3.*``."""
    include: tuple[str, ...]
    """Patterns of weights that are pruned beside those of convolutions, linear and attention layers: of recurrent
    layers, embeddings, or any parameter of two dimensions or more, such as ``lstm.*``."""
    rounds: Natural | None
    """Stop after so many rounds; null for no limit."""
    target_density: ProperShare | None
    """Stop at this share of weights kept, to the weight: the last round removes fewer (of a number of rounds, all that
    is left to go). Null for no target."""
    max_score_drop: NotNegative | None
    """Stop once the validation score is so much worse than the dense network's (of accuracy, 0.01 is one point). Null
    for no floor."""
    empty_layer: Literal["warn", "error"] | ProperShare
    """A layer about to lose its last weight: warn, stop with an error, or always keep this share of every layer."""


@dataclass(frozen=True)
class Retraining:
    weights: Literal["final", "rewound", "fresh"]
    """A round starts from the last round's final weights, round 0's at the rewind point, or fresh random ones."""
    rate: Literal["replay", "hold"]
    """The schedule from the rewind point to its end, or one rate throughout."""
    hold: Literal["last"] | Share
    """The rate that is held: the schedule's last, or a share of its highest."""
    length: Positive
    """Length of a retraining as a share of T, in whole epochs: the rewind point is that long before T's end. Above 1 it
    is at the start, and the schedule is stretched."""
    optimizer_state: Literal["keep", "reset"]
    """Whether momentum goes with the weights or starts anew."""
    copies: Count
    """So many trainings of each round, with batches in other orders, whose weights are averaged (a sparse soup)."""


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
    system_metrics: bool
    """Whether a run's use of processor, memory, disk, network and GPU is recorded every ten seconds (takes psutil)."""


@dataclass(frozen=True)
class Deploy:
    round: Natural | None
    """Which round's network; null for the one within ``pruning.max_score_drop``, or the last."""
    values: Literal["int8", "float32"]
    """What the bundle's model computes in."""
    reference: bool
    """Whether an int8 bundle carries the float model too, to compare with."""
    max_score_drop: ShareFromZero
    """How much of the validation score int8 may lose against float32: of one in percent so much (0.01 is one point), of
    another such a share. Where int8 loses more, the fewest layers that hold it stay in float."""
    input: Literal["auto", "image", "sound", "arrays"]
    """What ``run.py predict`` makes the input of: an image file, a WAV file, or arrays as they are; auto: images where
    the data are the pipeline's own images, else arrays. Of an image a float input gets values from 0 to 1."""
    sample_rate: Count | None
    """Samples a second of a sound; null for any."""
    dynamic_axes: Mapping[str, tuple[Count, ...]]
    """Axes of inputs, by the input's name, that may have any size beside that of the data; the first always may. The
    sparse engine leaves what depends on them to ONNX Runtime."""
    max_bytes: Count | None
    """How big the bundle's model may be; null for no limit."""
    measure: Literal["outcome", "all"]
    """Which rounds ``task=measure`` takes beside the dense network: the outcome (``round``, or what the run
    chose), or all (with ARM half a minute each)."""
    sizes: bool
    """Whether a run ends with the bytes of every round's files, and the test score in int8 (seconds a round)."""
    calibration_images: Count
    """How many training examples set the ranges of int8."""
    width_multiple: Count
    """Dead channels are taken out down to widths that are multiples of this: processors compute them 4 or 8 at once."""
    kernels: tuple[Literal["aarch64", "aarch64-fp16", "x86_64-avx2", "x86_64-avx512"], ...]
    """Processors that the bundle gets the sparse engine's library for."""
    sign_key: str | None
    """File of an ed25519 private key that signs the bundle; null for no signature."""
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
    ledgers: str | None
    """A folder of ledgers whose records are compared in the place of MLflow's runs; null for these."""
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
    debug: bool
    """Whether a fault in your own code, or in a library, shows its traceback before its sentence."""
    seed: Natural
    """The trial: initial weights, order of images and every other draw follow from it."""
    runs: str | None
    """Folder of ledgers and tracking; null for ``runs`` in the project (installed: in the current folder)."""
    record: str | None
    """A file that names what a run ended with, for what depends on it; null for none."""
    artifacts: str | None
    """Folder of report, bundle and verification; null for ``artifacts`` in the project (or the current folder)."""
    model: Model
    """The network."""
    data: Data
    """What it is trained, validated and tested on."""
    objective: Objective
    """What it is trained for: the loss, the metrics, and the score that choices are made by."""
    training: Training
    """How one training goes: the dense network's, and that after each pruning step."""
    trainer: Mapping[str, Any]
    """Arguments of Lightning's ``Trainer``, such as ``trainer.gradient_clip_val=1``."""
    pruning: Pruning
    """What goes in a round, and when to stop."""
    retraining: Retraining
    """The training after a pruning step: from which weights, at which rate, how long."""
    amc: Amc
    """The search for a share of each layer by reinforcement learning (``task=search``)."""
    deploy: Deploy
    """What goes to a board, and how it is tried (``task=bundle``, ``verify`` and ``measure``)."""
    tracking: Tracking
    """Where MLflow keeps the runs."""
    compare: Compare
    """Which runs ``task=compare`` sets side by side."""
