#!/usr/bin/env python3
"""Writes tests/data/prompts.json: what the authors' code makes of conversations.

    python3 tools/make_golden_prompts.py          needs the tokenizers package

Their two steps, written again from their description: Conversation.get_prompt renders the turns with "<image>" and
a newline before the first question; tokenizer_image_token splits at "<image>", has every part tokenised with the
tokenizer's own additions, keeps a leading beginning-of-text once, and puts -200 between the parts. Of several images
each has its "<image>" and newline there, unless the texts say where they go, as in MARKED.
"""
import json
import pathlib
import random

from tokenizers import Tokenizer

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data"
SYSTEM = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
          "detailed, and polite answers to the user's questions.")
QUESTIONS = ["What is shown in this image?", "What color is the cat?\nAnswer the question using a single word or phrase.",
             "", " two  spaces ", "日本語?", "it's 3.14, isn't it", "tab\tand\n\nlines", "ends with a space "]
ANSWERS = ["A cat.", "two dogs, a house", "", " red"]
# Turns and question that hold markers.
MARKED = [
    ([], "What is in <image>?"), ([], "<image>\nWhat is this?"), ([], "Name it: <image>"), ([], "<image>"),
    ([], "Is <image> like <image>?"), ([], "<image><image>"), ([], "<image>\n<image>\nWhat has changed?"),
    ([], "First <image>, then <image>\n\nand <image> "), ([], "<image> <image>  <image><image>日本語"),
    ([("What is <image>?", "A cat.")], "And <image>?"), ([("Name two.", "two dogs")], "Are they <image> and <image>?"),
    ([("<image>", "a house"), ("it's <image>, isn't it", "Yes: <image>")], "Why?"),
]


def two(sep2):
    def render(messages):
        text = SYSTEM + " "
        for i, message in enumerate(messages):
            role = ("USER", "ASSISTANT")[i % 2]
            text += role + ":" if message is None else role + ": " + message + (" ", sep2)[i % 2]
        return text
    return render


def phi3(messages):
    text = "<|system|>You are a helpful AI assistant.<|end|>"
    for i, message in enumerate(messages):
        role = ("<|user|>", "<|assistant|>")[i % 2]
        text += role if message is None else role + message + "<|end|>"
    return text


def plain(messages):
    return "".join(m + "\n" for m in messages if m is not None)


TEMPLATES = {"phi": two("<|endoftext|>"), "gemma": two("<eos>"), "phi3": phi3, "plain": plain}
TOKENIZERS = {"tokenizer": None, "tokenizer_gemma": 2, "tokenizer_llama": None}


def ids_of(tokenizer, bos, text):
    chunks = [tokenizer.encode(part).ids for part in text.split("<image>")]
    offset = 1 if bos is not None and chunks[0] and chunks[0][0] == bos else 0
    ids = chunks[0][:offset]
    for i, chunk in enumerate(chunks):
        ids += ([-200] if i else []) + chunk[offset:]
    return ids


def several(folder, tokenizer, bos, name, n_images, turns, question, before):
    messages = [m for turn in turns for m in turn] + [question, None]
    messages[0] = before + messages[0]
    return {"tokenizer": folder, "template": name, "images": n_images, "question": question, "turns": turns,
            "ids": ids_of(tokenizer, bos, TEMPLATES[name](messages))}


def main():
    rng, out = random.Random(5), []
    for folder, bos in TOKENIZERS.items():
        tokenizer = Tokenizer.from_file(str(DATA / folder / "tokenizer.json"))
        for name, render in TEMPLATES.items():
            for i in range(24):
                has_image, n_turns = i % 3 != 2, (0, 0, 1, 2)[i % 4]
                turns = [(rng.choice(QUESTIONS[:2]), rng.choice(ANSWERS[:2])) for _ in range(n_turns)]
                question = QUESTIONS[i % len(QUESTIONS)]
                messages = [m for turn in turns for m in turn] + [question, None]
                if has_image:
                    messages[0] = "<image>\n" + messages[0]
                if not any(messages[:-1]) or not question:
                    continue  # an empty message counts as an open one there
                out.append({"tokenizer": folder, "template": name, "image": has_image, "question": question,
                            "turns": turns, "ids": ids_of(tokenizer, bos, render(messages))})
            for i in range(8):
                n_images, turns = 2 + i % 3, [(QUESTIONS[0], ANSWERS[0])] * (i // 4)
                question = QUESTIONS[(0, 1, 3, 4)[i % 4]]
                out.append(several(folder, tokenizer, bos, name, n_images, turns, question, "<image>\n" * n_images))
            for turns, question in MARKED:
                n_images = "".join([q + a for q, a in turns] + [question]).count("<image>")
                out.append(several(folder, tokenizer, bos, name, n_images, turns, question, ""))
    path = DATA / "prompts.json"
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in out) + "\n]\n")
    print(f"{len(out)} prompts")


if __name__ == "__main__":
    main()
