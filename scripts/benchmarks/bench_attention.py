"""B1: the causal attention operation alone, 8 heads of 32, 110 random features, batch 1."""

from collections.abc import Callable

import flops
import peers
import torch
from harness import OURS, PERFORMER, SDPA, Report, difference, interleaved, peak_in_fresh_process, ratio
from torch import Tensor
from torch.nn import functional as F

from iltm_anomaly.prior import linear_attention

HEADS, HEAD_DIM, FEATURES = 8, 32, 110


def inputs(length: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Queries, keys and values (1, H, n, D), the gradient of the output, and the projection (M, D)."""
    generator = torch.Generator().manual_seed(length)
    tensors = [torch.randn(1, HEADS, length, HEAD_DIM, generator=generator) for _ in range(4)]
    projection = linear_attention.draw_projection(FEATURES, HEAD_DIM, generator)
    return [x.requires_grad_() for x in tensors[:3]], tensors[3], projection


def theirs(query: Tensor, key: Tensor, value: Tensor, projection: Tensor) -> Tensor:
    """performer-pytorch's product of our features."""
    from performer_pytorch.performer_pytorch import causal_linear_attention_noncuda

    query = peers.plain_features(query, projection_matrix=projection, is_query=True)
    key = peers.plain_features(key, projection_matrix=projection, is_query=False)
    return causal_linear_attention_noncuda(query, key, value)


OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    OURS: linear_attention.causal_attention,
    PERFORMER: theirs,
    SDPA: lambda query, key, value, projection: F.scaled_dot_product_attention(query, key, value, is_causal=True),
}


def forward_backward(contender: str, length: int) -> Callable[[], tuple[Tensor, ...]]:
    qkv, grad, projection = inputs(length)

    def call() -> tuple[Tensor, ...]:
        out = OPERATIONS[contender](*qkv, projection)
        return out.detach(), *torch.autograd.grad(out, qkv, grad)

    return call


def forward(contender: str, length: int) -> Callable[[], Tensor]:
    qkv, _, projection = inputs(length)

    def call() -> Tensor:
        with torch.no_grad():
            return OPERATIONS[contender](*qkv, projection)

    return call


def memory(contender: str, size: int) -> Callable[[], object]:
    forward_backward(contender, 64)()
    return forward_backward(contender, size)


def run(report: Report) -> None:
    contenders = [label for label in OPERATIONS if label not in report.missing]
    token = flops.linear_attention(1, HEADS, HEAD_DIM, FEATURES)
    for length in (256, 1024) if report.quick else (256, 1024, 4096):
        case = f"attention, n = {length}"
        agrees = True
        if PERFORMER in contenders:
            pairs = zip(forward_backward(OURS, length)(), forward_backward(PERFORMER, length)(), strict=True)
            compared = "output and three gradients against performer-pytorch's product of the same features, relative"
            agrees = report.check(case, compared, max(difference(a, b) for a, b in pairs), 1e-4)
        runs = 5 if report.quick else max(5, 15 * 1024 // length)
        for name, make, factor in (("forward", forward, 1), ("forward + backward", forward_backward, 3)):
            timings = interleaved({label: make(label, length) for label in contenders}, runs)
            needed = dict.fromkeys((OURS, PERFORMER), factor * length * token)
            needed[SDPA] = factor * flops.softmax_attention(length, HEADS, HEAD_DIM)
            report.add_times(f"{case}, {name}", timings, needed)
        peaks = {label: peak_in_fresh_process("B1", label, length) for label in contenders}
        for label, peak in peaks.items():
            report.add_peak(f"{case}, forward + backward", label, peak)
        if PERFORMER in contenders and length > 256:
            what = f"{case}, forward + backward: performer-pytorch / ours"
            report.target(f"{what}, time", ratio(timings, PERFORMER), 6, agrees)
            report.target(f"{what}, added peak memory", peaks[PERFORMER] / peaks[OURS], 8, agrees)
    report.notes.append(
        "SDPA is softmax attention: its outputs are another function's and cannot be compared; its times stand for "
        "orientation and no ratio is taken."
    )
