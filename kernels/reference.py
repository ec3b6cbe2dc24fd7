"""The hot operations of a training step in plain torch: ground truth for the Triton kernels, and the CPU path.

Shapes: R replicas, B rows, I inputs, O outputs. Weights are [R, O, I], biases [R, 1, O], activations [R, B, D]. Every
operation writes into buffers it is given, reads nothing back to the host, and has no shape that depends on data, so a
step made of them can be captured in a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def kl(mean: Tensor, log_variance: Tensor, std: float, mean_grad: Tensor, log_variance_grad: Tensor) -> Tensor:
    """KL divergence of N(mean, exp(log_variance)) from N(0, std²), sum over D, mean over B. In nats.

    Args:
        mean, log_variance: [R, B, D].
        mean_grad, log_variance_grad: [R, B, D]; receive the gradients with respect to the two.

    Returns:
        Loss [R].
    """
    b = mean.shape[1]
    ratio = log_variance - 2 * math.log(std)  # log of the two variances' ratio
    excess = torch.expm1(ratio)
    torch.div(excess, 2 * b, out=log_variance_grad)
    torch.div(mean, std**2 * b, out=mean_grad)
    return (excess.sub_(ratio).sum((1, 2)) / b + torch.linalg.vecdot(mean.flatten(1), mean_grad.flatten(1))) / 2


def reparameterize(mean: Tensor, log_variance: Tensor, noise: Tensor, out: Tensor) -> None:
    """out = mean + exp(log_variance / 2) * noise: the Gaussian posterior from noise N(0, 1). All [R, B, D]."""
    torch.addcmul(mean, torch.exp(log_variance / 2), noise, out=out)


def reparameterize_backward(grad: Tensor, log_variance: Tensor, noise: Tensor, out: Tensor) -> None:
    """out = gradient with respect to log_variance, from the one with respect to the sample, which is also the mean's.
    All [R, B, D]."""
    torch.mul(grad, noise, out=out).mul_(torch.exp(log_variance / 2)).div_(2)


def mmd(codes: Tensor, prior: Tensor, scales: Sequence[float], grad: Tensor, kernel: str, biased: bool) -> Tensor:
    """Squared maximum mean discrepancy of codes and prior samples, under a sum of kernels k(d²) of the distance d.

    Args:
        codes, prior: [R, B, D], [R, M, D].
        scales: one kernel for each s.
        grad: [R, B, D]; receives the gradient with respect to the codes.
        kernel: "rbf", exp(-d² / (2 s²)) as in GMMN, or "imq", s² / (s² + d²) as in WAE-MMD.
        biased: mean over all pairs within a set, also of a point with itself, as in GMMN: never negative. Otherwise
            the unbiased estimate, from pairs of different points.

    Returns:
        Loss [R].

    Raises:
        ValueError: another kernel, or an unbiased estimate from a single point.
    """
    b, m = codes.shape[1], prior.shape[1]
    if kernel not in ("rbf", "imq"):
        raise ValueError(f"kernel={kernel!r}: expected 'rbf' or 'imq'")
    if not biased and min(b, m) < 2:
        raise ValueError(f"mmd of {b} codes and {m} prior samples: the unbiased estimate needs two of each")
    itself = 0 if biased else 1  # pairs of a point with itself, where k = 1, that every point of a set has to give up
    loss = 0
    grad.zero_()
    for x, y, ends, weight in (  # ends: how many of a pair are codes
        (codes, codes, 2, 1 / (b * (b - itself))),
        (codes, prior, 1, -2 / (b * m)),
        (prior, prior, 0, 1 / (m * (m - itself))),
    ):
        distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # exact where points are close
        total, slope = _kernel_sum(distance.square_(), scales, kernel)
        loss = loss + weight * (total.sum((1, 2)) - (0 if ends == 1 else itself * x.shape[1] * len(scales)))
        if ends:  # the gradient of d² with respect to x is 2 (x - y)
            slope.mul_(2 * ends * weight)
            grad.addcmul_(slope.sum(2, keepdim=True), codes).baddbmm_(slope, y, alpha=-1)
    return loss


def _kernel_sum(d2: Tensor, scales: Sequence[float], kernel: str) -> tuple[Tensor, Tensor]:
    """Sum over scales of k(d²), and of its derivative with respect to d²."""
    total, slope = torch.zeros_like(d2), torch.zeros_like(d2)
    for s in scales:
        if kernel == "rbf":
            k = torch.exp(d2 * (-0.5 / s**2))
            slope.add_(k, alpha=-0.5 / s**2)
        else:
            k = s**2 / (d2 + s**2)
            slope.addcmul_(k, k, value=-1 / s**2)
        total.add_(k)
    return total, slope


def head_separation(heads: Tensor, eta: float, grad: Tensor) -> Tensor:
    """Sum over pairs of cluster heads of max(0, eta - distance).

    Args:
        heads: [R, K, D], the rows of W_C.
        grad: [R, K, D]; receives the gradient, zero between heads at one point, which has no direction.

    Returns:
        Loss [R].
    """
    difference = heads.unsqueeze(2) - heads.unsqueeze(1)  # [R, K, K, D]
    distance = torch.linalg.vector_norm(difference, dim=-1)
    near = (distance < eta).to(heads.dtype)
    torch.sum(difference * (-near / distance.clamp_min(torch.finfo(heads.dtype).tiny)).unsqueeze(-1), 2, out=grad)
    return (eta - distance).clamp_min(0).triu(1).sum((1, 2))


BATCH_NORM_EPS = 1e-5


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_variance: Tensor, momentum: float,
    normalized: Tensor, inverse_std: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """out = normalized * weight + bias, with normalized = (x - mean) / sqrt(variance + eps) over the batch.

    Args:
        x, normalized, out: [R, B, D]; out may be x. Backward needs normalized and inverse_std.
        weight, bias, running_mean, running_variance, inverse_std: [R, 1, D].
        momentum: share of the batch's mean and unbiased variance in the running ones, torch's rule; 0 leaves them.

    Raises:
        ValueError: B = 1, which has no variance.
    """
    b = x.shape[1]
    if b < 2:
        raise ValueError("batch_norm of 1 row: expected at least 2")
    mean = x.mean(1, keepdim=True)
    torch.sub(x, mean, out=normalized)
    variance = normalized.square().mean(1, keepdim=True)  # torch.var_mean takes ten times as long along this axis
    torch.rsqrt(variance + BATCH_NORM_EPS, out=inverse_std)
    normalized.mul_(inverse_std)
    torch.addcmul(bias, normalized, weight, out=out)
    if momentum:
        running_mean.lerp_(mean, momentum)
        running_variance.lerp_(variance.mul_(b / (b - 1)), momentum)


def batch_norm_backward(
    grad: Tensor, weight: Tensor, normalized: Tensor, inverse_std: Tensor,
    out: Tensor, weight_grad: Tensor, bias_grad: Tensor,
) -> None:  # fmt: skip
    """Gradients of batch_norm from grad [R, B, D], with respect to its output.

    Args:
        normalized, inverse_std: as the forward pass left them.
        out: [R, B, D]; receives the gradient with respect to x; may be grad.
        weight_grad, bias_grad: [R, 1, D].
    """
    torch.sum(grad * normalized, 1, keepdim=True, out=weight_grad)
    torch.sum(grad, 1, keepdim=True, out=bias_grad)
    b = grad.shape[1]
    torch.sub(grad, bias_grad, alpha=1 / b, out=out)
    out.addcmul_(normalized, weight_grad, value=-1 / b).mul_(weight * inverse_std)


def batch_norm_inference(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_variance: Tensor, out: Tensor
) -> None:
    """out = (x - running_mean) / sqrt(running_variance + eps) * weight + bias. Shapes as in batch_norm."""
    torch.sub(x, running_mean, out=out).mul_(torch.rsqrt(running_variance + BATCH_NORM_EPS) * weight).add_(bias)


def dropout(x: Tensor, mask: Tensor, p: float, out: Tensor) -> None:
    """out = x * mask / (1 - p); with a gradient for x, the backward pass.

    Args:
        x, mask, out: [R, B, D]; out may be x. The mask is 1 where a value is kept, 0 where it is dropped.
        p: probability of being dropped, in [0, 1).
    """
    torch.mul(x, mask, out=out).mul_(1 / (1 - p))


def parzen_log_likelihood(queries: Tensor, samples: Tensor, sigma: float) -> Tensor:
    """Parzen-window log-likelihood [M] of queries [M, D] under samples [N, D], from float64 differences. In nats."""
    queries, samples = queries.double(), samples.double()
    exponents = torch.stack([(samples - x).square().sum(1) for x in queries]) / (-2 * sigma**2)
    log_norm = math.log(len(samples)) + samples.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))
    return exponents.logsumexp(1) - log_norm
