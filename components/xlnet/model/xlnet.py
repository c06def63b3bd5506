"""XLNet for sequence classification and regression, batch first.

Parameter names and shapes are those of Hugging Face's files, so that a state dict needs no
translation. The mathematics is Yang et al. 2019; what differs from the common implementation is
where work is done once instead of per row: one table of distances serves the whole batch (with
dropout, one mask of it).

Shapes: B rows, L tokens, D model width, N heads, H head width, R = 2L distances, C outputs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlnet.model.attention import distance_encoding, relative_attention
from xlnet.model.config import XLNetConfig
from xlnet.model.dropout import dropout


class RelativeAttention(nn.Module):
    """Projections around :func:`relative_attention`, residual and layer norm."""

    def __init__(self, config: XLNetConfig) -> None:
        super().__init__()
        model, heads, width = config.d_model, config.n_head, config.d_head
        self.q, self.k, self.v, self.o, self.r = (nn.Parameter(torch.empty(model, heads, width)) for _ in "qkvor")
        self.r_r_bias, self.r_s_bias, self.r_w_bias = (nn.Parameter(torch.empty(heads, width)) for _ in "rsw")
        self.seg_embed = nn.Parameter(torch.empty(2, heads, width))
        self.layer_norm = nn.LayerNorm(model, eps=config.layer_norm_eps)
        self.dropout = config.dropout

    def forward(self, x_BLD: Tensor, distances_RD: Tensor, differs_BLL: Tensor, keys_BL: Tensor | None) -> Tensor:
        """[B, L, D] → [B, L, D]."""
        attended_BLNH = relative_attention(
            self._heads(x_BLD, self.q),
            self._heads(x_BLD, self.k),
            self._heads(x_BLD, self.v),
            self._heads(distances_RD, self.r),
            r_w_bias_NH=self.r_w_bias,
            r_r_bias_NH=self.r_r_bias,
            r_s_bias_NH=self.r_s_bias,
            seg_embed_2NH=self.seg_embed,
            differs_BLL=differs_BLL,
            keys_BL=keys_BL,
            dropout=self.dropout if self.training else 0.0,
        )
        out_BLD = F.linear(attended_BLNH.flatten(-2), self.o.flatten(1))
        return self.layer_norm(x_BLD + dropout(out_BLD, self.dropout, self.training))

    def _heads(self, x_D: Tensor, weight_DNH: Tensor) -> Tensor:
        return torch.matmul(x_D, weight_DNH.flatten(1)).unflatten(-1, weight_DNH.shape[1:])


class FeedForward(nn.Module):
    """Two linear layers around a GELU (Hendrycks & Gimpel 2016, exact form), residual and layer norm."""

    def __init__(self, config: XLNetConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.layer_1 = nn.Linear(config.d_model, config.d_inner)
        self.layer_2 = nn.Linear(config.d_inner, config.d_model)
        self.dropout = config.dropout

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, D] → [B, L, D]."""
        inner = dropout(F.gelu(self.layer_1(x_BLD)), self.dropout, self.training)
        return self.layer_norm(x_BLD + dropout(self.layer_2(inner), self.dropout, self.training))


class Layer(nn.Module):
    """One block: attention, then feed-forward."""

    def __init__(self, config: XLNetConfig) -> None:
        super().__init__()
        self.rel_attn = RelativeAttention(config)
        self.ff = FeedForward(config)

    def forward(self, x_BLD: Tensor, distances_RD: Tensor, differs_BLL: Tensor, keys_BL: Tensor | None) -> Tensor:
        """[B, L, D] → [B, L, D]."""
        return self.ff(self.rel_attn(x_BLD, distances_RD, differs_BLL, keys_BL))


class Transformer(nn.Module):
    """Embeddings and blocks."""

    def __init__(self, config: XLNetConfig) -> None:
        super().__init__()
        self.config = config
        self.word_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.mask_emb = nn.Parameter(torch.empty(1, 1, config.d_model))
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.n_layer))
        self.dropout = config.dropout

    def forward(
        self,
        input_ids_BL: Tensor,
        segment_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        hidden_BL: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of the last block: [B, L, D].

        Args:
            input_ids_BL: token ids.
            segment_ids_BL: segment ids; only whether two are equal matters.
            attention_mask_BL: True for tokens, False for padding; None: no padding.
            hidden_BL: True for tokens to be replaced by the mask embedding; None: none.
        """
        x_BLD = self.word_embedding(input_ids_BL)
        if hidden_BL is not None:
            x_BLD = torch.where(hidden_BL[..., None], self.mask_emb.to(x_BLD.dtype), x_BLD)
        x_BLD = dropout(x_BLD, self.dropout, self.training)
        length, width = x_BLD.shape[-2:]
        distances_RD = distance_encoding(length, width, self.config.clamp_len, x_BLD.device).to(x_BLD.dtype)
        distances_RD = dropout(distances_RD, self.dropout, self.training)
        differs_BLL = (segment_ids_BL[:, :, None] != segment_ids_BL[:, None, :]).to(x_BLD.dtype)
        for layer in self.layer:
            x_BLD = layer(x_BLD, distances_RD, differs_BLL, attention_mask_BL)
        return dropout(x_BLD, self.dropout, self.training)


class SequenceSummary(nn.Module):
    """The last token's state, projected, through tanh and dropout."""

    def __init__(self, config: XLNetConfig) -> None:
        super().__init__()
        self.summary = nn.Linear(config.d_model, config.d_model)
        self.last_dropout = config.summary_last_dropout

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, D] → [B, D]."""
        return dropout(torch.tanh(self.summary(x_BLD[:, -1])), self.last_dropout, self.training)


class XLNetClassifier(nn.Module):
    """XLNet with a classification or regression head on the final ``<cls>``."""

    def __init__(self, config: XLNetConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.sequence_summary = SequenceSummary(config)
        self.logits_proj = nn.Linear(config.d_model, config.outputs)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights, zero biases, unit norms (the released code's initialisation)."""
        for name, parameter in self.named_parameters():
            if name.endswith("layer_norm.weight"):
                nn.init.ones_(parameter)
            elif name.endswith(("layer_norm.bias", "layer_1.bias", "layer_2.bias", "summary.bias", "logits_proj.bias")):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, 0.0, self.config.initializer_range)

    def forward(
        self,
        input_ids_BL: Tensor,
        segment_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        hidden_BL: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, C]; for arguments see :class:`Transformer`. Rows are left-padded."""
        return self.logits_proj(
            self.sequence_summary(self.transformer(input_ids_BL, segment_ids_BL, attention_mask_BL, hidden_BL))
        )
