"""The step: against autograd and an idiomatic PyTorch step in float64, replicas against single runs, capture safety."""

from __future__ import annotations

import idiomatic
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastaae import Config
from fastaae.data import from_arrays
from fastaae.engine.step import Step
from fastaae.engine.wiring import PHASES
from fastaae.experiments import PAPER

CPU = torch.device("cpu")
VARIANTS = {
    "plain": {},
    "noise": {"input_noise": 0.3},
    "cross-entropy": {"reconstruction": "cross_entropy"},
    "linear-output": {"output": "linear"},
    "standardized": {"output": "linear", "scale": "standard"},
    "standardized-noise": {"output": "linear", "scale": "standard", "input_noise": 0.3},
    "one-layer": {"hidden": (12,)},
    "gaussian": {"posterior": "gaussian"},
    "universal": {"posterior": "universal", "noise_dim": 4, "input_noise": 0.1, "dropout": 0.2},
    "universal-above": {"posterior": "universal", "noise_dim": 4, "noise_layer": 1, "dropout": 0.2},
    "universal-last": {"posterior": "universal", "noise_dim": 4, "noise_layer": 2, "batch_norm": "encoder"},
    "kl": {"regularizer": "kl", "posterior": "gaussian", "regularizer_weight": 0.7},
    "mmd": {"regularizer": "mmd", "regularizer_weight": 5.0},
    "mmd-gaussian": {"regularizer": "mmd", "posterior": "gaussian", "prior": "mixture", "style_dim": 2},
    "no-labels": {"task": "embedding", "n_clusters": 4},
    "fixed-heads": {"task": "embedding", "fixed_heads": 10.0},
    "batch-norm": {"batch_norm": "encoder"},
    "batch-norm-everywhere": {"batch_norm": "autoencoder", "input_dropout": 0.2, "dropout": 0.2},
    "batch-norm-adam": {
        "batch_norm": "encoder",
        "optimizer": "adam",
        "lr_reconstruction": 1e-3,
        "lr_adversarial": 1e-3,
        "lr_classification": 1e-3,
    },
    "labels-alone": {"lr_reconstruction": 0.0, "lr_adversarial": 0.0, "dropout": 0.2},
    "no-game": {"lr_adversarial": 0.0, "dropout": 0.2},
    "game-alone": {"lr_reconstruction": 0.0, "lr_classification": 0.0, "dropout": 0.2},
    "gan-noise": {"batch_norm": "autoencoder", "input_noise": 0.4, "dropout": 0.3},
    "dropout": {"dropout": 0.3},
    "dropouts": {"dropout": 0.3, "input_dropout": 0.2, "input_noise": 0.1},
    "uniform": {"prior": "uniform"},
    "mixture": {"prior": "mixture", "style_dim": 2},
    "swiss-roll": {"prior": "swiss_roll", "style_dim": 2},
    "labels": {"prior": "mixture", "style_dim": 2, "label_prior": True, "components": 3, "n_labeled": 60},
    "adam": {"optimizer": "adam", "lr_reconstruction": 1e-3, "lr_adversarial": 1e-3, "lr_classification": 1e-3},
}


def sensible(task, variant):
    fields = VARIANTS[variant]
    if variant == "gan-noise":
        return task == "gan"
    if task == "gan":
        several = ("plain", "linear-output", "standardized", "one-layer", "adam", "uniform", "mixture", "dropout")
        return variant in several
    if variant in ("labels", "standardized"):
        return task == "unsupervised"
    if variant == "labels-alone":
        return task in ("semi_supervised", "embedding")
    if "regularizer" in fields:
        return task in ("unsupervised", "supervised")
    return fields.get("task", task) == task


CASES = [(task, variant) for task in PHASES for variant in VARIANTS if sensible(task, variant)]


def dataset(dtype=np.uint8, n=120):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n, 4, 5)).astype(np.uint8)
    y = np.arange(n) % 3
    return from_arrays((x if dtype == np.uint8 else (x / 255).astype(dtype), y), n_validation=20)


def config(task, **fields):
    sizes = {"hidden": (16, 12), "style_dim": 3, "batch_size": 10}
    fields = {**PAPER, **sizes, "prior_std": 2.0, "init_std": 0.3, **fields}
    fields = {"n_clusters": 4, **fields} if task == "clustering" else fields
    fields = {"separation": 50.0, **fields} if task == "embedding" and "fixed_heads" not in fields else fields
    return Config(**{"task": task, "precision": "fp64", "log_every": 10, **fields})


def make(cfg, epoch=0):
    step = Step(cfg, dataset(), CPU)
    step.start_epoch(epoch)
    return step


@pytest.mark.parametrize(("task", "variant"), CASES)
def test_whole_steps_equal_the_idiomatic_ones(task, variant):
    for careful in (False, True):
        assert idiomatic.check(config(**{"task": task, **VARIANTS[variant]}), dataset(), 5, careful) < 1e-9


@pytest.mark.parametrize(("task", "variant"), [c for c in CASES if "lr_adversarial" not in VARIANTS[c[1]]])
def test_every_phase_has_the_loss_and_gradients_of_autograd(task, variant):
    rate = 2.0**-10 if task == "embedding" else 1.0  # heads are large: a long step saturates everything
    rates = {"lr_reconstruction": rate, "lr_adversarial": rate, "lr_classification": rate}
    still = {"momentum": 0.0, "momentum_adversarial": 0.0}
    step = make(config(**{"task": task, **still, **rates, **VARIANTS[variant]}))
    step.batches.draw()
    batch = idiomatic.drawn(step)
    for phase in step.phases:
        other = idiomatic.twin(step)  # from the weights as they are before this phase
        with torch.no_grad():
            codes = other.encode(batch)
        loss = {
            "separation": lambda o=other: o.separation(),
            "divergence": lambda o=other: o.divergence(batch, o.encode(batch)),
            "reconstruction": lambda o=other: o.reconstruction(batch),
            "discriminator": lambda o=other, c=codes: o.discriminator(batch, c),
            "generator": lambda o=other: o.generator(batch, o.encode(batch)),
            "classification": lambda o=other: o.classification(batch),
        }[phase.__name__]()
        total = loss
        if phase.__name__ == "reconstruction" and step.cfg.regularizer != "adversarial":
            total = loss + other.divergence(batch, other.encode(batch))
        heads = [("heads", other.heads)] if "separation.heads" in step.optimizers else []
        updated = {
            "divergence": [],
            "separation": [("heads", other.heads)],
            "reconstruction": [("encoder", other.encoder), ("decoder", other.decoder), *heads],
            "discriminator": [(f"discriminator.{n}", m) for n, m in other.discriminators.items()],
        }.get(phase.__name__, [("decoder", other.decoder) if task == "gan" else ("encoder", other.encoder)])
        expected = {}
        for name, module in updated:
            learned = [module] if name == "heads" else list(module.parameters())
            gradients = torch.autograd.grad(total, learned, retain_graph=True)
            keys = [k for k in step.parameters() if k.startswith(f"{name}.") and "running" not in k]
            expected |= dict(zip(keys, gradients, strict=True))
        before = {name: p.clone() for name, p in step.parameters().items()}
        terms = torch.zeros_like(step.terms[0])
        phase(step, terms)
        torch.testing.assert_close(terms.sum(1), loss.detach().expand(1), rtol=1e-9, atol=0)
        for name, p in step.parameters().items():
            if name in expected:
                gradient = expected[name].reshape(p.shape)
                scale = gradient.abs().max().item()
                assert scale > 0, f"{phase.__name__} {name}"
                atol = 1e-9 * scale + 1e-14 / rate  # batch normalisation above makes the gradient of a bias zero
                torch.testing.assert_close((before[name] - p) / rate, gradient, rtol=1e-9, atol=atol)
            elif "running" not in name or phase.__name__ != ("discriminator" if task == "gan" else "reconstruction"):
                assert torch.equal(before[name], p), f"{phase.__name__} changed {name}"


@pytest.mark.parametrize(("task", "variant"), [c for c in CASES if c[1] not in ("plain", "one-layer", "linear-output")])
def test_three_replicas_equal_three_runs(task, variant):
    fields = {"task": task} | ({"n_labeled": 30} if task == "semi_supervised" else {}) | VARIANTS[variant]
    together = make(config(replicas=3, seed=1, **fields))
    alone = [make(config(seed=1 + k, **fields)) for k in range(3)]
    for n in range(20):
        for step in (together, *alone):
            if n == 10:
                step.start_epoch(1)
                step.slot.zero_()
            step()
    for k, single in enumerate(alone):
        torch.testing.assert_close(together.losses[:, :, k], single.losses[:, :, 0], rtol=1e-10, atol=1e-12)
        for name, p in single.parameters().items():
            torch.testing.assert_close(together.parameters()[name][k], p[0], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize(
    ("fields", "phases", "trained"),
    [
        ({"lr_reconstruction": 0.0, "lr_adversarial": 0.0}, ["classification"], {"encoder"}),
        ({"lr_adversarial": 0.0}, ["reconstruction", "classification"], {"encoder", "decoder"}),
        ({"lr_classification": 0.0}, ["reconstruction", "discriminator", "generator"], None),
    ],
)
def test_a_cost_without_a_rate_is_left_out(fields, phases, trained):
    step = make(config("semi_supervised", **fields))
    before = {name: t.clone() for name, t in step.parameters().items()}
    step()
    changed = {name.split(".")[0] for name, t in step.parameters().items() if not torch.equal(t, before[name])}
    assert [phase.__name__ for phase in step.phases] == phases
    assert changed == (trained or {"encoder", "decoder", "discriminator"})


def test_replicas_differ_in_weights_labels_order_noise_and_prior():
    step = make(config("semi_supervised", replicas=2, n_labeled=30, input_noise=0.1))
    step.batches.draw()
    for tensor in (
        step.networks["encoder"].weights[0],
        step.batches.images.order,
        step.autoencoder.encoding.x[0],
        step.judging["z"].x[0][:, :10],
    ):
        assert not torch.equal(tensor[0], tensor[1])
    assert set(step.batches.labeled_rows[0].tolist()) != set(step.batches.labeled_rows[1].tolist())
    noise = step.autoencoder.encoding.x[0] - step.batches.images.target
    assert not torch.equal(noise[0], noise[1]) and abs(noise.std().item() - 0.1) < 0.02


def test_an_epoch_shows_every_example_once_and_cycles_the_labelled_ones():
    step = make(config("semi_supervised", n_labeled=30))
    seen, labeled = [], []
    for _ in range(step.steps_per_epoch):
        step.batches.draw()
        seen.append(step.autoencoder.encoding.x[0][0].clone())
        labeled.append(step.autoencoder.classifying.x[0][0].clone())
        step.batches.cursor.add_(1)
    expected = dataset().x_train.double() / 255
    rows = torch.cat(seen)
    assert torch.equal(rows[np.lexsort(rows.numpy().T)], expected[np.lexsort(expected.numpy().T)])
    for k in range(0, 9, 3):  # 10 steps of 10: three passes over 30 labelled examples, and a part of a fourth
        assert len(torch.cat(labeled[k : k + 3]).unique(dim=0)) == 30
    assert torch.equal(step.batches.labels[0], step.batches.y[step.batches.labeled.order[0, 90:].long()][:10])
    order = step.batches.images.order.clone()
    step.start_epoch(1)
    assert not torch.equal(order, step.batches.images.order)
    step.start_epoch(0)
    assert torch.equal(order, step.batches.images.order)


def test_the_prior_has_the_labels_of_the_batch():
    step = make(config("unsupervised", **VARIANTS["labels"], replicas=2))
    images, labels = dataset().x_train.double() / 255, torch.from_numpy(np.asarray(dataset().y_train))
    shares = []
    for _ in range(step.steps_per_epoch):
        step.batches.draw()
        condition = step.codes.condition.argmax(-1)
        assert torch.equal(step.codes.condition.sum(-1), torch.ones_like(condition, dtype=torch.float64))
        assert torch.equal(condition[:, :10], condition[:, 10:])  # prior samples, codes
        assert torch.equal(step.batches.components[condition[:, :10] < 3], condition[:, :10][condition[:, :10] < 3])
        for k in range(2):
            rows = (step.batches.images.target[k][:, None] == images).all(-1).int().argmax(1)
            known = condition[k, 10:] < 3
            assert torch.equal(labels[rows][known], condition[k, 10:][known])
        shares.append(condition[:, 10:])
        step.batches.cursor.add_(1)
    assert (torch.cat(shares, 1) < 3).sum(1).tolist() == [60, 60]
    assert set(step.batches.components[step.codes.condition[:, :10].argmax(-1) == 3].tolist()) == {0, 1, 2}


def test_dropout_drops_its_share_anew_in_every_step_and_costs_nothing_at_zero():
    step = make(config("semi_supervised", dropout=0.3, input_dropout=0.2, hidden=(200, 100), replicas=2))
    tapes = [step.autoencoder.encoding, step.autoencoder.classifying, step.player.decoding, *step.judging.values()]
    masks = [mask for tape in tapes for mask in tape.masks]
    assert len(masks) == 10 and sum(feed.mask is not None for feed in step.batches.feeds) == 2
    step.batches.draw()
    before = [mask.clone() for mask in masks]
    for mask in masks:
        assert set(mask.unique().tolist()) == {0, 1} and abs(mask.mean() - 0.7) < 0.05
        assert not torch.equal(mask[0], mask[1])
    for tape, clean in (
        (step.autoencoder.encoding, step.batches.images.target),
        (step.autoencoder.classifying, step.batches.labeled.target),
    ):
        kept = tape.x[0] != 0
        assert abs(kept[clean != 0].double().mean() - 0.8) < 0.1
        torch.testing.assert_close(tape.x[0][kept], clean[kept] / 0.8)
    step.batches.draw()
    assert not any(torch.equal(mask, old) for mask, old in zip(masks, before, strict=True))
    plain = make(config("semi_supervised"))
    assert (
        not plain.batches.dropouts
        and not plain.autoencoder.encoding.masks
        and plain.batches.images.target is plain.autoencoder.encoding.x[0]
    )


def test_a_supervised_decoder_is_told_the_label_of_its_image():
    step = make(config("supervised", replicas=2))
    step()
    images, labels = step.batches.x.double() / 255, step.batches.y
    for k in range(2):
        rows = (step.batches.images.target[k][:, None] == images).all(-1).int().argmax(1)
        assert torch.equal(step.player.decoding.x[0][k, :, 3:], torch.eye(3, dtype=torch.float64)[labels[rows]])
    assert (
        list(step.discriminators) == ["z"]
        and step.networks["encoder"].sizes[-1] == 3
        and step.networks["decoder"].sizes[0] == 6
    )


def test_running_statistics_follow_the_reconstruction_pass_alone():
    step = make(config("semi_supervised", batch_norm="encoder", momentum=0.0))
    step.batches.draw()
    for phase, moves in zip(step.phases, (True, False, False, False), strict=True):
        before = [n.mean.clone() for n in step.networks["encoder"].norms]
        phase(step, torch.zeros_like(step.terms[0]))
        for old, n in zip(before, step.networks["encoder"].norms, strict=True):
            assert torch.equal(old, n.mean) != moves
    assert not step.networks["decoder"].norms and not step.discriminators["z"].norms


def test_input_noise_is_gaussian_around_the_image_and_dropped_for_the_target():
    step = make(config("semi_supervised", input_noise=0.3, batch_size=60, n_labeled=60))
    for feed in step.batches.feeds:
        step.batches.draw()
        noise = feed.input - feed.target
        assert noise.numel() > 300 and abs(noise.mean()) < 5 * 0.3 / noise.numel() ** 0.5
        assert abs(noise.std() / 0.3 - 1) < 5 / (2 * noise.numel()) ** 0.5
    assert step.batches.staging.shape == (60, step.batches.x.shape[1])  # nothing is made in a step


@pytest.mark.parametrize("task", PHASES)
def test_no_gradient_is_taken_of_the_data(task):
    """It would cost the largest product there is, for nothing."""
    step = make(config(task))
    step()
    own = [step.player.passes[name][1] for name in step.player.passes if name != "decoder" or task == "gan"]
    assert own and all(not tape.g[0].any() for tape in own)


def test_labels_fewer_than_a_batch_are_all_in_every_step():
    step = make(config("semi_supervised", n_labeled=6))
    for _ in range(3):
        step.batches.draw()
        assert sorted(step.batches.labels[0].tolist()) == [0, 0, 1, 1, 2, 2]
        step.batches.cursor.add_(1)


def test_rates_decay_at_the_start_of_their_epochs():
    step = make(config("unsupervised", lr_reconstruction=0.5, lr_decay_epochs=(2, 4), lr_decay=0.1))
    rates = []
    for epoch in range(6):
        step.start_epoch(epoch)
        rates.append(step.rates["reconstruction"][0].item())
    np.testing.assert_allclose(rates, [0.5, 0.5, 0.05, 0.05, 0.005, 0.005], rtol=1e-12)


def test_float_data_trains_as_bytes_do():
    cfg = config("unsupervised")
    a, b = Step(cfg, dataset(), CPU), Step(cfg, dataset(np.float32), CPU)
    for step in (a, b):
        step.start_epoch(0)
        step()
    for name, p in a.parameters().items():
        torch.testing.assert_close(p, b.parameters()[name], rtol=1e-6, atol=1e-7)


class Recorder(TorchDispatchMode):
    """Fails on operators that synchronise or whose output shape depends on data; records operators and shapes."""

    FORBIDDEN = (
        "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique", "bincount", "item",
        "repeat_interleave", "allclose",
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(name == f or name.startswith((f + "_", "_" + f)) for f in self.FORBIDDEN):
            raise AssertionError(f"{name} cannot be captured")
        if name in ("index", "index_put", "index_put_"):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "a mask gives a data-dependent shape"
        self.calls.append((name, *(tuple(a.shape) for a in args if isinstance(a, torch.Tensor))))
        return func(*args, **(kwargs or {}))


def buffers(value, path="step", seen=None):
    """Address of every tensor that can be reached from the step, by path."""
    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        return {path: value.data_ptr()}
    if id(value) in seen or isinstance(value, (str, int, float, torch.Generator, Config, type(None))):
        return {}
    seen.add(id(value))
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        items = getattr(value, "__dict__", {}).items()
    return {k: v for key, item in items for k, v in buffers(item, f"{path}.{key}", seen).items()}


LARGE = {"precision": "fp32", "hidden": (200, 180), "init_std": 0.05}  # layers that oneDNN takes


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("task", PHASES)
def test_float32_steps_of_large_layers_follow_the_float64_ones(task, optimizer):
    rates = VARIANTS["adam"] if optimizer == "adam" else {}
    steps = [make(config(task, replicas=2, **{**LARGE, **rates, "precision": p})) for p in ("fp32", "fp64")]
    for step in steps:
        step.batches.draw = lambda draw=step.batches.draw, s=step: (draw(), _same_prior(s))
        for _ in range(5):
            step()
    torch.testing.assert_close(steps[0].losses[:5].double(), steps[1].losses[:5], rtol=1e-4, atol=1e-5)


def _same_prior(step):
    """The two precisions draw different normal numbers."""
    noises = [step.player.noise, *(feed.further for feed in step.batches.feeds)]
    for t in (step.codes.prior["z"], *(t for t in noises if t is not None)):
        t.copy_(torch.linspace(-2, 2, t.numel(), dtype=torch.float64).view_as(t))
    if "y" in step.judging:
        prior = step.codes.prior["y"]
        prior.copy_(torch.eye(prior.shape[2]).repeat(4, 1)[: prior.shape[1]])


SAFE = [(task, {"optimizer": o, **size}) for task in PHASES for o in ("sgd", "adam") for size in ({}, LARGE)]
SAFE += [(task, VARIANTS[v]) for task, v in CASES if v not in ("plain", "noise", "adam", "one-layer")]


@pytest.mark.parametrize(("task", "fields"), SAFE)
def test_the_step_is_capture_safe(task, fields):
    step = make(config(**{"task": task, "replicas": 2, "input_noise": 0.0 if task == "gan" else 0.3, **fields}))
    step()
    addresses, recorded = buffers(step), []
    for _ in range(3):
        with Recorder() as recorder:
            step()
        recorded.append(recorder.calls)
    assert len(addresses) > 50 and buffers(step) == addresses, "a buffer was rebound"
    assert recorded[0] == recorded[1] == recorded[2], "operators or shapes differ from step to step"


@pytest.mark.parametrize(
    "fault", [lambda t: t.sum().item(), lambda t: t[t > 0], lambda t: t.nonzero()], ids=["item", "mask", "nonzero"]
)
def test_the_capture_test_can_fail(fault):
    step = make(config("unsupervised"))
    step.phases = (lambda s, terms: fault(s.batches.images.target) and None, *step.phases[1:])
    with Recorder(), pytest.raises(AssertionError):
        step()


RANDOM = ("input_noise", "dropout", "input_dropout")  # drawn in the step's own dtype


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(("task", "variant"), [(t, v) for t, v in CASES if not VARIANTS[v].keys() & set(RANDOM)])
def test_16_bit_steps_follow_the_float64_ones(task, variant, precision):
    """For eight steps, or four of a variant: where a ReLU or a hinge has switched, they part."""
    fields, n = {"task": task, "replicas": 2, **VARIANTS[variant]}, 8 if variant == "plain" else 4
    steps = [make(config(**fields, precision=p)) for p in (precision, "fp64")]
    for step in steps:
        step.batches.draw = lambda draw=step.batches.draw, s=step: (draw(), _same_prior(s))
        if step.scale is not None:
            step.scale[0] = 2.0**6  # which overflows nowhere
        for _ in range(n):
            step()
    assert steps[0].scale is None or steps[0].scale.tolist() == [2.0**6, 0, n]
    loose = 2**-5 if precision == "bf16" else 2**-8
    torch.testing.assert_close(steps[0].losses[:n].double(), steps[1].losses[:n], rtol=loose, atol=loose)
    for network in steps[0].networks.values():
        for weight, shadow in zip(network.weights, network.shadows, strict=True):
            assert weight.dtype == torch.float32 and torch.equal(shadow, weight.to(shadow.dtype))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(
    "fields",
    [{"task": "semi_supervised"}, {"task": "embedding"}, {"task": "semi_supervised", "batch_norm": "autoencoder"}],
    ids=str,
)
def test_fp16_survives_an_overflow(fields, optimizer):
    step = make(config(precision="fp16", optimizer=optimizer, **fields))
    step.scale[0] = 2.0**24  # gradients of about 0.01 then exceed 65,504
    before = {name: p.clone() for name, p in step.parameters().items()}
    step()
    assert step.scale.tolist() == [2.0**23, 0, 0]
    for _ in range(9):
        step()
    assert 2.0**10 < step.scale[0].item() < 2.0**24 and step.losses.isfinite().all()
    for name, p in step.parameters().items():
        assert p.isfinite().all() and not torch.equal(p, before[name]), name


def test_state_restores_bit_for_bit():
    step = make(config("semi_supervised", input_noise=0.3, optimizer="adam", replicas=2))
    step()
    state = {name: t.clone() for name, t in step.state().items()}
    step()
    after = {name: t.clone() for name, t in step.state().items()}
    fresh = make(config("semi_supervised", input_noise=0.3, optimizer="adam", replicas=2))
    fresh.restore(state, 1)
    fresh.batches.cursor.fill_(1)
    fresh()
    assert all(torch.equal(after[name], t) for name, t in fresh.state().items())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"batch_size": 101}, "batch_size=101: expected at most the 100 training examples"),
        ({"task": "semi_supervised", "n_labeled": 101}, "n_labeled=101"),
        (VARIANTS["labels"] | {"n_labeled": 101}, "n_labeled=101"),
        (
            {"task": "embedding", "fixed_heads": 1.0, "style_dim": 4},
            "style_dim=4: expected 3, the classes, with fixed_",
        ),
        (VARIANTS["labels"] | {"components": 4}, "components=4: expected 3, one for each class"),
    ],
    ids=["batch", "labels", "labels of the prior", "heads", "components"],
)
def test_more_than_the_data_has_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Step(config(**{"task": "unsupervised", **fields}), dataset(), CPU)
