/* What a LoRA file says about its making: the ss_* keys of sd-scripts, all of v0.3.0's and those of newer versions that mean
 * something here. Values are Python's str(): None, True, 0.0001. Names only, no paths. Nothing of the clock, so that the same
 * options give the same bytes. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "cmd/train/train.h"
#include "formats/hash.h"

struct writer {
    struct trainer *t;
    struct err *err;
    int rc;
};

static void set(struct writer *w, const char *key, const char *value)
{
    if (w->rc == 0)
        w->rc = lora_meta_set(&w->t->meta, key, value ? value : "None", w->err);
}

static void set_bool(struct writer *w, const char *key, bool value)
{
    set(w, key, value ? "True" : "False");
}

static void set_size(struct writer *w, const char *key, size_t value)
{
    char text[32];

    snprintf(text, sizeof text, "%zu", value);
    set(w, key, text);
}

/* The shortest text that reads as the same number, as Python prints it. */
static void set_number(struct writer *w, const char *key, double value)
{
    char text[40];

    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    if (!strpbrk(text, ".en"))
        strcat(text, ".0");
    set(w, key, text);
}

/* A number whose option was given or has an effect, else None. */
static void set_optional(struct writer *w, const char *key, const double *field)
{
    if (*field != 0 || option_given(w->t->run->values, field))
        set_number(w, key, *field);
    else
        set(w, key, NULL);
}

/* The last part of a path, of either system. */
static const char *last_part(const char *path)
{
    const char *last = path;

    for (const char *s = path; *s; s++)
        if ((*s == '/' || *s == '\\') && s[1])
            last = s + 1;
    return last;
}

/* ---- Hashes of whole files: a second for each 2 GB, which no step waits for ---- */

struct train_hash {
    pthread_t thread;
    const char *path, *key;
    char text[SHA256_TEXT];
    int rc;
};

static void *hash_whole(void *arg)
{
    struct train_hash *h = arg;
    struct err none = {0};

    (void)setpriority(PRIO_PROCESS, 0, 19); /* of this thread: steps come first */
    h->rc = hash_file(h->path, h->text, &none);
    return NULL;
}

static int start_hash(struct trainer *t, const char *path, const char *key, struct err *err)
{
    struct train_hash *h = mem_zero(1, sizeof *h, "a hash", err);

    if (!h)
        return -1;
    h->path = path;
    h->key = key;
    if (pthread_create(&h->thread, NULL, hash_whole, h)) {
        free(h);
        return err_set(err, "the system gives no thread for the hash of '%s'; see ulimit -u", path);
    }
    t->hash[t->hash[0] != NULL] = h;
    return 0;
}

int train_meta_complete(struct trainer *t, struct err *err)
{
    int rc = 0;

    for (size_t i = 0; i < 2; i++) {
        struct train_hash *h = t->hash[i];

        if (!h)
            continue;
        pthread_join(h->thread, NULL);
        if (rc == 0 && h->rc == 0) /* a folder has none */
            rc = lora_meta_set(&t->meta, h->key, h->text, err);
        free(h);
        t->hash[i] = NULL;
    }
    return rc;
}

static void describe_file(struct writer *w, const char *path, const char *name, const char *legacy, const char *whole)
{
    char old[HASH_LEGACY_TEXT];
    struct err none = {0};

    set(w, name, last_part(path));
    if (hash_legacy(path, old, &none) == 0) /* a folder has none */
        set(w, legacy, old);
    if (w->rc == 0)
        w->rc = start_hash(w->t, path, whole, w->err);
}

static void describe_network(struct writer *w)
{
    const struct train_options *o = w->t->o;
    json_t *args = json_object();
    char *text;

    set(w, "ss_network_module", o->network_module);
    set_size(w, "ss_network_dim", o->network_dim);
    set_number(w, "ss_network_alpha", o->network_alpha);
    set_optional(w, "ss_network_dropout", &o->network_dropout);
    set_optional(w, "ss_scale_weight_norms", &o->scale_weight_norms);
    for (size_t i = 0; args && i < o->network_args.count; i++) {
        const char *item = o->network_args.item[i], *equals = strchr(item, '=');
        char key[64];

        snprintf(key, sizeof key, "%.*s", (int)(equals - item), item);
        json_object_set_new(args, key, json_string(equals + 1));
    }
    text = args && json_object_size(args) ? json_dumps(args, 0) : NULL;
    if (text)
        set(w, "ss_network_args", text);
    free(text);
    json_decref(args);
}

static void describe_steps(struct writer *w)
{
    static const char *const precisions[] = {"no", "fp16", "bf16"};
    static const char *const losses[] = {"l2", "huber", "smooth_l1"}, *const widths[] = {"snr", "exponential", "constant"};
    const struct train_options *o = w->t->o;
    const struct option_values *given = w->t->run->values;
    char optimizer[600];

    set_number(w, "ss_learning_rate", o->learning_rate);
    set(w, "ss_unet_lr", NULL);
    set(w, "ss_text_encoder_lr", NULL);
    if (option_given(given, &o->unet_lr))
        set_number(w, "ss_unet_lr", o->unet_lr);
    if (option_given(given, &o->text_encoder_lr))
        set_number(w, "ss_text_encoder_lr", o->text_encoder_lr);
    set_size(w, "ss_num_epochs", w->t->epochs);
    set_size(w, "ss_max_train_steps", w->t->steps);
    set_size(w, "ss_gradient_accumulation_steps", o->gradient_accumulation_steps);
    set_size(w, "ss_total_batch_size", o->data.train_batch_size * o->gradient_accumulation_steps);
    set_bool(w, "ss_gradient_checkpointing", o->gradient_checkpointing);
    if (o->lr_warmup_steps == floor(o->lr_warmup_steps))
        set_size(w, "ss_lr_warmup_steps", (size_t)o->lr_warmup_steps);
    else
        set_number(w, "ss_lr_warmup_steps", o->lr_warmup_steps);
    set(w, "ss_lr_scheduler", o->lr_scheduler);
    snprintf(optimizer, sizeof optimizer, "%s(%s)", optim_name(w->t->optim), optim_args(w->t->optim));
    set(w, "ss_optimizer", optimizer);
    set_number(w, "ss_max_grad_norm", o->max_grad_norm);
    set(w, "ss_mixed_precision", precisions[o->mixed_precision]);
    set_bool(w, "ss_full_fp16", o->full_fp16);
    set_size(w, "ss_seed", (size_t)w->t->seed);
    set_optional(w, "ss_min_snr_gamma", &o->min_snr_gamma);
    set_optional(w, "ss_noise_offset", &o->noise_offset);
    set_bool(w, "ss_noise_offset_random_strength", o->noise_offset_random_strength);
    set_optional(w, "ss_adaptive_noise_scale", &o->adaptive_noise_scale);
    set_size(w, "ss_multires_noise_iterations", o->multires_noise_iterations);
    set_number(w, "ss_multires_noise_discount", o->multires_noise_discount);
    set_optional(w, "ss_ip_noise_gamma", &o->ip_noise_gamma);
    set_bool(w, "ss_ip_noise_gamma_random_strength", o->ip_noise_gamma_random_strength);
    set_bool(w, "ss_debiased_estimation", o->debiased_estimation_loss);
    set_bool(w, "ss_zero_terminal_snr", o->zero_terminal_snr);
    set(w, "ss_loss_type", losses[o->loss_type]);
    set(w, "ss_huber_schedule", widths[o->huber_schedule]);
    set_number(w, "ss_huber_c", o->huber_c);
    set_number(w, "ss_huber_scale", o->huber_scale);
}

static void describe_model(struct writer *w)
{
    const struct trainer *t = w->t;
    bool sd2 = t->model->arch == MODEL_SD2;

    set_bool(w, "ss_v2", sd2);
    set(w, "ss_base_model_version", sd2 ? (t->prediction == PREDICT_V ? "sd_v2_v" : "sd_v2") : "sd_v1");
    if (t->o->clip_skip > 1 || option_given(t->run->values, &t->o->clip_skip))
        set_size(w, "ss_clip_skip", t->o->clip_skip);
    else
        set(w, "ss_clip_skip", NULL);
    if (t->o->max_token_length > 75)
        set_size(w, "ss_max_token_length", t->o->max_token_length);
    else
        set(w, "ss_max_token_length", NULL);
    describe_file(w, t->o->pretrained_model_name_or_path, "ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash");
    if (t->o->vae)
        describe_file(w, t->o->vae, "ss_vae_name", "ss_vae_hash", "ss_new_vae_hash");
}

static void describe_data(struct writer *w)
{
    json_t *meta = json_object(), *value;
    const char *key;

    if (w->rc == 0 && meta)
        w->rc = dataset_metadata(w->t->data, meta, w->err);
    if (w->rc == 0)
        json_object_foreach(meta, key, value)
            set(w, key, json_is_string(value) ? json_string_value(value) : NULL);
    json_decref(meta);
}

int train_meta(struct trainer *t, struct err *err)
{
    struct writer w = {t, err, 0};

    if (t->o->no_metadata)
        return 0;
    describe_data(&w);
    describe_network(&w);
    describe_steps(&w);
    describe_model(&w);
    set(&w, "ss_output_name", train_name(t, "last"));
    if (t->o->training_comment)
        set(&w, "ss_training_comment", t->o->training_comment);
    return w.rc;
}
