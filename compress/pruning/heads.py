"""Whole attention heads taken out of `nn.MultiheadAttention`, Michel et al. 2019 (arXiv:1905.10650)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FewerHeads(nn.MultiheadAttention):
    """An attention whose heads together may be narrower than what it reads and writes; torch's own cannot be.

    Its parameters have the names and the order of `nn.MultiheadAttention`. It is made from one by `take`.
    """

    @classmethod
    def take(cls, module: nn.MultiheadAttention) -> None:
        """Turn an attention whose tensors have become smaller into one of this class, in place.

        `num_heads` and `head_dim` stay as they are; `embed_dim` is what is read from the queries.
        """
        module.__class__ = cls
        packed = "in_proj_weight" in dict(module.named_parameters(recurse=False))
        module.embed_dim = (module.in_proj_weight if packed else module.q_proj_weight).shape[1]
        if packed:
            module.kdim = module.vdim = module.embed_dim
        module._qkv_same_embed_dim = False  # torch's fused encoder layer asks this, and must not be taken
        module.out_proj.out_features, module.out_proj.in_features = module.out_proj.weight.shape

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """What `nn.MultiheadAttention.forward` returns, from the heads that are left.

        Args:
            query: (batch, targets, embed_dim) if `batch_first`, else (targets, batch, embed_dim), or without batch.
            key: likewise, with sources and `kdim`.
            value: likewise, with sources and `vdim`.
            key_padding_mask: (batch, sources), True or -inf where a source is to be ignored; without batch (sources,).
            need_weights: whether the attention weights are returned, too.
            attn_mask: (targets, sources) or (batch * num_heads of the whole attention, targets, sources).
            average_attn_weights: the weights are a mean over heads.
            is_causal: a hint that `attn_mask` is causal; the mask itself is used.

        Raises:
            ValueError: `attn_mask` has one mask per head: which heads are left is not known here.
        """
        if attn_mask is not None and attn_mask.dim() == 3:
            raise ValueError("attn_mask has one mask per head, which an attention with fewer heads cannot place")
        batched = query.dim() == 3
        inputs = [part if batched else part.unsqueeze(0) for part in (query, key, value)]
        if batched and not self.batch_first:
            inputs = [part.transpose(0, 1) for part in inputs]
        q, k, v = self._projected(inputs)  # (batch, heads, positions, head_dim)
        mask = self._mask(attn_mask, key_padding_mask, k.shape[2], q)
        scores = q @ k.transpose(-1, -2) * self.head_dim**-0.5
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        mixed = F.dropout(weights, self.dropout, self.training) @ v
        out = F.linear(mixed.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if batched and not self.batch_first:
            out = out.transpose(0, 1)
        shown = weights.mean(dim=1) if average_attn_weights else weights
        if not batched:
            out, shown = out.squeeze(0), shown.squeeze(0)
        return out, shown if need_weights else None

    def _projected(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (batch, heads, positions, head_dim) each."""
        own = dict(self.named_parameters(recurse=False))
        packed = own.get("in_proj_weight")
        matrices = packed.chunk(3) if packed is not None else [own[f"{which}_proj_weight"] for which in "qkv"]
        bias = own.get("in_proj_bias")
        biases = bias.chunk(3) if bias is not None else (None, None, None)
        parts = [F.linear(x, w, b) for x, w, b in zip(inputs, matrices, biases, strict=True)]
        for at, extra in ((1, self.bias_k), (2, self.bias_v)):
            if extra is not None:  # (1, 1, heads * head_dim): one more source
                parts[at] = torch.cat([parts[at], extra.expand(len(parts[at]), 1, -1)], dim=1)
            if self.add_zero_attn:
                parts[at] = F.pad(parts[at], (0, 0, 0, 1))
        q, k, v = (part.view(*part.shape[:2], self.num_heads, self.head_dim).transpose(1, 2) for part in parts)
        return q, k, v

    def _mask(self, attention: Tensor | None, padding: Tensor | None, sources: int, like: Tensor) -> Tensor | None:
        """What is added to the scores: (batch or 1, 1, targets or 1, sources), or nothing."""
        total: Tensor | None = None
        for mask in (attention, padding):
            if mask is None:
                continue
            added = torch.zeros_like(mask, dtype=like.dtype)
            added = added.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else added + mask
            added = F.pad(added, (0, sources - mask.shape[-1]))  # the sources that were added here are seen
            if mask is padding:
                added = added.reshape(-1, 1, 1, sources)
            total = added if total is None else total + added
        return total
