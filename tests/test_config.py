"""Config: the paper's numbers, the way to JSON and back, and a refusal that names the culprit for every wrong value."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
import pickle
import subprocess
import sys

import pytest

from fastaae import config
from fastaae.config import Config
from fastaae.experiments import preset, presets
from fastaae.files import brief

HUGE = 10**400  # more than a float holds


@pytest.mark.parametrize("name", presets())
def test_every_preset_survives_json(name):
    cfg = preset(name, seed=7, n_validation=3, out_dir="runs/ä")
    assert cfg.name == name
    again = Config.from_dict(json.loads(json.dumps(cfg.to_dict())))
    assert again == cfg and hash(again) == hash(cfg)
    assert all(type(getattr(again, f.name)) is type(getattr(cfg, f.name)) for f in dataclasses.fields(cfg))


def test_lists_become_tuples_and_integers_floats():
    cfg = Config(hidden=[30, 20], lr_decay_epochs=[], prior_std=2, momentum=0, input_noise=0)
    assert cfg.hidden == (30, 20) and cfg.lr_decay_epochs == ()
    assert all(type(v) is float for v in (cfg.prior_std, cfg.momentum, cfg.input_noise))
    assert Config(hidden=()).hidden == ()  # a linear encoder


def test_a_preset_takes_changes():
    cfg = preset("mnist-100", epochs=2, n_labeled=None)
    assert (cfg.epochs, cfg.n_labeled, cfg.style_dim) == (2, None, 10)
    assert preset("mnist-100").epochs == 5000


@pytest.mark.parametrize(("name", "n_labeled"), [("mnist-100", 100), ("mnist-1000", 1000), ("mnist-all", None)])
def test_semi_supervised_presets_are_the_papers(name, n_labeled):
    c = preset(name)
    assert c.task == "semi_supervised" and c.dataset == "mnist" and c.n_labeled == n_labeled
    assert c.optimizer == "sgd" and (c.momentum, c.momentum_adversarial) == (0.9, 0.1)
    assert (c.lr_reconstruction, c.lr_adversarial, c.lr_classification) == (0.01, 0.1, 0.1)
    assert (c.lr_decay, c.lr_decay_epochs, c.epochs) == (0.1, (50, 1000), 5000)
    assert (c.prior, c.prior_std, c.style_dim, c.input_noise) == ("gaussian", 1.0, 10, 0.3)
    assert (c.hidden, c.batch_size, c.output) == ((1000, 1000), 100, "sigmoid")
    assert (c.reconstruction, c.init_std) == ("squared_error", 0.01)


@pytest.mark.parametrize(("name", "style_dim"), [("mnist-likelihood", 8), ("mnist-2d", 2)])
def test_unsupervised_presets_are_the_papers(name, style_dim):
    c = preset(name)
    assert (c.task, c.dataset, c.style_dim) == ("unsupervised", "mnist", style_dim)
    assert (c.prior, c.prior_std) == ("gaussian", 5.0)
    assert (c.optimizer, c.momentum, c.momentum_adversarial) == ("sgd", 0.9, 0.1)
    assert (c.lr_reconstruction, c.lr_adversarial) == (0.01, 0.1)
    assert (c.hidden, c.batch_size, c.input_noise, c.output) == ((1000, 1000), 100, 0.0, "sigmoid")


@pytest.mark.parametrize(
    ("name", "prior", "labels"),
    [("mixture", "mixture", None), ("swiss-roll", "swiss_roll", 10_000), ("labels", "mixture", 10_000)],
)
def test_presets_of_shaped_priors_are_the_papers(name, prior, labels):
    c = preset(f"mnist-2d-{name}")
    assert (c.task, c.prior, c.style_dim, c.components) == ("unsupervised", prior, 2, 10)
    assert (c.label_prior, c.n_labeled) == (labels is not None, labels)


def test_the_adam_recipe_of_the_likelihood():
    c = preset("mnist-likelihood-adam")
    assert (c.task, c.hidden, c.style_dim, c.prior, c.prior_std) == ("unsupervised", (1000, 1000), 8, "gaussian", 5.0)
    assert (c.optimizer, c.lr_reconstruction, c.lr_adversarial, c.lr_decay_epochs) == ("adam", 2e-4, 1e-4, (55,))
    assert (c.reconstruction, c.output, c.dropout, c.input_dropout) == ("cross_entropy", "sigmoid", 0.2, 0.0)
    assert (c.batch_size, c.input_noise, c.n_validation) == (100, 0.0, None)


def test_the_faces_preset_is_the_papers():
    c = preset("tfd-likelihood")
    assert (c.task, c.dataset, c.style_dim, c.prior, c.prior_std) == ("unsupervised", "tfd", 15, "gaussian", 10.0)
    assert (c.scale, c.output, c.reconstruction, c.hidden) == ("standard", "linear", "squared_error", (1000, 1000))


@pytest.mark.parametrize("n_clusters", [16, 30])
def test_clustering_presets_are_the_papers(n_clusters):
    c = preset(f"mnist-clusters-{n_clusters}")
    assert (c.task, c.n_clusters, c.style_dim, c.prior, c.prior_std) == ("clustering", n_clusters, 5, "gaussian", 1.0)
    assert (c.hidden, c.batch_norm, c.input_dropout, c.input_noise, c.dropout) == ((3000, 3000), "encoder", 0.2, 0, 0)
    assert (c.lr_reconstruction, c.lr_adversarial, c.lr_decay_epochs, c.epochs) == (0.01, 0.1, (50,), 1500)
    assert (c.optimizer, c.momentum, c.momentum_adversarial, c.batch_size) == ("sgd", 0.9, 0.1, 100)


def test_the_models_the_paper_compares_with():
    vae, gmmn = preset("mnist-vae-2d"), preset("mnist-gmmn")
    assert (vae.regularizer, vae.posterior, vae.style_dim, vae.hidden) == ("kl", "gaussian", 2, (1000, 1000))
    assert (gmmn.regularizer, gmmn.posterior, gmmn.style_dim) == ("mmd", "deterministic", 8)


def test_embedding_presets_are_the_papers():
    for name, dim, labels, clusters, heads in (
        ("2d-1000", 2, 1000, None, None), ("2d-100", 2, 100, None, None),
        ("2d-unsupervised", 2, None, 20, None), ("10d-100", 10, 100, None, 10.0),
    ):  # fmt: skip
        c = preset(f"mnist-embedding-{name}")
        assert (c.task, c.style_dim, c.n_labeled, c.n_clusters) == ("embedding", dim, labels, clusters)
        assert (c.fixed_heads, c.prior, c.prior_std, c.input_noise) == (heads, "gaussian", 1.0, 0.3)
        assert (c.lr_decay_epochs, c.epochs, c.hidden) == ((50, 1000), 5000, (1000, 1000))


def test_the_svhn_preset_is_the_papers():
    c = preset("svhn-1000")
    assert (c.task, c.dataset, c.n_labeled, c.style_dim, c.prior_std) == ("semi_supervised", "svhn", 1000, 20, 1.0)
    assert (c.lr_reconstruction, c.lr_adversarial, c.lr_classification) == (1e-4, 0.01, 0.1)
    assert (c.batch_norm, c.input_dropout, c.lr_decay_epochs, c.epochs) == ("autoencoder", 0.2, (250,), 1000)


@pytest.mark.parametrize("dataset", ["mnist", "svhn"])
def test_style_presets_are_the_papers(dataset):
    c = preset(f"{dataset}-style")
    assert (c.task, c.dataset, c.style_dim, c.prior, c.prior_std) == ("supervised", dataset, 15, "gaussian", 1.0)


INTEGERS = ("style_dim", "noise_dim", "components", "epochs", "batch_size", "replicas", "log_every")
POSITIVE = ("prior_std", "init_std", "lr_decay")
SEMI = {"task": "semi_supervised"}

REFUSED = [
    *((name, 0, "an integer from 1") for name in (*INTEGERS, "n_labeled", "checkpoint_every")),
    ("style_dim", -1, "an integer from 1"),
    ("epochs", 2**31, "2**31 - 1"),
    ("batch_size", True, "an integer from 1"),
    ("replicas", 2.0, "an integer from 1"),
    ("log_every", "5", "an integer from 1"),
    ("log_every", None, "an integer from 1"),
    ("epochs", math.nan, "an integer from 1"),
    ("seed", -1, "an integer from 0"),
    ("seed", None, "an integer from 0"),
    *((name, 0.0, "a finite number > 0") for name in POSITIVE),
    ("lr_adversarial", -0.1, "a finite number >= 0"),
    ("lr_reconstruction", math.nan, "a finite number >= 0"),
    ("prior_std", math.inf, "a finite number > 0"),
    ("init_std", "0.01", "a finite number > 0"),
    ("lr_decay", True, "a finite number > 0"),
    ("prior_std", HUGE, "a finite number > 0"),
    ("lr_classification", None, "a finite number >= 0"),
    ("input_noise", -1e-9, "a finite number >= 0"),
    ("n_clusters", 1, "an integer from 2"),
    ("batch_norm", "decoder", "one of none, encoder, autoencoder"),
    ("noise_layer", -1, "an integer from 0"),
    ("regularizer", "vae", "one of adversarial, kl, mmd"),
    ("posterior", "normal", "one of deterministic, gaussian, universal"),
    ("regularizer_weight", 0.0, "a finite number > 0"),
    ("separation", 0.0, "a finite number > 0"),
    ("dropout", 1.0, "a number in [0, 1)"),
    ("input_dropout", -0.1, "a number in [0, 1)"),
    ("momentum", 1.0, "a number in [0, 1)"),
    ("momentum", -0.1, "a number in [0, 1)"),
    ("momentum_adversarial", 1.5, "a number in [0, 1)"),
    ("momentum_adversarial", math.nan, "a number in [0, 1)"),
    ("hidden", 100, "a tuple of at most 1000 integers"),
    ("hidden", "100", "a tuple of at most 1000 integers"),
    ("lr_decay_epochs", None, "a tuple of at most 1000 integers"),
    ("lr_decay_epochs", (50, 20), "increasing epochs"),
    ("lr_decay_epochs", (50, 50), "increasing epochs"),
    ("start_epochs", 3, "a tuple of at most 1000 integers"),
    ("start_epochs", (2, 1), "increasing epochs"),
    ("label_prior", 1, "True or False"),
    ("keep", "all", "one of last, best, final"),
    ("patience", 0, "an integer from 1 to 2**31 - 1 or None"),
    ("name", "", "a non-empty string"),
    ("dataset", None, "a non-empty string"),
    ("device", 0, "a non-empty string"),
    ("data_dir", 3, "a non-empty string or None"),
    ("out_dir", b"x", "a non-empty string or None"),
    ("task", "semi-supervised", "did you mean 'semi_supervised'?"),
    ("task", None, "one of unsupervised, supervised, semi_supervised, clustering, embedding, gan"),
    ("prior", "gausian", "did you mean 'gaussian'?"),
    ("output", ["sigmoid"], "one of auto, sigmoid, linear"),
    ("reconstruction", "squared error", "did you mean 'squared_error'?"),
    ("optimizer", "rmsprop", "one of sgd, adam"),
    ("precision", "tf32", "one of fp32, bf16, fp16, fp64"),
]


@pytest.mark.parametrize(("field", "value", "expected"), REFUSED, ids=lambda v: repr(v)[:24])
def test_a_wrong_value_is_refused_by_name(field, value, expected):
    with pytest.raises(ValueError) as error:
        Config(**SEMI | {field: value})
    given = tuple(value) if isinstance(value, list) else value
    assert str(error.value).startswith(f"{field}={brief(given)}: expected ")
    assert expected in str(error.value)


@pytest.mark.parametrize("name", ["hidden", "lr_decay_epochs", "start_epochs"])
@pytest.mark.parametrize("value", [0, -5, 2**31, 1.5, True, "9", None, (9,)], ids=repr)
def test_a_wrong_element_is_refused_by_name(name, value):
    with pytest.raises(ValueError) as error:
        Config(**{name: (3, value)})
    assert str(error.value).startswith(f"{name}={value!r}: expected an integer from 1")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"reconstruction": "cross_entropy", "output": "linear"},
            "output='linear': expected 'auto' or 'sigmoid' with the loss cross_entropy",
        ),
        ({"n_labeled": 100}, "n_labeled=100: expected None: the task 'unsupervised' uses no labels"),
        ({"prior": "mixture", "style_dim": 8}, "style_dim=8: expected 2 with the 2-D prior 'mixture'"),
        ({"prior": "swiss_roll", "style_dim": 3}, "style_dim=3: expected 2 with the 2-D prior 'swiss_roll'"),
        ({"label_prior": True}, "prior='gaussian': expected 'mixture' or 'swiss_roll' with label_prior"),
        (
            {"label_prior": True, "prior": "custom"},
            "prior='custom': expected 'mixture' or 'swiss_roll' with label_prior",
        ),
        (
            {"scale": "standard", "output": "sigmoid"},
            "output='sigmoid': expected 'auto' or 'linear' with scale='standard'",
        ),
        ({"standardize": 1}, "standardize=1: expected True or False"),
        ({"standardize": True, "scale": "minmax"}, "standardize=True: .* no other scale .got 'minmax'"),
        ({"standardize": False, "scale": "standard"}, "standardize=False: .* no other scale .got 'standard'"),
        ({"label_weights": [1, 2]}, ".* in the task 'unsupervised', where y has no prior"),
        ({"label_weights": [1, -2], "task": "semi_supervised"}, "expected 'uniform', 'data' or positive numbers"),
        ({"label_weights": "data", "task": "clustering", "n_clusters": 3}, "'uniform' or numbers where y is no label"),
        ({"graph": None}, "graph=None: expected True or False"),
        (
            {"label_prior": True, "prior": "mixture", "style_dim": 2, "task": "semi_supervised"},
            "label_prior=True: expected False: in the task 'semi_supervised' y is for that",
        ),
        (
            {"regularizer": "mmd", "task": "clustering", "n_clusters": 9},
            "regularizer='mmd': expected 'adversarial' where",
        ),
        ({"regularizer_weight": 2.0}, "regularizer_weight=2.0: expected 1.0 with discriminators"),
        ({"regularizer": "kl"}, "posterior='deterministic': expected 'gaussian' with regularizer 'kl'"),
        (
            {"regularizer": "kl", "posterior": "gaussian", "prior": "uniform"},
            "prior='uniform': expected 'gaussian' with regularizer 'kl'",
        ),
        ({"noise_layer": 3}, "noise_layer=3: expected at most 2, the number of hidden layers"),
        ({"task": "gan", "input_dropout": 0.1}, "input_dropout=0.1: expected 0.0: a gan has no encoder"),
        ({"fixed_heads": 10}, "fixed_heads=10.0: expected None in the task 'unsupervised'"),
        (
            {"task": "embedding", "fixed_heads": 10.0, "n_clusters": 20, "style_dim": 8},
            "n_clusters=20: expected style_dim=8 with fixed_heads, a square W_C",
        ),
        (
            {"task": "embedding", "n_clusters": 20, "n_labeled": 100},
            "n_labeled=100: expected None: the task 'embedding' uses no labels",
        ),
        ({"batch_norm": "encoder", "batch_size": 1}, "batch_size=1: expected at least 2 with batch_norm"),
        (
            {"batch_norm": "encoder", "lr_reconstruction": 0},
            "batch_norm='encoder': expected 'none' with lr_reconstruct",
        ),
        ({"task": "gan", "lr_adversarial": 0}, "lr_adversarial=0.0: expected a finite number > 0 in the task 'gan'"),
        ({"lr_reconstruction": 0, "lr_adversarial": 0}, "lr_reconstruction=0.0: expected a number > 0 unless another"),
        ({"regularizer": "mmd", "lr_reconstruction": 0}, "lr_reconstruction=0.0: expected a number > 0 unless another"),
        (
            {"task": "semi_supervised", "lr_reconstruction": 0, "lr_adversarial": 0, "lr_classification": 0},
            "lr_reconstruction=0.0: expected a number > 0 unless another cost is learned",
        ),
        ({"task": "clustering"}, "n_clusters=None: expected a number of clusters in the task 'clustering'"),
        ({"n_clusters": 16}, "n_clusters=16: expected None in the task 'unsupervised'"),
        ({"noise_dim": 3}, "noise_dim=3: expected 10: it is for posterior='universal' alone"),
        ({"noise_layer": 1}, "noise_layer=1: expected 0: it is for posterior='universal' alone"),
        ({"components": 7}, "components=7: expected 10: it is for prior='mixture' or 'swiss_roll' alone"),
        (
            {"task": "embedding", "fixed_heads": 10.0, "separation": 5.0},
            "separation=5.0: expected 10.0: it is for an embedding's learned heads",
        ),
        ({"start_epochs": [1]}, "keep='last': expected 'best' with start_epochs, to go on from"),
        (
            {"start_epochs": [1], "keep": "best", "patience": 3},
            "patience=3: expected None with start_epochs: most starts",
        ),
        ({"start_epochs": [1], "task": "gan"}, r"start_epochs=\(1,\): expected \(\): a gan has no validation metric"),
        ({"task": "supervised", "n_labeled": 9}, "n_labeled=9: expected None: the task 'supervised' uses all labels"),
    ],
    ids=repr,
)
def test_fields_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**fields)


def test_every_field_is_checked():
    names = [f.name for f in dataclasses.fields(Config)]
    assert {name for row in config.FIELDS for name in row[0].split()} == {*names}
    tables = (*config.ELEMENTS, *config.RULES, *config.UNUSED)
    assert {name for row in tables for name in row[0].split()} <= {*names}
    assert len(config.CHOICES) == 13 and config.CHOICES["optimizer"] == ("sgd", "adam")


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: preset("mnist100"), ["'mnist100'", "mnist-100, mnist-1000", "did you mean 'mnist-100'?"]),
        (lambda: preset("digits", epoch=3), ["'epoch'", "did you mean 'epochs'?"]),
        (lambda: Config.from_dict({"style_dims": 3}), ["'style_dims'", "did you mean 'style_dim'?"]),
        (lambda: Config(latent_dim=3), ["config: unknown field 'latent_dim'; did you mean 'style_dim'?"]),
        (lambda: dataclasses.replace(Config(), epoch=3), ["unknown field 'epoch'; did you mean 'epochs'?"]),
        (lambda: Config(learning=1), ["unknown field 'learning': expected the name of one of Config's"]),
        (
            lambda: preset("digits", lr=1),
            ["unknown field 'lr'", "'lr_reconstruction'", "'lr_adversarial'", "'lr_decay'"],
        ),
        (lambda: preset("digits", dim=1), ["did you mean 'noise_dim' or 'style_dim'?"]),
        (lambda: Config.from_dict({3: 3}), ["unknown field '3'"]),
        (lambda: Config.from_dict([1]), ["got list", "expected an object"]),
        (lambda: Config.from_dict(None), ["got NoneType", "expected an object"]),
    ],
    ids=[
        "preset",
        "field of a preset",
        "field",
        "keyword",
        "replace",
        "like none",
        "beginning",
        "end",
        "number as field",
        "list",
        "None",
    ],
)
def test_unknown_names_are_refused_with_a_suggestion(make, parts):
    with pytest.raises(ValueError) as error:
        make()
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_a_config_is_still_a_dataclass():
    cfg = Config(epochs=3)
    assert list(inspect.signature(Config).parameters) == [field.name for field in dataclasses.fields(Config)]
    assert pickle.loads(pickle.dumps(cfg)) == copy.deepcopy(cfg) == cfg


def test_from_json_reads_plain_fields_and_the_config_of_a_run(tmp_path):
    cfg = preset("digits", seed=3, out_dir="runs/a")
    plain, run = tmp_path / "plain.json", tmp_path / "config.json"
    plain.write_text(json.dumps(cfg.to_dict()))
    run.write_text(json.dumps({"config": cfg.to_dict(), "versions": {"torch": "2"}}))
    assert Config.from_json(plain) == cfg
    assert Config.from_json(str(run)) == dataclasses.replace(cfg, out_dir=None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "Expecting value"),
        (b"{'seed': 1}", "Expecting property name"),
        (b"\x80{}", "utf-8"),
        (b"[1]", "got list, expected an object"),
        (b'{"config": [1]}', "config: got list, expected an object"),
        (b'{"sead": 1}', "unknown field 'sead'; did you mean 'seed'"),
        (b'{"config": {"sead": 1}}', "unknown field 'sead'"),
        (b'{"momentum": NaN}', "momentum=nan: expected"),
        (b'{"momentum": 1%s}' % (b"0" * 400), r"momentum=10{199}\.\.\.: expected"),
        (b'{"momentum": 1%s}' % (b"0" * 9000), "4300"),
        (b'{"seed": 1, "seed": 2}', "'seed' is given twice"),
        (b"[" * 100_000, "decoding a JSON array"),
        (b'{"a":' * 100_000, "decoding a JSON object"),
    ],
    ids="missing empty quotes bytes list wrong-config unknown nested NaN huge huger twice deep-list deep-dict".split(),
)
def test_from_json_refuses_with_the_name_of_the_file(tmp_path, content, message):
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        Config.from_json(path)
    assert str(error.value).startswith(f"{path}: ")


def test_from_json_refuses_a_folder(tmp_path):
    with pytest.raises(ValueError, match="not a regular file .*, expected the path of a plain file"):
        Config.from_json(tmp_path)


@pytest.mark.parametrize(
    ("epoch", "factor"), [(0, 1), (1, 1), (2, 0.5), (3, 0.5), (4, 0.5), (5, 0.25), (6, 0.25), (10**6, 0.25)]
)
def test_rates_decay_at_the_start_of_the_given_epochs(epoch, factor):
    assert Config(lr_decay=0.5, lr_decay_epochs=(2, 5)).rate(0.8, epoch) == 0.8 * factor


def test_without_decay_epochs_the_rate_stays():
    assert Config(lr_decay_epochs=()).rate(0.3, 10**6) == 0.3


def test_config_needs_no_torch():
    code = (
        "import sys, fastaae.experiments as e; e.preset('digits'); sys.exit(bool({'torch', 'numpy'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
