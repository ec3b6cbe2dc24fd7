"""Every operation of fastaae.kernels against float64 autograd or the textbook formula."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from fastaae import kernels
from fastaae.kernels import onednn, reference

D64 = torch.float64
SHAPES = [pytest.param(1, 1, 1, 1, id="ones"), pytest.param(1, 5, 7, 3, id="r1"), pytest.param(3, 4, 11, 13, id="r3")]


def randn(*shape):
    return torch.randn(*shape, dtype=D64)


def close(a, b, rtol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("r,b,i,o", SHAPES)
def test_linear_and_its_gradients(r, b, i, o, relu):
    x, w, bias, upstream = randn(r, b, i).relu().requires_grad_(), randn(r, o, i), randn(r, 1, o), randn(r, b, o)
    w.requires_grad_(), bias.requires_grad_()
    expected = torch.einsum("rbi,roi->rbo", x, w) + bias
    gx, gw, gb = torch.autograd.grad(expected, (x, w, bias), upstream)

    out, gin = torch.empty(r, b, o, dtype=D64), torch.empty(r, b, i, dtype=D64)
    kernels.linear(x.detach(), w.detach(), bias.detach(), out, relu)
    close(out, expected.detach().relu() if relu else expected.detach())
    kernels.linear_backward(upstream, w.detach(), gin, x.detach() if relu else None)
    close(gin, gx * (x > 0) if relu else gx)

    weight, offset = w.detach().clone(), bias.detach().clone()
    wm, bm = torch.zeros_like(weight), torch.zeros_like(offset)
    layer = (x.detach(), upstream, weight, offset, weight, (wm,), (bm,))
    kernels.update([layer], torch.full((r, 1, 1), 0.5, dtype=D64), None, 0.9)
    close(wm, gw)
    close(bm, gb)
    close(weight, w.detach() - 0.5 * gw)
    close(offset, bias.detach() - 0.5 * gb)


@pytest.mark.skipif(not onednn.AVAILABLE, reason="this PyTorch or processor is without oneDNN")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("r,b,i,o", [(1, 1, 200, 170), (3, 37, 181, 191), (2, 100, 784, 1000)])
def test_onednn_is_as_exact_as_torch(r, b, i, o, relu):
    """Against float64: at most twice the error of reference.py in float32."""
    x, w, bias, grad = randn(r, b, i).relu(), randn(r, o, i), randn(r, 1, o), randn(r, b, o)
    momentum = [randn(r, o, i), randn(r, 1, o)]
    rate = torch.full((r, 1, 1), 0.01, dtype=D64)

    def results(module, dtype):
        a, v, c, g, n = (t.to(dtype) for t in (x, w, bias, grad, rate))
        out, gin = torch.empty_like(g), torch.empty_like(a)
        module.linear(a, v, c, out, relu)
        module.linear_backward(g, v, gin, a if relu else None)
        buffers = [v.clone(), c.clone(), *(m.to(dtype) for m in momentum)]
        weight, offset, *states = buffers
        module.update([(a, g, weight, offset, weight, *((t,) for t in states))], n, None, 0.9)
        adam = [v.clone(), c.clone(), *(m.to(dtype).abs() for m in momentum for _ in range(2))]
        weight, offset, *moments = adam
        layer = (a, g, weight, offset, weight, tuple(moments[:2]), tuple(moments[2:]))
        correction, scratch = torch.tensor([0.1, 0.001], dtype=dtype), torch.empty(2, v.numel(), dtype=dtype)
        module.update([layer], n, correction, scratch=scratch)
        return [out, gin, *buffers, *adam]

    assert onednn.takes(w.float()) and not onednn.takes(w)
    for exact, theirs, ours in zip(
        *(results(*m) for m in ((reference, D64), (reference, torch.float32), (onednn, torch.float32))), strict=True
    ):
        worst = (theirs - exact).abs().max()
        assert (ours - exact).abs().max() <= 2 * worst + 1e-6 * exact.abs().max()
        assert torch.equal(ours == 0, theirs == 0) or not relu


EVERYTHING = """
import numpy as np
from fastaae import preset, parzen_log_likelihood
from fastaae.data import from_arrays
from fastaae.phases import Step

rng = np.random.default_rng(0)
x = rng.random((300, 784), np.float32)
for name in ("mnist-100", "mnist-likelihood"):
    for optimizer in ("sgd", "adam"):
        step = Step(preset(name, replicas=2, optimizer=optimizer), from_arrays((x, np.arange(300) % 10)), "cpu")
        step.start_epoch(0)
        step()
parzen_log_likelihood(x[:9], x, 0.2)
"""


@pytest.mark.skipif(not onednn.AVAILABLE, reason="this PyTorch or processor is without oneDNN")
def test_no_product_is_left_to_the_reference_loop_of_onednn():
    env = {**os.environ, "ONEDNN_VERBOSE": "1"}
    done = subprocess.run([sys.executable, "-c", EVERYTHING], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if ",exec," in line and "inner_product" in line]
    assert len(lines) > 100 and not [line for line in lines if "ref:" in line]


@pytest.mark.skipif(not onednn.AVAILABLE, reason="this PyTorch or processor is without oneDNN")
def test_onednn_carries_nan():
    x, w, bias, out = torch.ones(1, 4, 256), torch.ones(1, 256, 256), torch.zeros(1, 1, 256), torch.empty(1, 4, 256)
    x[0, 1, 3] = float("nan")
    kernels.linear(x, w, bias, out, relu=True)
    assert out[0, 1].isnan().all() and out[0, [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("scale", [1, 30, 300], ids=lambda s: f"x{s}")
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("r,b,d", [(1, 1, 1), (3, 5, 7)])
def test_squared_error(r, b, d, sigmoid, scale):
    logits, target = (scale * randn(r, b, d)).requires_grad_(), torch.rand(r, b, d, dtype=D64)
    output = logits.sigmoid() if sigmoid else logits
    expected = 0.5 * (output - target).square().sum(-1).mean(-1)
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    grad, terms = torch.empty_like(target), torch.empty(r, b, dtype=D64)
    kind = "sigmoid" if sigmoid else "linear"
    kernels.reconstruction_loss(logits.detach().clone(), target, grad, terms, kind, "squared_error")
    close(terms.sum(1), expected.detach())
    close(grad, gradient)


@pytest.mark.parametrize("scale", [1, 30, 1000], ids=lambda s: f"x{s}")
@pytest.mark.parametrize("r,b,d", [(1, 1, 1), (3, 5, 7)])
def test_cross_entropy(r, b, d, scale):
    logits, target = (scale * randn(r, b, d)).requires_grad_(), torch.rand(r, b, d, dtype=D64)
    expected = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1).mean(-1)
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    grad, terms = torch.empty_like(target), torch.empty(r, b, dtype=D64)
    kernels.reconstruction_loss(logits.detach().clone(), target, grad, terms, "sigmoid", "cross_entropy")
    close(terms.sum(1), expected.detach())
    close(grad, gradient)


@pytest.mark.parametrize("scale", [1, 30, 10_000], ids=lambda s: f"x{s}")
@pytest.mark.parametrize("real", [0, 2, 5])
@pytest.mark.parametrize("r", [1, 3])
def test_a_discriminators_last_layer_and_loss(r, real, scale):
    b, h = 5, 7
    hidden, weight, bias = scale * randn(r, b, h).relu(), randn(r, 1, h), randn(r, 1, 1)
    hidden.requires_grad_()
    z = torch.baddbmm(bias, hidden, weight.transpose(1, 2))
    expected = -torch.cat([F.logsigmoid(z[:, :real]), F.logsigmoid(-z[:, real:])], 1).mean((1, 2))
    gz, gh = torch.autograd.grad(expected.sum(), (z, hidden))
    logits, grad, below, terms = (torch.empty(r, b, n, dtype=D64) for n in (1, 1, h, 1))
    kernels.judge(hidden.detach(), weight, bias, logits, grad, below, terms[..., 0], real)
    close(logits, z.detach())
    close(terms.sum((1, 2)), expected.detach())
    close(grad, gz)
    close(below, gh * (hidden > 0))
    kernels.judge(hidden.detach(), weight, bias, logits, grad, None, terms[..., 0], real)
    close(grad, gz)


@pytest.mark.parametrize("scale", [1, 30, 1000], ids=lambda s: f"x{s}")
@pytest.mark.parametrize("r,b,k", [(1, 1, 2), (3, 5, 10)])
def test_softmax_losses(r, b, k, scale):
    logits, labels = (scale * randn(r, b, k)).requires_grad_(), torch.randint(k, (r, b))
    expected = torch.stack([F.cross_entropy(logits[j], labels[j]) for j in range(r)])
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    grad, terms = torch.empty(r, b, k, dtype=D64), torch.empty(r, b, dtype=D64)
    kernels.softmax_cross_entropy(logits.detach(), labels, grad, terms)
    close(terms.sum(1), expected.detach())
    close(grad, gradient)
    kernels.softmax_cross_entropy(logits.detach(), labels, grad, terms, torch.tensor([8.0, 0, 0], dtype=D64))
    close(grad, 8 * gradient)

    y, upstream = logits.softmax(-1), randn(r, b, k)
    work = logits.detach().clone()
    kernels.softmax_(work)
    close(work, y.detach())
    (gradient,) = torch.autograd.grad(y, logits, upstream)
    kernels.softmax_backward_(upstream, y.detach())
    close(upstream, gradient)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_gather_takes_the_rows_and_scales_bytes(dtype):
    data = torch.randint(0, 256, (9, 6)).to(dtype)
    index = torch.tensor([[8, 0, 3], [3, 3, 1]], dtype=torch.int32)
    out = torch.empty(2, 3, 6, dtype=torch.float32 if dtype == torch.uint8 else dtype)
    staging = torch.empty(6, 6, dtype=torch.uint8) if dtype == torch.uint8 else None
    kernels.gather(data, index, out, staging)
    expected = data[index.long()].to(out.dtype)
    assert torch.equal(out, expected / 255 if dtype == torch.uint8 else expected)
