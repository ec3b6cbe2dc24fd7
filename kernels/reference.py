"""The hot operations of a training step in plain torch: ground truth for the Triton kernels, and the CPU path.

Shapes: R replicas, B rows, I inputs, O outputs. Weights are [R, O, I], biases [R, 1, O], activations [R, B, D]. Every
operation writes into buffers it is given, reads nothing back to the host, and has no shape that depends on data, so a
step made of them can be captured in a CUDA graph.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

BATCH_NORM_EPS = 1e-5


def gather(data: Tensor, index: Tensor, out: Tensor, staging: Tensor | None) -> None:
    """out[r, b] = data[index[r, b]], bytes scaled to [0, 1].

    Args:
        data: [N, D], uint8 or the dtype of out.
        index: [R, B], int32 or int64.
        out: [R, B, D].
        staging: [R * B, D] uint8 for uint8 data, None for float data.
    """
    rows = out.view(-1, out.shape[-1])
    torch.index_select(data, 0, index.reshape(-1), out=rows if staging is None else staging)
    if staging is not None:
        rows.copy_(staging).div_(255)


def linear(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, relu: bool) -> None:
    """out = x weightᵀ + bias, then max(0, .) if relu. x [R, B, I], out [R, B, O], of any floating dtypes.

    Products of 16-bit operands sum in the bias's dtype, and the result is rounded once.
    """
    if x.dtype == weight.dtype == out.dtype == bias.dtype:
        y = torch.baddbmm(bias, x, weight.mT, out=out)
    else:
        if weight.dtype.itemsize == 2:
            x = x.to(weight.dtype)  # as the kernels round their operands
        y = torch.baddbmm(bias, x.to(bias.dtype), weight.to(bias.dtype).mT)
    if relu:
        y.relu_()
    if y is not out:
        out.copy_(y)


def linear_backward(grad: Tensor, weight: Tensor, out: Tensor, activation: Tensor | None) -> None:
    """out = grad weight: gradient with respect to a layer's input.

    Args:
        grad: [R, B, O], with respect to the layer's output.
        weight: [R, O, I].
        out: [R, B, I].
        activation: [R, B, I], the ReLU output that was the layer's input: where that is 0, out is. None: no ReLU below.
    """
    if grad.dtype == weight.dtype == out.dtype and out.dtype.itemsize > 2:
        torch.bmm(grad, weight, out=out)
    else:
        out.copy_(torch.bmm(_wide(grad), _wide(weight)))
    if activation is not None:
        torch.ops.aten.threshold_backward.grad_input(out, activation, 0, grad_input=out)


def update(
    layers: Sequence[tuple], rate: Tensor, correction: Tensor | None, momentum: float | Tensor = 0.0,
    scale: Tensor | None = None,
) -> None:  # fmt: skip
    """One step of SGD with momentum, or of Adam, on several layers, from their inputs and their outputs' gradients.

    Args:
        layers: of each (x, grad, weight, bias, shadow, state of the weight, state of the bias). shadow is the copy of
            the weight that products read, or the weight itself. A state is a tuple: SGD's momentum, or Adam's moments.
        rate: [R, 1, 1], the learning rates, on the device.
        correction: [3], 1 - beta ** step for both of Adam's betas, and the step; None for SGD.
        momentum: SGD's, of all replicas, or [R, 1, 1].
        scale: [3], what the gradients are multiplied by, whether one was not finite, and a counter; None: by one. What
            has no finite gradient is left alone for this step.
    """
    for x, grad, weight, bias, shadow, state, bias_state in layers:
        if correction is None and shadow is weight:  # one product makes the new momentum, and stores no gradient
            if own := isinstance(momentum, Tensor):
                state[0].mul_(momentum)
            state[0].baddbmm_(grad.transpose(1, 2), x, beta=1.0 if own else momentum)
            weight.addcmul_(state[0], rate, value=-1)
            step_(bias, bias_state, grad.sum(1, keepdim=True), rate, None, momentum)
            continue
        wide = _wide(grad)
        step_(weight, state, wide.transpose(1, 2) @ _wide(x.to(grad.dtype)), rate, correction, momentum, scale)
        step_(bias, bias_state, wide.sum(1, keepdim=True), rate, correction, momentum, scale)
        if shadow is not weight:
            shadow.copy_(weight)


def steps(
    parameters: Sequence[tuple], rate: Tensor, correction: Tensor | None, momentum: float | Tensor = 0.0,
    scale: Tensor | None = None,
) -> None:  # fmt: skip
    """One step on several parameters [R, 1, O], each with its state and gradient; the rest as update()."""
    for parameter, state, grad in parameters:
        step_(parameter, state, grad, rate, correction, momentum, scale)


def step_(
    parameter: Tensor, state: Sequence[Tensor], grad: Tensor, rate: Tensor, correction: Tensor | None,
    momentum: float | Tensor, scale: Tensor | None = None,
) -> None:  # fmt: skip
    """One step of SGD with momentum, or of Adam (Kingma & Ba 2015; betas 0.9, 0.999, eps 1e-8); as update()."""
    if scale is not None:
        before, grad = [t.clone() for t in (parameter, *state)], grad / scale[0]
        step_(parameter, state, grad, rate, correction, momentum)
        bad = ~grad.isfinite()
        scale[1].logical_or_(bad.any())
        for t, old in zip((parameter, *state), before, strict=True):
            t.copy_(torch.where(bad, old, t))
        return
    if correction is None:
        state[0].mul_(momentum).add_(grad)
        parameter.addcmul_(state[0], rate, value=-1)
        return
    first, second = state
    first.lerp_(grad, 0.1)
    second.mul_(0.999).addcmul_(grad, grad, value=0.001)
    root = torch.div(second, correction[1]).sqrt_().add_(1e-8)
    parameter.addcmul_(torch.div(first, root, out=root), rate / correction[0], value=-1)


# Losses: each writes its terms [R, B], one for each row and already divided by B, whose sum is the loss, and the
# gradient of the loss, times `scale` (as in update) if that is given.


def reconstruction_loss(
    logits: Tensor, target: Tensor, grad: Tensor, terms: Tensor, output: str, loss: str, scale: Tensor | None = None
) -> None:
    """0.5 * (output - target)², or binary cross-entropy; summed over D, mean over B.

    Args:
        logits: [R, B, D]; may be overwritten.
        target: [R, B, D]; in [0, 1] for cross-entropy.
        output: "sigmoid" of the logits, or "linear".
        loss: "squared_error", or "cross_entropy" with a sigmoid.
    """
    b = target.shape[1]
    if loss == "cross_entropy":
        linear_from = 40 if logits.dtype == torch.float64 else 20  # where softplus is the identity, to rounding
        terms.copy_((softplus(logits, threshold=linear_from).sum(2) - torch.linalg.vecdot(logits, target)) / b)
    y = logits.sigmoid_() if output == "sigmoid" else logits
    error = torch.sub(y, target, **({"out": grad} if grad.dtype == y.dtype else {}))
    if loss != "cross_entropy":
        torch.div(torch.linalg.vecdot(error, error), 2 * b, out=terms)
        if output == "sigmoid":
            torch.ops.aten.sigmoid_backward.grad_input(error, y, grad_input=error)
    _finished(error.div_(b), grad, scale)


def judge(
    hidden: Tensor, layer: tuple[Tensor, Tensor], out: tuple[Tensor, Tensor], below: Tensor | None, terms: Tensor,
    real: int, scale: Tensor | None = None,
) -> None:  # fmt: skip
    """A discriminator's last layer and its binary cross-entropy, mean over rows: -log sigmoid of the logits of the
    first `real` rows, -log(1 - sigmoid) of the others.

    Args:
        hidden: [R, B, H], the layer's input.
        layer: weight [R, 1, H] and bias [R, 1, 1].
        out: logits and their gradient, [R, B, 1] each, both written.
        below: [R, B, H]; receives the gradient of hidden before its ReLU. None: not wanted.
    """
    (weight, bias), (logits, grad) = layer, out
    linear(hidden, weight, bias, logits, relu=False)
    b = logits.shape[1]
    terms[:, :real].copy_(softplus(-logits[:, :real, 0]))
    terms[:, real:].copy_(softplus(logits[:, real:, 0]))
    terms.div_(b)
    p = logits.sigmoid()
    p[:, :real].sub_(1)
    _finished(p.div_(b), grad, scale)
    if below is not None:
        linear_backward(grad, weight, below, hidden)


def softmax_(y: Tensor) -> None:
    """y = softmax(y) over the last dimension. [R, B, K], rows and replicas apart."""
    y.copy_(torch.softmax(y, -1))


def softmax_backward_(grad: Tensor, y: Tensor) -> None:
    """Gradient with respect to the logits of y = softmax(logits), in place. grad, y: [R, B, K]."""
    g = grad.to(y.dtype)
    grad.copy_((g - (g * y).sum(-1, keepdim=True)) * y)


def softmax_cross_entropy(
    logits: Tensor, labels: Tensor, grad: Tensor, terms: Tensor, scale: Tensor | None = None
) -> None:
    """-mean over B of log softmax(logits)[label]. Logits and grad: [R, B, K]; labels: [R, B], int64 in [0, K)."""
    log_p = torch.log_softmax(logits, -1)
    index = labels.unsqueeze(-1)
    torch.div(log_p.gather(-1, index)[..., 0], -labels.shape[1], out=terms)
    torch.exp(log_p, out=log_p)
    log_p.scatter_add_(-1, index, torch.full_like(log_p[..., :1], -1))
    _finished(log_p.div_(labels.shape[1]), grad, scale)


def _finished(value: Tensor, grad: Tensor, scale: Tensor | None) -> None:
    if scale is not None:
        value = value * scale[0]
    if value is not grad:
        grad.copy_(value)


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.dtype.itemsize == 2 else t


def finish(terms: Tensor, losses: Tensor, slot: Tensor, count: Tensor, scale: Tensor | None = None) -> None:
    """losses[slot, p, r] = sum of terms [P, R, T]; then slot, [P, R] of one number, and both counts go up by one.

    A scale [3] of gradients is halved if one of this step was not finite, and doubled after 2,000 steps without.
    """
    losses.index_copy_(0, slot.view(-1)[:1], terms.sum(2)[None])
    slot.add_(1)
    count.add_(1)
    if scale is not None:
        good = torch.where(scale[1] > 0, 0, scale[2] + 1)
        factor = torch.where(scale[1] > 0, 0.5, torch.where(good == 2000, 2.0, 1.0))
        scale.copy_(torch.stack([(scale[0] * factor).clamp(1, 2.0**24), torch.zeros_like(good), good % 2000]))


def kl(mean: Tensor, log_variance: Tensor, std: float | Tensor, mean_grad: Tensor, log_variance_grad: Tensor) -> Tensor:
    """KL divergence [R] of N(mean, exp(log_variance)) from N(0, std²), sum over D, mean over B. In nats. The last two
    receive the gradients with respect to the first two. All [R, B, D], but std may be [R, 1, 1]."""
    b = mean.shape[1]
    log_std = math.log(std) if isinstance(std, float) else std.log()
    ratio = log_variance - 2 * log_std  # log of the two variances' ratio
    excess = torch.expm1(ratio)
    torch.div(excess, 2 * b, out=log_variance_grad)
    torch.div(mean, std**2 * b, out=mean_grad)
    return (excess.sub_(ratio).sum((1, 2)) / b + torch.linalg.vecdot(mean.flatten(1), mean_grad.flatten(1))) / 2


def reparameterize(mean: Tensor, log_variance: Tensor, noise: Tensor, out: Tensor) -> None:
    """out = mean + exp(log_variance / 2) * noise: the Gaussian posterior from noise N(0, 1). All [R, B, D]."""
    torch.addcmul(mean, torch.exp(log_variance / 2), noise, out=out)


def reparameterize_backward(grad: Tensor, log_variance: Tensor, noise: Tensor, out: Tensor) -> None:
    """out = gradient of log_variance, from that of the sample, which is also the mean's. All [R, B, D]."""
    torch.mul(grad, noise, out=out).mul_(torch.exp(log_variance / 2)).div_(2)


def mmd(codes: Tensor, prior: Tensor, scales: Sequence[float | Tensor], grad: Tensor) -> Tensor:
    """Squared maximum mean discrepancy [R] of codes and prior samples under a sum of Gaussian kernels, as in GMMN:
    means over all pairs of two sets, also of a point with itself, so that it is never negative.

    Args:
        codes, prior: [R, B, D], [R, M, D]; of 16 bits they are widened.
        scales: a kernel exp(-d² / (2 s²)) of the distance d for each s, which may be [R, 1, 1].
        grad: [R, B, D]; receives the gradient with respect to the codes.
    """
    (codes, prior), b, m = (_wide(t) for t in (codes, prior)), codes.shape[1], prior.shape[1]
    loss = 0
    grad.zero_()
    sets = ((codes, codes, 2, 1 / b**2), (codes, prior, 1, -2 / (b * m)), (prior, prior, 0, 1 / m**2))
    for x, y, ends, weight in sets:  # ends: how many of a pair are codes
        d2 = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()  # exact where points are close
        total, slope = torch.zeros_like(d2), torch.zeros_like(d2)  # of the kernels, and of their derivatives by d²
        for s in scales:
            k = torch.exp(d2 * (-0.5 / s**2))
            total.add_(k)
            slope.add_(k, alpha=-0.5 / s**2) if isinstance(s, float) else slope.addcmul_(k, -0.5 / s**2)
        loss = loss + weight * total.sum((1, 2))
        if ends:  # the gradient of d² with respect to x is 2 (x - y)
            slope.mul_(2 * ends * weight)
            grad.addcmul_(slope.sum(2, keepdim=True), codes).baddbmm_(slope, y, alpha=-1)
    return loss


def head_separation(heads: Tensor, eta: float, grad: Tensor) -> Tensor:
    """Sum [R] over pairs of cluster heads of max(0, eta - distance).

    Args:
        heads: [R, K, D], the rows of W_C.
        grad: [R, K, D]; receives the gradient, zero between heads at one point, which has no direction.
    """
    difference = heads.unsqueeze(2) - heads.unsqueeze(1)  # [R, K, K, D]
    distance = torch.linalg.vector_norm(difference, dim=-1)
    near = (distance < eta).to(heads.dtype)
    torch.sum(difference * (-near / distance.clamp_min(torch.finfo(heads.dtype).tiny)).unsqueeze(-1), 2, out=grad)
    return (eta - distance).clamp_min(0).triu(1).sum((1, 2))


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, running: tuple[Tensor, Tensor], momentum: float,
    kept: tuple[Tensor, Tensor], out: Tensor, relu: bool,
) -> None:  # fmt: skip
    """out = normalized * weight + bias, with normalized = (x - mean) / sqrt(variance + eps) over the batch; then
    max(0, .) if relu.

    Args:
        x, out: [R, B, D]; out may be x, both may have 16 bits.
        weight, bias: [R, 1, D].
        running: mean and variance [R, 1, D] that inference uses.
        momentum: share of the batch's mean and unbiased variance in the running ones, torch's rule; 0 leaves them.
        kept: normalized [R, B, D] and 1 / sqrt(variance + eps) [R, 1, D], written for the backward pass.

    Raises:
        ValueError: B = 1, which has no variance.
    """
    b, (normalized, inverse_std) = at_least_two(x), kept
    mean = _wide(x).mean(1, keepdim=True)
    torch.sub(x, mean, out=normalized)
    variance = normalized.square().mean(1, keepdim=True)  # torch.var_mean takes ten times as long along this axis
    torch.rsqrt(variance + BATCH_NORM_EPS, out=inverse_std)
    normalized.mul_(inverse_std)
    _finished(torch.addcmul(bias, normalized, weight, out=out if out.dtype == bias.dtype else None), out, None)
    if momentum:
        running[0].lerp_(mean, momentum)
        running[1].lerp_(variance.mul_(b / (b - 1)), momentum)
    if relu:
        out.relu_()


def at_least_two(x: Tensor) -> int:
    """The rows of x [R, B, D], of which batch_norm needs two."""
    if x.shape[1] < 2:
        raise ValueError(f"batch_norm of {x.shape[1]} row: expected at least 2")
    return x.shape[1]


def batch_norm_backward(
    grad: Tensor, weight: Tensor, normalized: Tensor, inverse_std: Tensor,
    out: Tensor, weight_grad: Tensor, bias_grad: Tensor,
) -> None:  # fmt: skip
    """Gradients of batch_norm from grad [R, B, D], with respect to its output.

    Args:
        grad, out: may have 16 bits.
        normalized, inverse_std: as the forward pass left them.
        out: [R, B, D]; receives the gradient with respect to x; may be grad.
        weight_grad, bias_grad: [R, 1, D].
    """
    g, b = _wide(grad), grad.shape[1]
    torch.sum(g * normalized, 1, keepdim=True, out=weight_grad)
    torch.sum(g, 1, keepdim=True, out=bias_grad)
    below = torch.sub(g, bias_grad, alpha=1 / b, out=out if out.dtype == g.dtype else None)
    _finished(below.addcmul_(normalized, weight_grad, value=-1 / b).mul_(weight * inverse_std), out, None)


def batch_norm_inference(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_variance: Tensor, out: Tensor
) -> None:
    """out = (x - running_mean) / sqrt(running_variance + eps) * weight + bias. Shapes as in batch_norm."""
    torch.sub(x, running_mean, out=out).mul_(torch.rsqrt(running_variance + BATCH_NORM_EPS) * weight).add_(bias)


def dropout(x: Tensor, mask: Tensor, p: float | Tensor, out: Tensor) -> None:
    """out = x * mask / (1 - p), where the mask is 1 if a value is kept, 0 if it is dropped, with probability p < 1; of
    a gradient for x, the backward pass. All [R, B, D], but p may be [R, 1, 1]; out may be x."""
    torch.mul(x, mask, out=out).mul_(1 / (1 - p))


def parzen_log_likelihood(queries: Tensor, samples: Tensor, sigma: float) -> Tensor:
    """Parzen-window log-likelihood [M] of queries [M, D] under samples [N, D], from float64 differences. In nats."""
    queries, samples = queries.double(), samples.double()
    exponents = torch.stack([(samples - x).square().sum(1) for x in queries]) / (-2 * sigma**2)
    log_norm = math.log(len(samples)) + samples.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))
    return exponents.logsumexp(1) - log_norm
