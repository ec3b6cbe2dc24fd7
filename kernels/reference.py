"""The hot operations of a training step in plain torch: ground truth for the Triton kernels, and the CPU path.

Shapes: R replicas, B rows, I inputs, O outputs. Weights are [R, O, I], biases [R, 1, O], activations [R, B, D]. Every
operation writes into buffers it is given, reads nothing back to the host, and has no shape that depends on data, so a
step made of them can be captured in a CUDA graph.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus


def gather(data: Tensor, index: Tensor, out: Tensor, staging: Tensor | None) -> None:
    """out[r, b] = data[index[r, b]], bytes scaled to [0, 1].

    Args:
        data: [N, D], uint8 or the dtype of out.
        index: [R, B], int32 or int64.
        out: [R, B, D].
        staging: [R * B, D] uint8 for uint8 data, None for float data.
    """
    rows = out.view(-1, out.shape[-1])
    if staging is None:
        torch.index_select(data, 0, index.reshape(-1), out=rows)
    else:
        torch.index_select(data, 0, index.reshape(-1), out=staging)
        rows.copy_(staging).div_(255)


def linear(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, relu: bool) -> None:
    """out = x weightᵀ + bias, then max(0, .) if relu. x [R, B, I], out [R, B, O]."""
    torch.baddbmm(bias, x, weight.transpose(1, 2), out=out)
    if relu:
        out.relu_()


def linear_backward(grad: Tensor, weight: Tensor, out: Tensor, activation: Tensor | None) -> None:
    """out = grad weight: gradient with respect to a layer's input.

    Args:
        grad: [R, B, O], with respect to the layer's output.
        weight: [R, O, I].
        out: [R, B, I].
        activation: [R, B, I], the ReLU output that was the layer's input: out is zeroed where it is zero. None: a
            layer without ReLU below.
    """
    torch.bmm(grad, weight, out=out)
    if activation is not None:
        torch.ops.aten.threshold_backward.grad_input(out, activation, 0, grad_input=out)


def sgd_(
    weight: Tensor, bias: Tensor, weight_momentum: Tensor, bias_momentum: Tensor,
    x: Tensor, grad: Tensor, rate: Tensor, momentum: float,
) -> None:  # fmt: skip
    """SGD with momentum on one layer. Its gradient gradᵀ x is never stored: m = momentum * m + gradᵀ x is one GEMM.

    Args:
        x, grad: [R, B, I], [R, B, O], the layer's input and the gradient of its output.
        rate: [1, 1, 1], the learning rate, on the device.
    """
    weight_momentum.baddbmm_(grad.transpose(1, 2), x, beta=momentum)
    weight.addcmul_(weight_momentum, rate, value=-1)
    bias_momentum.mul_(momentum).add_(grad.sum(1, keepdim=True))
    bias.addcmul_(bias_momentum, rate, value=-1)


def weight_gradient(x: Tensor, grad: Tensor, out: Tensor) -> None:
    """out = gradᵀ x: gradient with respect to a layer's weight. x [R, B, I], grad [R, B, O], out [R, O, I]."""
    torch.bmm(grad.transpose(1, 2), x, out=out)


def adam_(
    parameter: Tensor, first: Tensor, second: Tensor, grad: Tensor, rate: Tensor, correction: Tensor, scratch: Tensor
) -> None:
    """Adam (Kingma & Ba 2015; betas 0.9, 0.999, eps 1e-8) on one parameter.

    Args:
        grad, scratch: of the parameter's shape; scratch is overwritten.
        rate: [1, 1, 1].
        correction: [2], 1 - beta ** step for both betas.
    """
    first.lerp_(grad, 0.1)
    second.mul_(0.999).addcmul_(grad, grad, value=0.001)
    torch.div(second, correction[1], out=scratch).sqrt_().add_(1e-8)
    torch.div(first, scratch, out=scratch)
    parameter.addcmul_(scratch, rate / correction[0], value=-1)


def squared_error(logits: Tensor, target: Tensor, grad: Tensor, sigmoid: bool) -> Tensor:
    """0.5 * sum over D of (output - target)², mean over B, with output = sigmoid(logits) or logits.

    Args:
        logits: [R, B, D]; overwritten with the output.
        target: [R, B, D].
        grad: [R, B, D]; receives the gradient with respect to the logits.

    Returns:
        Loss [R].
    """
    output = logits.sigmoid_() if sigmoid else logits
    torch.sub(output, target, out=grad)
    flat = grad.flatten(1)
    loss = torch.linalg.vecdot(flat, flat) / (2 * target.shape[1])
    if sigmoid:
        torch.ops.aten.sigmoid_backward.grad_input(grad, output, grad_input=grad)
    grad.div_(target.shape[1])
    return loss


def cross_entropy(logits: Tensor, target: Tensor, grad: Tensor) -> Tensor:
    """Binary cross-entropy of sigmoid(logits) with targets in [0, 1], sum over D, mean over B.

    Args as in squared_error; logits are overwritten with sigmoid(logits). Returns: loss [R].
    """
    loss = (softplus(logits).sum((1, 2)) - torch.linalg.vecdot(logits.flatten(1), target.flatten(1))) / target.shape[1]
    torch.sub(logits.sigmoid_(), target, out=grad).div_(target.shape[1])
    return loss


def discriminator_loss(logits: Tensor, grad: Tensor) -> Tensor:
    """Binary cross-entropy, mean over all rows: -log sigmoid of the first half (real), -log(1 - sigmoid) of the rest.

    Args:
        logits, grad: [R, 2B, 1]; grad receives the gradient with respect to the logits.

    Returns:
        Loss [R].
    """
    b = logits.shape[1] // 2
    real, fake = logits[:, :b], logits[:, b:]
    torch.sigmoid(logits, out=grad)
    grad[:, :b].sub_(1)
    grad.div_(2 * b)
    return (softplus(-real) + softplus(fake)).mean((1, 2)) / 2


def generator_loss(logits: Tensor, grad: Tensor) -> Tensor:
    """-mean log sigmoid(fake): the non-saturating generator cost. logits, grad [R, B, 1]. Returns: loss [R]."""
    torch.sigmoid(logits, out=grad).sub_(1).div_(logits.shape[1])
    return softplus(-logits).mean((1, 2))


def softmax_cross_entropy(logits: Tensor, labels: Tensor, grad: Tensor) -> Tensor:
    """-mean over B of log softmax(logits)[label].

    Args:
        logits, grad: [R, B, K]; grad receives the gradient with respect to the logits.
        labels: [R, B], int64 in [0, K).

    Returns:
        Loss [R].
    """
    log_p = torch.log_softmax(logits, -1)
    index = labels.unsqueeze(-1)
    loss = -log_p.gather(-1, index).mean((1, 2))
    torch.exp(log_p, out=log_p)
    grad.copy_(log_p.scatter_add_(-1, index, torch.full_like(log_p[..., :1], -1))).div_(labels.shape[1])
    return loss


def softmax_backward_(grad: Tensor, y: Tensor) -> None:
    """Gradient with respect to the logits of y = softmax(logits), in place. grad, y: [R, B, K]."""
    grad.sub_((grad * y).sum(-1, keepdim=True)).mul_(y)


def parzen_log_likelihood(queries: Tensor, samples: Tensor, sigma: float) -> Tensor:
    """Parzen-window log-likelihood [M] of queries [M, D] under samples [N, D], from float64 differences. In nats."""
    queries, samples = queries.double(), samples.double()
    exponents = torch.stack([(samples - x).square().sum(1) for x in queries]) / (-2 * sigma**2)
    log_norm = math.log(len(samples)) + samples.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))
    return exponents.logsumexp(1) - log_norm
