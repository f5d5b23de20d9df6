"""What a change of weights is predicted to cost, from one backward pass of a random direction over calibration data.

The loss is the KL divergence to the model's own outputs. Around the float model it is a quadratic form of the changes
of the outputs, whose matrix for one vector of logits is diag(p) - p p^T: the Gauss-Newton matrix of the KL, and the
Fisher matrix of the model, are the same (Martens 2014, arXiv:1412.1193, sections 8 and 9). Its diagonal in weights is
the mean square of the gradient of v . outputs for any random v with E[v v^T] = diag(p) - p p^T, one v for each sample
and position. No labels are needed. (The gradient of the KL itself is zero at the float model: it says nothing.)
"""

import hashlib
import math

import torch
from torch import nn

from compress.distillation import OutputKind
from compress.gradients import Gradient, gradients
from compress.hessian import output_error
from compress.inputs import Inputs, same_draws
from compress.sites import Site
from compress.statistics import evaluated


def slopes(
    model: nn.Module,
    sites: tuple[Site, ...],
    inputs: Inputs,
    kind: OutputKind,
    chunk: int,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, Gradient]:
    """The gradients of v . outputs at each site, where v is drawn for each sample.

    `fisher` is then the diagonal of the Fisher matrix of the mean KL of a sample (for values: of the mean squared
    error, twice over, so that half of it times a squared change is that change's error). The model is as before when
    this returns.

    Args:
        model: on `device`.
        sites: its sites.
        inputs: calibration samples.
        kind: of the model's outputs.
        chunk: samples at a time; it bounds memory.
        device: where to compute.
        seed: of v; that of a sample depends on the seed and its place alone.

    Raises:
        WorkloadError: the outputs do not depend on the weights of any site.
    """

    def loss(out: torch.Tensor, samples: slice) -> torch.Tensor:
        rows = zip(out.detach(), range(samples.start, samples.stop), strict=True)
        return (out.float() * torch.stack([direction(row, kind, _signs(row, seed, at)) for row, at in rows])).sum()

    with evaluated(model), same_draws(device):
        return gradients(model, sites, inputs, chunk, device, loss)


def direction(out: torch.Tensor, kind: OutputKind, signs: torch.Tensor) -> torch.Tensor:
    """The v of one sample, its mean product over all signs being the curvature of the sample's mean loss.

    Args:
        out: outputs of a sample, (..., classes) for logits, (...) for values.
        kind: of outputs.
        signs: +1 and -1, as `out`.
    """
    if kind == "values":
        return signs * math.sqrt(2 / out.numel())  # of the mean squared error, whose second derivative is 2
    p = out.float().softmax(dim=-1)
    root = p.sqrt()
    v = root * signs - p * (root * signs).sum(dim=-1, keepdim=True)
    positions = out.numel() // out.shape[-1]
    return v / math.sqrt(positions)  # the loss of a sample is the mean over its positions


def _signs(like: torch.Tensor, seed: int, sample: int) -> torch.Tensor:
    drawn = hashlib.sha256(f"{seed}:{sample}".encode()).digest()[:4]  # torch's generator looks at 32 bits
    generator = torch.Generator().manual_seed(int.from_bytes(drawn))
    return (torch.randint(2, like.shape, generator=generator).float() * 2 - 1).to(like.device)


def fisher_loss(change: torch.Tensor, gradient: Gradient) -> float:
    """The loss of a change of weights by the Fisher diagonal: half the sum of F d^2.

    The second-order term of optimal brain damage (LeCun et al. 1989, eq. 4), with F for the Hessian's diagonal.

    Args:
        change: of the weights, (channels, n).
        gradient: that of `slopes`.
    """
    return float((gradient.fisher.double() * change.double().square()).sum()) / 2


def gradient_loss(change: torch.Tensor, gradient: Gradient, hessian: torch.Tensor | None) -> float:
    """The loss of a change of weights by squared gradients at the outputs times squared changes of the outputs.

    The score by which AutoQuantize of NVIDIA's Model Optimizer ranks formats: half the sum over channels and positions
    of g^2 dy^2, mean over samples. Here with the mean of g^2 times the mean of dy^2 = d H d^T of each channel: what a
    position's gradient and input have to do with each other is left out.

    Args:
        change: of the weights, (channels, n).
        gradient: that of `slopes`.
        hessian: mean over samples and positions of x x^T, (blocks, n, n); None where it is not known.

    Returns:
        The loss; NaN where gradient or input at the site is not seen.
    """
    if gradient.outputs is None or hessian is None:
        return math.nan
    return float((gradient.outputs.double() * output_error(change, hessian)).sum()) / 2
