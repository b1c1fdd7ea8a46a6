"""The network that is trained: SigLIP tower, two-layer projector, Phi-2 decoder.

The parameter names are those of the published Mipha checkpoints, so that exporting is a plain dump
of the state dict.  The arithmetic is written out here instead of borrowing the transformers classes
for one reason: a training sequence is a tree.  All questions about one image share the system text
and the image, and the system text is even shared by the whole batch, so both are computed once.
`reference.py` runs the exported files through the transformers classes and checks that both agree.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {
    "vision": {
        "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 7,
        "num_attention_heads": 4, "image_size": 128, "patch_size": 14, "layer_norm_eps": 1e-6,
    },
    "text": {
        "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
        "num_attention_heads": 8, "partial_rotary_factor": 0.5, "rope_theta": 10000.0,
        "layer_norm_eps": 1e-5, "vocab_size": 1024, "max_position_embeddings": 2048,
    },
}


def linear(layer, x):
    """A linear layer evaluated in the type of x; the master weights stay float32."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def norm(layer, x):
    return F.layer_norm(x, layer.normalized_shape, layer.weight.to(x.dtype),
                        layer.bias.to(x.dtype), layer.eps)


def heads(x, batch, length, count):
    return x.reshape(batch, length, count, -1).transpose(1, 2)


def attend(scores_list, values_list):
    """One softmax over several groups of keys, each with its own scores and values."""
    probabilities = torch.softmax(torch.cat(scores_list, -1), -1)
    out, start = 0, 0
    for scores, values in zip(scores_list, values_list):
        part = probabilities[..., start:start + scores.shape[-1]]
        out = out + part @ values
        start += scores.shape[-1]
    return out


# --- Vision tower -------------------------------------------------------------------------------

class VisionEmbeddings(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.grid = c["image_size"] // c["patch_size"]
        self.patch_embedding = nn.Conv2d(3, c["hidden_size"], c["patch_size"], c["patch_size"])
        self.position_embedding = nn.Embedding(self.grid ** 2, c["hidden_size"])

    def forward(self, pixels):
        # The convolution reads non-overlapping patches, so it is a matrix product; written as one
        # because the convolution's backward pass is slow on a processor.  Pixels beyond the last
        # whole patch are never read, as in SigLIP at 384 pixels.
        n, p = self.grid, self.patch_embedding.kernel_size[0]
        batch = pixels.shape[0]
        x = pixels[:, :, :n * p, :n * p].reshape(batch, 3, n, p, n, p)
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(batch, n * n, 3 * p * p)
        weight = self.patch_embedding.weight.flatten(1).to(x.dtype)
        x = F.linear(x, weight, self.patch_embedding.bias.to(x.dtype))
        return x + self.position_embedding.weight.to(x.dtype)


class VisionAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c["hidden_size"]
        self.count = c["num_attention_heads"]
        self.q_proj, self.k_proj = nn.Linear(d, d), nn.Linear(d, d)
        self.v_proj, self.out_proj = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (heads(linear(f, x), batch, length, self.count)
                   for f in (self.q_proj, self.k_proj, self.v_proj))
        q = q * (width // self.count) ** -0.5
        out = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return linear(self.out_proj, out.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    def __init__(self, d, ff):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d, ff), nn.Linear(ff, d)

    def forward(self, x):
        return linear(self.fc2, F.gelu(linear(self.fc1, x), approximate="tanh"))


class VisionLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, eps = c["hidden_size"], c["layer_norm_eps"]
        self.layer_norm1, self.self_attn = nn.LayerNorm(d, eps), VisionAttention(c)
        self.layer_norm2, self.mlp = nn.LayerNorm(d, eps), MLP(d, c["intermediate_size"])

    def forward(self, x):
        x = x + self.self_attn(norm(self.layer_norm1, x))
        return x + self.mlp(norm(self.layer_norm2, x))


class VisionModel(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embeddings = VisionEmbeddings(c)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(VisionLayer(c) for _ in range(c["num_hidden_layers"]))

    def forward(self, pixels, skip_last=1):
        """Hidden state after all layers but `skip_last`; 1 is what mm_vision_select_layer -2 reads."""
        x = self.embeddings(pixels)
        layers = self.encoder.layers
        for layer in layers[:len(layers) - skip_last]:
            x = layer(x)
        return x


# --- Decoder ------------------------------------------------------------------------------------

class PhiAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c["hidden_size"]
        self.q_proj, self.k_proj = nn.Linear(d, d), nn.Linear(d, d)
        self.v_proj, self.dense = nn.Linear(d, d), nn.Linear(d, d)


class PhiLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c["hidden_size"]
        self.input_layernorm = nn.LayerNorm(d, c["layer_norm_eps"])
        self.self_attn, self.mlp = PhiAttention(c), MLP(d, c["intermediate_size"])


def rotate(x, cos, sin):
    """Rotary embedding of the first dimensions of each head, halves paired as (i, i + R/2)."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half:2 * half], x[..., 2 * half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)


class MiphaModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        v, t = config["vision"], config["text"]
        d = t["hidden_size"]
        self.vision_tower = nn.Module()
        self.vision_tower.vision_model = VisionModel(v)
        self.mm_projector = nn.Sequential(nn.Linear(v["hidden_size"], d), nn.GELU(), nn.Linear(d, d))
        self.embed_tokens = nn.Embedding(t["vocab_size"], d)
        self.layers = nn.ModuleList(PhiLayer(t) for _ in range(t["num_hidden_layers"]))
        self.final_layernorm = nn.LayerNorm(d, t["layer_norm_eps"])


class Mipha(nn.Module):
    def __init__(self, config=CONFIG):
        super().__init__()
        self.config = config
        self.model = MiphaModel(config)
        self.lm_head = nn.Linear(config["text"]["hidden_size"], config["text"]["vocab_size"])
        t = config["text"]
        self.count = t["num_attention_heads"]
        size = t["hidden_size"] // self.count
        rotary = int(t["partial_rotary_factor"] * size)
        frequency = t["rope_theta"] ** (-torch.arange(0, rotary, 2).float() / rotary)
        angle = torch.arange(t["max_position_embeddings"]).float()[:, None] * frequency
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        self.reset()

    def reset(self):
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif "norm" in name:
                nn.init.ones_(p)
            elif p.dim() >= 2:
                # Outputs of residual branches start small so that the first steps are calm.
                fan = p[0].numel()
                std = 0.02 if "embed" in name and "patch" not in name else fan ** -0.5
                if name.endswith(("out_proj.weight", "dense.weight", "fc2.weight")):
                    std *= 0.3
                nn.init.trunc_normal_(p, std=std)

    def tower(self, pixels, skip_last=1):
        return self.model.vision_tower.vision_model(pixels, skip_last)

    def project(self, features):
        first, _, second = self.model.mm_projector
        return linear(second, F.gelu(linear(first, features)))

    def answer_states(self, system, image, branches):
        """Final hidden states of every branch token.

        system: token ids [S], shared by the whole batch.
        image: projected features [B, N, d].
        branches: list of token ids [B, n, L]; every branch sees system, image and itself only, at
        the positions it would have if it were alone.
        Returns one [B, n, L, d] per entry of branches.
        """
        batch, patches, d = image.shape
        s, h = system.shape[0], self.count
        size = d // h
        embed = self.model.embed_tokens.weight
        parts = [F.embedding(system, embed).to(image.dtype), image.reshape(-1, d)]
        positions = [torch.arange(s), torch.arange(s, s + patches).repeat(batch)]
        for ids in branches:
            parts.append(F.embedding(ids.reshape(-1), embed).to(image.dtype))
            n, length = ids.shape[1:]
            positions.append(torch.arange(s + patches, s + patches + length).repeat(batch * n))
        x = torch.cat(parts)
        positions = torch.cat(positions)
        lengths = [p.shape[0] for p in parts]
        cos = self.cos[positions].to(x.dtype)[:, None]
        sin = self.sin[positions].to(x.dtype)[:, None]

        def causal(n):
            return torch.full((n, n), -math.inf, dtype=x.dtype).triu(1)

        for layer in self.model.layers:
            a = layer.self_attn
            y = norm(layer.input_layernorm, x)
            q = linear(a.q_proj, y).view(-1, h, size)
            k = linear(a.k_proj, y).view(-1, h, size)
            v = linear(a.v_proj, y).view(-1, h, size)
            q, k = rotate(q, cos, sin) * size ** -0.5, rotate(k, cos, sin)
            q, k, v = (t.split(lengths) for t in (q, k, v))

            # System text: an ordinary causal sequence of batch one.
            qs, ks, vs = (t[0].transpose(0, 1) for t in (q, k, v))
            out = [attend([qs @ ks.transpose(-1, -2) + causal(s)], [vs]).transpose(0, 1).reshape(s, d)]

            # Image: sees the system text and the patches before it.
            qi, ki, vi = (heads(t[1], batch, patches, h) for t in (q, k, v))
            k0 = torch.cat((ks.expand(batch, -1, -1, -1), ki), 2).transpose(-1, -2)
            v0 = torch.cat((vs.expand(batch, -1, -1, -1), vi), 2)
            mask = F.pad(causal(patches), (s, 0))
            o = torch.softmax(qi @ k0 + mask, -1) @ v0
            out.append(o.transpose(1, 2).reshape(-1, d))

            # Branches: the shared prefix and, causally, their own tokens.
            for i, ids in enumerate(branches):
                n, length = ids.shape[1:]
                shape = (batch, n, length, h, size)
                qb, kb, vb = (t[2 + i].reshape(shape).permute(0, 3, 1, 2, 4) for t in (q, k, v))
                far = (qb.reshape(batch, h, n * length, size) @ k0)
                near = (qb @ kb.transpose(-1, -2) + causal(length)).reshape(batch, h, n * length, length)
                p = torch.softmax(torch.cat((far, near), -1), -1)
                o = p[..., :s + patches] @ v0
                o = o + (p[..., s + patches:].reshape(batch, h, n, length, length) @ vb).reshape(o.shape)
                out.append(o.transpose(1, 2).reshape(-1, d))

            x = x + linear(a.dense, torch.cat(out)) + layer.mlp(y)

        result, start = [], lengths[0] + lengths[1]
        for i, ids in enumerate(branches):
            result.append(x[start:start + lengths[2 + i]].view(*ids.shape, d))
            start += lengths[2 + i]
        return result

    def logits(self, states):
        return linear(self.lm_head, norm(self.model.final_layernorm, states))
