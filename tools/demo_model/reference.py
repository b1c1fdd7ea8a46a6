"""The reference: a checkpoint folder run through the transformers classes, in float32, greedily.

Only what any reader of the format would use: config.json, model.safetensors, tokenizer.json and
preprocessor_config.json.  Nothing is shared with the training code.
"""

import json
import pathlib

import numpy
import tokenizers
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import PhiConfig, PhiForCausalLM, SiglipVisionConfig, SiglipVisionModel

SYSTEM = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives "
          "helpful, detailed, and polite answers to the user's questions.")


class Reference:
    def __init__(self, folder):
        folder = pathlib.Path(folder)
        read = lambda name: json.loads((folder / name).read_text(encoding="utf-8"))
        config, self.processor = read("config.json"), read("preprocessor_config.json")
        vision = config["vision_config"]["vision_tower"]
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.end = config["eos_token_id"]
        self.pad = config["image_aspect_ratio"] == "pad"
        weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}

        keep = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels",
                "image_size", "patch_size", "hidden_act", "layer_norm_eps")
        self.tower = SiglipVisionModel(SiglipVisionConfig(
            **{k: vision[k] for k in keep}, vision_use_head=False)).eval()
        self.select = vision["mm_vision_select_layer"]
        # Depending on its release, transformers nests the tower under "vision_model." or not.
        nested = any(k.startswith("vision_model.") for k in self.tower.state_dict())
        prefix = "model.vision_tower." + ("" if nested else "vision_model.")
        self.load(self.tower, {k.removeprefix(prefix): v for k, v in weights.items()
                               if k.startswith("model.vision_tower.")}, optional=("post_layernorm",))

        keep = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                "hidden_act", "layer_norm_eps", "vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id")
        rope = {"rope_type": "default", "rope_theta": config["rope_theta"],
                "partial_rotary_factor": config["partial_rotary_factor"]}
        self.decoder = PhiForCausalLM(PhiConfig(
            **{k: config[k] for k in keep}, tie_word_embeddings=False, rope_parameters=rope,
            partial_rotary_factor=config["partial_rotary_factor"], attn_implementation="eager")).eval()
        self.load(self.decoder, {k: v for k, v in weights.items()
                                 if "vision_tower" not in k and "mm_projector" not in k})

        first, second = weights["model.mm_projector.0.weight"], weights["model.mm_projector.2.weight"]
        self.projector = torch.nn.Sequential(torch.nn.Linear(*first.shape[::-1]), torch.nn.GELU(),
                                             torch.nn.Linear(*second.shape[::-1]))
        self.load(self.projector, {k.removeprefix("model.mm_projector."): v for k, v in weights.items()
                                   if k.startswith("model.mm_projector.")})

    @staticmethod
    def load(module, weights, optional=()):
        missing, unexpected = module.load_state_dict(weights, strict=False)
        missing = [k for k in missing if not any(o in k for o in optional)]
        if missing or unexpected:
            raise SystemExit(f"The checkpoint does not fit: missing {missing}, unexpected {unexpected}.")

    def pixels(self, image):
        image = image.convert("RGB")
        if self.pad and image.width != image.height:
            side = max(image.size)
            colour = tuple(int(m * 255) for m in self.processor["image_mean"])
            square = Image.new("RGB", (side, side), colour)
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = square
        size = self.processor["size"]
        image = image.resize((size["width"], size["height"]), self.processor["resample"])
        x = (numpy.asarray(image) * self.processor["rescale_factor"]).astype(numpy.float32)
        mean, std = (numpy.float32(self.processor[k]) for k in ("image_mean", "image_std"))
        return torch.from_numpy((x - mean) / std).permute(2, 0, 1)

    @torch.no_grad()
    def features(self, images):
        x = torch.stack([self.pixels(i) for i in images])
        states = self.tower(pixel_values=x, output_hidden_states=True).hidden_states
        return self.projector(states[self.select])

    def prompt_ids(self, question):
        """Ids before and after the image, each chunk tokenised by itself."""
        return (self.tokenizer.encode(f"{SYSTEM} USER: ").ids,
                self.tokenizer.encode(f"\n{question} ASSISTANT:").ids)

    def embeddings(self, feature, question):
        before, after = (self.decoder.model.embed_tokens(torch.tensor(ids)) for ids in self.prompt_ids(question))
        return torch.cat((before, feature, after))

    @torch.no_grad()
    def answer(self, features, questions, limit=48):
        """Greedy answers; question i is about image i.  Sequences are padded on the right, and each
        row keeps its own length, so that the arithmetic of a row is that of the row alone."""
        rows = [self.embeddings(f, q) for f, q in zip(features, questions)]
        out = [[] for _ in rows]
        live = list(range(len(rows)))
        for _ in range(limit):
            if not live:
                break
            longest = max(len(rows[i]) for i in live)
            x = torch.stack([torch.nn.functional.pad(rows[i], (0, 0, 0, longest - len(rows[i]))) for i in live])
            # Causal attention never looks at what is on the right, so the padding needs no mask.
            states = self.decoder.model(inputs_embeds=x, use_cache=False).last_hidden_state
            ends = torch.tensor([len(rows[i]) - 1 for i in live])
            best = self.decoder.lm_head(states[torch.arange(len(live)), ends]).argmax(-1).tolist()
            for i, token in zip(live, best):
                out[i].append(token)
                rows[i] = torch.cat((rows[i], self.decoder.model.embed_tokens.weight[token][None]))
            live = [i for i in live if out[i][-1] != self.end]
        return [self.tokenizer.decode([t for t in ids if t != self.end]).strip() for ids in out]
