"""The hand-written backward pass against float64 autograd, the optimisers against torch.optim."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastaae.engine.networks import MLP, AdamClock, Optimizer

D64 = torch.float64


def network(r=1, sizes=(5, 7, 6, 3), std=0.7, dtype=D64):
    generators = [torch.Generator().manual_seed(k) for k in range(r)]
    mlp = MLP.initialize(sizes, std, generators, torch.device("cpu"), dtype)
    for bias in mlp.biases:
        bias.normal_()
    return mlp


def twins(mlp):
    """One torch module per replica, with the same weights."""
    modules = []
    for r in range(mlp.weights[0].shape[0]):
        layers = []
        for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
            layer = nn.Linear(weight.shape[2], weight.shape[1], dtype=weight.dtype)
            layer.weight.data.copy_(weight[r])
            layer.bias.data.copy_(bias[r, 0])
            layers += [layer, nn.ReLU()]
        modules.append(nn.Sequential(*layers[:-1]))
    return modules


def assert_equals(mlp, modules, rtol=1e-9):
    for r, module in enumerate(modules):
        linears = [m for m in module if isinstance(m, nn.Linear)]
        for weight, bias, linear in zip(mlp.weights, mlp.biases, linears, strict=True):
            torch.testing.assert_close(weight[r], linear.weight.data, rtol=rtol, atol=1e-12)
            torch.testing.assert_close(bias[r, 0], linear.bias.data, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("r", [1, 3])
@pytest.mark.parametrize("sizes", [(5, 3), (5, 7, 3), (5, 7, 6, 3), (1, 1, 1)], ids=str)
def test_gradients_equal_autograd(sizes, r):
    mlp = network(r, sizes)
    tape = mlp.tape(rows=4)
    tape.x[0].normal_()
    tape.g[-1].normal_()
    x, upstream = tape.x[0].clone().requires_grad_(), tape.g[-1].clone()
    modules = twins(mlp)
    outputs = [module(x[k]) for k, module in enumerate(modules)]
    torch.autograd.backward(outputs, list(upstream))

    before = {name: p.clone() for name, p in mlp.state().items()}
    mlp.forward(tape)
    for k, output in enumerate(outputs):
        torch.testing.assert_close(tape.x[-1][k], output.detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(mlp.replica(k)(x[k].detach()), output.detach(), rtol=1e-9, atol=1e-12)
    mlp.backward(tape, Optimizer(mlp, torch.ones(r, 1, 1, dtype=D64)), input_gradient=True)
    torch.testing.assert_close(tape.g[0], x.grad, rtol=1e-9, atol=1e-12)
    for k, module in enumerate(modules):
        gradients = [p.grad for p in module.parameters()]
        steps = [
            (before[name] - p)[k].reshape(g.shape) for (name, p), g in zip(mlp.state().items(), gradients, strict=True)
        ]
        for step, gradient in zip(steps, gradients, strict=True):
            torch.testing.assert_close(step, gradient, rtol=1e-9, atol=1e-12)


def test_without_optimizer_only_the_input_gradient_is_made():
    mlp = network()
    before = {name: p.clone() for name, p in mlp.state().items()}
    tape = mlp.tape(rows=4)
    tape.x[0].normal_()
    tape.g[-1].normal_()
    mlp.forward(tape)
    mlp.backward(tape, None, input_gradient=True)
    assert tape.g[0].abs().sum() > 0
    assert all(torch.equal(before[name], p) for name, p in mlp.state().items())


@pytest.mark.parametrize("kind", ["sgd", "sgd-no-momentum", "adam"])
def test_optimizers_follow_torch_over_changing_rates(kind):
    mlp = network(r=2)
    modules = twins(mlp)
    rate = torch.full((2, 1, 1), 0.1, dtype=D64)
    momentum = 0.9 if kind == "sgd" else 0.0
    clock = AdamClock(torch.device("cpu"), D64) if kind == "adam" else None
    ours = Optimizer(mlp, rate, momentum, clock)
    if kind == "adam":
        theirs = [torch.optim.Adam(m.parameters(), 0.1) for m in modules]
    else:
        theirs = [torch.optim.SGD(m.parameters(), 0.1, momentum) for m in modules]
    for step in range(6):
        lr = 0.1 if step < 3 else 0.02
        rate.fill_(lr)
        x, target = torch.randn(2, 4, 5, dtype=D64), torch.randn(2, 4, 3, dtype=D64)
        tape = mlp.tape(rows=4)
        tape.x[0].copy_(x)
        if clock:
            clock.advance(torch.tensor([step]))
        mlp.forward(tape)
        tape.g[-1].copy_(tape.x[-1] - target)
        mlp.backward(tape, ours, input_gradient=False)
        for k, (module, optimizer) in enumerate(zip(modules, theirs, strict=True)):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            (0.5 * (module(x[k]) - target[k]).square().sum()).backward()
            optimizer.step()
    assert_equals(mlp, modules)


def test_initial_weights_depend_on_the_replicas_own_generator_alone():
    three = network(3)
    g = torch.Generator().manual_seed(1)
    alone = MLP.initialize(three.sizes, 0.7, [g], torch.device("cpu"), D64)
    assert all(torch.equal(a[1], b[0]) for a, b in zip(three.weights, alone.weights, strict=True))


def test_initial_weights_have_the_standard_deviation_asked_for():
    mlp = MLP.initialize((400, 500), 0.01, [torch.Generator().manual_seed(0)], torch.device("cpu"), torch.float32)
    weight = mlp.weights[0]
    assert abs(weight.std().item() - 0.01) < 1e-4 and abs(weight.mean().item()) < 1e-4  # 6 standard errors
    assert not mlp.biases[0].any()


def test_initial_weights_keep_the_size_of_what_passes_through_them_where_no_deviation_is_given():
    g = torch.Generator().manual_seed(0)
    options = {"std": None, "generators": [g], "device": torch.device("cpu"), "dtype": torch.float32}
    mlp = MLP.initialize((30, 400, 2000, 700), noise=(1, 200), **options)
    for weight, gain, inputs in zip(mlp.weights, (2, 2, 1), (30, 600, 2000), strict=True):  # the second sees noise, too
        assert abs(weight.std() / (gain / inputs) ** 0.5 - 1) < 0.03
    x, mlp = torch.randn(500, 30, generator=g), MLP.initialize((30, 900, 1000, 1100, 1000, 50), **options)
    for weight in mlp.weights[:-1]:
        x = (x @ weight[0].T).relu()
    assert 0.8 < (x @ mlp.weights[-1][0].T).std() < 1.25  # as the input's, however deep
