#include "model/model_options.h"

model_settings model_settings_read(const options *o, const char *dir) {
    model_settings s = {.dir = dir,
                        .dtype = options_string(o, "dtype"),
                        .kv_dtype = options_string(o, "kv-dtype"),
                        .adapter = options_string(o, "adapter"),
                        .parts = MODEL_PART_ALL};
    s.n_served = options_list(o, "serve-adapter", &s.served);
    return s;
}
