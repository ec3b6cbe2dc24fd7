"""Modules: equal to the Model and to float64 written from the definition, on the same memory; gradients are kept."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import fastaae
from fastaae.files import DataError

RNG = np.random.default_rng(0)
SHAPE, N = (2, 3), 300
X, Y = RNG.random((N, *SHAPE)), np.arange(N) % 3
BYTES = (255 * X).astype(np.uint8)
TABLE = 100 + 30 * RNG.normal(size=(N, 5))
CASES = {
    "unsupervised": ({}, X),
    "bytes": ({}, BYTES),
    "supervised": ({"task": "supervised"}, X),
    "semi-supervised": ({"task": "semi_supervised"}, X),
    "semi-supervised, bytes": ({"task": "semi_supervised"}, BYTES),
    "clustering": ({"task": "clustering", "n_clusters": 4}, X),
    "embedding": ({"task": "embedding"}, X),
    "fixed heads": ({"task": "embedding", "fixed_heads": 2.0, "style_dim": 3}, X),
    "gaussian": ({"posterior": "gaussian"}, X),
    "gaussian, semi-supervised": ({"posterior": "gaussian", "task": "semi_supervised"}, X),
    "universal": ({"posterior": "universal"}, X),
    "universal, above": ({"posterior": "universal", "noise_layer": 1, "scale": "minmax"}, TABLE),
    "standard": ({"scale": "standard"}, TABLE),
    "standard, bytes": ({"scale": "standard"}, BYTES),
    "standard, bytes of a table": ({"scale": "standard"}, (TABLE.clip(0, 255)).astype(np.uint8)),
    "linear": ({"output": "linear"}, X),
    "cross-entropy": ({"reconstruction": "cross_entropy"}, X),
    "normalized": ({"batch_norm": "autoencoder"}, X),
    "normalized encoder": ({"batch_norm": "encoder", "task": "semi_supervised", "scale": "standard"}, TABLE),
    "one layer": ({"hidden": ()}, X),
    "gan": ({"task": "gan"}, X),
    "gan, normalized": ({"task": "gan", "batch_norm": "autoencoder", "input_noise": 0.2}, X),
}
FLOATS = [name for name in CASES if "gan" not in name and "bytes" not in name]  # autoencoders whose input has gradients


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Models by case and precision, each trained once for a moment."""
    found = {}

    def get(case, precision="fp32"):
        if (case, precision) not in found:
            fields = {"hidden": (9, 7), "init_std": 0.5, "epochs": 2, "n_validation": 0, **CASES[case][0]}
            out = str(tmp_path_factory.mktemp("runs") / "run")
            cfg = fastaae.Config(**fields, precision=precision, out_dir=out)
            found[case, precision] = fastaae.train(cfg, data=(CASES[case][1], Y), progress=False).model
        return found[case, precision]

    return get


def codes_of(m, x):
    out = m.encoder_module()(x)
    return out if isinstance(out, tuple) else (out, None)


def labels(m, n):
    """One-hot rows where the decoder needs labels."""
    return torch.eye(m.n_classes)[torch.arange(n) % m.n_classes] if m.n_classes and m.heads is None else None


@pytest.mark.parametrize("n", [1, 17, 300])
@pytest.mark.parametrize("case", CASES)
def test_modules_equal_the_model(case, n, trained):
    m, x = trained(case), CASES[case][1][:n]
    decoder, y, z = m.decoder_module(), labels(m, n), torch.randn(n, m.config.style_dim)

    def close(ours, theirs):
        assert ours.shape == theirs.shape and str(ours.dtype)[6:] == str(theirs.dtype)
        largest = max(1.0, np.abs(theirs).max())
        np.testing.assert_allclose(ours.detach().numpy() / largest, theirs / largest, rtol=0, atol=1e-5)

    close(decoder(z, y), m.decode(z.numpy(), None if y is None else y.numpy()))
    if "gan" in case:
        return
    z, q = codes_of(m, torch.from_numpy(x))
    close(z, m.encode(x))
    assert torch.equal(z, codes_of(m, torch.from_numpy(x).flatten(1))[0])
    if m.label_head:
        close(q, m.predict_proba(x))
    if m.heads is not None:
        close(decoder(z), m.reconstruct(x))
        own = m.code(m.scaled(torch.from_numpy(x).flatten(1)))[0]
        close(decoder(own, q), m.decode(own.numpy(), q.detach().numpy()))
    elif m.label_head or not m.n_classes:
        close(decoder(z, q), m.reconstruct(x))
    else:
        close(decoder(z, y), m.reconstruct(x, y.numpy()))


def by_hand(m, x, noise=None):
    """Encoded and decoded in float64 by the definition: (representation or z, y, decoded) and the leaves used."""
    leaves = {
        f"{name}.{k}": t.double().clone().requires_grad_()
        for name, part in (("encoder", m.encoder), ("decoder", m.decoder), ("heads", m.heads))
        if part is not None
        for k, t in part.state().items()
    }

    def network(name, v):
        last = len(getattr(m, name).weights) - 1
        for i in range(last + 1):
            w, b = leaves[f"{name}.{i}.weight"][0], leaves[f"{name}.{i}.bias"][0, 0]
            if w.shape[1] > v.shape[1]:
                more = torch.zeros(len(v), w.shape[1] - v.shape[1]) if noise is None else noise
                v = torch.hstack([v, more.double()])
            v = torch.einsum("oi,ni->no", w, v)
            if f"{name}.{i}.scale" in leaves:
                mean, var, scale = (
                    leaves[f"{name}.{i}.{k}"][0, 0] for k in ("running_mean", "running_variance", "scale")
                )
                v = (v - mean) / (var + 1e-5).sqrt() * scale
            v = v + b
            v = v * (v > 0) if i < last else v
        return v

    d, k = m.config.style_dim, m.n_classes if m.label_head else 0
    shift, span = (m.scale.shift[0, 0], m.scale.span[0, 0]) if m.scale else (0.0, 1.0)
    out = network("encoder", (x.flatten(1).double() - shift) / span)
    z, y = out[:, :d], None
    if m.config.posterior == "gaussian" and noise is not None:
        z = z + (out[:, d + k :] / 2).exp() * noise
    if k:
        y = out[:, d : d + k].exp() / out[:, d : d + k].exp().sum(1, keepdim=True)
    if m.heads is not None:
        z = z + y @ leaves["heads.weight"][0]
    given = y if k else labels(m, len(x))
    code = z if given is None or m.heads is not None else torch.hstack([z, given.double()])
    out = network("decoder", code)
    out = 1 / (1 + (-out).exp()) if m.config.output_layer == "sigmoid" else out
    return z, y, out * span + shift, leaves


def loss_of(z, y, decoded):
    weight = torch.linspace(0.3, 1.7, decoded[0].numel(), dtype=torch.float64)
    total = (z.sin().sum() + (decoded.flatten(1) * weight).square().sum()) / len(z)
    return total if y is None else total + (y * torch.arange(1, y.shape[1] + 1)).square().sum()


@pytest.mark.parametrize(
    ("case", "sampled"), [*((c, False) for c in FLOATS), *((c, True) for c in FLOATS if "posterior" in CASES[c][0])]
)
def test_gradients_are_those_of_float64_by_hand(case, sampled, trained):
    m, x = trained(case, "fp64"), torch.from_numpy(CASES[case][1][:17])
    size = {"gaussian": m.config.style_dim, "universal": m.config.noise_dim}.get(m.config.posterior)
    noise = torch.randn(17, size, dtype=torch.float64) if sampled else None
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    encoder, decoder = m.encoder_module(), m.decoder_module()
    out = encoder(ours, noise)
    z, y = out if isinstance(out, tuple) else (out, None)
    given = None if m.heads is not None else y if m.label_head else labels(m, 17)
    loss_of(z, y, decoder(z, given)).backward()
    *made, leaves = by_hand(m, theirs, noise)
    loss_of(*made).backward()

    def close(a, b):
        largest = max(1e-3, b.abs().max())
        assert a.shape == b.shape and ((a - b).abs().max() / largest) < 1e-9

    close(ours.grad, theirs.grad)
    for name, module in (("encoder", encoder), ("decoder", decoder)):
        for i in range(len(module.weights)):
            close(module.weights[i].grad, leaves[f"{name}.{i}.weight"].grad[0])
            close(module.biases[i].grad, leaves[f"{name}.{i}.bias"].grad[0, 0])
            if len(module.scales):
                close(module.scales[i].grad, leaves[f"{name}.{i}.scale"].grad[0, 0])
    if m.heads is not None:
        close(encoder.heads.grad, leaves["heads.weight"].grad[0])


@pytest.mark.parametrize("case", ["embedding", "normalized", "standard", "semi-supervised"])
def test_gradients_are_finite_differences(case, trained):
    m = trained(case, "fp64")
    x = torch.from_numpy(CASES[case][1][:3].astype(float)).requires_grad_()
    torch.autograd.gradcheck(m.encoder_module().requires_grad_(False), x, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", ["unsupervised", "normalized", "embedding", "standard"])
def test_memory_is_shared(case, trained):
    m = copy_of(trained(case))
    x = CASES[case][1][:5]
    encoder, decoder = m.encoder_module(), m.decoder_module()
    networks = [*m.encoder.state().values(), *m.decoder.state().values(), *([m.heads.weight] if m.heads else [])]
    here = {t.data_ptr() for t in networks} | (
        {m.scale.shift.data_ptr(), m.scale.span.data_ptr()} if m.scale else set()
    )
    assert {t.data_ptr() for module in (encoder, decoder) for t in module.state_dict().values()} == here
    before = m.encode(x), m.reconstruct(x)
    with torch.no_grad():
        encoder.biases[-1].add_(0.5)
        decoder.weights[0].mul_(1.5)
    assert np.abs(m.encode(x) - before[0]).max() > 0.1 and not np.allclose(m.reconstruct(x), before[1])
    m.encoder.biases[-1].sub_(0.5)
    m.decoder.weights[0].div_(1.5)
    z = codes_of(m, torch.from_numpy(x))[0]
    np.testing.assert_allclose(
        encoder(torch.from_numpy(x))[0].detach() if m.label_head else z.detach(), before[0], atol=1e-5
    )
    np.testing.assert_allclose(decoder(z).detach(), before[1], rtol=1e-5, atol=1e-5)


def copy_of(m):
    """A model of its own memory."""
    parts = (p and p.mapped(torch.clone) for p in (m.encoder, m.decoder, m.heads, m.scale))
    return fastaae.Model(m.config, m.shape, m.n_classes, *parts, known=m.known)


def test_an_optimizer_of_torch_trains_the_model(trained):
    m = copy_of(trained("unsupervised"))
    encoder, decoder, x = m.encoder_module(), m.decoder_module(), torch.from_numpy(X).float()
    before = m.reconstruction_error(X).mean()
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 0.01)
    for _ in range(50):
        optimizer.zero_grad()
        (decoder(encoder(x)) - x).square().sum().backward()
        optimizer.step()
    assert m.reconstruction_error(X).mean() < 0.9 * before


def test_a_conversion_is_a_copy_and_a_state_comes_back(trained):
    m, x = trained("normalized"), torch.from_numpy(X[:5])
    encoder, whole = m.encoder_module(), m.encoder_module().to(torch.float64)
    assert encoder(x).dtype == torch.float32 and whole(x).dtype == torch.float64
    np.testing.assert_allclose(whole(x).detach(), encoder(x).detach(), atol=1e-5)
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert encoder(x).abs().max() > 0 == other(x).abs().max()
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(x), encoder(x))
    assert encoder.to("meta")(x.to("meta")).shape == (5, 2)


@pytest.mark.parametrize(
    "case", ["semi-supervised", "embedding", "universal, above", "normalized encoder", "supervised"]
)
def test_modules_compile_and_export_for_any_batch(case, trained):
    m, x = trained(case), torch.from_numpy(CASES[case][1])
    n = torch.export.Dim("n", min=2)
    encoder, decoder = m.encoder_module(), m.decoder_module()
    z, y = codes_of(m, x)[0].detach(), labels(m, N)
    inputs = [(encoder, (x,)), (decoder, (z,) if y is None else (z, y))]
    for module, given in inputs:
        exported = torch.export.export(module, tuple(t[:7] for t in given), dynamic_shapes=({0: n},) * len(given))
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
        for run in (exported.module(), compiled):
            for k in (2, 7, 300):
                some = [t[:k] for t in given]
                torch.testing.assert_close(run(*some), module(*some), rtol=1e-5, atol=1e-5)


def test_labels_missing_or_in_vain_are_refused(trained):
    z = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"y=None: expected probabilities \[N, 3\]"):
        trained("supervised").decoder_module()(z)
    with pytest.raises(ValueError, match="y=tensor.*: expected None"):
        trained("unsupervised").decoder_module()(z, torch.ones(3, 3))
    with pytest.raises(ValueError, match="task 'gan' has no encoder"):
        trained("gan").encoder_module()
    with pytest.raises(RuntimeError):
        trained("universal").encoder_module()(torch.zeros(3, 5))


def test_what_is_no_tensor_is_refused(trained):
    m = trained("semi-supervised")
    both = m.encoder_module()(torch.rand(2, *m.shape))
    with pytest.raises(ValueError, match="^z is a tuple, expected a tensor$"):
        m.decoder_module()(both)
    with pytest.raises(ValueError, match="^x is a ndarray, expected a tensor$"):
        m.encoder_module()(np.zeros((2, *m.shape), np.float32))


# Gradients through the Model's own methods


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("case", FLOATS)
def test_the_models_methods_keep_gradients(case, seed, trained):
    m, x = trained(case), torch.from_numpy(CASES[case][1][:17])
    given = x.clone().requires_grad_()
    z = m.encode(given, seed)
    assert z.requires_grad and not m.encode(x, seed).requires_grad
    torch.testing.assert_close(z.detach(), m.encode(x, seed), rtol=0, atol=1e-5)
    y = labels(m, 17)
    decoded = m.decode(z, y)
    torch.testing.assert_close(decoded.detach(), m.decode(z.detach(), y), rtol=1e-5, atol=1e-5)
    decoded.sum().backward()
    assert given.grad.abs().max() > 0 and all(not t.requires_grad for t in m.decoder.state().values())
    whole = m.reconstruct(given, y if m.config.task == "supervised" else None)
    assert whole.requires_grad
    with torch.no_grad():
        again = m.reconstruct(given, y if m.config.task == "supervised" else None)
    assert not again.requires_grad
    torch.testing.assert_close(whole.detach(), again, rtol=1e-5, atol=1e-5)
    if m.label_head:
        q = m.predict_proba(given)
        torch.testing.assert_close(q.detach(), m.predict_proba(x), rtol=0, atol=1e-5)
        assert torch.autograd.grad(q[:, 0].sum(), given)[0].abs().max() > 0


def test_labels_keep_gradients_too(trained):
    m = trained("semi-supervised")
    y = labels(m, 3).requires_grad_()
    grad = torch.autograd.grad(m.decode(torch.zeros(3, 2), y).sum(), y)[0]
    assert grad.shape == (3, 3) and grad.abs().max() > 0


def test_wrong_examples_with_gradients_are_refused(trained):
    m = trained("unsupervised")
    with pytest.raises(DataError, match="NaN"):
        m.encode(torch.full((3, *SHAPE), math.nan, requires_grad=True))
    with pytest.raises(DataError, match="expected 6"):
        m.encode(torch.zeros(3, 5, requires_grad=True))


def test_a_model_loaded_in_inference_mode_has_modules(trained, tmp_path):
    trained("normalized").save(tmp_path / "m")
    with torch.inference_mode():
        m = fastaae.load(tmp_path / "m")
    x = torch.from_numpy(X[:3]).requires_grad_()
    m.encoder_module()(x).sum().backward()
    assert x.grad.abs().max() > 0
