#!/usr/bin/env python3
"""Golden vectors of the whole network: tiny checkpoints through Hugging Face transformers.

    python3 tools/make_golden.py                      rewrites tests/data/golden
    python3 tools/make_golden.py --checkpoints DIR    also leaves the checkpoint folders in DIR
    python3 tools/make_golden.py --matrix -o DIR      every tower with every decoder, three seeds each, into DIR;
                                                      then MIPHA_GOLDEN_DIR=DIR ctest -R 'vision_encoder$|lm_decoder$'

Every case is a complete checkpoint folder in the published Mipha format, written by the safetensors
package.  Its weights are not random numbers of some library but a formula (`formula` below: SplitMix64
over seed, tensor name and element), which base/rng.h has too.  So the repository keeps, for each case,
config.json, the safetensors headers and the scale of every tensor; tests/lm_node/golden.c writes the
same files again, byte for byte, and compares their SHA-256 with MANIFEST.json. Pictures are bytes by the same formula, of
the size that the tower sees; the published image processor rescales and normalises them.

The expected values come from transformers, 4.38.2 as the authors pin it: its vision models and its decoders,
eager attention, float32, on the weights as stored (half types upcast).  Mipha itself is put together from
the pieces: hidden state of the selected layer, rounded to the stored type (in which features are cached),
projector, features spliced in at each -200.  The bounds of the decoder start at these rounded features.

Where weights are stored in a half type, the reference is run in it too, and its own relative distance from float32
is kept (own.features, prompt.N.own.logits): what a user who runs it so gets.

Error bounds are stored beside the values.  u = 2^-24.  Rounding errors are taken as independent with
mean zero (Higham and Mary, A new approach to probabilistic rounding error analysis, 2019), so they add
up by their squares, a sum of n terms t rounds n times at partial sums that grow like a random walk, hence
by u sqrt(n / 2) |t|_2, and an error passes a matrix by its root mean square gain.  For a row of the
network let e be the size of its error, as a 2-norm.  To first order in u, squares adding up:
    linear      |W|_F / sqrt(n_in) e;   u sqrt(n_in / 2 + 2) | terms of each sum, as 2-norm |_2
    layer norm  max|w| / sigma e;   u | w (4 |x - mean| + |x|_2 / sqrt(2 n)) / sigma + |bias| |_2
    activation  1.13 e;   8 u |y|_2
    gate        rms of the two partial derivatives times e;   9 u |y|_2
    scale       max|w| e;   u |y|_2
    resampled   positions: a coordinate on a side of n is rounded by n u, which moves weights by up to 1.5 n u on
                either side: 3 n u | 16 taps |_2
    add         e1;   e2;   u |y|_2
    rotary      e;   (6 + 3 angle) u |x|_2     (table: rounded power, rounded product, rounded cosine)
    attention   per head, o = sum_s p_s v_s:   p_s e_v for each s;   p_s d_s |v_s - o|_2 for each s, where
                d_s^2 = scale^2 (|q|^2 e_k^2 + |k|^2 e_q^2) / hd + (hd / 2 + 4) u^2 scale^2 |q k|_2^2
                is the error of a score;   u sqrt(n / 2 + 64) | p v |_2, 8 u for each exponential
The table's error is the same at every use, so it is added and not squared.  The stored bound is 8 e:
sqrt(2) because both sides, ours and transformers', carry such an error, and more than five standard
deviations.  The error of a row is checked as a 2-norm too.
"""

import argparse
import copy
import hashlib
import json
import math
import os
import platform
import shutil
import sys
import tempfile

import numpy as np
import safetensors
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

SEED = 20240607
U = 2.0 ** -24
IMAGE = -200
EOS = "<|endoftext|>"
GREEDY_TOKENS = 64

SMALL = dict(hidden=48, heads=2, ff=50, layers=1, image=28, patch=14, select=-1)

# name, stored type, files, tower, projector, decoder.  rows_in / rows_out: vocabulary rows.
CASES = [
    dict(name="odd_heads", dtype="F32", shards=1,
         tower=dict(hidden=216, heads=3, ff=100, layers=4, image=44, patch=14, select=-2),
         projector="mlp2x_gelu",
         decoder=dict(hidden=400, heads=5, kv=5, ff=320, layers=3, factor=0.4, theta=10000.0,
                      rows_in=277, rows_out=277, positions=512)),
    dict(name="grouped", dtype="BF16", shards=1,
         tower=dict(hidden=64, heads=4, ff=129, layers=3, image=32, patch=8, select=-1),
         projector="linear",
         decoder=dict(hidden=96, heads=6, kv=2, ff=200, layers=2, factor=0.5, theta=500.0,
                      rows_in=290, rows_out=303, positions=400)),
    dict(name="one_head", dtype="F16", shards=1,
         tower=dict(hidden=72, heads=1, ff=33, layers=2, image=28, patch=14, select=1),
         projector="identity",
         decoder=dict(hidden=72, heads=9, kv=3, ff=40, layers=4, factor=0.5, theta=10000.0,
                      rows_in=275, rows_out=275, positions=2048)),
    dict(name="sharded", dtype="F32", shards=3,
         tower=dict(hidden=40, heads=5, ff=48, layers=5, image=47, patch=9, select=-3),
         projector="mlp3x_gelu",
         decoder=dict(hidden=160, heads=2, kv=1, ff=96, layers=2, factor=0.4, theta=10000.0,
                      rows_in=331, rows_out=300, positions=512)),
    dict(name="clip", dtype="F32", shards=1,
         tower=dict(kind="clip", hidden=96, heads=3, ff=100, layers=3, image=44, patch=14, select=-2),
         projector="mlp2x_gelu",
         decoder=dict(hidden=80, heads=4, kv=4, ff=64, layers=1, factor=0.4, theta=10000.0,
                      rows_in=277, rows_out=277, positions=512)),
    dict(name="clip_with_class", dtype="BF16", shards=1,
         tower=dict(kind="clip", hidden=64, heads=1, ff=72, layers=2, image=32, patch=16, select=2,
                    feature="cls_patch", act="gelu"),
         projector="linear",
         decoder=dict(hidden=80, heads=4, kv=4, ff=64, layers=1, factor=0.4, theta=10000.0,
                      rows_in=277, rows_out=277, positions=512)),
    dict(name="dinov2", dtype="F32", shards=1,
         tower=dict(kind="dinov2", hidden=96, heads=4, ratio=3, layers=3, image=73, crop=44, patch=14,
                    select=-2),
         projector="mlp2x_gelu",
         decoder=dict(hidden=80, heads=4, kv=4, ff=64, layers=1, factor=0.4, theta=10000.0,
                      rows_in=277, rows_out=277, positions=512)),
    dict(name="dinov2_swiglu", dtype="F16", shards=1,
         tower=dict(kind="dinov2_swiglu", hidden=60, heads=5, ratio=4, layers=2, image=48, crop=48, patch=12,
                    select=-1, feature="cls_patch"),
         projector="linear",
         decoder=dict(hidden=80, heads=4, kv=4, ff=64, layers=1, factor=0.4, theta=10000.0,
                      rows_in=277, rows_out=277, positions=512)),
    dict(name="phi15", dtype="BF16", shards=1, tower=SMALL, projector="mlp2x_gelu",
         decoder=dict(kind="phi15", hidden=96, heads=3, kv=3, ff=130, layers=2, factor=0.5, theta=10000.0,
                      rows_in=290, rows_out=303, positions=512)),
    dict(name="gemma", dtype="F32", shards=2, tower=SMALL, projector="mlp2x_gelu",
         decoder=dict(kind="gemma", hidden=64, heads=4, kv=1, head=24, ff=100, layers=3, theta=10000.0,
                      rows_in=283, rows_out=283, positions=512)),
    dict(name="phi3", dtype="F16", shards=1, tower=SMALL, projector="mlp2x_gelu",
         decoder=dict(kind="phi3", hidden=96, heads=4, kv=2, ff=72, layers=3, theta=10000.0, window=37,
                      rows_in=281, rows_out=281, positions=512)),
    dict(name="phi3_long", dtype="F32", shards=1, tower=SMALL, projector="linear",
         decoder=dict(kind="phi3", hidden=64, heads=2, kv=2, ff=90, layers=2, theta=10000.0, window=None,
                      rows_in=281, rows_out=281, positions=512, original=40)),
    dict(name="llava", dtype="F16", shards=2, format="llava",
         tower=dict(kind="clip", hidden=48, heads=2, ff=50, layers=2, image=28, patch=14, select=-2),
         projector="mlp2x_gelu",
         decoder=dict(kind="llama", hidden=72, heads=3, kv=3, ff=88, layers=2, theta=10000.0,
                      rows_in=285, rows_out=285, positions=512)),
    dict(name="llava_new", dtype="BF16", shards=1, format="llava_new",
         tower=dict(kind="clip", hidden=32, heads=2, ff=50, layers=1, image=28, patch=14, select=-1,
                    feature="cls_patch"),
         projector="mlp2x_gelu",
         decoder=dict(kind="llama", hidden=64, heads=4, kv=2, ff=48, layers=1, theta=5000.0,
                      rows_in=279, rows_out=279, positions=512)),
]
N_IMAGES = 3
TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


# --- Weights --------------------------------------------------------------------------------------

def mix(z):
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xbf58476d1ce4e5b9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94d049bb133111eb)
        return z ^ (z >> np.uint64(31))


def fnv1a(text):
    h = 0xcbf29ce484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001b3 % 2 ** 64
    return h


def formula(name, shape, scale, shift):
    """float32 shift + scale * u, u the 24 top bits of rng_at(SEED, fnv1a(name), i), in [-1, 1)."""
    n = math.prod(shape)
    with np.errstate(over="ignore"):
        stream = np.uint64(fnv1a(name)) * np.uint64(0xd1342543de82ef95) + np.uint64(1)
        start = mix(np.uint64(SEED)) ^ mix(stream)
        i = np.arange(1, n + 1, dtype=np.uint64)
        bits = mix(start + i * np.uint64(0x9e3779b97f4a7c15)) >> np.uint64(40)
    u = bits.astype(np.float32) * np.float32(2.0 ** -23) - np.float32(1)
    return torch.from_numpy((np.float32(scale) * u + np.float32(shift)).reshape(shape))


def scale_of(name, shape):
    """Sizes that keep every layer busy: outputs near 1, attention neither flat nor one-hot."""
    if "position_embedding" in name or "class_embedding" in name or "cls_token" in name:
        return 0.5, 0.0
    if name.endswith("lambda1"):
        return 0.5, 0.5
    if "norm" in name:
        return (0.25, 1.0) if name.endswith("weight") else (0.25, 0.0)
    if name.endswith("bias") or len(shape) == 1:
        return 0.25, 0.0
    if name.endswith("embed_tokens.weight"):
        return 1.0, 0.0
    n_in = math.prod(shape[1:])
    gain = 2.5 if name == "lm_head.weight" or any(
        part in name for part in ("q_proj", "k_proj", "attention.query", "attention.key")) else 1.75
    return float(np.float32(gain / math.sqrt(n_in))), 0.0


# --- The model ------------------------------------------------------------------------------------

class Mipha:
    """The published model from transformers' pieces."""

    def __init__(self, case):
        t, d = case["tower"], case["decoder"]
        self.case = case
        self.tower = make_tower(t)
        self.lm = make_decoder(d)
        if d["rows_out"] != d["rows_in"]:
            self.lm.lm_head = nn.Linear(d["hidden"], d["rows_out"])
        self.projector = make_projector(case["projector"], t["hidden"], d["hidden"])
        for m in (self.tower, self.lm, self.projector):
            m.eval().float()
        self.n_run = t["select"] if t["select"] >= 0 else t["layers"] + 1 + t["select"]

    def state(self):
        """Every published tensor: its name, its shape, and the live views that are rows of it."""
        out = decoder_state(self.case["decoder"], self.lm)
        if "format" in self.case:
            return self.llava_state(out)
        kind = "dinov2" if "ratio" in self.case["tower"] else "vision_model"
        for k, v in self.tower.state_dict().items():
            if not k.endswith("position_ids"):
                out[f"model.vision_tower.{kind}." + k.removeprefix("vision_model.")] = whole(v)
        for k, v in self.projector.state_dict().items():
            out["model.mm_projector." + k] = whole(v)
        return out

    def llava_state(self, decoder):
        """The names of LlavaForConditionalGeneration, before transformers 4.52 and since."""
        new = self.case["format"] == "llava_new"
        out = {}
        for k, v in decoder.items():
            out[("model.language_model." + k.removeprefix("model.") if k.startswith("model.") else k) if new
                else "language_model." + k] = v
        for k, v in self.tower.state_dict().items():
            if not k.endswith("position_ids"):
                out[("model." if new else "") + "vision_tower.vision_model." + k.removeprefix("vision_model.")] = whole(v)
        for k, v in self.projector.state_dict().items():
            number = 1 + int(k[0]) // 2
            out[("model." if new else "") + f"multi_modal_projector.linear_{number}" + k[1:]] = whole(v)
        if not new:
            check_llava_names(self.case, out)
        return out

    def fill(self):
        stored, recipe = {}, []
        for name, (shape, views) in sorted(self.state().items()):
            scale, shift = scale_of(name, shape)
            if name.endswith("embed_tokens.weight") and self.case["decoder"].get("kind") == "gemma":
                scale = 0.12  # it is made larger at the input, and tied to the output
            if "norm" in name and name.endswith("weight") and self.case["decoder"].get("kind") == "gemma" \
                    and "vision_tower" not in name:
                shift = 0.0  # stored as what is added to 1
            salt = self.case.get("salt", "")
            value = formula(salt + name, shape, scale, shift).to(TORCH[self.case["dtype"]])
            stored[name] = value.contiguous()
            recipe.append(f"{name} {float(scale).hex()} {float(shift).hex()}" + (" " + salt if salt else "") + "\n")
            for view, rows in views:
                view.copy_(value[rows])
        return stored, recipe

    def encode(self, planes):
        """Hidden states 0 .. n_run of the tower, then the projected features."""
        states = []
        layers = layers_of(self.tower)
        hooks = [layers[0].register_forward_pre_hook(
            lambda m, a, k: states.append((a[0] if a else k["hidden_states"]).clone()),
            with_kwargs=True)]
        for layer in layers:
            hooks.append(layer.register_forward_hook(
                lambda m, a, out: states.append((out[0] if isinstance(out, tuple) else out).clone())))
        self.tower(pixel_values=planes)
        for h in hooks:
            h.remove()
        states = states[:self.n_run + 1]
        return states, self.projector(self.selected(states[-1]).to(TORCH[self.case["dtype"]]).to(planes.dtype))

    def selected(self, state):
        """Without the class token, where there is one and only patches are asked for."""
        t = self.case["tower"]
        has_class = t.get("kind", "siglip") != "siglip"
        return state[:, 1:] if has_class and t.get("feature", "patch") == "patch" else state

    def splice(self, ids, features):
        parts, image = [], 0
        for i in ids:
            if i == IMAGE:
                parts.append(features[image])
                image += 1
            else:
                parts.append(self.lm.model.embed_tokens.weight[i][None])
        return torch.cat(parts)[None]

    def decode(self, embeds):
        """Hidden states 0 .. n_layers (0 = embeddings; no final norm), and logits of all positions."""
        states = []
        hooks = [self.lm.model.layers[0].register_forward_pre_hook(
            lambda m, a, k: states.append((a[0] if a else k["hidden_states"])[0].clone()), with_kwargs=True)]
        hooks += [layer.register_forward_hook(
            lambda m, a, out: states.append((out[0] if isinstance(out, tuple) else out)[0].clone()))
            for layer in self.lm.model.layers]
        logits = self.lm(inputs_embeds=embeds, use_cache=False).logits[0]
        for h in hooks:
            h.remove()
        states = [s if s.dim() == 2 else s[None] for s in states]
        return states, logits

    def greedy(self, embeds, n):
        """Tokens, and the smallest lead of a chosen logit over the next."""
        past, ids, lead = None, [], math.inf
        for _ in range(n):
            out = self.lm(inputs_embeds=embeds, past_key_values=past, use_cache=True)
            past = out.past_key_values
            # Only ids that can be read back are offered (the output may have more rows than the input).
            logits = out.logits[0, -1, :self.lm.model.embed_tokens.weight.shape[0]]
            top = logits.topk(2)
            lead = min(lead, float(top.values[0] - top.values[1]))
            best = int(logits.argmax())
            ids.append(best)
            embeds = self.lm.model.embed_tokens.weight[best][None, None]
        return ids, lead


def eager(model, config):
    config._attn_implementation = "eager"
    return model(config)


def make_tower(t):
    kind = t.get("kind", "siglip")
    sizes = dict(hidden_size=t["hidden"], num_hidden_layers=t["layers"], num_attention_heads=t["heads"],
                 image_size=t["image"], patch_size=t["patch"], hidden_act=act_of(t), layer_norm_eps=eps_of(t))
    if kind == "siglip":
        return eager(transformers.SiglipVisionModel,
                     transformers.SiglipVisionConfig(intermediate_size=t["ff"], **sizes))
    if kind == "clip":
        return eager(transformers.CLIPVisionModel,
                     transformers.CLIPVisionConfig(intermediate_size=t["ff"], **sizes))
    return eager(transformers.Dinov2Model, transformers.Dinov2Config(
        mlp_ratio=t["ratio"], use_swiglu_ffn=kind == "dinov2_swiglu", **sizes))


def act_of(t):
    default = {"siglip": "gelu_pytorch_tanh", "clip": "quick_gelu"}.get(t.get("kind", "siglip"), "gelu")
    return t.get("act", default)


def eps_of(t):
    return 1e-5 if t.get("kind") == "clip" else 1e-6


class LongRope(nn.Module):
    """Phi-3's "su": frequencies divided by factors, others in long calls; cosines and sines made larger."""

    def __init__(self, d):
        super().__init__()
        self.d, n = d, d["hidden"] // d["heads"]
        self.power = d["theta"] ** (torch.arange(0, n, 2).float() / n)

    def forward(self, x, seq_len=None):
        short, long = (torch.tensor(f) for f in factors_of(self.d))
        inverse = 1.0 / ((long if seq_len > self.d["original"] else short) * self.power)
        angle = torch.outer(torch.arange(seq_len).float(), inverse)
        angle = torch.cat([angle, angle], -1)
        return (angle.cos() * long_factor(self.d)).to(x.dtype), (angle.sin() * long_factor(self.d)).to(x.dtype)


def factors_of(d):
    n = d["hidden"] // d["heads"] // 2
    return [1.0 + i / 16 for i in range(n)], [1.0 + i * 0.75 for i in range(n)]


def long_factor(d):
    grown = d["positions"] / d["original"] if "original" in d else 1.0
    return math.sqrt(1 + math.log(grown) / math.log(d["original"])) if grown > 1 else 1.0


def make_decoder(d):
    """Phi-1.5 is Phi with its matrices stored otherwise; Phi-3 is Mistral's network likewise."""
    kind = d.get("kind", "phi")
    sizes = dict(hidden_size=d["hidden"], intermediate_size=d["ff"], num_hidden_layers=d["layers"],
                 num_attention_heads=d["heads"], num_key_value_heads=d["kv"], vocab_size=d["rows_in"],
                 max_position_embeddings=d["positions"], rope_theta=d["theta"], pad_token_id=None)
    if kind in ("phi", "phi15"):
        return eager(transformers.PhiForCausalLM, transformers.PhiConfig(
            hidden_act="gelu_new", layer_norm_eps=1e-5, partial_rotary_factor=d["factor"],
            tie_word_embeddings=False, embd_pdrop=0.0, resid_pdrop=0.0, **sizes))
    if kind == "gemma":
        return eager(transformers.GemmaForCausalLM, transformers.GemmaConfig(
            head_dim=d["head"], hidden_act="gelu", rms_norm_eps=1e-6, **sizes))
    if kind == "llama":
        return eager(transformers.LlamaForCausalLM, transformers.LlamaConfig(
            hidden_act="silu", rms_norm_eps=1e-5, tie_word_embeddings=False, **sizes))
    lm = eager(transformers.MistralForCausalLM, transformers.MistralConfig(
        hidden_act="silu", rms_norm_eps=1e-5, sliding_window=d["window"], tie_word_embeddings=False, **sizes))
    if "original" in d:
        for layer in lm.model.layers:
            layer.self_attn.rotary_emb = LongRope(d)
    return lm


def check_llava_names(case, names):
    t, d = case["tower"], case["decoder"]
    config = transformers.LlavaConfig(
        transformers.CLIPVisionConfig(hidden_size=t["hidden"], intermediate_size=t["ff"], image_size=t["image"],
                                      num_hidden_layers=t["layers"], num_attention_heads=t["heads"],
                                      patch_size=t["patch"]),
        transformers.LlamaConfig(hidden_size=d["hidden"], intermediate_size=d["ff"], num_hidden_layers=d["layers"],
                                 num_attention_heads=d["heads"], vocab_size=d["rows_in"]))
    theirs = transformers.LlavaForConditionalGeneration(config).state_dict()
    if set(theirs) != set(names):
        raise SystemExit(f"other names than LlavaForConditionalGeneration's: {set(theirs) ^ set(names)}")


def whole(view):
    return tuple(view.shape), [(view, slice(None))]


def joined(views, rows):
    """A published matrix of rows that lie in several live ones."""
    n = sum(len(r) for r in rows)
    return (n,) + tuple(views[0].shape[1:]), list(zip(views, rows))


def decoder_state(d, lm):
    kind, live, out = d.get("kind", "phi"), dict(lm.state_dict()), {}
    if kind == "gemma":
        del live["lm_head.weight"]  # tied
    hd, q, kv = head_size(d), d["heads"] * head_size(d), d["kv"] * head_size(d)
    for i in range(d["layers"]):
        at = f"model.layers.{i}."
        for end in ("weight", "bias"):
            apart = [at + f"self_attn.{x}_proj.{end}" for x in "qkv"]
            if kind == "phi15":
                by_head = [[h * 3 * hd + j * hd + r for h in range(d["heads"]) for r in range(hd)] for j in range(3)]
                out[at + "self_attn.query_key_value." + end] = joined([live.pop(n) for n in apart], by_head)
            if kind == "phi3" and end == "weight":
                blocks = [list(range(q)), list(range(q, q + kv)), list(range(q + kv, q + 2 * kv))]
                out[at + "self_attn.qkv_proj.weight"] = joined([live.pop(n) for n in apart], blocks)
                ff = d["ff"]
                out[at + "mlp.gate_up_proj.weight"] = joined(
                    [live.pop(at + "mlp.gate_proj.weight"), live.pop(at + "mlp.up_proj.weight")],
                    [list(range(ff)), list(range(ff, 2 * ff))])
    return out | {k: whole(v) for k, v in live.items()}


def head_size(d):
    return d.get("head", d["hidden"] // d["heads"])


def layers_of(tower):
    """The list of a vision model's layers, wherever the library keeps it."""
    inner = getattr(tower, "vision_model", tower)
    return inner.encoder.layer if hasattr(inner.encoder, "layer") else inner.encoder.layers


def parts_of(tower):
    """patch convolution, class token or None, pre-norm or None, and for each layer
    (norm1, q, k, v, out, scale1, norm2, mlp, scale2); scales None where there are none."""
    inner = getattr(tower, "vision_model", tower)
    if hasattr(inner.embeddings, "cls_token"):
        layers = []
        for l in inner.encoder.layer:
            a = l.attention.attention
            layers.append((l.norm1, a.query, a.key, a.value, l.attention.output.dense, l.layer_scale1.lambda1,
                           l.norm2, l.mlp, l.layer_scale2.lambda1))
        return inner.embeddings.patch_embeddings.projection, inner.embeddings.cls_token[0, 0], None, layers
    layers = [(l.layer_norm1, l.self_attn.q_proj, l.self_attn.k_proj, l.self_attn.v_proj, l.self_attn.out_proj,
               None, l.layer_norm2, l.mlp, None) for l in inner.encoder.layers]
    return (inner.embeddings.patch_embedding, getattr(inner.embeddings, "class_embedding", None),
            getattr(inner, "pre_layrnorm", None), layers)


def make_projector(kind, n_in, n_out):
    if kind == "identity":
        assert n_in == n_out
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(n_in, n_out)
    k = int(kind.removeprefix("mlp").removesuffix("x_gelu"))
    layers = [nn.Linear(n_in, n_out)]
    for _ in range(k - 1):
        layers += [nn.GELU(), nn.Linear(n_out, n_out)]
    return nn.Sequential(*layers)


# --- Bounds (the derivation is at the top) ----------------------------------------------------------

def norm2(x):
    return np.linalg.norm(x, axis=-1)


def arr(t):
    return t.detach().double().numpy()


def e_linear(m, x, e):
    w = arr(m.weight).reshape(m.weight.shape[0], -1)
    bias = np.zeros(len(w)) if m.bias is None else arr(m.bias)
    local = U * np.sqrt((w.shape[1] / 2 + 2) * (x ** 2 @ (w ** 2).T + bias ** 2).sum(-1))
    gain = np.linalg.norm(w) / math.sqrt(w.shape[1])
    return x @ w.T + bias, np.hypot(gain * e, local)


def e_norm(m, x, e):
    w, bias = arr(m.weight), arr(m.bias)
    mean = x.mean(-1, keepdims=True)
    sigma = np.sqrt(x.var(-1, keepdims=True) + m.eps)
    walk = norm2(x)[..., None] / math.sqrt(2 * x.shape[-1])
    local = U * norm2(np.abs(w) * (4 * np.abs(x - mean) + walk) / sigma + np.abs(bias))
    return (x - mean) / sigma * w + bias, np.hypot(np.abs(w).max() / sigma[..., 0] * e, local)


ACTS = {"gelu": nn.functional.gelu, "silu": nn.functional.silu,
        "gelu_new": lambda x: nn.functional.gelu(x, approximate="tanh"),
        "gelu_pytorch_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}


def e_rms(m, x, e, plus):
    eps = getattr(m, "eps", None) or m.variance_epsilon
    w = arr(m.weight) + plus
    rms = np.sqrt((x ** 2).mean(-1, keepdims=True) + eps)
    y = x / rms * w
    return y, np.hypot(np.abs(w).max() / rms[..., 0] * e, U * (4 + math.sqrt(x.shape[-1] / 8)) * norm2(y))


def e_act(x, e, name):
    y = arr(ACTS[name](torch.from_numpy(x)))
    return y, np.hypot(1.13 * e, 8 * U * norm2(y))


def e_gate(x, e, name):
    """act(left half) * right half"""
    n = x.shape[-1] // 2
    a, up = arr(ACTS[name](torch.from_numpy(x[..., :n].copy()))), x[..., n:]
    y = a * up
    gain = np.sqrt(((1.13 * up) ** 2 + a ** 2).sum(-1) / (2 * n))
    return y, np.hypot(gain * e, 9 * U * norm2(y))


def e_scale(x, e, w):
    if w is None:
        return x, e
    y = x * arr(w)
    return y, np.hypot(np.abs(arr(w)).max() * e, U * norm2(y))


def e_add(x, ex, y, ey):
    return x + y, np.sqrt(ex ** 2 + ey ** 2 + (U * norm2(x + y)) ** 2)


def e_rotary(x, e, heads, half, d):
    n = x.shape[0]
    inverse = d["theta"] ** (-np.arange(half) / half)
    if "original" in d:
        inverse = inverse / np.array(factors_of(d)[n > d["original"]])
    angle = np.arange(n)[:, None] * inverse[None]
    y = x.reshape(n, heads, -1).copy()
    first, second = y[..., :half].copy(), y[..., half:2 * half].copy()
    c, s = np.cos(angle)[:, None] * long_factor(d), np.sin(angle)[:, None] * long_factor(d)
    y[..., :half], y[..., half:2 * half] = first * c - second * s, second * c + first * s
    return y.reshape(x.shape), long_factor(d) * (e + (7 + 3 * angle.max(-1)) * U * norm2(x))


def e_attention(q, eq, k, ek, v, ev, heads, kv, causal, window=None):
    n, hd = q.shape[0], q.shape[1] // heads
    keep = np.tril(np.ones((n, n), bool)) if causal else np.ones((n, n), bool)
    if window:
        keep = np.triu(keep, 1 - window)
    out, e2, scale = np.zeros_like(q), np.zeros(n), hd ** -0.5
    for h in range(heads):
        g = h // (heads // kv)
        qh, kh, vh = (z[:, i * hd:(i + 1) * hd] for z, i in ((q, h), (k, g), (v, g)))
        s = np.where(keep, qh @ kh.T * scale, -np.inf)
        p = np.exp(s - s.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        o = p @ vh
        nq, nk = norm2(qh)[:, None], norm2(kh)[None]
        d2 = scale ** 2 * ((nq * ek[None]) ** 2 + (nk * eq[:, None]) ** 2) / hd \
            + (hd / 2 + 4) * (U * scale) ** 2 * (qh ** 2 @ (kh ** 2).T)
        away2 = ((vh[None] - o[:, None]) ** 2).sum(-1)
        e2 += p ** 2 @ (ev ** 2 / kv) + (p ** 2 * d2 * away2).sum(-1) \
            + U ** 2 * (n / 2 + 64) * (p ** 2 @ vh ** 2).sum(-1)
        out[:, h * hd:(h + 1) * hd] = o
    return out, np.sqrt(e2)


def e_positions(mipha):
    """What is added to the tokens of a picture, and its error: none where the table is used as stored."""
    t = mipha.case["tower"]
    inner = getattr(mipha.tower, "vision_model", mipha.tower)
    if "ratio" not in t:
        return arr(inner.embeddings.position_embedding.weight), 0
    stored = inner.embeddings.position_embeddings
    side, grid = t["crop"], t["crop"] // t["patch"]
    table = arr(inner.embeddings.interpolate_pos_encoding(
        torch.zeros(1, 1 + grid * grid, t["hidden"]), side, side)[0].float())
    if grid * grid + 1 == stored.shape[1]:
        return table, 0
    return table, 3 * (t["image"] // t["patch"]) * U * 4 * norm2(arr(stored[0])).max()


def bounds_tower(mipha, planes, features):
    t = mipha.case["tower"]
    patch, class_token, pre_norm, layers = parts_of(mipha.tower)
    positions, e_table = e_positions(mipha)
    p, grid, heads = t["patch"], t.get("crop", t["image"]) // t["patch"], t["heads"]
    per_state, per_projected = [], []
    for image in planes.double().numpy():
        x = image[:, :grid * p, :grid * p].reshape(3, grid, p, grid, p).transpose(1, 3, 0, 2, 4)
        x, e = e_linear(patch, x.reshape(grid * grid, -1), np.zeros(grid * grid))
        if class_token is not None:
            x, e = np.concatenate([arr(class_token)[None], x]), np.concatenate([[0], e])
        x, e = e_add(x, e, positions, e_table)
        if pre_norm is not None:
            x, e = e_norm(pre_norm, x, e)
        rows = [e]
        for norm1, q, k, v, out, scale1, norm2_, mlp, scale2 in layers[:mipha.n_run]:
            y = e_norm(norm1, x, e)
            qkv = [z for m in (q, k, v) for z in e_linear(m, *y)]
            y = e_linear(out, *e_attention(*qkv, heads, heads, False))
            x, e = e_add(x, e, *e_scale(*y, scale1))
            y = e_norm(norm2_, x, e)
            if hasattr(mlp, "weights_in"):
                y = e_linear(mlp.weights_out, *e_gate(*e_linear(mlp.weights_in, *y), "silu"))
            else:
                y = e_linear(mlp.fc2, *e_act(*e_linear(mlp.fc1, *y), act_of(t)))
            x, e = e_add(x, e, *e_scale(*y, scale2))
            rows.append(e)
        per_state.append(rows)
        x = arr(torch.from_numpy(features[len(per_projected)]).to(TORCH[mipha.case["dtype"]]))
        e = np.zeros(len(x))
        modules = mipha.projector if isinstance(mipha.projector, nn.Sequential) else [mipha.projector]
        for m in modules:
            if isinstance(m, nn.Linear):
                x, e = e_linear(m, x, e)
            elif isinstance(m, nn.GELU):
                x, e = e_act(x, e, "gelu")
        per_projected.append(e)
    return [np.stack([r[i] for r in per_state]) for i in range(mipha.n_run + 1)], \
        np.stack(per_projected)


def bounds_decoder(mipha, embeds, e):
    d = mipha.case["decoder"]
    kind = d.get("kind", "phi")
    plus = 1.0 if kind == "gemma" else 0.0
    rotary = int(d["factor"] * head_size(d)) if "factor" in d else head_size(d)
    x = embeds.double().numpy()
    if kind == "gemma":
        x, e = e_scale(x, e, torch.full((d["hidden"],), math.sqrt(d["hidden"])))

    def norm(m, *y):
        return e_norm(m, *y) if kind in ("phi", "phi15") else e_rms(m, *y, plus)

    def attention(a, out, n):
        q = e_rotary(*e_linear(a.q_proj, *n), d["heads"], rotary // 2, d)
        k = e_rotary(*e_linear(a.k_proj, *n), d["kv"], rotary // 2, d)
        v = e_linear(a.v_proj, *n)
        return e_linear(out, *e_attention(*q, *k, *v, d["heads"], d["kv"], True, d.get("window")))

    rows = [e]
    for layer in mipha.lm.model.layers:
        a, mlp = layer.self_attn, layer.mlp
        n = norm(layer.input_layernorm, x, e)
        if kind in ("phi", "phi15"):
            m = e_linear(mlp.fc2, *e_act(*e_linear(mlp.fc1, *n), "gelu_new"))
            x, e = e_add(*e_add(*attention(a, a.dense, n), *m), x, e)
        else:
            x, e = e_add(x, e, *attention(a, a.o_proj, n))
            n = norm(layer.post_attention_layernorm, x, e)
            gate, up = e_linear(mlp.gate_proj, *n), e_linear(mlp.up_proj, *n)
            both = np.concatenate([gate[0], up[0]], -1), np.hypot(gate[1], up[1])
            y = e_gate(*both, "gelu" if kind == "gemma" else "silu")
            x, e = e_add(x, e, *e_linear(mlp.down_proj, *y))
        rows.append(e)
    last = mipha.lm.model.final_layernorm if kind in ("phi", "phi15") else mipha.lm.model.norm
    return rows, e_linear(mipha.lm.lm_head, *norm(last, x, e))[1]


# --- Prompts --------------------------------------------------------------------------------------

def prompts_of(case):
    """ids with IMAGE markers: 1..300 rows; no, one and several images."""
    rows = case["decoder"]["rows_in"]

    def words(tag, n):
        u = formula(f"prompt.{case['name']}.{tag}", (n,), 1.0, 1.0).numpy()
        return [min(int(v / 2 * rows), rows - 1) for v in u]

    return [
        words("a", 1),
        words("b", 2),
        words("c", 17),
        words("d", 16) + [IMAGE] + words("e", 7),
        words("f", 3) + [IMAGE] + words("g", 5) + [IMAGE, IMAGE] + words("h", 4),
        [IMAGE] + words("i", 1),
        words("j", 300),
    ]


def chosen(n, n_max):
    if n <= n_max:
        return list(range(n))
    return sorted({round(i * (n - 1) / (n_max - 1)) for i in range(n_max)} | {n - 1})


# --- Files ----------------------------------------------------------------------------------------

def llava_config_of(case):
    t, d = case["tower"], case["decoder"]
    vision = tower_config_of(t)
    for key in ("vision_model_name_or_path", "mm_vision_select_layer", "mm_vision_select_feature"):
        del vision[key]
    return {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "ignore_index": -100,
            "image_token_index": 270, "projector_hidden_act": "gelu", "vision_feature_layer": t["select"],
            "vision_feature_select_strategy": "full" if t.get("feature") == "cls_patch" else "default",
            "text_config": decoder_config_of(d), "vision_config": vision | {"model_type": "clip_vision_model"}}


def config_of(case):
    t, d = case["tower"], case["decoder"]
    if "format" in case:
        return llava_config_of(case)
    return decoder_config_of(d) | {
        "image_aspect_ratio": "pad", "mm_use_im_start_end": False, "mm_use_im_patch_token": False,
        "vision_config": {
            "vision_tower": tower_config_of(t),
            "mm_projector": {
                "model_type": "mipha_projector", "mm_projector_type": case["projector"],
                "mm_hidden_size": t["hidden"], "hidden_size": d["hidden"]}}}


def decoder_config_of(d):
    kind = d.get("kind", "phi")
    config = {
        "hidden_size": d["hidden"], "intermediate_size": d["ff"], "num_hidden_layers": d["layers"],
        "num_attention_heads": d["heads"], "num_key_value_heads": d["kv"], "rope_theta": d["theta"],
        "vocab_size": d["rows_in"], "max_position_embeddings": d["positions"]}
    if kind in ("phi", "phi15"):
        if kind == "phi15":
            del config["num_key_value_heads"]  # the authors' class has no such key
        return {"architectures": ["MiphaPhiForCausalLM" if kind == "phi" else "MiphaPhi15ForCausalLM"],
                "model_type": "mipha_phi", "hidden_act": "gelu_new", "layer_norm_eps": 1e-05,
                "partial_rotary_factor": d["factor"], "rope_scaling": None, "qk_layernorm": False,
                "tie_word_embeddings": False} | config
    if kind == "gemma":
        return {"architectures": ["MiphaGemmaForCausalLM"], "model_type": "mipha_gemma", "hidden_act": "gelu",
                "rms_norm_eps": 1e-06, "head_dim": d["head"], "attention_bias": False} | config
    if kind == "llama":
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
                "rms_norm_eps": 1e-05, "tie_word_embeddings": False} | config
    scaling = None
    if "original" in d:
        short, long = factors_of(d)
        scaling = {"type": "su", "short_factor": short, "long_factor": long}
    return {"architectures": ["MiphaPhi3ForCausalLM"], "model_type": "mipha_phi3", "hidden_act": "silu",
            "rms_norm_eps": 1e-05, "rope_scaling": scaling, "sliding_window": d["window"],
            "original_max_position_embeddings": d.get("original", d["positions"]),
            "tie_word_embeddings": False} | config


def tower_config_of(t):
    kind = t.get("kind", "siglip")
    config = {
        "model_type": "mipha_vision_model", "vision_model_name_or_path": kind.split("_")[0] + "-tiny",
        "hidden_size": t["hidden"], "num_hidden_layers": t["layers"], "num_attention_heads": t["heads"],
        "num_channels": 3, "image_size": t["image"], "patch_size": t["patch"], "hidden_act": act_of(t),
        "layer_norm_eps": eps_of(t), "mm_vision_select_layer": t["select"],
        "mm_vision_select_feature": t.get("feature", "patch")}
    if "ratio" in t:
        return config | {"mlp_ratio": t["ratio"], "qkv_bias": True, "layerscale_value": 1.0,
                         "use_swiglu_ffn": kind == "dinov2_swiglu"}
    return config | {"intermediate_size": t["ff"]}


def preprocessor_of(case):
    size = case["tower"]["image"]
    if case["tower"].get("kind", "siglip") != "siglip":
        crop = case["tower"].get("crop", size)
        return {"crop_size": {"height": crop, "width": crop}, "do_center_crop": True, "do_convert_rgb": True,
                "do_normalize": True, "do_rescale": True, "do_resize": True,
                "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3,
                "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": crop}}
    return {"do_normalize": True, "do_rescale": True, "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5], "image_processor_type": "SiglipImageProcessor",
            "image_std": [0.5, 0.5, 0.5], "resample": 3, "rescale_factor": 0.00392156862745098,
            "size": {"height": size, "width": size}}


def planes_of(case, pictures):
    """What the published image processor makes of pictures that have the tower's size."""
    is_siglip = case["tower"].get("kind", "siglip") == "siglip"
    processor = (transformers.SiglipImageProcessor if is_siglip else transformers.CLIPImageProcessor)(**preprocessor_of(case))
    return processor(pictures, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"].float()


def write_tokenizer(folder):
    """Byte-level BPE with all 256 bytes, a few merges and the end token: 267 ids."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "a"), ("Ġ", "the"), ("i", "n"), ("Ġ", "i"), ("e", "r"),
              ("o", "n"), ("r", "e"), ("Ġ", "w")]
    vocab = {c: i for i, c in enumerate(letters)}
    for a, b in merges:
        vocab[a + b] = len(vocab)
    t = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    t.decoder = tokenizers.decoders.ByteLevel()
    t.add_special_tokens([EOS])
    t.save(os.path.join(folder, "tokenizer.json"), pretty=False)
    write_json(os.path.join(folder, "tokenizer_config.json"), {
        "add_prefix_space": False, "bos_token": EOS, "clean_up_tokenization_spaces": True,
        "eos_token": EOS, "model_max_length": 2048, "tokenizer_class": "CodeGenTokenizer",
        "unk_token": EOS})


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1)
        f.write("\n")


def save_checkpoint(case, stored, folder):
    """Single file or shards with an index, as save_pretrained lays them out."""
    os.makedirs(folder, exist_ok=True)
    write_json(os.path.join(folder, "config.json"), config_of(case))
    write_json(os.path.join(folder, "preprocessor_config.json"), preprocessor_of(case))
    if case["shards"] == 1:
        save_file(stored, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        return ["model.safetensors"]
    names, n = sorted(stored), case["shards"]
    files, index = [], {}
    for i in range(n):
        part = names[i * len(names) // n:(i + 1) * len(names) // n]
        file = f"model-{i + 1:05d}-of-{n:05d}.safetensors"
        save_file({k: stored[k] for k in part}, os.path.join(folder, file), metadata={"format": "pt"})
        files.append(file)
        index.update({k: file for k in part})
    total = sum(v.numel() * v.element_size() for v in stored.values())
    write_json(os.path.join(folder, "model.safetensors.index.json"),
               {"metadata": {"total_size": total}, "weight_map": index})
    files.append("model.safetensors.index.json")
    return files


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def f32(x):
    return torch.as_tensor(x).detach().to(torch.float32).contiguous()


def i32(x):
    return torch.tensor(x, dtype=torch.int32)


def distance(x, y):
    return f32([float(((x.double() - y.double()).norm() / y.double().norm()))])


def in_stored_precision(mipha, dtype):
    """The same networks as from_pretrained(torch_dtype=dtype) has them: parameters in it, tables of positions not."""
    low = copy.deepcopy(mipha)
    for part in (low.tower, low.lm, low.projector):
        for p in part.parameters():
            p.data = p.data.to(dtype)
    return low


def own_errors(mipha, planes, golden):
    """How far the reference, run in the precision the weights are stored in, is from itself in float32."""
    dtype = TORCH[mipha.case["dtype"]]
    low = in_stored_precision(mipha, dtype)
    torch.set_default_dtype(dtype)
    states, projected = low.encode(planes.to(dtype))
    own = {"own.features": distance(low.selected(states[-1]), golden["features"])}
    for p, ids in enumerate(prompts_of(mipha.case)):
        _, logits = low.decode(low.splice(ids, projected))
        rows = golden[f"prompt.{p}.rows"].long()
        own[f"prompt.{p}.own.logits"] = distance(logits[rows], golden[f"prompt.{p}.logits"])
    torch.set_default_dtype(torch.float32)
    return own


def run_case(case, folder, out):
    mipha = Mipha(case)
    stored, recipe = mipha.fill()
    files = save_checkpoint(case, stored, folder)
    kept = {}
    os.makedirs(out, exist_ok=True)
    for file in ["config.json", "preprocessor_config.json"] + files:
        source = os.path.join(folder, file)
        if file.endswith(".safetensors"):
            kept[file] = sha256(source)
            with open(source, "rb") as f:
                n = int.from_bytes(f.read(8), "little")
                header = f.read(n)
            with open(os.path.join(out, file + ".header"), "wb") as f:
                f.write(header)
        else:
            shutil.copy(source, os.path.join(out, file))
    with open(os.path.join(out, "weights.txt"), "w", encoding="utf-8") as f:
        f.writelines(recipe)

    size = case["tower"].get("crop", case["tower"]["image"])
    planes = planes_of(case, [formula(f"pixels.{i}", (size, size, 3), 128.0, 128.0).to(torch.uint8).numpy()
                              for i in range(N_IMAGES)])
    golden, worst, leads = {}, 0.0, []
    with torch.no_grad():
        states, projected = mipha.encode(planes)
        tower_bounds, projected_bound = bounds_tower(mipha, planes, mipha.selected(states[-1]).numpy())
        for i, (s, b) in enumerate(zip(states, tower_bounds)):
            golden[f"tower.{i}"], golden[f"tower.{i}.bound"] = f32(s), f32(8 * b)
        golden["features"] = f32(mipha.selected(states[-1])).clone()
        golden["projected"], golden["projected.bound"] = f32(projected), f32(8 * projected_bound)
        for p, ids in enumerate(prompts_of(case)):
            embeds = mipha.splice(ids, projected)
            start = np.concatenate([projected_bound[ids[:i].count(IMAGE)] if t == IMAGE
                                    else np.zeros(1) for i, t in enumerate(ids)])
            states, logits = mipha.decode(embeds)
            bounds, logits_bound = bounds_decoder(mipha, embeds[0], start)
            rows, few = chosen(len(logits), 24), chosen(len(logits), 5)
            tokens, lead = mipha.greedy(embeds, GREEDY_TOKENS)
            leads.append(lead)
            mipha.lm.double()
            torch.set_default_dtype(torch.float64)  # in which the library makes its masks
            _, exact = mipha.decode(embeds.double())
            torch.set_default_dtype(torch.float32)
            mipha.lm.float()
            worst = max(worst, float((exact - logits).abs().max()))
            k = f"prompt.{p}."
            golden |= {k + "ids": i32(ids), k + "greedy": i32(tokens), k + "rows": i32(rows),
                       k + "hidden_rows": i32(few), k + "logits": f32(logits[rows]),
                       k + "logits.bound": f32(8 * logits_bound[rows])}
            for i, (s, b) in enumerate(zip(states, bounds)):
                golden[f"{k}hidden.{i}"] = f32(s[few])
                golden[f"{k}hidden.{i}.bound"] = f32(8 * b[few])
        if case["dtype"] != "F32":
            golden |= own_errors(mipha, planes, golden)
    save_file(golden, os.path.join(out, "golden.safetensors"))
    os.chmod(os.path.join(out, "golden.safetensors"), 0o644)
    if min(leads) < 20 * worst:
        raise SystemExit(f"{case['name']}: a greedy choice leads by {min(leads):.3g} only: "
                         "choose another seed")
    bound = max(float(golden[k].max()) for k in golden if k.endswith("logits.bound"))
    print(f"{case['name']}: f32 against f64 {worst:.3g}, logits bound up to {bound:.3g}, "
          f"smallest greedy lead {min(leads):.3g}, "
          f"{len(set(t for p in range(7) for t in golden[f'prompt.{p}.greedy'].tolist()))} "
          "different tokens")
    return {"files": kept, "float32_error": worst, "smallest_greedy_lead": min(leads)}


def matrix():
    """Sizes by lot; a new seed where a greedy choice is too close to be the same in any arithmetic."""
    towers = {"siglip": dict(ff=50), "clip": dict(kind="clip", ff=50), "dinov2": dict(kind="dinov2", ratio=2),
              "dinov2_swiglu": dict(kind="dinov2_swiglu", ratio=3)}
    decoders = {"phi": dict(factor=0.5), "phi15": dict(kind="phi15", factor=0.5), "gemma": dict(kind="gemma"),
                "phi3": dict(kind="phi3", window=None), "llama": dict(kind="llama")}
    for tower, t in towers.items():
        for decoder, d in decoders.items():
            if decoder == "llama" and tower != "clip":
                continue
            for seed in range(3):
                heads, head = 2 + seed, 16 + 8 * seed
                sizes = dict(hidden=24 * heads, heads=heads, layers=2, image=(70 if "ratio" in t else 28), patch=14,
                             select=(-2, -1, 1)[seed], feature=("patch", "cls_patch", "patch")[seed])
                if "ratio" in t:
                    sizes["crop"] = (70, 42, 56)[seed]
                case = dict(name=f"{tower}_{decoder}_{seed}", salt=f"s{seed}.", dtype=("F32", "F16", "BF16")[seed], shards=1,
                            tower=t | sizes, projector=("mlp2x_gelu", "linear", "mlp3x_gelu")[seed],
                            decoder=d | dict(hidden=head * heads, heads=heads, kv=1 if decoder == "gemma" else heads,
                                             ff=60 + seed, layers=2, theta=10000.0, rows_in=290, rows_out=290,
                                             positions=512))
                if decoder == "gemma":
                    case["decoder"]["head"] = 32
                if decoder == "llama":
                    case |= dict(format=("llava", "llava_new")[seed % 2], projector="mlp2x_gelu")
                yield case


def run_matrix_case(case, base, out):
    for attempt in range(50):
        try:
            return run_case(case, os.path.join(base, case["name"]), os.path.join(out, case["name"]))
        except SystemExit as e:
            if "choose another seed" not in str(e):
                raise
            case = case | dict(salt=f"{case['salt'].split('.')[0]}.{attempt}.")
    raise SystemExit(f"{case['name']}: no seed of fifty is clear enough")


def main():
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--out", default=os.path.join(here, "tests", "data", "golden"))
    parser.add_argument("--checkpoints", help="folder for the complete checkpoints")
    parser.add_argument("--matrix", action="store_true", help="every tower with every decoder instead")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    base = args.checkpoints or tempfile.mkdtemp(prefix="golden")
    os.makedirs(args.out, exist_ok=True)
    write_tokenizer(args.out)
    cases = {}
    for case in matrix() if args.matrix else CASES:
        folder = os.path.join(base, case["name"])
        if args.matrix:
            cases[case["name"]] = run_matrix_case(case, base, args.out)
            continue
        cases[case["name"]] = run_case(case, folder, os.path.join(args.out, case["name"]))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(os.path.join(args.out, file), folder)
    listing = {}
    for root, _, files in sorted(os.walk(args.out)):
        for file in sorted(files):
            if file != "MANIFEST.json":
                path = os.path.join(root, file)
                listing[os.path.relpath(path, args.out)] = sha256(path)
    write_json(os.path.join(args.out, "MANIFEST.json"), {
        "command": "python3 tools/make_golden.py", "seed": SEED,
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers.__version__,
                     "safetensors": safetensors.__version__, "tokenizers": tokenizers.__version__,
                     "numpy": np.__version__},
        "cases": cases, "sha256": listing})
    total = sum(os.path.getsize(os.path.join(r, f)) for r, _, fs in os.walk(args.out) for f in fs)
    print(f"{args.out}: {total} bytes")
    if not args.checkpoints:
        shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
