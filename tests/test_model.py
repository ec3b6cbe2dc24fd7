"""Model: equal to a float64 NumPy forward pass, indifferent to how examples come, exact through a file."""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import fastaae.model
from fastaae import checkpoint
from fastaae.checkpoint import CheckpointError
from fastaae.config import Config
from fastaae.data import DataError
from fastaae.engine.networks import MLP
from fastaae.evaluation import score
from fastaae.model import Model, load, model_info

SHAPE, STYLE, CLASSES = (2, 3), 2, 3
RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (7, *SHAPE)).astype(np.uint8)
Z = RNG.standard_normal((7, STYLE)).astype(np.float32)
LABELS = np.array([0, 2, 1, 1, 0, 2, 2])


def make(classes=CLASSES, hidden=(5, 4), dtype=torch.float32, replicas=1, shape=SHAPE, **fields):
    """Encoder and decoder with random weights and biases, and their Config."""
    generators = [torch.Generator().manual_seed(r) for r in range(replicas)]
    d, code = math.prod(shape), STYLE + classes
    networks = []
    for sizes in ((d, *hidden, code), (code, *hidden, d)):
        networks.append(MLP.initialize(sizes, 0.7, generators, torch.device("cpu"), dtype))
        for bias in networks[-1].biases:
            bias.copy_(torch.linspace(-0.4, 0.4, bias.numel()).view_as(bias))
    task = "semi_supervised" if classes else "unsupervised"
    return *networks, Config(task=task, style_dim=STYLE, hidden=hidden, **fields)


def model(classes=CLASSES, shape=SHAPE, **fields):
    encoder, decoder, config = make(classes, shape=shape, **fields)
    return Model(config, shape, classes, encoder, decoder)


def forward(network, x):
    for i, (w, b) in enumerate(zip(network.weights, network.biases, strict=True)):
        x = x @ w[0].double().numpy().T + b[0].double().numpy()
        x = np.maximum(x, 0) if i + 1 < len(network.weights) else x
    return x


def by_hand(m, x):
    """z, y and reconstructions of uint8 x in float64."""
    code = forward(m.encoder, x.reshape(len(x), -1) / 255)
    z, y = code[:, :STYLE], np.exp(code[:, STYLE:])
    y = y / y.sum(1, keepdims=True) if m.n_classes else y
    return z, y, decoded_by_hand(m, np.concatenate([z, y], 1))


def decoded_by_hand(m, code):
    out = forward(m.decoder, code)
    out = 1 / (1 + np.exp(-out)) if m.config.output_layer == "sigmoid" else out
    return out.reshape(-1, *m.shape)


def methods(m):
    """Every prediction on the first examples, labels and codes."""
    labels = LABELS if m.n_classes else None
    out = {
        "encode": m.encode(X),
        "reconstruct": m.reconstruct(X),
        "decode": m.decode(Z, labels),
        "sample": m.sample(4, 0),
    }
    return out | ({"predict": m.predict(X), "predict_proba": m.predict_proba(X)} if m.n_classes else {})


CASES = list(itertools.product([0, CLASSES], ["sigmoid", "linear"], [(), (5,), (5, 4)]))


@pytest.mark.parametrize(("classes", "output", "hidden"), CASES, ids=str)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.float64, 1e-13)], ids=["fp32", "fp64"])
def test_predictions_equal_a_numpy_forward_pass(classes, output, hidden, dtype, rtol):
    m = model(classes, hidden=hidden, output=output, dtype=dtype)
    z, y, decoded = by_hand(m, X)

    def close(actual, expected):
        assert actual.dtype == (np.float32 if dtype == torch.float32 else np.float64)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * max(1, np.abs(expected).max()))

    close(m.encode(X), z)
    close(m.reconstruct(X), decoded)
    if classes:
        close(m.predict_proba(X), y)
        assert np.array_equal(m.predict(X), y.argmax(1))
        assert len(np.unique(y.argmax(1))) == CLASSES or len(hidden) < 2  # the deep one predicts every class
    labels = LABELS if classes else None
    code = np.concatenate([Z, np.eye(CLASSES)[LABELS]], 1) if classes else Z.astype(np.float64)
    close(m.decode(Z, labels), decoded_by_hand(m, code))


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 2, 3)], ids=str)
def test_shapes_are_those_of_the_examples(shape):
    m = model(shape=shape)
    x = X.reshape(7, *shape)
    assert m.encode(x).shape == (7, STYLE) and m.predict_proba(x).shape == (7, CLASSES)
    assert m.predict(x).shape == (7,) and m.predict(x).dtype == np.int64
    assert m.reconstruct(x).shape == m.decode(Z, LABELS).shape == m.sample(7).shape == (7, *shape)
    assert m.encode(x[:1]).shape == (1, STYLE) and m.sample(1).shape == (1, *shape)


def test_flat_and_shaped_examples_give_the_same():
    m = model()
    assert np.array_equal(m.encode(X.reshape(7, 6)), m.encode(X))
    assert np.array_equal(m.reconstruct(X.reshape(7, 6)), m.reconstruct(X))


def test_numpy_gives_numpy_and_torch_gives_torch():
    m = model()
    x, z, labels = torch.from_numpy(X), torch.from_numpy(Z), torch.from_numpy(LABELS)
    for method, a, b in (
        ("encode", (X,), (x,)),
        ("predict_proba", (X,), (x,)),
        ("predict", (X,), (x,)),
        ("reconstruct", (X,), (x,)),
        ("decode", (Z, LABELS), (z, labels)),
    ):
        from_numpy, from_torch = getattr(m, method)(*a), getattr(m, method)(*b)
        assert type(from_numpy) is np.ndarray and type(from_torch) is torch.Tensor
        assert np.array_equal(from_numpy, from_torch.numpy())
        from_numpy += 0  # both are the caller's own, to write to
        from_torch.add_(0)
    assert type(m.sample(2)) is np.ndarray
    (m.encode(x).requires_grad_() * 2).sum().backward()  # and torch's can be trained on


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bytes_and_floats_agree(dtype):
    m = model()
    x = np.array([0, 51, 255, 255, 0, 102], np.uint8).reshape(1, *SHAPE)
    atol = 1e-3 if dtype == np.float16 else 1e-6
    np.testing.assert_allclose(m.encode((x / 255).astype(dtype)), m.encode(x), rtol=0, atol=atol)
    np.testing.assert_allclose(m.reconstruct((x / 255).astype(dtype)), m.reconstruct(x), rtol=0, atol=atol)


def test_the_same_model_makes_the_same_bytes(tmp_path):
    m = model(CLASSES)
    for k in range(8):
        m.save(tmp_path / str(k))
    assert len({(tmp_path / str(k)).read_bytes() for k in range(8)}) == 1


@pytest.mark.parametrize("classes", [0, CLASSES], ids=["unsupervised", "semi_supervised"])
@pytest.mark.parametrize(("limit", "most"), [("BATCH", 1), ("BATCH", 3), ("BATCH", 7), ("WIDE", 1), ("WIDE", 20)])
def test_batches_do_not_matter(monkeypatch, classes, limit, most):
    m = model(classes)
    expected = methods(m)
    monkeypatch.setattr(fastaae.model, limit, most)
    assert m.batch <= 7
    for name, value in methods(m).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "x",
    [X[:, :, ::-1], X[::2], np.broadcast_to(X[:1], X.shape), X.transpose(0, 2, 1).copy().transpose(0, 2, 1)],
    ids=["reversed", "strided", "read-only", "transposed"],
)
def test_any_memory_layout_will_do(x):
    m = model()
    assert np.array_equal(m.encode(x), m.encode(x.copy()))
    z, labels = m.encode(X), m.predict(X)
    for view in (slice(None, None, -1), slice(None, None, 2)):
        assert np.array_equal(m.decode(z[view], labels[view]), m.decode(z[view].copy(), labels[view].copy()))
    z.flags.writeable = labels.flags.writeable = False
    assert np.array_equal(m.decode(z, labels), m.decode(z.copy(), labels.copy()))


@pytest.mark.parametrize(
    "convert",
    [
        *(lambda y, t=t: y.astype(t) for t in (np.uint8, np.int16, np.uint16, np.uint64)),
        lambda y: y.tolist(),
        lambda y: torch.from_numpy(y),
        lambda y: np.eye(CLASSES)[y],
        lambda y: np.eye(CLASSES, dtype=int)[y].tolist(),
    ],
    ids=["uint8", "int16", "uint16", "uint64", "list", "tensor", "one-hot floats", "one-hot list"],
)
def test_labels_come_in_many_forms(convert):
    m = model()
    assert np.array_equal(m.decode(Z, convert(LABELS)), m.decode(Z, LABELS))
    assert np.array_equal(m.sample(7, 0, convert(LABELS)), m.sample(7, 0, LABELS))


def test_labels_may_be_probabilities():
    m = model()
    y = m.predict_proba(X)
    assert np.array_equal(m.decode(m.encode(X), y), m.reconstruct(X))


def test_codes_may_be_lists_or_integers():
    m = model(0)
    expected = m.decode(np.array([[1.0, -2.0], [0.0, 3.0]], np.float32))
    for z in ([[1, -2], [0, 3]], np.array([[1, -2], [0, 3]]), [[1.0, -2.0], [0.0, 3.0]]):
        decoded = m.decode(z)
        assert type(decoded) is np.ndarray and np.array_equal(decoded, expected)


def test_codes_keep_the_precision_of_a_float64_model():
    m = model(0, dtype=torch.float64)
    z = [[0.1, -1 / 3]]
    np.testing.assert_allclose(m.decode(z), decoded_by_hand(m, np.array(z)), rtol=1e-14)


@pytest.mark.parametrize("labels", [None, np.zeros(0, int)], ids=["unsupervised", "semi_supervised"])
def test_no_codes_decode_to_no_examples(labels):
    m = model(0 if labels is None else CLASSES)
    assert m.decode(np.zeros((0, STYLE)), labels).shape == (0, *SHAPE)


# Errors of reconstruction


@pytest.mark.parametrize("classes", [0, CLASSES], ids=["unsupervised", "semi_supervised"])
@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_reconstruction_errors_are_those_of_float64(classes, loss):
    m = model(classes, reconstruction=loss, dtype=torch.float64)
    x, p = X.reshape(7, -1) / 255, by_hand(m, X)[2].reshape(7, -1)
    terms = 0.5 * (x - p) ** 2 if loss == "squared_error" else -x * np.log(p) - (1 - x) * np.log(1 - p)
    found = m.reconstruction_error(X)
    assert found.shape == (7,) and found.dtype == np.float64
    np.testing.assert_allclose(found, terms.sum(1), rtol=1e-12)
    of_tensor = m.reconstruction_error(torch.from_numpy(X))
    assert isinstance(of_tensor, torch.Tensor) and np.array_equal(of_tensor, found)


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize("task", ["unsupervised", "supervised", "semi_supervised", "embedding"])
def test_reconstruction_errors_average_to_the_metric(tmp_path, task, loss):
    x, y = np.random.default_rng(0).random((60, 4), np.float32), np.arange(60) % 3
    cfg = Config(task=task, hidden=(8,), style_dim=2, batch_size=10, epochs=1, reconstruction=loss)
    m = fastaae.train(replace(cfg, out_dir=str(tmp_path / "run")), data=(x, y), progress=False).model
    labels = y if task == "supervised" else None
    expected = score(m, torch.from_numpy(x), torch.from_numpy(y))["reconstruction"]
    assert m.reconstruction_error(x, labels).mean() == pytest.approx(expected, rel=1e-12)
    if task == "supervised":
        with pytest.raises(ValueError, match="labels=None: the decoder takes labels"):
            m.reconstruction_error(x)
        assert np.array_equal(m.reconstruction_error(x, 1), m.reconstruction_error(x, np.ones(60, int)))


def test_reconstruction_errors_do_not_depend_on_batches(monkeypatch):
    m = model()
    whole = m.reconstruction_error(X), m.reconstruction_error(X, LABELS)
    monkeypatch.setattr(fastaae.model, "BATCH", 3)
    assert np.allclose(m.reconstruction_error(X), whole[0], rtol=1e-6, atol=0)
    assert np.allclose(m.reconstruction_error(X, LABELS), whole[1], rtol=1e-6, atol=0)


# What is printed of one


@pytest.mark.parametrize("classes", [0, CLASSES], ids=["unsupervised", "semi_supervised"])
def test_its_repr_says_in_a_few_lines_what_it_is(classes):
    assert repr(model(classes)).splitlines() == [
        f"Model 'custom': {'semi_supervised' if classes else 'unsupervised'}, float32 on cpu",
        "  examples: [2, 3], sigmoid output, squared error",
        f"  layers: 6-5-4-{2 + classes}, then {2 + classes}-5-4-6",
        f"  code: 2-D, prior gaussian of scale 5{', 3 classes' * (classes > 0)}",
    ]


# Samples


@pytest.mark.parametrize("classes", [0, CLASSES], ids=["unsupervised", "semi_supervised"])
def test_samples_depend_on_the_seed_alone(classes):
    m = model(classes)
    first = m.sample(5, seed=3)
    torch.rand(1)
    assert np.array_equal(m.sample(5, seed=3), first)
    assert not np.array_equal(m.sample(5, seed=4), first)
    drawn = [m.sample(5) for _ in range(2)] + [torch.cat([*m.stream(5)]).numpy().reshape(first.shape) for _ in range(2)]
    assert len({a.tobytes() for a in drawn}) == 4  # anew each time
    assert np.isfinite(first).all() and len(np.unique(first.reshape(5, -1), axis=0)) == 5


def test_samples_draw_codes_of_the_prior_and_uniform_classes():
    m, seen = model(prior_std=3.0), []
    m.decoded = lambda code: seen.append(code) or code.new_zeros(len(code), 6)
    m.sample(3000)
    z, y = seen[0][:, :STYLE].numpy(), seen[0][:, STYLE:].numpy()
    assert abs(z.std() / 3 - 1) < 0.05 and abs(z.mean()) < 0.2  # 4 standard errors or more
    assert set(np.unique(y)) == {0, 1} and (y.sum(1) == 1).all() and (abs(y.mean(0) - 1 / 3) < 0.035).all()


def test_given_labels_leave_the_codes_of_a_seed_alone():
    m, seen = model(), []
    m.decoded = lambda code: seen.append(code) or code.new_zeros(len(code), 6)
    m.sample(7, seed=2)
    m.sample(7, seed=2, labels=LABELS)
    assert torch.equal(seen[0][:, :STYLE], seen[1][:, :STYLE])
    assert seen[1][:, STYLE:].argmax(1).tolist() == LABELS.tolist()


# Errors


def with_value(value, dtype=np.float32):
    x = np.zeros((7, *SHAPE), dtype)
    x[2, 1, 0] = value
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((7, 5), np.uint8), "x has 5 values per example, expected 6 "),
        (np.zeros((7, 3, 3)), "x has 9 values per example, expected 6 "),
        (with_value(np.nan), "NaN or infinite values, the first at index"),
        (with_value(np.inf), "NaN or infinite values"),
        (with_value(3, np.int64), "dtype int64"),
        (np.zeros(6), r"shape \(6,\)"),
        (np.zeros((0, *SHAPE)), "at least one example"),
        ({"x": 1}, "x is a dict, expected a numpy array or a torch tensor"),
    ],
    ids=["narrow", "wide", "NaN", "infinite", "integers", "one example", "no example", "mapping"],
)
@pytest.mark.parametrize("method", ["encode", "predict", "predict_proba", "reconstruct"])
def test_wrong_examples_are_refused(method, x, message):
    with pytest.raises(DataError, match=message):
        getattr(model(), method)(x)


@pytest.mark.parametrize("beyond", [1.5, -0.5, 200.0, 300.0])
def test_examples_beyond_the_range_of_training_are_taken(beyond):
    m, x = model(), with_value(beyond)
    far = f"x has values from 0 to {beyond:g}, the model knows \\[0, 1\\]: divide by {max(beyond, 255):g}"
    with pytest.warns(UserWarning, match=far) if beyond > 2 else contextlib.nullcontext():
        assert np.isfinite(m.encode(x)).all() and m.reconstruct(x).shape == x.shape  # as its own samples may be


def test_a_model_takes_what_training_takes(tmp_path):
    m, x = model(), np.random.default_rng(0).random((7, *SHAPE))
    z = m.encode(x)
    np.save(tmp_path / "x.npy", x)
    items = [(torch.from_numpy(row), 0) for row in x]
    for given in (x.tolist(), [*x], tmp_path / "x.npy", str(tmp_path / "x.npy"), torch.utils.data.DataLoader(items, 3)):
        assert np.array_equal(m.encode(given), z)


@pytest.mark.parametrize("z", [Z[0], Z[:, :1], Z[None], np.zeros((2, 3)), 1.0], ids=lambda z: str(np.shape(z)))
def test_codes_of_a_wrong_shape_are_refused(z):
    with pytest.raises(ValueError, match=r"expected \[N, 2\]") as error:
        model(0).decode(z)
    assert str(np.shape(z)) in str(error.value)


@pytest.mark.parametrize(
    "labels",
    [
        LABELS[:6],
        LABELS[:, None],
        LABELS - 1,
        LABELS + 1,
        LABELS.astype(float),
        np.eye(4)[LABELS],
        3,
        -1,
        10**30,
        True,
        [0] * 8,
        np.eye(3),
    ],
    ids=["few", "column", "negative", "too large", "floats", "wide", "one too large", "one negative", "huge", "bool"]
    + ["many", "rows"],
)
def test_wrong_labels_are_refused(labels):
    for call in (lambda: model().decode(Z, labels), lambda: model().sample(7, labels=labels)):
        with pytest.raises(ValueError, match=r"expected \[7\] integers in \[0, 3\) or one for all, or .*|dtype object"):
            call()


@pytest.mark.parametrize("label", [2, np.int64(2), np.array(2), torch.tensor(2)], ids=lambda v: type(v).__name__)
def test_one_label_is_that_of_all(label):
    m, labels = model(), np.full(7, 2)
    assert np.array_equal(m.sample(7, 0, label), m.sample(7, 0, labels))
    assert np.array_equal(m.decode(Z, label), m.decode(Z, labels))
    assert np.array_equal(m.reconstruct(X, label), m.reconstruct(X, labels))
    with pytest.raises(ValueError, match="takes no labels"):
        model(0).sample(7, labels=label)


def test_labels_missing_or_in_vain_are_refused():
    with pytest.raises(ValueError, match=r"labels=None: the decoder takes labels, expected some of \[0, 1, 2\]"):
        model().decode(Z)
    for call in (lambda m: m.decode(Z, LABELS), lambda m: m.sample(7, labels=LABELS)):
        with pytest.raises(ValueError, match="takes no labels"):
            call(model(0))


@pytest.mark.parametrize("method", ["predict", "predict_proba"])
def test_classes_need_a_label_head(method):
    with pytest.raises(ValueError, match="task 'unsupervised' has no label head"):
        getattr(model(0), method)(X)


@pytest.mark.parametrize("n", [0, -1])
def test_the_number_of_samples_is_positive(n):
    with pytest.raises(ValueError, match=f"n={n}: expected an integer, at least 1"):
        model().sample(n)


def test_predictions_change_neither_the_model_nor_what_they_are_given():
    m, x, z = model(hidden=()), X / 255, Z.copy()
    before = checkpoint.digest(m.encoder.state()), checkpoint.digest(m.decoder.state())
    methods(m)
    m.encode(x32 := x.astype(np.float32))
    m.reconstruct(t := torch.from_numpy(x32.copy()))
    m.decode(z, LABELS)
    assert (checkpoint.digest(m.encoder.state()), checkpoint.digest(m.decoder.state())) == before
    assert np.array_equal(z, Z) and np.array_equal(x32, x.astype(np.float32)) and np.array_equal(t.numpy(), x32)


# Files


@pytest.mark.parametrize("classes", [0, CLASSES], ids=["unsupervised", "semi_supervised"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path, classes, dtype):
    m = model(classes, dtype=dtype, seed=5)
    m.save(tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert (again.config, again.shape, again.n_classes) == (m.config, m.shape, m.n_classes)
    for part in ("encoder", "decoder"):
        assert checkpoint.digest(getattr(again, part).state()) == checkpoint.digest(getattr(m, part).state())
    expected = methods(m)
    assert all(np.array_equal(value, expected[name]) for name, value in methods(again).items())


def run_state(replicas=3, **fields):
    """The tensors and info of a run's checkpoint, as far as models go."""
    encoder, decoder, config = make(replicas=replicas, **fields)
    tensors = {f"encoder.{k}": t for k, t in encoder.state().items()}
    tensors |= {f"decoder.{k}": t for k, t in decoder.state().items()}
    return (
        tensors | {"discriminator_z.0.weight": torch.zeros(1)},
        model_info(config, SHAPE, CLASSES, {}),
        encoder,
        decoder,
    )


def test_the_model_of_a_run_that_took_one_thread_is_the_one_it_saved(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # of which small layers take one, and choose their products by it
    try:
        cfg = fastaae.preset("digits", epochs=2, out_dir=str(tmp_path / "run"))
        run = fastaae.train(cfg, progress=False)
        assert torch.get_num_threads() == 2
        assert np.array_equal(run.model.sample(16, seed=0), load(run.directory).sample(16, seed=0))
    finally:
        torch.set_num_threads(before)


def test_a_replica_of_a_run_is_loaded(tmp_path):
    tensors, info, encoder, decoder = run_state()
    checkpoint.save(tmp_path / "checkpoint.safetensors", tensors, info)
    codes = []
    for r in range(3):
        m = load(tmp_path if r else str(tmp_path / "checkpoint.safetensors"), r)
        assert checkpoint.digest(m.encoder.state()) == checkpoint.digest(encoder.replica(r).state())
        assert checkpoint.digest(m.decoder.state()) == checkpoint.digest(decoder.replica(r).state())
        codes.append(m.encode(X))
        m.save(tmp_path / "one")
        assert np.array_equal(load(tmp_path / "one").encode(X), codes[-1])
    assert not np.array_equal(codes[0], codes[1])
    for r in (-1, 3):
        with pytest.raises(CheckpointError, match=f"replica={r}: the file holds 3, expected 0 to 2"):
            load(tmp_path, r)
    with pytest.raises(CheckpointError, match="replica=1: the file holds 1, expected 0$"):
        load(tmp_path / "one", 1)


def drop(tensors, name):
    del tensors[name]


SPOILERS = {  # name: (what is done to tensors and info, what the message says)
    "missing weight": (lambda t, i: drop(t, "encoder.1.weight"), "encoder.1.weight"),
    "missing bias": (lambda t, i: drop(t, "decoder.2.bias"), "decoder.2.bias"),
    "wrong weight": (lambda t, i: t.update({"encoder.1.weight": torch.zeros(3, 4, 6)}), "encoder.1.weight has shape"),
    "flat weight": (lambda t, i: t.update({"encoder.1.weight": torch.zeros(20)}), "encoder.1.weight has shape"),
    "scalar weight": (lambda t, i: t.update({"decoder.0.weight": torch.tensor(0.0)}), "decoder.0.weight has shape"),
    "wrong bias": (lambda t, i: t.update({"decoder.0.bias": torch.zeros(3, 1, 6)}), "decoder.0"),
    "replicas in a layer": (lambda t, i: t.update({"encoder.1.bias": torch.zeros(2, 1, 4)}), "encoder.1"),
    "replicas between layers": (
        lambda t, i: t.update({"encoder.1.weight": torch.zeros(2, 4, 5), "encoder.1.bias": torch.zeros(2, 1, 4)}),
        r"encoder.1.weight has shape \(2, 4, 5\) .* needs \(3, 4, 5\)",
    ),
    "integers": (
        lambda t, i: t.update({k: v.long() for k, v in t.items()}),
        "dtype torch.int64, its config needs .* float32",
    ),
    "two dtypes": (lambda t, i: t.update({"encoder.0.bias": t["encoder.0.bias"].double()}), "float64.* throughout"),
    "other hidden": (lambda t, i: i["config"].update(hidden=(5,)), "has shape"),
    "other style": (lambda t, i: i["config"].update(style_dim=4), "has shape"),
    "other shape": (lambda t, i: i.update(shape=[2, 4]), "has shape"),
    "other classes": (lambda t, i: i.update(n_classes=4), "has shape"),
    "no config": (lambda t, i: drop(i, "config"), "no 'config'"),
    "no shape": (lambda t, i: drop(i, "shape"), "no 'shape'"),
    "newer config": (lambda t, i: i["config"].update(temperature=1.0), "unknown field 'temperature'"),
    "invalid config": (lambda t, i: i["config"].update(epochs=0), "epochs=0"),
    "infinite shape": (lambda t, i: i.update(shape=[math.inf]), r"shape=\[inf\], expected 1 to 31 positive integers"),
    "shape of none": (lambda t, i: i.update(shape=None), "shape=None, expected 1 to 31 positive integers"),
}


@pytest.mark.parametrize("name", SPOILERS)
def test_a_file_that_does_not_fit_its_config_is_refused(tmp_path, name):
    spoil, message = SPOILERS[name]
    tensors, info, *_ = run_state()
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, tensors, info)
    assert load(path, 2).n_classes == CLASSES  # it was fine before
    spoil(tensors, info)
    checkpoint.save(path, tensors, info)
    with pytest.raises(CheckpointError, match=message) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ")


def test_info_that_is_no_object_is_refused(tmp_path):
    checkpoint.save(tmp_path / "c", {}, [1])
    with pytest.raises(CheckpointError):
        load(tmp_path / "c")


def test_a_run_directory_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="checkpoint.safetensors: No such file"):
        load(tmp_path)


def test_a_failed_save_leaves_the_old_model(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    m = model()
    m.save(tmp_path / "m")
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        model(0).save(tmp_path / "m")
    assert np.array_equal(load(tmp_path / "m").encode(X), m.encode(X))


@pytest.mark.parametrize("classes", [0, CLASSES], ids=["unsupervised", "semi_supervised"])
def test_stream_is_sample_in_blocks(classes, monkeypatch):
    monkeypatch.setattr(fastaae.model, "DRAWN", 7)
    m = model(classes)
    for labels in [None] + [np.arange(16) % 3] * bool(classes):
        blocks = list(m.stream(16, 3, labels))
        assert [len(b) for b in blocks] == [7, 7, 2]
        assert np.array_equal(torch.cat(blocks).reshape(16, *SHAPE).numpy(), m.sample(16, 3, labels))


@pytest.mark.parametrize("classes", [0, CLASSES], ids=["unsupervised", "semi_supervised"])
def test_log_likelihood_is_that_of_the_samples(classes):
    m = model(classes)
    result = m.log_likelihood(X, 5000, 0.3, seed=2)
    expected = fastaae.parzen_log_likelihood(X, m.sample(5000, seed=2), 0.3)
    assert np.array_equal(result.per_query, expected.per_query) and result.n_samples == 5000
    assert m.log_likelihood(X, 50, validation=X, sigmas=[0.1, 0.3, 1]).sigma == 0.3
    with pytest.raises(DataError, match="values per example"):
        m.log_likelihood(X.reshape(7, -1)[:, :-1], 50, 0.3)
    with pytest.raises(ValueError, match="expected an integer"):
        m.log_likelihood(X, 0, 0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n=0: expected an integer, at least 1"),
        ({"n": True}, "n=True: expected an integer"),
        ({"n": 1e4}, "n=10000.0: expected an integer"),
        ({"n": 3, "seed": -1}, "seed=-1"),
        ({"n": 3, "seed": 1.5}, "seed=1.5"),
    ],
)
def test_what_is_no_number_of_samples_or_seed_is_refused(arguments, message, tmp_path):
    cfg = fastaae.preset("digits", epochs=1, hidden=(8,), out_dir=tmp_path / "run")
    model = fastaae.train(cfg, progress=False).model
    with pytest.raises(ValueError, match=message):
        model.sample(**arguments)
    assert np.array_equal(model.sample(np.int64(3), np.int64(2)), model.sample(3, 2))
    with pytest.raises(ValueError, match="z holds nan, expected finite numbers"):
        model.decode([[0, 1], [math.nan, 1]])
    with pytest.raises(ValueError, match="z is a str, expected a numpy array or a torch tensor"):
        model.decode("abc")


def test_one_row_taken_backwards(tmp_path):
    """NumPy calls it contiguous, and keeps the negative stride that torch refuses."""
    cfg = fastaae.preset("digits", epochs=1, hidden=(8,), out_dir=tmp_path / "run")
    model = fastaae.train(cfg, progress=False).model
    z, x = np.random.default_rng(0).normal(size=(1, 2)).astype(np.float32), np.full((1, 8, 8), 0.5, np.float32)
    assert z[::-1].strides[0] < 0 and z[::-1].flags.c_contiguous
    assert np.array_equal(model.decode(z[::-1]), model.decode(z))
    assert np.array_equal(model.encode(x[::-1]), model.encode(x))
