#!/usr/bin/env python3
"""Writes tests/data/adapters: small PEFT adapters, and what PEFT makes of the weights they are merged into.

    python3 tools/make_golden_adapter.py        needs what make_golden.py needs, and peft 0.9

Each folder holds adapter_config.json and adapter_model.safetensors as save_pretrained leaves them, for the decoder
of the golden case its name begins with, and merged.safetensors: the tensors that merge_and_unload changed, in
float32. plain: alpha / r on some matrices. all: every matrix, alpha / sqrt(r). everything: alpha / sqrt(r), ranks and
alphas of their own for some, a matrix trained whole, and the table of embeddings.

PEFT cannot be asked where the published matrices are fused (phi15, phi3) or are the projector's, which is not of its
network. Those adapters are written here, in its format, with factors that are random; they have no merged.safetensors.
"""
import json
import os
import shutil
import tempfile
import pathlib

import peft
import torch
from safetensors.torch import save_file

import make_golden

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "adapters"
ADAPTERS = {
    "clip.plain": dict(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "fc1"]),
    "clip.everything": dict(r=4, lora_alpha=6, use_rslora=True, rank_pattern={"fc1": 2}, alpha_pattern={"fc2": 3},
                            target_modules=["q_proj", "dense", "fc1", "fc2", "embed_tokens"],
                            modules_to_save=["lm_head"]),
    "clip.all": dict(r=6, lora_alpha=9, use_rslora=True, alpha_pattern={"fc2": 3},
                     target_modules=["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2", "lm_head"]),
    "gemma.plain": dict(r=3, lora_alpha=2, target_modules=["k_proj", "o_proj", "gate_proj", "down_proj"]),
    "grouped.plain": dict(r=5, lora_alpha=5, target_modules=["q_proj", "k_proj", "dense", "fc2"]),
}

WRITTEN = {
    "clip.projector": dict(r=3, modules=["dense", "fc2"], whole=["mm_projector"]),
    "phi15.fused": dict(r=4, modules=["query_key_value", "fc1"]),
    "phi3.fused": dict(r=4, modules=["qkv_proj", "gate_up_proj", "down_proj"]),
}


def save(tensors, path):
    save_file(tensors, str(path))
    os.chmod(path, 0o644)


def case_of(name):
    return next(c for c in make_golden.CASES if c["name"] == name.split(".")[0])


def write(name, r, modules, whole=()):
    (OUT / name).mkdir(parents=True)
    generator = torch.Generator().manual_seed(8)
    factors, saved = {}, {}
    for key, (shape, _) in sorted(make_golden.Mipha(case_of(name)).state().items()):
        module = key.removesuffix(".weight")
        if module != key and module.startswith("model.layers.") and module.split(".")[-1] in modules:
            a = torch.randn(r, shape[1], generator=generator) * 0.1
            b = torch.randn(shape[0], r, generator=generator) * 0.1
            factors |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
        if any(w in key for w in whole):
            saved[f"base_model.model.{key}"] = torch.randn(*shape, generator=generator) * 0.1
    save(factors, OUT / name / "adapter_model.safetensors")
    if saved:
        save(saved, OUT / name / "non_lora_trainables.safetensors")
    config = {"peft_type": "LORA", "r": r, "lora_alpha": 2 * r, "target_modules": modules}
    (OUT / name / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"{name}: {len(factors)} factors, {len(saved)} tensors whole")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    for name, settings in ADAPTERS.items():
        mipha = make_golden.Mipha(case_of(name))
        with torch.no_grad():
            mipha.fill()
        before = {k: v.clone() for k, v in mipha.lm.state_dict().items()}
        torch.manual_seed(7)
        model = peft.get_peft_model(mipha.lm, peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **settings))
        with torch.no_grad():
            for key, value in model.named_parameters():
                if "lora_" in key or "modules_to_save" in key:
                    value.add_(torch.randn_like(value) * 0.1)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
            (OUT / name).mkdir(parents=True)
            for file in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copy(os.path.join(folder, file), OUT / name / file)
        merged = model.merge_and_unload().state_dict()
        changed = {k: v.detach().float().contiguous().clone() for k, v in merged.items()
                   if k not in before or not torch.equal(v, before[k])}
        save(changed, OUT / name / "merged.safetensors")
        print(f"{name}: {len(changed)} tensors changed: {', '.join(sorted(changed))[:150]}")
    for name, settings in WRITTEN.items():
        write(name, **settings)


if __name__ == "__main__":
    main()
