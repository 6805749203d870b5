"""Causal Performer over code sequences (appendix B): log-likelihoods in parallel, or token by token from a constant state."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from iltm_anomaly.modeling import SafetensorsModel
from iltm_anomaly.prior import linear_attention
from iltm_anomaly.prior.configuration_performer_prior import PerformerPriorConfig

SCORING_BATCH = 32  # sequences scored together by `log_likelihood`, if they are no longer than
SCORING_TOKENS = 32 * 1024  # allow: the logits of 20,000 tokens take 20 MB


@dataclass
class PriorOutput(ModelOutput):
    """
    Args:
        loss: mean cross entropy over kept tokens, in nats; zero, with zero gradients, if none is kept.
        logits: (B, N, K) float32; position i predicts code i from the codes before it.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


@dataclass
class PriorState:
    """What the model remembers of the codes it has read: running sums of constant size, whatever their number.

    Args:
        sums: one (B, heads, head_dim + 1, features) float32 tensor per layer.
        position: (B,) int64, codes read so far.
        logits: (B, K) float32, prediction of the next code.
        weights: of each layer, laid out for steps; those that the model had when the state was begun.
    """

    sums: list[Tensor]
    position: Tensor
    logits: Tensor
    weights: list[tuple[Tensor, ...]]

    def select(self, index: Tensor) -> "PriorState":
        """The states of the sequences `index` (M,), repeats allowed: drops finished ones, or copies a shared prefix."""
        return PriorState([s[index] for s in self.sums], self.position[index], self.logits[index], self.weights)


class Dropout(nn.Dropout):
    """`nn.Dropout` that draws quickly on CPUs, where PyTorch's draws take a fifth of a training step.

    16 random bits of the global generator decide about a value: the probability is rounded to a multiple of 2^-16, and what is
    kept is scaled by the inverse of the rounded one. The draw is the same for any number of threads.
    """

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * 2**16)
        if not self.training or x.device.type != "cpu" or not 0 < dropped < 2**16:
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits, 4 values
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        kept = torch.ge(bits, dropped - 2**15, out=torch.empty(x.shape, dtype=x.dtype))
        return x * kept * (2**16 / (2**16 - dropped))


class PerformerAttention(nn.Module):
    """Multi-head causal FAVOR+ attention; its random features are a buffer, saved with the weights."""

    projection: Tensor

    def __init__(self, config: PerformerPriorConfig):
        super().__init__()
        inner = config.num_attention_heads * config.head_dim
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * inner, bias=False)
        self.out = nn.Linear(inner, config.hidden_size, bias=False)
        self.dropout = Dropout(config.dropout)
        assert config.num_random_features is not None  # the configuration has filled it in
        self.register_buffer("projection", torch.empty(config.num_random_features, config.head_dim))

    def forward(
        self, x: Tensor, keep: Tensor | None = None, sums: Tensor | None = None, keep_values: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, n, hidden) -> outputs of the same shape and the running sums after them. `keep` (B, n), True = keep, takes a
        token out as a whole, `keep_values` only its values."""
        # tokens last, as the attention wants them: (3 * heads * head_dim, B * n)
        qkv = self.qkv.weight @ x.flatten(0, 1).t()
        qkv = qkv.view(3, self.num_heads, -1, *x.shape[:2])
        if keep_values is not None:
            qkv = torch.cat([qkv[:2], qkv[2:] * keep_values])
        if sums is None:
            sums = linear_attention.new_state(len(x), self.num_heads, self.projection.float())
        attended, sums = linear_attention.attend(qkv, self.projection, sums, keep)
        return self.dropout(self.out(attended.flatten(2).flatten(0, 1).t())).view_as(x), sums


class PerformerLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block: attention, then a GELU feed-forward part."""

    def __init__(self, config: PerformerPriorConfig):
        super().__init__()
        width = config.intermediate_ratio * config.hidden_size
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attention = PerformerAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, width),
            nn.GELU(),
            Dropout(config.dropout),
            nn.Linear(width, config.hidden_size),
            Dropout(config.dropout),
        )

    def forward(
        self, x: Tensor, keep: Tensor | None = None, sums: Tensor | None = None, keep_values: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        attended, sums = self.attention(self.attention_norm(x), keep, sums, keep_values)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), sums

    def step_weights(self) -> tuple[Tensor, ...]:
        """Weights and biases of the linear layers, on a CPU with the weights stored by columns: a step of one or two sequences
        costs what reading them costs, and a product with one row reads them 1.6 times as fast so."""
        mlp = ("mlp.0.weight", "mlp.0.bias", "mlp.3.weight", "mlp.3.bias")
        parameters = tuple(self.get_parameter(x) for x in ("attention.qkv.weight", "attention.out.weight", *mlp))
        if parameters[0].device.type != "cpu" or torch.is_autocast_enabled("cpu"):  # autocast keeps copies of its own
            return parameters
        return tuple(x.t().contiguous().t() for x in parameters)

    def step(self, x: Tensor, sums: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """One token, (B, hidden) -> (B, hidden), without dropout; `sums` is updated in place."""
        qkv, out, widen, widen_bias, narrow, narrow_bias = weights
        heads = F.linear(self.attention_norm(x), qkv).view(len(x), 3, self.attention.num_heads, -1)
        attended = linear_attention.step(heads, self.attention.projection, sums)
        x = x + F.linear(attended.flatten(1), out)
        wide = F.gelu(F.linear(self.mlp_norm(x), widen, widen_bias))
        return x + F.linear(wide, narrow, narrow_bias)


class PerformerPriorModel(SafetensorsModel):
    """How likely each code of an image is, given the codes before it in raster order.

    Input ids are the codes themselves, (B, N) int64 in [0, vocab_size), with N at most the product of `grid_shape`. The
    model shifts them by one behind a begin-of-sequence token, so that logits and codes line up.
    """

    config_class = PerformerPriorConfig
    base_model_prefix = "prior"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True

    def __init__(self, config: PerformerPriorConfig):
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.vocab_size + 2, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(PerformerLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.token_embedding

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            # Width-scaled like PyTorch's own; N(0, 0.02) is right for widths near 768 and far too small for 32.
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, PerformerAttention):
            seed = int(torch.randint(2**62, (1,), device="cpu"))  # from the global generator, as all of init is
            generator = torch.Generator().manual_seed(seed)
            num_features, head_dim = module.projection.shape
            init.copy_(module.projection, linear_attention.draw_projection(num_features, head_dim, generator))

    @torch.no_grad()
    def redraw_projections(self, generator: torch.Generator) -> None:
        """Draws new random features in every layer. The training loop calls it every `feature_redraw_interval` steps with
        a generator that is seeded alike in every process; evaluation never redraws."""
        for module in self.modules():
            if isinstance(module, PerformerAttention):
                num_features, head_dim = module.projection.shape
                module.projection.copy_(linear_attention.draw_projection(num_features, head_dim, generator))

    def _layers(self) -> Iterator[PerformerLayer]:
        return (layer for layer in self.layers if isinstance(layer, PerformerLayer))

    def _check(self, codes: Tensor) -> None:
        if codes.dim() != 2 or not 0 < codes.shape[1] <= self.config.max_position_embeddings:
            raise ValueError(
                f"codes must have shape (B, N) with 1 <= N <= {self.config.max_position_embeddings} "
                f"(grid {tuple(self.config.grid_shape)}), got {tuple(codes.shape)}: flatten the grid in raster order"
            )

    def _embed(self, input_ids: Tensor, position: Tensor) -> Tensor:
        return self.dropout(self.token_embedding(input_ids) + self.position_embedding(position))

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.head(self.norm(hidden)).float()

    def forward(
        self,
        input_ids: Tensor,
        token_mask: Tensor | None = None,
        compute_loss: bool = True,
        return_dict: bool | None = None,
    ) -> PriorOutput | tuple:
        """Scores whole sequences.

        Args:
            input_ids: codes, (B, N) int64.
            token_mask: (B, N) bool, True = keep. Masked tokens are hidden from all later ones (`config.masking`) and leave
                the loss. Begin of sequence is always kept. None keeps all.
            compute_loss: False leaves `loss` None.
            return_dict: False gives a tuple.

        Raises:
            ValueError: if the shapes do not fit.
        """
        self._check(input_ids)
        if token_mask is not None and token_mask.shape != input_ids.shape:
            raise ValueError(
                f"token_mask must have the shape of input_ids {tuple(input_ids.shape)}, got {tuple(token_mask.shape)}"
            )
        previous = F.pad(input_ids[:, :-1], (1, 0), value=self.config.bos_token_id)
        keep = keep_values = None
        if token_mask is not None:
            kept = F.pad(token_mask[:, :-1].bool(), (1, 0), value=True)
            if self.config.masking == "token":
                keep, previous = kept, previous.masked_fill(~kept, self.config.mask_token_id)
            else:
                keep_values = kept
        position = torch.arange(previous.shape[1], device=previous.device)
        hidden = self._embed(previous, position)
        for layer in self.layers:
            hidden, _ = layer(hidden, keep, keep_values=keep_values)
        logits = self._logits(hidden)

        loss = self._loss(logits, input_ids, token_mask) if compute_loss else None
        output = PriorOutput(loss=loss, logits=logits)
        return output if return_dict is None or return_dict else output.to_tuple()

    @staticmethod
    def _loss(logits: Tensor, codes: Tensor, token_mask: Tensor | None) -> Tensor:
        nll = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view_as(codes)
        if token_mask is None:
            return nll.mean()
        # clamp: a batch with nothing kept has loss 0 and no gradient, not 0 / 0
        return (nll * token_mask).sum() / token_mask.sum().clamp(min=1)

    @torch.no_grad()
    def log_likelihood(self, codes: Tensor) -> Tensor:
        """Natural log-probability of each code given the true codes before it: (B, N) -> (B, N) float32, always finite."""
        parts, largest = [], max(1, min(SCORING_BATCH, SCORING_TOKENS // codes.shape[1]))
        # the logits of a whole data set would not fit; a power of two divides what a process is given (`over_processes`)
        for part in codes.split(1 << (largest.bit_length() - 1)):
            log_probability = self(part, compute_loss=False).logits.log_softmax(-1)
            parts.append(log_probability.gather(-1, part.unsqueeze(-1)).squeeze(-1))
        return torch.cat(parts)

    # Recurrent form: a state of constant size in place of the prefix.

    @torch.no_grad()
    def init_state(self, batch_size: int) -> PriorState:
        """The state before the first code; its `logits` predict that code."""
        sums = [
            linear_attention.new_state(batch_size, self.config.num_attention_heads, layer.attention.projection.float())
            for layer in self._layers()
        ]
        bos = torch.full((batch_size,), self.config.bos_token_id, device=self.device)
        weights = [layer.step_weights() for layer in self._layers()]
        logits = self._step(bos, torch.zeros_like(bos), sums, weights)
        return PriorState(sums, torch.zeros_like(bos), logits, weights)

    def _step(self, codes: Tensor, position: Tensor, sums: list[Tensor], weights: list[tuple[Tensor, ...]]) -> Tensor:
        hidden = self._embed(codes, position)
        for layer, layer_sums, layer_weights in zip(self._layers(), sums, weights, strict=True):
            hidden = layer.step(hidden, layer_sums, layer_weights)
        return self._logits(hidden)

    @torch.no_grad()
    def prefill(self, codes: Tensor, state: PriorState, lengths: Tensor | None = None) -> tuple[Tensor, PriorState]:
        """Reads a run of codes (B, n) at once; with `lengths` (B,), sequence b reads only its first lengths[b], 0 to n.

        Returns:
            Logits (B, K) of the code that follows, and the new state; the one given is left as it was.

        Raises:
            ValueError: if a run leaves no code to predict.
        """
        count = torch.full_like(state.position, codes.shape[1]) if lengths is None else lengths
        self._check_room(state.position + count)
        offset = torch.arange(codes.shape[1], device=codes.device)
        keep = None if lengths is None else offset < count[:, None]
        # input position 0 is begin of sequence; padding past the end is never attended to
        position = (state.position[:, None] + 1 + offset).clamp(max=self.config.max_position_embeddings - 1)
        hidden = self._embed(codes, position)
        sums = []
        for layer, entering in zip(self._layers(), state.sums, strict=True):
            hidden, leaving = layer(hidden, keep, entering)
            sums.append(leaving)
        last = hidden[torch.arange(len(hidden), device=hidden.device), (count - 1).clamp(min=0)]
        logits = torch.where(count[:, None] > 0, self._logits(last), state.logits)
        return logits, PriorState(sums, state.position + count, logits, state.weights)

    @torch.no_grad()
    def step(self, codes: Tensor, state: PriorState) -> tuple[Tensor, PriorState]:
        """Reads one code per sequence, (B,) -> logits (B, K) of the next one. Updates the running sums of `state` in place.

        Raises:
            ValueError: if there is no code left to predict.
        """
        self._check_room(state.position + 1)
        position = state.position + 1
        logits = self._step(codes, position, state.sums, state.weights)
        return logits, PriorState(state.sums, position, logits, state.weights)

    def _check_room(self, position: Tensor) -> None:
        if int(position.max()) >= self.config.max_position_embeddings:
            raise ValueError(f"the grid {tuple(self.config.grid_shape)} is complete: no code is left to predict")
