"""B9: a training step of the VQ-VAE, and its quantiser alone, beside MONAI and vector-quantize-pytorch."""

import copy
from collections.abc import Callable

import torch
from harness import MONAI, OURS, Report, interleaved, peak_in_fresh_process
from torch import nn
from torch.nn import functional as F

from iltm_anomaly.tokenizers.quantizer import EMAQuantizer
from iltm_anomaly.tokenizers.vqvae import VQVAEConfig, VQVAEModel

VQ = "vector-quantize-pytorch"
OURS_BF16, MONAI_BF16 = "ours, bfloat16", "MONAI, bfloat16"
CHANNELS, DIM = (96, 96, 192), 64  # MONAI's defaults
CODES, TOKENS = 1024, 16 * 32 * 32  # of the quantiser alone: a batch of 16 images of 256 pixels
DECAY, EPSILON = 0.99, 1e-5


def our_model() -> nn.Module:
    torch.manual_seed(0)
    return VQVAEModel(VQVAEConfig(channels=CHANNELS, embedding_dim=DIM, dropout=0.0)).train()


def monai_model() -> nn.Module:
    from monai.networks.nets import VQVAE

    torch.manual_seed(0)
    return VQVAE(
        spatial_dims=2,
        in_channels=3,
        out_channels=3,
        channels=CHANNELS,
        num_res_layers=3,
        num_res_channels=CHANNELS,
        downsample_parameters=((2, 4, 1, 1),) * 3,
        upsample_parameters=((2, 4, 1, 1, 0),) * 3,
        num_embeddings=256,
        embedding_dim=DIM,
        dropout=0.0,
    ).train()


def train_step(model: nn.Module, images: torch.Tensor, bfloat16: bool) -> Callable[[], None]:
    """Ours as the training loop runs it, channels last and with a fused optimiser; MONAI's as its tutorials do."""
    ours = isinstance(model, VQVAEModel)
    if ours:
        model, images = (
            model.to(memory_format=torch.channels_last),
            images.contiguous(memory_format=torch.channels_last),
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=ours)

    def call() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            if ours:
                loss = model(images).loss
            else:
                reconstruction, commitment = model(images)
                loss = F.mse_loss(reconstruction.float(), images) + commitment
        loss.backward()
        optimizer.step()

    return call


def quantise(
    label: str, vectors: torch.Tensor, codebook: torch.Tensor
) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """One training call of a quantiser that starts from `codebook`: (codes, quantised), both of `vectors` (T, D)."""
    if label == OURS:
        ours = EMAQuantizer(CODES, DIM, DECAY, EPSILON).train()
        for buffer in (ours.codebook, ours.code_sum):
            buffer.copy_(codebook)
        ours.code_count.fill_(1.0)

        def call() -> tuple[torch.Tensor, torch.Tensor]:
            quantised, codes, _ = ours(vectors)
            return codes, quantised

    elif label == MONAI:
        from monai.networks.layers.vector_quantizer import EMAQuantizer as Theirs

        theirs = Theirs(2, CODES, DIM, decay=DECAY, epsilon=EPSILON).train()
        theirs.embedding.weight.data.copy_(codebook)
        theirs.ema_w.data.copy_(codebook)
        theirs.ema_cluster_size.data.fill_(1.0)
        grid = vectors.view(-1, 4, 4, DIM).permute(0, 3, 1, 2).contiguous()

        def call() -> tuple[torch.Tensor, torch.Tensor]:
            quantised, _, codes = theirs(grid)
            return codes.flatten(), quantised.permute(0, 2, 3, 1).reshape(-1, DIM)

    else:
        from vector_quantize_pytorch import VectorQuantize

        other = VectorQuantize(DIM, CODES, decay=DECAY, eps=EPSILON).train()
        for buffer in (other._codebook.embed, other._codebook.embed_avg):
            buffer.data.copy_(codebook.unsqueeze(0))
        other._codebook.cluster_size.data.fill_(1.0)

        def call() -> tuple[torch.Tensor, torch.Tensor]:
            quantised, codes, _ = other(vectors.unsqueeze(0))
            return codes.flatten(), quantised[0]

    return call


def vectors_and_codebook() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(TOKENS, DIM, generator=generator), torch.randn(CODES, DIM, generator=generator)


def memory(label: str, size: int) -> Callable[[], object]:
    del size
    vectors, codebook = vectors_and_codebook()
    quantise(label, vectors[:16], codebook)()  # what the libraries below set up once
    return quantise(label, vectors, codebook)


def run(report: Report) -> None:
    side, runs = (64, 3) if report.quick else (128, 5)
    quantisers = [OURS]
    for label, module in ((MONAI, "monai"), (VQ, "vector_quantize_pytorch")):
        try:
            __import__(module)
            quantisers.append(label)
        except ImportError as error:
            report.missing[label] = str(error)

    case = f"train step, {side} x {side}, batch 1, channels {CHANNELS}"
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    ours = our_model()
    steps = {OURS: train_step(copy.deepcopy(ours), images, False), OURS_BF16: train_step(ours, images, True)}
    if MONAI in quantisers:
        theirs = monai_model()
        steps[MONAI] = train_step(copy.deepcopy(theirs), images, False)
        steps[MONAI_BF16] = train_step(theirs, images, True)
        sizes = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (ours, theirs)]
        report.notes.append(
            f"Weights in millions: ours {sizes[0]:.2f}, MONAI {sizes[1]:.2f}. The paper's residual block has a 3-convolution and "
            "a 1-convolution, MONAI's two 3-convolutions; outputs can therefore not be compared, only the cost of the models. "
            "Ours runs channels last and with a fused optimiser, as its training loop does, MONAI's as its tutorials do."
        )
    timings = interleaved(steps, runs)
    report.add_times(case, timings)
    if MONAI in quantisers:
        # of two models, of different size: no ratio is a target that is met
        for what, theirs, mine in (("float32", MONAI, OURS), ("bfloat16", MONAI_BF16, OURS_BF16)):
            ratio = timings[theirs]["median_s"] / timings[mine]["median_s"]
            report.target(f"{case}: MONAI / ours, {what}, time", ratio, 1, counts=False)

    case = f"quantiser, training call, {TOKENS} vectors of {DIM}, K = {CODES}"
    vectors, codebook = vectors_and_codebook()
    codes, quantised = quantise(OURS, vectors, codebook)()
    agrees = {}
    for label in quantisers[1:]:
        their_codes, their_quantised = quantise(label, vectors, codebook)()
        other = (their_codes != codes).float().mean().item()
        same = their_codes == codes
        report.check(case, f"{label}: share of codes that differ", other, 1e-3)
        worst = (their_quantised[same] - quantised[same]).abs().max().item()
        agrees[label] = report.check(case, f"{label}: quantised vectors of equal codes", worst, 1e-5) and other <= 1e-3
    calls = {label: quantise(label, vectors, codebook) for label in quantisers}
    timings = interleaved(calls, runs)
    report.add_times(case, timings)
    for label in quantisers:
        report.add_peak(case, label, peak_in_fresh_process("B9", label, 0))
    peaks = {row["contender"]: row["peak_mb"] for row in report.times if row["case"] == case}
    for label in quantisers[1:]:
        ratio = timings[label]["median_s"] / timings[OURS]["median_s"]
        report.target(f"{case}: {label} / ours, time", ratio, 1, agrees[label])
        limit = 4 if label == MONAI else 1
        report.target(f"{case}: {label} / ours, added peak memory", peaks[label] / peaks[OURS], limit, agrees[label])
