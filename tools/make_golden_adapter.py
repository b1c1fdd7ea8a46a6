#!/usr/bin/env python3
"""Writes tests/data/adapters: small PEFT adapters, and what PEFT makes of the weights they are merged into.

    python3 tools/make_golden_adapter.py        needs what make_golden.py needs, and peft 0.9

Each folder holds adapter_config.json and adapter_model.safetensors as save_pretrained leaves them, for the decoder
of the golden case its name begins with, and merged.safetensors: the tensors that merge_and_unload changed, in
float32. plain: alpha / r on some matrices. everything: alpha / sqrt(r), ranks and alphas of their own for some, a
matrix trained whole, and the table of embeddings.
"""
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
    "gemma.plain": dict(r=3, lora_alpha=2, target_modules=["k_proj", "o_proj", "gate_proj", "down_proj"]),
    "grouped.plain": dict(r=5, lora_alpha=5, target_modules=["q_proj", "k_proj", "dense", "fc2"]),
}


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    for name, settings in ADAPTERS.items():
        case = next(c for c in make_golden.CASES if c["name"] == name.split(".")[0])
        mipha = make_golden.Mipha(case)
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
        save_file(changed, str(OUT / name / "merged.safetensors"))
        os.chmod(OUT / name / "merged.safetensors", 0o644)
        print(f"{name}: {len(changed)} tensors changed: {', '.join(sorted(changed))[:150]}")


if __name__ == "__main__":
    main()
