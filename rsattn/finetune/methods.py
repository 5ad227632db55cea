"""A paragraph for the methods section of a paper, with the facts of a run: one function for each sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..cli.command import shown
from ..cli.gray import ends_of
from ..cli.weights import MODEL
from .augmentation import AUGMENTATIONS, described
from .cnn import CHANNELS
from .metadata import base_name
from .models import AUTHORS_HEADS, SIZES, TORCHVISION, side_of_patches
from .near_identical import HASH_SIZE, MOST_DIFFERENT_BITS
from .options import RATE_FACTORS, Options, gates_learn, is_residual, rate_of_gates
from .thresholds import LEAST_SENSITIVITY
from .wording import counted, in_words, some

SPLITS = {"train": "training", "val": "validation", "test": "test"}
NORMS = {
    "induced": "matrix 1-norm (the largest column sum) of the attention probabilities",
    "entrywise": "entrywise 1-norm of the attention probabilities after dropout",
    "confidence": "mean over the queries of the highest attention probability",
}
SQUARED = {
    "squash": "without keeping the aspect ratio",
    "pad": "after padding with black to a square",
    "crop": "after cropping to the central square",
}
CONVOLUTIONAL = {"alexnet": "AlexNet (Krizhevsky, 2014)", "resnet18": "ResNet-18 (He et al., 2016)"}
PRECISIONS = {"bf16-mixed": "bfloat16 mixed precision", "16-mixed": "float16 mixed precision", "64-true": "float64"}


@dataclass(frozen=True)
class Facts:
    """What a run recorded.

    Attributes:
        options: those of the training, with the learning rate that --lr auto chose.
        data: the content of data.json.
        metrics: the content of metrics.json.
    """

    options: Options
    data: Mapping[str, Any]
    metrics: Mapping[str, Any]


def paragraph(options: Options, data: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The methods of a run in the past tense, with citations by author and year, see references.py.

    Facts that an older run did not record are left out.

    Args:
        options, data, metrics: as in `Facts`.
    """
    facts = Facts(options, data, metrics)
    return " ".join(filter(None, (sentence(facts) for sentence in SENTENCES)))


def images(facts: Facts) -> str:
    """The images of each class, in all splits."""
    counts, classes = facts.data["counts"].values(), facts.data["classes"]
    source = "The handwritten digits of scikit-learn" if facts.options.data is None else "The data set"
    of_class = [f"{shown(name)}: {sum(of[name] for of in counts)}" for name in classes]
    total = sum(sum(of.values()) for of in counts)
    return f"{source} comprised {counted(total, 'image')} of {len(classes)} classes ({some(of_class)})."


def excluded(facts: Facts) -> str:
    """Files that could not be read."""
    number = len(facts.data["damaged"])
    if not number:
        return ""
    return f"Excluded: {counted(number, 'further file')} that could not be read."


def splits(facts: Facts) -> str:
    """The sizes of the splits."""
    counts, groups = facts.data["counts"], facts.data["group_counts"]

    def size(split: str) -> str:
        of_groups = "" if facts.options.groups is None else f" of {counted(groups[split], 'group')}"
        return f"{SPLITS[split]} ({counted(sum(counts[split].values()), 'image')}{of_groups})"

    return (
        f"The images were divided into {in_words([size(split) for split in SPLITS if split in counts], 'and')} splits."
    )


def assignment(facts: Facts) -> str:
    """Which splits were drawn, and how; empty where the run did not record it."""
    options = facts.options
    if options.folds is not None and options.fold is not None:
        return (
            f"The test split was fold {options.fold + 1} of {options.folds} of a cross-validation, whose folds were "
            f"drawn at random, stratified by class (seed {options.split_seed or 0}); the validation split was drawn "
            f"from the other folds (seed {options.seed})."
        )
    if "drawn" not in facts.data:
        return ""
    drawn = [SPLITS[split] for split in SPLITS if split in facts.data["drawn"]]
    given = [
        SPLITS[split] for split in ("val", "test") if split in facts.data["counts"] and split not in facts.data["drawn"]
    ]
    said = []
    if given:
        said.append(
            f"the {in_words(given, 'and')} {'splits were' if len(given) > 1 else 'split was'} given with the data"
        )
    if drawn:
        were = "splits were" if len(drawn) > 1 else "split was"
        seed = facts.metrics["split_seed"]
        said.append(f"the {in_words(drawn, 'and')} {were} drawn at random, stratified by class (seed {seed})")
    return _sentence("; ".join(said))


def grouping(facts: Facts) -> str:
    """The level at which the splits are disjoint."""
    if facts.options.groups is None:
        if facts.data.get("drawn") == []:  # all splits were given with the data
            return "The images were not grouped, so images of one patient can be in different splits."
        return "Each image was assigned to a split on its own, without regard to the patient it shows."
    if facts.options.groups == "phash":
        return (
            f"Images that looked alike (perceptual hashes of {HASH_SIZE**2} bits that differed in at most "
            f"{MOST_DIFFERENT_BITS}) formed a group, and a group was never divided between splits."
        )
    by = {"patient": "the PatientID of their DICOM files", "folder": "the subfolders of the class folders"}
    source = by.get(facts.options.groups, "a file of identifiers")
    return f"The images were grouped by {source}, and a group was never divided between splits."


def left_out(facts: Facts) -> str:
    """Images that would have leaked the test or validation split into the training."""
    number = sum(facts.data["counts"].get("left-out", {}).values())
    if not number:
        return ""
    return (
        f"Left out of training: {counted(number, 'image')}, because other images of the same group were in the test or "
        "validation split."
    )


def checksum(facts: Facts) -> str:
    """The checksum that identifies the images; empty for an older run."""
    found = facts.data.get("checksums")
    return f"The SHA-256 checksum of the images was {found['images']}." if found else ""


def preprocessing(facts: Facts) -> str:
    """The input of the model."""
    options, normalize = facts.options, facts.metrics["model"].get("normalize")
    side = f"{options.image_size} x {options.image_size} pixels"
    gray = ""
    if options.window is not None:
        low, high = ends_of(options.window)
        gray = f"Values from {low:g} to {high:g} became gray levels from 0 to 255. "
    resized = (
        f"{gray}Images were converted to RGB and resized to {side} by bicubic interpolation {SQUARED[options.resize]}"
    )
    if normalize is None:
        return f"{resized}."
    mean, std = (in_words([f"{value:g}" for value in normalize[name]], "and") for name in ("mean", "std"))
    return (
        f"{resized}, scaled to values from 0 to 1, and normalized with the channel means {mean} and the standard "
        f"deviations {std}."
    )


def augmentation(facts: Facts) -> str:
    """The random changes of the training images."""
    how = AUGMENTATIONS.get(facts.options.augment)
    if how is None:
        return "Training images were not augmented."
    always = ", except rotation, which was always applied" if how.turn >= 180.0 else ""
    changes = described(facts.options.augment).replace(" %", "%")
    return f"Training images were augmented at random, each change with a probability of 1/2{always}: {changes}."


def architecture(facts: Facts) -> str:
    """The model and its size."""
    model = facts.metrics["model"]
    every, trained = model["parameters"], model["trained_parameters"]
    which = "all of which" if trained == every else f"of which {trained:,}"
    return f"The model was {named(facts.options)}, with {every:,} parameters, {which} were trained."


def named(options: Options) -> str:
    """The model in words, with its citation."""
    if options.model in ("vit", "resvit"):
        dim, _, heads, layers = SIZES[options.size]
        side = side_of_patches(options)
        return (
            f"a vision transformer (Dosovitskiy et al., 2021) with {layers} layers, {dim} channels, {heads} attention "
            f"heads and patches of {side} x {side} pixels, as implemented in pytorch_pretrained_vit (Melas-Kyriazi, "
            "2020)"
        )
    if options.model == "cnn":
        return (
            f"a convolutional network of {len(CHANNELS)} stages (3 x 3 convolution, batch normalization, ReLU, max "
            f"pooling) with {in_words([str(number) for number in CHANNELS], 'and')} channels, global average pooling, "
            "dropout and a linear classifier"
        )
    if options.model in TORCHVISION:
        return f"{CONVOLUTIONAL[options.model]}, as implemented in torchvision (TorchVision, 2016)"
    return f"{shown(options.model)}, as implemented in timm (Wightman, 2019)"


def residual(facts: Facts) -> str:
    """The residual of the best head, and its gate."""
    options = facts.options
    if not is_residual(options):
        return ""
    wide = f" had {AUTHORS_HEADS} newly initialized heads as wide as the tokens, and" if options.full_width else ""
    unit = "image" if options.scope == "sample" else "batch"
    place = "repeated over all channels" if options.merge == "tile" else "in the channels of this head only"
    gate = ""
    if options.init_values is not None:
        gate = (
            f", multiplied by a gate for each channel that started at {options.init_values:g} (Touvron et al., 2021)"
            f"{'' if gates_learn(options) else ' and was not trained'}"
        )
    return (
        f"The attention layers{wide} used residual self-attention (Sharma and Verma, 2023): the output of the head "
        f"with the largest {NORMS[options.norm]}, chosen for each {unit}, was added to the projected output of all "
        f"heads, {place}{gate}."
    )


def without_residual(facts: Facts) -> str:
    """Attention of the model that stayed as it was."""
    number = len(facts.metrics["model"].get("without_residual", {}))
    return f"{counted(number, 'attention layer')} stayed without the residual." if number else ""


def initial_weights(facts: Facts) -> str:
    """Where the weights came from before training."""
    options = facts.options
    if options.weights == "none":
        return "All initial weights were random."
    if options.weights != "pretrained":
        return f"The initial weights came from the file {shown(base_name(options.weights))}."
    source = f"{MODEL} of pytorch_pretrained_vit"
    if options.model not in ("vit", "resvit"):
        source = f"the default weights of {'torchvision' if options.model in TORCHVISION else 'timm'} for this model"
    return f"The initial weights were pretrained ({source}), and those of the classifier random."


def seed(facts: Facts) -> str:
    """The seed of the initial weights, of the order of the images and of their augmentation."""
    return f"The random seed of the training was {facts.options.seed}."


def trained_parts(facts: Facts) -> str:
    """Which layers were frozen."""
    if not facts.options.freeze:
        return ""
    return f"Only the classifier{' and the new attention' if facts.options.full_width else ''} was trained."


def head_first(facts: Facts) -> str:
    """The classifier that was fitted before the other layers were trained."""
    if not facts.options.head_first:
        return ""
    return (
        "First, the classifier was fitted to the features of the initial model by logistic regression, with the L2 "
        "penalty that had the lowest validation loss (Kumar et al., 2022)."
    )


def optimizer(facts: Facts) -> str:
    """Optimizer, batch size and loss."""
    options = facts.options
    loss = []
    if options.label_smoothing:
        loss.append(f"label smoothing of {options.label_smoothing:g} (Szegedy et al., 2016)")
    if options.class_weights:
        loss.append("classes weighted by the inverse of their number of training images")
    precision = f" in {PRECISIONS[options.precision]}" if options.precision in PRECISIONS else ""
    return (
        f"Training used AdamW (Loshchilov and Hutter, 2019){precision}, a batch size of "
        f"{options.batch_size} per device, a weight decay of {options.weight_decay:g} and the cross-entropy loss"
        f"{' with ' if loss else ''}{in_words(loss, 'and') if loss else ''}."
    )


def learning_rate(facts: Facts) -> str:
    """The schedule, and how the rate was chosen."""
    options = facts.options
    chosen = f" Of {len(RATE_FACTORS)} peak rates, this one had the lowest validation loss." if options.lr_auto else ""
    return f"{schedule(options, f'{options.learning_rate:g}')}{chosen}"


def schedule(options: Options, peak: str) -> str:
    """The learning rate over the steps.

    Args:
        peak: the highest one, in words.
    """
    start = f"started at {peak}"
    if options.warm_up:
        start = f"rose linearly to {peak} in the first {100 * options.warm_up:g}% of the steps"
    again = ""
    if options.restarts:
        again = f"; the cycle was repeated after epoch {in_words([str(epoch) for epoch in options.restarts], 'and')}"
    return f"The learning rate {start} and fell to 0 along a cosine (Loshchilov and Hutter, 2017){again}."


def regularization(facts: Facts) -> str:
    """What else shaped the training; options without effect on this model are left out."""
    options, ignored = facts.options, facts.metrics["model"].get("ignored", [])
    said = []
    if options.layer_decay != 1.0 and "layer_decay" not in ignored:
        said.append(
            f"the learning rate of each layer was {options.layer_decay:g} times that of the layer above (Bao et al., "
            "2022)"
        )
    if is_residual(options) and gates_learn(options):
        said.append(f"the learning rate of the gates was {rate_of_gates(options):g}")
    if options.drop_path and "drop_path" not in ignored:
        said.append(
            f"layers were skipped at random, with a probability that rose to {options.drop_path:g} in the last one "
            "(Huang et al., 2016)"
        )
    trains_layers = not options.freeze or options.full_width  # those that stay as they are drop nothing
    if options.dropout and options.model in ("vit", "resvit") and trains_layers:
        said.append(f"dropout was {options.dropout:g}")
    if options.clip:
        said.append(f"gradients were clipped to a norm of {options.clip:g}")
    return _sentence("; ".join(said))


def early_stopping(facts: Facts) -> str:
    """When training stops before its last epoch; empty where it never does."""
    patience = facts.options.patience
    if not patience:
        return ""
    return f"Training stopped early once the validation loss had not improved for {counted(patience, 'epoch')}."


def duration(facts: Facts) -> str:
    """The number of epochs."""
    done, early = facts.metrics["epochs"], facts.metrics["stopped"] == "early stopping"
    return f"Training ran for {counted(done, 'epoch')}{f' of at most {facts.options.epochs}' if early else ''}."


def selection(facts: Facts) -> str:
    """Which weights were tested, and why."""
    if facts.options.keep == "best":
        return f"The weights of epoch {facts.metrics['tested_epoch']}, with the lowest validation loss, were tested."
    return "The weights after the last epoch were tested."


def temperature(facts: Facts) -> str:
    """Temperature scaling; empty where no temperature was fitted."""
    found = facts.metrics.get("calibration", {}).get("temperature", 1.0)
    if found == 1.0:
        return ""
    return (
        f"Probabilities were calibrated by temperature scaling (Guo et al., 2017), fitted on the validation split "
        f"(temperature {found:.3g})."
    )


def thresholds(facts: Facts) -> str:
    """The operating points; empty where none were chosen."""
    if not facts.metrics.get("thresholds"):
        return ""
    return (
        "Two thresholds on the probability of each class were chosen on the validation split: the one with the largest "
        "sum of sensitivity and specificity (Youden, 1950), and the highest one with a sensitivity of at least "
        f"{100 * LEAST_SENSITIVITY:g}%."
    )


def held_out(_: Facts) -> str:
    """What the test split served for; not so in `rsattn test`, whose images may be those of the training."""
    return "The test images were used neither for training nor for a choice."


def measures(facts: Facts) -> str:
    """The measures on the test split."""
    classes = facts.data["classes"]
    auroc = "averaged over the classes one-versus-rest" if len(classes) > 2 else f"of the class {shown(classes[-1])}"
    calibrated = ""
    if "calibration" in facts.metrics:
        calibrated = " Calibration was measured by the expected calibration error and the Brier score."
    return (
        "Performance on the test images was measured by accuracy, balanced accuracy, macro-averaged F1 and the area "
        f"under the receiver operating characteristic curve (AUROC, {auroc}), and for each class by sensitivity, "
        f"specificity and precision.{calibrated}"
    )


def intervals(facts: Facts) -> str:
    """The 95 % intervals; empty where an older run has none."""
    found = facts.metrics.get("intervals")
    if found is None:
        return ""
    grouped = found["groups"] < facts.metrics["scores"]["images"]
    design = " with the design effect of the groups (Rao and Scott, 1992)" if grouped else ""
    times = f"{counted(found['resamples'], 'resample')} of the " if "resamples" in found else ""
    return (
        f"The 95% confidence intervals of proportions were Wilson intervals (Wilson, 1927){design}; those of other "
        f"measures came from a bootstrap ({times}{'groups' if grouped else 'images'}) on the logit scale."
    )


def software(facts: Facts) -> str:
    """The versions of the packages that this model used, and the device."""
    return versions(facts.metrics, [facts.options.model])


def versions(metrics: Mapping[str, Any], models: Iterable[str]) -> str:
    """The versions of the packages that models used, and the device; empty where an older run did not record them.

    Args:
        metrics: the content of metrics.json.
        models: as in `Options.model`.
    """
    found: Mapping[str, str] = metrics.get("versions", {})
    used = {
        **{"rsattn": "rsattn", "torch": "PyTorch", "lightning": "Lightning"},
        **{package: package for package in map(_library, models) if package},
        **{"torchmetrics": "TorchMetrics", "scikit-learn": "scikit-learn", "scipy": "SciPy", "numpy": "NumPy"},
        "python": "Python",
    }
    words = [f"{name} {found[package]}" for package, name in used.items() if package in found]
    if not words:
        return ""
    cited = " (Paszke et al., 2019, for PyTorch)" if "torch" in found else ""
    device = f", on {shown(metrics['device'])}" if metrics.get("device") else ""
    return f"The software was {in_words(words, 'and')}{cited}{device}."


def _library(model: str) -> str | None:
    """The package that a model comes from; None for the one of rsattn."""
    if model in ("vit", "resvit"):
        return "pytorch_pretrained_vit"
    if model in TORCHVISION:
        return "torchvision"
    return None if model == "cnn" else "timm"


def _sentence(clauses: str) -> str:
    return f"{clauses[:1].upper()}{clauses[1:]}." if clauses else ""


SENTENCES = (
    images,
    excluded,
    splits,
    assignment,
    grouping,
    left_out,
    checksum,
    preprocessing,
    augmentation,
    architecture,
    residual,
    without_residual,
    initial_weights,
    seed,
    trained_parts,
    head_first,
    optimizer,
    learning_rate,
    regularization,
    early_stopping,
    duration,
    selection,
    temperature,
    thresholds,
    held_out,
    measures,
    intervals,
    software,
)
