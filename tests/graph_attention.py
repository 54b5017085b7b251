"""Transformers for the graph route: torch's own layers, and small models of the transformers library."""

import dataclasses
import warnings

import torch
import transformers
from torch import nn
from torch.nn import functional

from graph_cases import GraphCase, Table, integers, made, ready
from models import randn

__all__ = ["ATTENTION", "LANGUAGE"]

X = (2, 3, 8)
ENCODER = {"d_model": 8, "nhead": 2, "dim_feedforward": 6, "dropout": 0.1}


def after(module: nn.Module, *inputs: torch.Tensor, loose: tuple[str, ...] = (), **options) -> GraphCase:
    """A module with a linear read-out of its first output."""

    def forward(m, *inputs):
        result = m.body(*inputs, **options)
        return m.head(result[0] if isinstance(result, tuple) else result)

    return ready(made(forward, body=module, head=nn.Linear(8, 1)), inputs, loose, scale=0.4)


def causal(size: int) -> torch.Tensor:
    return torch.full((size, size), -torch.inf, dtype=torch.float64).triu(1)


def encoder_layer(norm_first: bool, batch_first: bool, **options) -> nn.Module:
    return nn.TransformerEncoderLayer(**ENCODER, norm_first=norm_first, batch_first=batch_first, **options)


def decoder_layer(norm_first: bool, batch_first: bool) -> GraphCase:
    layer = nn.TransformerDecoderLayer(**ENCODER, norm_first=norm_first, batch_first=batch_first)
    x, memory = randn(2, 3, 8, seed=1), randn(2, 4, 8, seed=2)
    if not batch_first:
        x, memory = x.transpose(0, 1), memory.transpose(0, 1)
    return after(layer, x, memory, tgt_mask=causal(3), tgt_is_causal=True)


def multihead(padding: bool, weights: bool, **options) -> GraphCase:
    attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
    key, value = randn(2, 4, attention.kdim, seed=2), randn(2, 4, attention.vdim, seed=3)
    mask = torch.tensor([[False, False, False, True], [False, False, True, True]]) if padding else None
    loose = ("body.bias_k", "body.bias_v") if attention.bias_k is not None else ()
    return after(attention, randn(*X, seed=1), key, value, loose=loose, key_padding_mask=mask, need_weights=weights)


def scaled() -> GraphCase:
    """Causal attention by the one function for it."""

    def forward(m, x):
        query, key, value = (w(x).unflatten(-1, (2, 4)).transpose(1, 2) for w in (m.query, m.key, m.value))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return m.out(mixed.transpose(1, 2).flatten(2))

    layers = {name: nn.Linear(8, 8) for name in ("query", "key", "value", "out")}
    return ready(made(forward, **layers), randn(*X, seed=1), scale=0.4)


def patches(m, x):
    """Patches of an image, a token for the class, positions, and an encoder."""
    h = m.patchify(x).flatten(2).mT
    h = torch.cat([m.token.expand(len(h), 1, 8), h], dim=1) + m.positions
    return m.head(m.encoder(h)[:, 0])


def vision() -> GraphCase:
    parts = {
        "patchify": nn.Conv2d(1, 8, 2, stride=2),
        "token": (1, 1, 8),
        "positions": (1, 5, 8),
        "encoder": encoder_layer(True, True, activation="gelu"),
        "head": nn.Linear(8, 3),
    }
    return ready(made(patches, **parts), randn(2, 1, 4, 4, seed=1), ("token",), scale=0.4)


def encoder_stack() -> nn.Module:
    return nn.TransformerEncoder(encoder_layer(True, True), 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)


ATTENTION: Table = {
    "encoder-layer-pre": lambda: after(encoder_layer(True, True), randn(*X, seed=1)),
    "encoder-layer-post": lambda: after(encoder_layer(False, False, bias=False), randn(*X, seed=1)),
    "decoder-layer-pre": lambda: decoder_layer(True, True),
    "decoder-layer-post": lambda: decoder_layer(False, False),
    "encoder-causal": lambda: after(encoder_stack(), randn(*X, seed=1), mask=causal(3), is_causal=True),
    "encoder-padding": lambda: after(
        encoder_stack(), randn(*X, seed=1), src_key_padding_mask=torch.tensor([[False, False, True], [False] * 3])
    ),
    "multihead": lambda: multihead(False, True),
    "multihead-padding": lambda: multihead(True, False, kdim=3, vdim=2, add_bias_kv=True),
    "scaled-dot-product": lambda: scaled(),
    "vision": vision,
}


def language(kind: str, config: dict, mask: bool = True, tolerance: float = 1e-10) -> GraphCase:
    """A model of the transformers library from its configuration."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="transformers")
        model = getattr(transformers, kind)(getattr(transformers, CONFIGS[kind])(**config))
    attended = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    inputs = {"input_ids": integers(11, 2, 4)} | ({"attention_mask": attended} if mask else {})
    return dataclasses.replace(ready(model, inputs, scale=0.3), tolerance=tolerance)


CONFIGS = {
    "GPT2LMHeadModel": "GPT2Config",
    "BertForSequenceClassification": "BertConfig",
    "LlamaForCausalLM": "LlamaConfig",
}
GPT2 = {
    "vocab_size": 11,
    "n_positions": 6,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "use_cache": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
BERT = {
    "vocab_size": 11,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 6,
}
LLAMA = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "use_cache": False,
}
EAGER = {"attn_implementation": "eager"}

LANGUAGE: Table = {
    "gpt2": lambda: language("GPT2LMHeadModel", GPT2),
    "bert": lambda: language("BertForSequenceClassification", BERT | EAGER),
    "llama": lambda: language("LlamaForCausalLM", LLAMA, tolerance=1e-6),  # its norms compute in float32
}
