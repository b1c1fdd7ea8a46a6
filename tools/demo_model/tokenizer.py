"""The byte-level BPE tokenizer, built like GPT-2's and CodeGen's, and the prompt template."""

import functools
import random

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from .draw import contents
from .model import CONFIG
from .questions import ask, CAPTION
from .things import COLOURS, NUMBERS, SHAPES, THINGS, WORDS, article, plural

SYSTEM = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives "
          "helpful, detailed, and polite answers to the user's questions.")
END = "<|endoftext|>"
BEFORE_IMAGE = f"{SYSTEM} USER: "


def after_image(question):
    return f"\n{question} ASSISTANT:"


def corpus(seed, scenes=20000):
    """The template, every name in every form, and the text of many imagined scenes."""
    rng = random.Random(seed)
    for i in range(2000):
        yield BEFORE_IMAGE
    for i in range(200):
        for name in [*THINGS, *SHAPES]:
            yield f"a {name}, two {plural(name)} {article(name)}"
        for name in [*COLOURS, *WORDS, *NUMBERS]:
            yield f" {name} {name}"
        for question in CAPTION:
            yield after_image(question)
    for i in range(scenes):
        objects = contents(rng)
        for o in objects:
            o.update(x=rng.random(), y=rng.random())
        for kind, question, answer in ask(rng, objects):
            yield after_image(question)
            yield f" {answer}"


def build(seed=1):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(corpus(seed), trainers.BpeTrainer(
        vocab_size=CONFIG["text"]["vocab_size"], special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return tokenizer


class Text:
    """Text to ids, remembering what was asked before; training repeats the same strings."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.end = tokenizer.token_to_id(END)
        self.system = tokenizer.encode(BEFORE_IMAGE).ids
        self.encode = functools.lru_cache(1 << 16)(lambda text: tokenizer.encode(text).ids)

    def pair(self, question, answer):
        """Ids of question and answer, and where the answer starts."""
        q = self.encode(after_image(question))
        return q + self.encode(f" {answer}") + [self.end], len(q)
