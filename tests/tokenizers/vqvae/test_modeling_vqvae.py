"""`VQVAEModel` and its configuration."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from tiny_models import VQVAE, tiny_vqvae
from torch import nn
from transformers import AutoConfig, AutoModel

from iltm_anomaly.tokenizers.vqvae import VQVAEConfig, VQVAEModel
from iltm_anomaly.tokenizers.vqvae.losses import jukebox_loss
from iltm_anomaly.tokenizers.vqvae.modeling_vqvae import ResidualBlock

SPATIAL = {2: (16, 24), 3: (8, 16, 24)}
GRID = {2: (2, 3), 3: (1, 2, 3)}


def images(dims=2, batch=2, channels=3, seed=0):
    return torch.rand(batch, channels, *SPATIAL[dims], generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dims", [2, 3])
def test_shapes(dims):
    model = tiny_vqvae(spatial_dims=dims)
    pixels = images(dims)
    output = model(pixels)
    assert output.reconstruction.shape == pixels.shape and output.reconstruction.dtype == torch.float32
    assert output.codes.shape == (2, *GRID[dims]) and output.codes.dtype == torch.int64
    assert output.codes.min() >= 0 and output.codes.max() < 16 and output.codes.unique().numel() > 1
    assert output.loss.shape == () and 1 <= output.perplexity.item() <= 16
    assert model.grid_shape(SPATIAL[dims]) == GRID[dims]
    assert torch.equal(model.encode(pixels), output.codes)
    torch.testing.assert_close(model.decode(output.codes), output.reconstruction)
    assert model.decode_trunk(output.codes).shape == (2, 4, *(side // 2 for side in SPATIAL[dims]))


@pytest.mark.parametrize("levels", [1, 2])
def test_downsampling_follows_the_number_of_levels(levels):
    model = tiny_vqvae(channels=(4,) * levels)
    assert model.config.downsampling == 2**levels
    assert model(images()).codes.shape == (2, 16 // 2**levels, 24 // 2**levels)


@pytest.mark.parametrize(
    "shape, complaint",
    [
        ((1, 3, 12, 16), "multiple of 8"),
        ((1, 3, 16, 20), "multiple of 8"),
        ((1, 3, 0, 16), "multiple of 8"),
        ((1, 1, 16, 16), r"\(B, 3, H, W\)"),
        ((3, 16, 16), r"\(B, 3, H, W\)"),
        ((1, 3, 8, 16, 16), r"\(B, 3, H, W\)"),
    ],
)
def test_input_that_does_not_fit(shape, complaint):
    model = tiny_vqvae()
    for method in (model, model.encode, model.initialize_codebook):
        with pytest.raises(ValueError, match=complaint):
            method(torch.rand(shape))
    with pytest.raises(ValueError, match=r"\(B, 3, D, H, W\)"):
        tiny_vqvae(spatial_dims=3)(torch.rand(1, 3, 16, 16))


def test_architecture_is_the_papers():
    with torch.device("meta"):
        model = VQVAEModel(VQVAEConfig())
    blocks = [name.split(".")[0] for name, module in model.named_modules() if isinstance(module, ResidualBlock)]
    assert blocks == ["encoder"] * 9 + ["decoder_trunk"] * 9
    down = [m for m in model.encoder if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    up = [m for m in [*model.decoder_trunk, model.decoder_head] if isinstance(m, nn.ConvTranspose2d)]
    assert [m.out_channels for m in down] == [128, 128, 256] and [m.in_channels for m in up] == [256, 128, 128]
    assert all(m.kernel_size == (4, 4) for m in down + up)
    assert isinstance(model.dropout, nn.Dropout2d) and model.dropout.p == 0.05
    assert model.quantizer.codebook.shape == (256, 32)
    block = next(m for m in model.modules() if isinstance(m, ResidualBlock))
    assert [m.kernel_size for m in block.layers if isinstance(m, nn.Conv2d)] == [(3, 3), (1, 1)]


def test_residual_block_ends_with_a_relu_after_the_addition():
    torch.manual_seed(0)
    block, x = ResidualBlock(4, 2), torch.randn(2, 4, 5, 5)
    first, _, second = block.layers
    torch.testing.assert_close(block(x), torch.relu(x + second(torch.relu(first(x)))))


def test_loss_is_eq_7():
    model, pixels = tiny_vqvae(spectral_weight=0.7, commitment_cost=0.25), images()
    output = model(pixels)
    encoded = model.encoder(pixels)
    quantized = model.quantizer.codebook[output.codes].movedim(-1, 1)
    commitment = (encoded - quantized).square().mean()
    torch.testing.assert_close(output.commitment_loss, commitment)
    torch.testing.assert_close(output.loss, jukebox_loss(output.reconstruction, pixels, 0.7) + 0.25 * commitment)


def test_straight_through_and_commitment_gradients():
    model, pixels = tiny_vqvae(), images()
    kept = []
    hook = model.encoder.register_forward_hook(lambda _module, _inputs, encoded: kept.append(encoded))
    output = model(pixels)
    hook.remove()
    (encoded,) = kept
    encoded.retain_grad()
    output.loss.backward()
    quantized = model.quantizer.codebook[output.codes].movedim(-1, 1).requires_grad_()
    loss = jukebox_loss(model.decoder_head(model.decoder_trunk(quantized)), pixels)
    (through,) = torch.autograd.grad(loss, quantized)
    commitment = 0.25 * 2 * (encoded - quantized).detach() / encoded.numel()
    assert through.abs().max() > 0 and commitment.abs().max() > 0
    torch.testing.assert_close(encoded.grad, through + commitment, rtol=1e-4, atol=1e-7)


def test_codebook_moves_in_training_only():
    model, pixels = tiny_vqvae(), images()
    before = model.quantizer.codebook.clone()
    model(pixels)
    model.train()
    model.encode(pixels)
    model.decode(model.encode(pixels))
    assert torch.equal(model.quantizer.codebook, before), "evaluation, encoding and decoding must not move it"
    model(pixels)
    assert not torch.equal(model.quantizer.codebook, before)
    assert not any("quantizer" in name for name, _ in model.named_parameters())


def test_training_lowers_the_loss():
    model, pixels = tiny_vqvae(dropout=0.0).train(), images(batch=8)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = model(pixels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("dims", [2, 3])
def test_dropout_takes_whole_channels_before_the_last_convolution(dims):
    model = tiny_vqvae(spatial_dims=dims, dropout=0.5)
    codes = model.encode(images(dims))
    assert torch.equal(model.decode(codes), model.decode(codes))
    seen = []
    hook = model.decoder_head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model.train()
    assert not torch.equal(model.decode(codes), model.decode(codes))
    hook.remove()
    scale = seen[0] / model.decode_trunk(codes)  # 0 or 1 / (1 - p), one value per image and channel
    for channel in scale.flatten(2).flatten(0, 1):
        values = channel[channel.isfinite()].unique()
        assert len(values) <= 1 or (values - values[0]).abs().max() < 1e-4


def test_data_driven_start_puts_codes_onto_encoder_outputs():
    model = VQVAEModel(VQVAEConfig(**VQVAE)).eval()
    pixels = images(batch=4)
    model.initialize_codebook(pixels)
    vectors = model.encoder(pixels).movedim(1, -1).flatten(0, -2)
    quantization_error = (vectors - model.quantizer(vectors)[0]).square().mean()
    assert quantization_error < 0.5 * vectors.var(0).mean()
    assert (model.quantizer.codebook >= vectors.amin(0)).all() and (model.quantizer.codebook <= vectors.amax(0)).all()


def test_starts_from_pytorchs_initialisation():
    """Not from the library's N(0, 0.02), which trains a convolutional VQ-VAE differently."""
    torch.manual_seed(0)
    model = VQVAEModel(VQVAEConfig(channels=(32, 32, 32), num_res_blocks=1))
    torch.manual_seed(0)
    reference = nn.Conv2d(32, 32, 3)
    weight = next(m for m in model.modules() if isinstance(m, ResidualBlock)).layers[0].weight
    assert weight.std().item() == pytest.approx(reference.weight.std().item(), rel=0.05)
    assert model.quantizer.codebook.std().item() == pytest.approx(1, rel=0.05)
    assert not model.quantizer.code_count.any() and torch.equal(model.quantizer.code_sum, model.quantizer.codebook)


def test_tuple_output():
    model, pixels = tiny_vqvae(), images()
    output, values = model(pixels), model(pixels, return_dict=False)
    assert isinstance(values, tuple) and len(values) == 5
    assert torch.equal(values[0], output.loss) and torch.equal(values[2], output.codes)


def test_autocast():
    model, pixels = tiny_vqvae(), images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(pixels)
        output.loss.backward()
    assert output.loss.dtype == torch.float32 and output.loss.item() == pytest.approx(
        model(pixels).loss.item(), rel=0.05
    )
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype):
    """As `pipeline.to(dtype=...)` makes them: the nearest code is still looked for in float32."""
    model, pixels = tiny_vqvae().to(dtype), images().to(dtype)
    codes = model.encode(pixels)
    output = model(pixels)
    assert torch.equal(output.codes, codes) and output.loss.isfinite()
    assert model.decode(codes).dtype == dtype
    vectors = model.encoder(pixels).movedim(1, -1).flatten(0, -2).float()
    assert torch.equal(codes.flatten(), torch.cdist(vectors, model.quantizer.codebook.float()).argmin(1))


# configuration


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"spatial_dims": 4}, "spatial_dims"),
        ({"channels": ()}, "channels"),
        ({"channels": (8, 0)}, "channels"),
        ({"in_channels": 0}, "in_channels"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"embedding_dim": 0}, "embedding_dim"),
        ({"num_res_blocks": -1}, "num_res_blocks"),
        ({"dropout": 1.0}, "dropout"),
        ({"ema_decay": -0.1}, "ema_decay"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"ema_epsilon": 0.0}, "ema_epsilon"),
        ({"commitment_cost": -1.0}, "commitment_cost"),
        ({"spectral_weight": float("nan")}, "spectral_weight"),
        ({"dead_code_threshold": 1.5}, "dead_code_threshold"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
)
def test_configuration_refuses(changes, complaint):
    with pytest.raises(StrictDataclassError, match=complaint):
        VQVAEConfig(**changes)


def fields_of(config):
    origin = ("_name_or_path", "transformers_version", "model_type")
    return {name: value for name, value in vars(config).items() if name not in origin}


def test_configuration_round_trip(tmp_path):
    config = VQVAEConfig(spatial_dims=3, channels=[4, 8], dropout=0.1, dead_code_threshold=0.05)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "iltm_vqvae"
    for loaded in (VQVAEConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, VQVAEConfig) and loaded.channels == (4, 8)
        assert fields_of(loaded) == fields_of(config)
    assert VQVAEConfig(channels=[4, 8]) == VQVAEConfig(channels=(4, 8)) != VQVAEConfig(channels=(8, 4))


# saving and loading


@pytest.mark.parametrize("dims", [2, 3])
def test_reload_is_bit_equal(tmp_path, dims):
    model, pixels = tiny_vqvae(spatial_dims=dims), images(dims)
    model.save_pretrained(tmp_path)
    for loaded in (VQVAEModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert isinstance(loaded, VQVAEModel) and not loaded.training
        assert {*loaded.state_dict()} == {*model.state_dict()}
        assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(loaded(pixels).reconstruction, model(pixels).reconstruction)


def test_reload_in_a_fresh_process(tmp_path, run_fresh):
    model, pixels = tiny_vqvae(), images()
    model.save_pretrained(tmp_path / "model")
    save_file({"pixels": pixels}, tmp_path / "in.safetensors")
    run_fresh(
        """
        import sys
        from safetensors.torch import load_file, save_file
        from transformers import AutoModel
        import iltm_anomaly.tokenizers.vqvae
        model = AutoModel.from_pretrained(sys.argv[1] + "/model")
        output = model(load_file(sys.argv[1] + "/in.safetensors")["pixels"])
        result = {"reconstruction": output.reconstruction.detach().contiguous(), "codes": output.codes}
        save_file(result, sys.argv[1] + "/out.safetensors")
        """,
        tmp_path,
    )
    loaded, output = load_file(tmp_path / "out.safetensors"), model(pixels)
    assert torch.equal(loaded["reconstruction"], output.reconstruction) and torch.equal(loaded["codes"], output.codes)


def test_missing_keys_come_out_finite(tmp_path):
    model = tiny_vqvae()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = [
        "quantizer.codebook",
        "quantizer.code_count",
        "quantizer.code_sum",
        "quantizer.updates",
        "decoder_head.weight",
    ]
    kept = {name: tensor for name, tensor in weights.items() if name not in missing}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = VQVAEModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {*info["missing_keys"]} == {*missing}
    state = loaded.state_dict()
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert state["quantizer.codebook"].std() > 0.5 and state["quantizer.updates"] == 0
    assert all(torch.equal(state[name], tensor) for name, tensor in kept.items()), "what was loaded must stay"


def test_half_precision_checkpoint_in_float32(tmp_path):
    model = tiny_vqvae().half()
    model.save_pretrained(tmp_path)
    loaded = VQVAEModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert all(t.dtype in (torch.float32, torch.int64) for t in loaded.state_dict().values())
    assert torch.equal(loaded.quantizer.codebook, model.quantizer.codebook.float())
    assert loaded(images()).loss.isfinite()
