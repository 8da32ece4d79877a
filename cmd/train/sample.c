/* Pictures drawn while training, with the factors as they are. The training's activations give their memory back meanwhile. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/train/train.h"
#include "formats/prompt_line.h"

enum { STEPS = 30 };

/* The base model's LoRAs and the network as the drawing side takes them; nothing is copied. */
static int borrow_factors(const struct trainer *t, struct generate_loras *l, struct err *err)
{
    l->item = mem_zero(t->base.count + t->net->count, sizeof *l->item, "LoRA modules", err);
    if (!l->item)
        return -1;
    for (size_t i = 0; i < t->base.count; i++)
        l->item[l->count++] = t->base.item[i];
    for (size_t i = 0; i < t->net->count; i++) {
        const struct network_module *m = &t->net->module[i];

        l->item[l->count++] = (struct layers_lora){.part = m->spec.part, .path = m->spec.path, .down = &m->down, .up = &m->up,
                                                   .scale = (float)(m->spec.alpha / (double)m->spec.rank), .fold = true};
    }
    return 0;
}

static int write_picture(struct trainer *t, const struct prompt_line *p, size_t index, uint64_t seed, const struct picture *pic,
                         struct err *err)
{
    struct arena a = {0};
    char *path = arena_printf(&a, err, "%s/sample/%s_%08zu_%02zu.png", t->o->output_dir, train_name(t, "last"), t->now.step, index);
    char *number = arena_printf(&a, err, "%llu", (unsigned long long)seed), *step = arena_printf(&a, err, "%zu", t->now.step);
    int rc = -1;

    if (path && number && step) {
        struct picture_text text[] = {{"prompt", p->text}, {"seed", number}, {"training-step", step}};

        rc = picture_write(path, pic, text, 3, (struct picture_format){.quality = 95}, err);
        if (rc == 0)
            train_seen_sample(t, p->text, index, strstr(path, "sample/"));
    }
    arena_free(&a);
    return rc;
}

/* The size of the largest bucket, unless the prompt gives one. */
static void choose_size(const struct trainer *t, const struct prompt_line *p, struct generate_job *job)
{
    const struct dataset_bucket *b;
    size_t n = dataset_buckets(t->data, &b), best = 0;

    for (size_t i = 1; i < n; i++)
        if (b[i].samples > b[best].samples)
            best = i;
    job->width = (p->given & PROMPT_WIDTH ? p->width : b[best].width) / t->factor * t->factor;
    job->height = (p->given & PROMPT_HEIGHT ? p->height : b[best].height) / t->factor * t->factor;
}

static int draw(struct trainer *t, struct generate_pipe *pipe, const struct prompt_line *p, size_t index, struct err *err)
{
    const char *text[] = {p->text, p->negative};
    uint64_t seed = p->seeds ? p->seed[0] : t->seed;
    struct generate_job job = {.kind = sampler_find(t->o->sample_sampler), .count = 1, .steps = p->given & PROMPT_STEPS ? p->steps : STEPS,
                               .scale = p->given & PROMPT_SCALE ? p->scale : 7.5, .negative_scale = NAN, .seed = &seed};
    struct picture pic = {0};
    float *context = NULL, *latents = NULL;
    size_t chunks;
    bool truncated;
    int rc = -1;

    job.rows = job.scale > 1 ? 2 : 1;
    choose_size(t, p, &job);
    if (generate_pipe_chunks(pipe, text, job.rows, &chunks, &truncated, err) ||
        generate_pipe_encode(pipe, text, job.rows, chunks, &context, err))
        return -1;
    job.context = context;
    job.tokens = chunks * TOKEN_CHUNK;
    if (generate_pipe_sample(pipe, &job, &latents, err) == 0 &&
        generate_pipe_decode(pipe, latents, job.width, job.height, &pic, err) == 0) {
        rc = write_picture(t, p, index, seed, &pic, err);
        picture_free(&pic);
    }
    free(context);
    free(latents);
    return rc;
}

int train_check_samples(const struct trainer *t, struct err *err)
{
    struct prompt_file prompts = {0};

    if (!t->o->sample_prompts)
        return 0;
    if (!sampler_find(t->o->sample_sampler))
        return err_usage(err, "there is no sampler '%s'; 'lora generate --help' lists them", t->o->sample_sampler);
    if (prompt_file_read(&prompts, t->o->sample_prompts, err))
        return -1;
    prompt_file_free(&prompts);
    return 0;
}

int train_sample(struct trainer *t, struct err *err)
{
    struct generate_pipe pipe = {0};
    struct generate_loras loras = {0};
    struct prompt_file prompts = {0};
    char line[160];
    int rc = -1;

    train_drop_graphs(t);
    if (optim_fetch(t->optim, false, err) || prompt_file_read(&prompts, t->o->sample_prompts, err) ||
        generate_pipe_borrow(&pipe, t->model, t->w, t->o->vae, &t->device.ops, err) || borrow_factors(t, &loras, err))
        goto out;
    pipe.clip_skip = t->o->clip_skip;
    pipe.most_chunks = 3;
    pipe.prediction = t->prediction;
    generate_pipe_loras(&pipe, &loras);
    rc = 0;
    for (size_t i = 0; rc == 0 && i < prompts.count; i++)
        rc = draw(t, &pipe, &prompts.line[i], i, err);
    snprintf(line, sizeof line, "step %zu: %zu sample picture%s in '%.80s/sample'", t->now.step, prompts.count,
             prompts.count == 1 ? "" : "s", t->o->output_dir);
    if (rc == 0 && !t->run->quiet && !t->run->json)
        progress_line(line);
out:
    generate_pipe_close(&pipe);
    free(loras.item);
    prompt_file_free(&prompts);
    return rc;
}
