#include "lm_node/prompt_template.h"

#include <stddef.h>
#include <string.h>

#define CHAT                                                                                       \
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives " \
    "helpful, detailed, and polite answers to the user's questions. "

/* A space stands between an answer and what comes before it, none behind the token that ends it. */
#define USER_AND_ASSISTANT .before_question = "USER: ", .before_answer = " ASSISTANT:", .answer_open = " "

static const prompt_template TEMPLATES[] = {
    {.names = {"phi", "phi-2", "phi-1.5", "v0", "default"},
     .system = CHAT, USER_AND_ASSISTANT, .answer_close = "<|endoftext|>", .stop = "<|endoftext|>"},
    {.names = {"gemma"}, .system = CHAT, USER_AND_ASSISTANT, .answer_close = "<eos>", .stop = "<eos>"},
    {.names = {"phi3", "phi-3"},
     .system = "<|system|>You are a helpful AI assistant.<|end|>",
     .before_question = "<|user|>", .before_answer = "<|end|><|assistant|>",
     .answer_open = "", .answer_close = "<|end|>", .stop = "<|end|>"},
    {.names = {"llava-1.5", "vicuna_v1"}, .system = CHAT, USER_AND_ASSISTANT, .answer_close = "</s>", .stop = "</s>"},
    {.names = {"llava-hf"}, .system = "", USER_AND_ASSISTANT, .answer_close = " ", .stop = "</s>"},
    {.names = {"plain"},
     .system = "", .before_question = "", .before_answer = "\n", .answer_open = "", .answer_close = "\n"},
};
#define N_TEMPLATES (sizeof TEMPLATES / sizeof *TEMPLATES)

const prompt_template *prompt_template_find(const char *name) {
    for (size_t i = 0; i < N_TEMPLATES; i++)
        for (const char *const *own = TEMPLATES[i].names; *own; own++)
            if (strcmp(*own, name) == 0) return &TEMPLATES[i];
    return NULL;
}

const prompt_template *prompt_template_of(model_decoder_kind kind) {
    if (kind == MODEL_DECODER_GEMMA) return prompt_template_find("gemma");
    if (kind == MODEL_DECODER_LLAMA) return prompt_template_find("llava-hf");
    return prompt_template_find("phi"); /* for Phi-3 too: the authors' training knows no other */
}

const char *prompt_template_names(void) {
    return "phi, phi-2, phi-1.5, v0, default, gemma, phi3, phi-3, llava-1.5, vicuna_v1, llava-hf, plain";
}
