"""Writes a trained network as a Hugging Face folder, laid out like the published Mipha checkpoints."""

import argparse
import json
import pathlib

import tokenizers
import torch
from safetensors.torch import save_file

from .model import CONFIG, Mipha
from .tokenizer import END


def configuration(end):
    v, t = CONFIG["vision"], CONFIG["text"]
    return {
        "_name_or_path": "mipha-demo",
        "architectures": ["MiphaPhiForCausalLM"],
        "model_type": "mipha_phi",
        "attention_dropout": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
        "bos_token_id": end, "eos_token_id": end,
        "hidden_act": "gelu_new",
        "hidden_size": t["hidden_size"], "intermediate_size": t["intermediate_size"],
        "num_hidden_layers": t["num_hidden_layers"],
        "num_attention_heads": t["num_attention_heads"],
        "num_key_value_heads": t["num_attention_heads"],
        "layer_norm_eps": t["layer_norm_eps"], "initializer_range": 0.02,
        "partial_rotary_factor": t["partial_rotary_factor"],
        "rope_theta": t["rope_theta"], "rope_scaling": None, "qk_layernorm": False,
        "vocab_size": t["vocab_size"], "max_position_embeddings": t["max_position_embeddings"],
        "tie_word_embeddings": False, "use_cache": True, "torch_dtype": "float16",
        "transformers_version": "4.38.2",
        "image_aspect_ratio": "pad",
        "mm_use_im_start_end": False, "mm_use_im_patch_token": False,
        "tokenizer_padding_side": "right", "tokenizer_model_max_length": t["max_position_embeddings"],
        "vision_config": {
            "vision_tower": {
                "model_type": "mipha_vision_model",
                "vision_model_name_or_path": f"siglip-demo-patch{v['patch_size']}-{v['image_size']}",
                "hidden_size": v["hidden_size"], "intermediate_size": v["intermediate_size"],
                "num_hidden_layers": v["num_hidden_layers"],
                "num_attention_heads": v["num_attention_heads"],
                "num_channels": 3, "image_size": v["image_size"], "patch_size": v["patch_size"],
                "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": v["layer_norm_eps"],
                "attention_dropout": 0.0,
                "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
            },
            "mm_projector": {
                "model_type": "mipha_projector", "mm_projector_type": "mlp2x_gelu",
                "mm_hidden_size": v["hidden_size"], "hidden_size": t["hidden_size"],
            },
        },
    }


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write(model, tokenizer, out):
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    end, size = tokenizer.token_to_id(END), CONFIG["vision"]["image_size"]
    weights = {n: p.detach().to(torch.float16).contiguous() for n, p in model.state_dict().items()}
    assert all(torch.isfinite(p).all() for p in weights.values())
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", configuration(end))
    write_json(out / "generation_config.json",
               {"_from_model_config": True, "bos_token_id": end, "eos_token_id": end,
                "transformers_version": "4.38.2"})
    write_json(out / "preprocessor_config.json", {
        "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor",
        "resample": 3, "rescale_factor": 0.00392156862745098,
        "size": {"height": size, "width": size}})
    tokenizer.save(str(out / "tokenizer.json"))
    tokenizer.model.save(str(out))  # vocab.json and merges.txt
    write_json(out / "tokenizer_config.json", {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(end): {"content": END, "lstrip": False, "normalized": False,
                                            "rstrip": False, "single_word": False, "special": True}},
        "bos_token": END, "eos_token": END, "unk_token": END,
        "clean_up_tokenization_spaces": True,
        "model_max_length": CONFIG["text"]["max_position_embeddings"],
        "tokenizer_class": "CodeGenTokenizer"})
    write_json(out / "special_tokens_map.json", {"bos_token": END, "eos_token": END, "unk_token": END})
    for file in out.iterdir():
        file.chmod(0o644)
    total = sum(f.stat().st_size for f in out.iterdir())
    assert total <= 16_000_000, total


def main():
    parser = argparse.ArgumentParser(description="Writes the checkpoint from a saved training state.")
    parser.add_argument("--state", required=True, help="a .pt file of the training's --work folder")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    model = Mipha()
    model.load_state_dict(torch.load(args.state, weights_only=True)["model"])
    write(model, tokenizers.Tokenizer.from_file(args.tokenizer), args.out)


if __name__ == "__main__":
    main()
