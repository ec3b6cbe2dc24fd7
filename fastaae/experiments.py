"""The presets: a Config for every experiment of the paper, and some that reach its results sooner.

Not called presets.py: the module would hide the function fastaae.presets().
"""

from typing import Any

from .config import Config
from .files import suggestion

PAPER = {  # what the paper's experiments have in common, where Config's defaults are others
    "style_dim": 8, "output": "sigmoid", "init_std": 0.01, "optimizer": "sgd",
    "lr_reconstruction": 0.01, "lr_adversarial": 0.1, "lr_classification": 0.1, "lr_decay_epochs": (50, 1000),
}  # fmt: skip

# section 5 and appendix A.2 of the paper
_SEMI_SUPERVISED = {"task": "semi_supervised", "style_dim": 10, "prior_std": 1.0, "input_noise": 0.3, "epochs": 5000}
_EMBEDDING = {**_SEMI_SUPERVISED, "task": "embedding", "style_dim": 2}  # section 7

_ADAM = {"optimizer": "adam", "lr_reconstruction": 2e-4, "init_std": 0.03}  # with 0.01 the first epochs are lost
# figures 2b and 4; by the SGD of mnist-2d components are filled, and classes find theirs, later
_SHAPED = {**_ADAM, "style_dim": 2, "epochs": 1000, "lr_adversarial": 1e-3}  # at 5e-4 both, zeros share a petal
_SHORT = {**_ADAM, "dropout": 0.2, "lr_adversarial": 1e-4, "lr_decay_epochs": (55,), "epochs": 70}  # table 1, sooner
_LABELS = {"label_prior": True, "n_labeled": 10_000}  # the other 40,000 images have none
_FASTER = {**_SHORT, "reconstruction": "cross_entropy", "lr_reconstruction": 1e-3}  # what the paper compares with
_EARLY = {"lr_decay_epochs": (80,), "epochs": 100}  # the paper has decays at 50 and 1000 of 5000
_ALONE = {"lr_reconstruction": 0.0, "lr_adversarial": 0.0, "epochs": 20}  # the labels without the game
# few labels, learned faster than the game: more right from the first epoch on
_TAUGHT = {**_ADAM, "batch_norm": "encoder", "input_noise": 0.0, "input_dropout": 0.2, "lr_classification": 2e-3}

_SVHN = {
    "dataset": "svhn", "scale": "standard", "output": "linear", "batch_norm": "autoencoder", "input_dropout": 0.2,
    "prior_std": 1.0, "lr_reconstruction": 1e-4, "lr_adversarial": 0.01, "lr_decay_epochs": (250,), "epochs": 1000,
}  # fmt: skip

_CLUSTERING = {  # section 6
    "task": "clustering", "hidden": (3000, 3000), "style_dim": 5, "prior_std": 1.0, "batch_norm": "encoder",
    "input_dropout": 0.2, "lr_decay_epochs": (50,), "epochs": 1500,
}  # fmt: skip

_STARTED = {  # in far fewer seconds; where the game is slower than reconstruction, z takes the class and y stays soft
    "optimizer": "adam", "init_std": None, "lr_reconstruction": 1e-3, "lr_adversarial": 1e-3, "lr_decay_epochs": (40,),
    "start_epochs": (*range(1, 17),), "keep": "best", "epochs": 46,  # what one epoch makes of the weights mostly stays
}  # fmt: skip
_CLUSTERS = {**_CLUSTERING, **_STARTED, "hidden": (1000, 1000)}

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {  # what each is, and what it changes of PAPER
    "digits": ("2-D code of scikit-learn's 8x8 digits; seconds",
        {"dataset": "digits", "hidden": (200, 200), "style_dim": 2, "init_std": 0.05, "lr_reconstruction": 0.03,
         "epochs": 200, "lr_decay_epochs": (150,)}),
    "mnist-likelihood": ("8-D code, scored by its samples' log-likelihood: table 1", {"epochs": 1000}),
    "mnist-likelihood-adam": ("the same by Adam and cross-entropy: better in far fewer epochs",
        {**_SHORT, "reconstruction": "cross_entropy"}),
    "mnist-likelihood-short": ("the same with a 6-D code, at higher rates: better under 10,000 samples",
        {**_FASTER, "style_dim": 6, "dropout": 0.1, "lr_adversarial": 3e-4, "lr_decay_epochs": (38,), "epochs": 50}),
    "tfd-likelihood": ("15-D code of the Toronto Face Database: the other half of table 1",
        {**_SHORT, "dataset": "tfd", "style_dim": 15, "prior_std": 10.0, "scale": "standard", "output": "linear"}),
    "mnist-gan": ("beside it in table 1: a decoder against a discriminator of images",
        {**_ADAM, "task": "gan", "style_dim": 11, "prior_std": 1.0, "init_std": 0.05, "batch_norm": "autoencoder",
         "input_noise": 0.5, "dropout": 0.5,  # without either its discriminator is far ahead from the first epoch on
         # the game goes in circles, and the average of ten epochs is far better than any of its weights
         "lr_adversarial": 3e-4, "lr_decay_epochs": (), "epochs": 60, "average": 0.9998}),
    "mnist-gmmn": ("beside it in table 1: a code matched by maximum mean discrepancy",
        {**_FASTER, "regularizer": "mmd", "regularizer_weight": 100.0}),
    "mnist-vae": ("beside it: a variational autoencoder",
        {**_FASTER, "regularizer": "kl", "posterior": "gaussian", "prior_std": 1.0}),
    "mnist-vae-2d": ("2-D code of a variational autoencoder: beside figure 2",
        {**_FASTER, "style_dim": 2, "regularizer": "kl", "posterior": "gaussian"}),
    "mnist-2d": ("2-D code under a Gaussian, to look at: figure 2", {"style_dim": 2, "epochs": 1000}),
    "mnist-2d-mixture": ("2-D code on ten petals: figure 2",
        {**_SHAPED, "lr_adversarial": 1e-4, "prior": "mixture", "dropout": 0.2}),  # at 1e-3 codes collapse
    "mnist-2d-labels": ("petals, a class on each: figure 4; 10,000 labels", {**_SHAPED, **_LABELS, "prior": "mixture"}),
    "mnist-2d-swiss-roll": ("2-D code along a roll, a class on each piece: figure 4; 10,000 labels",
        {**_SHAPED, **_LABELS, "prior": "swiss_roll"}),
    "mnist-100": ("classes learned from 100 labels, and styles: table 2", {**_SEMI_SUPERVISED, "n_labeled": 100}),
    "mnist-1000": ("the same from 1,000 labels", {**_SEMI_SUPERVISED, "n_labeled": 1000}),
    "mnist-all": ("the same from all labels", _SEMI_SUPERVISED),
    "mnist-100-short": ("from 100 labels, with an early decay", {**_SEMI_SUPERVISED, **_EARLY, "n_labeled": 100}),
    "mnist-100-adam": ("the same by Adam: sooner", {**_SEMI_SUPERVISED, **_TAUGHT, "n_labeled": 100,
        "lr_reconstruction": 1e-3, "lr_adversarial": 5e-4, "lr_decay_epochs": (15,), "epochs": 20}),
    "mnist-100-whole": ("from 100 labels, none of the images held out",
        {**_SEMI_SUPERVISED, "n_labeled": 100, "n_validation": 0, "lr_decay_epochs": (140,), "epochs": 160}),
    "mnist-1000-short": ("from 1,000 labels, with an early decay", {**_SEMI_SUPERVISED, **_EARLY, "n_labeled": 1000}),
    "mnist-all-short": ("the same from all labels, none held out",
        {**_SEMI_SUPERVISED, "n_validation": 0, "lr_decay_epochs": (64,), "epochs": 80}),
    "nn-mnist-100": ("beside it: the network from 100 labels alone", {**_SEMI_SUPERVISED, **_ALONE, "n_labeled": 100}),
    "nn-mnist-1000": ("the same from 1,000 labels", {**_SEMI_SUPERVISED, **_ALONE, "n_labeled": 1000}),
    "nn-mnist-all": ("the same from all labels", {**_SEMI_SUPERVISED, **_ALONE}),
    "svhn-1000": ("the same of house numbers in colour, from 1,000 labels",
        {**_SVHN, "task": "semi_supervised", "n_labeled": 1000, "style_dim": 20}),
    # where the code is fast to learn, it carries the class as well, and the label is ignored
    "mnist-style": ("the decoder is told the label, the code keeps the style: figure 7",
        {**_SHORT, "task": "supervised", "style_dim": 15, "prior_std": 1.0, "lr_reconstruction": 1e-4,
         "lr_adversarial": 5e-4}),
    "svhn-style": ("the same of house numbers in colour", {**_SVHN, "task": "supervised", "style_dim": 15}),
    "mnist-embedding-2d-1000": ("2-D representation, a head for each class plus style: figure 10; 1,000 labels",
        {**_EMBEDDING, "n_labeled": 1000}),
    "mnist-embedding-2d-100": ("the same from 100 labels", {**_EMBEDDING, "n_labeled": 100}),
    "mnist-embedding-2d-100-adam": ("the same by Adam: better in far fewer epochs",
        {**_EMBEDDING, **_TAUGHT, "n_labeled": 100, "lr_adversarial": 2e-4, "lr_decay_epochs": (32,), "epochs": 40}),
    "mnist-embedding-2d-unsupervised": ("2-D of 20 clusters, no labels",
        {**_EMBEDDING, "n_clusters": 20, "batch_norm": "encoder"}),  # without it few heads are used
    "mnist-embedding-2d-unsupervised-adam": ("the same by Adam, in far fewer epochs",
        {**_EMBEDDING, **_STARTED, "n_clusters": 20, "batch_norm": "encoder"}),
    "mnist-embedding-10d-100": ("10-D with fixed heads, from 100 labels",
        {**_EMBEDDING, "style_dim": 10, "n_labeled": 100, "fixed_heads": 10.0}),
    "mnist-embedding-10d-100-short": ("the same with heads nearer to each other: better in far fewer epochs",
        {**_EMBEDDING, **_EARLY, "style_dim": 10, "n_labeled": 100, "fixed_heads": 3.0}),
    "mnist-embedding-2d-1000-short": ("2-D from 1,000 labels, with an early decay",
        {**_EMBEDDING, "n_labeled": 1000, "lr_decay_epochs": (24,), "epochs": 30}),
    "mnist-clusters-16": ("16 clusters, no labels: table 3", {**_CLUSTERING, "n_clusters": 16}),
    "mnist-clusters-30": ("30 clusters, no labels: table 3", {**_CLUSTERING, "n_clusters": 30}),
    "mnist-clusters-16-adam": ("the same by Adam, a third as wide: far sooner", {**_CLUSTERS, "n_clusters": 16}),
    "mnist-clusters-30-adam": ("the same of 30 clusters", {**_CLUSTERS, "n_clusters": 30}),
}  # fmt: skip


def presets() -> list[str]:
    """Names that preset() takes."""
    return list(PRESETS)


def preset(name: str, /, **changes: Any) -> Config:
    """The Config of one experiment, with any field changed by keyword.

    Raises:
        ValueError: unknown preset or field, or a value out of range.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}{suggestion(name, PRESETS)}")
    return Config.from_dict({"name": name, **PAPER, **PRESETS[name][1], **changes})
