/* What a person sees of a training: the bar, report.html, TensorBoard's logs. None of it may end the training: what goes wrong is
 * told once. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cmd/memory.h"
#include "cmd/train/train.h"
#include "ref/base/thread.h"
#include "ref/lora/target.h"

enum { PAGE_SHARE = 20 }; /* of the time, the page on the way takes one such part at most */

static double average_loss(const struct trainer *t)
{
    return t->now.loss_count ? t->now.loss_sum / (double)t->now.loss_count : 0;
}

/* A page or log that fails is given up. */
static void give_up_report(struct trainer *t, const struct err *err)
{
    command_warn(t->run, "report.html is not written any more: %s", err->msg);
    report_free(t->report);
    t->report = NULL;
}

static void give_up_logs(struct trainer *t, const struct err *err)
{
    struct err none = {0};

    command_warn(t->run, "logs are not written any more: %s", err->msg);
    logs_close(t->logs, &none);
    t->logs = NULL;
}

static char *report_path(const struct trainer *t, struct arena *a, struct err *err)
{
    return arena_printf(a, err, "%s/report.html", t->o->output_dir);
}

static int fact(struct trainer *t, enum report_table table, struct err *err, const char *name, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

static int fact(struct trainer *t, enum report_table table, struct err *err, const char *name, const char *format, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    return report_fact(t->report, table, name, text, err);
}

static int settings(struct trainer *t, struct err *err)
{
    const struct train_options *o = t->o;

    return fact(t, REPORT_SETTINGS, err, "model", "%s", o->pretrained_model_name_or_path) ||
           fact(t, REPORT_SETTINGS, err, "rank, alpha", "%zu, %g", o->network_dim, o->network_alpha) ||
           fact(t, REPORT_SETTINGS, err, "learns", "%zu modules, %zu numbers", t->net->count, t->net->used) ||
           fact(t, REPORT_SETTINGS, err, "optimizer", "%s (%s)", optim_name(t->optim), optim_args(t->optim)) ||
           fact(t, REPORT_SETTINGS, err, "learning rate", "%g, %s, warm-up %g", o->learning_rate, o->lr_scheduler, o->lr_warmup_steps) ||
           fact(t, REPORT_SETTINGS, err, "steps", "%zu, %zu epochs of %zu", t->steps, t->epochs, t->steps_per_epoch) ||
           fact(t, REPORT_SETTINGS, err, "batch", "%zu, %zu batches a step", o->data.train_batch_size, o->gradient_accumulation_steps) ||
           fact(t, REPORT_SETTINGS, err, "gradient checkpointing", "%s", o->gradient_checkpointing ? "yes" : "no") ||
           fact(t, REPORT_SETTINGS, err, "seed", "%llu", (unsigned long long)t->seed) ||
           fact(t, REPORT_MACHINE, err, "device", "%s", t->device.info.text[0] ? t->device.info.text : "cpu") ||
           fact(t, REPORT_MACHINE, err, "threads", "%d", thread_count());
}

static int open_report(struct trainer *t, struct err *err)
{
    struct report_options o = {.title = train_name(t, "last"), .steps = t->steps, .epoch_steps = t->steps_per_epoch};
    struct arena a = {0};
    char *path = report_path(t, &a, err), *table = dataset_table(t->data, err);
    int rc = -1;

    for (; o.rates < t->groups && o.rates < REPORT_MOST_RATES; o.rates++)
        o.rate[o.rates] = t->group[o.rates].name;
    if (path && table && report_new(&t->report, &o, err) == 0 &&
        (t->now.step == 0 || report_resume(t->report, path, t->now.step, err) == 0) && settings(t, err) == 0)
        rc = report_data(t->report, table, err);
    free(table);
    arena_free(&a);
    return rc;
}

int train_seen_open(struct trainer *t, struct err *err)
{
    const char *rate[LOGS_MOST_RATES];
    struct logs_options o = {.logging_dir = t->o->logging_dir, .log_prefix = t->o->log_prefix, .rate = rate, .step = t->now.step};
    char *folder = t->o->resume ? train_state_logs(t->o->resume) : NULL;
    struct err page = {0};
    int rc;

    for (; o.rates < t->groups && o.rates < LOGS_MOST_RATES; o.rates++)
        rate[o.rates] = t->group[o.rates].name;
    o.resume = folder;
    rc = logs_open(&t->logs, &o, err);
    free(folder);
    if (rc == 0 && open_report(t, &page))
        give_up_report(t, &page);
    return rc;
}

void train_seen_step(struct trainer *t, bool skipped, double seconds)
{
    struct err err = {0};
    char memory[32];

    command_bytes(memory_now(), memory, sizeof memory);
    if (skipped)
        progress_info(t->progress, "step skipped: loss or gradients not finite (%zu so far)", t->now.skipped);
    else
        progress_info(t->progress, "epoch %zu/%zu, loss %.4f, average %.4f, %s", t->now.epoch + 1, t->epochs, t->step_loss,
                      average_loss(t), memory);
    progress_step(t->progress, 1);
    if (t->report)
        report_step(t->report, t->now.step - 1, t->step_loss, t->step_lr, skipped, seconds);
    if (t->logs && !skipped &&
        logs_step(t->logs, t->now.step, t->step_loss, average_loss(t), t->step_lr, optim_factor(t->optim), &err))
        give_up_logs(t, &err);
}

void train_seen_epoch(struct trainer *t)
{
    struct err err = {0};

    if (t->logs && logs_epoch(t->logs, t->now.epoch, average_loss(t), &err))
        give_up_logs(t, &err);
}

void train_seen_validation(struct trainer *t)
{
    struct err err = {0};
    char line[80];

    snprintf(line, sizeof line, "step %zu: validation loss %.6f", t->now.step, t->validation_loss);
    if (!t->run->quiet && !t->run->json)
        progress_line(line);
    if (t->report && report_validation(t->report, t->now.step, t->validation_loss, &err))
        give_up_report(t, &err);
    if (t->logs && logs_validation(t->logs, t->now.step, t->validation_loss, &err))
        give_up_logs(t, &err);
}

void train_seen_sample(struct trainer *t, const char *prompt, size_t index, const char *file)
{
    struct arena a = {0};
    struct err err = {0};
    char *path = arena_printf(&a, &err, "%s/%s", t->o->output_dir, file), name[32];

    snprintf(name, sizeof name, "sample %zu", index);
    if (t->report && report_sample(t->report, t->now.step, prompt, t->o->output_dir, file, &err))
        give_up_report(t, &err);
    if (path && t->logs && logs_sample(t->logs, t->now.step, name, path, &err))
        give_up_logs(t, &err);
    arena_free(&a);
}

/* The norm of what the LoRA adds to each block: the root of the sum of squares over its modules. */
static int report_blocks(struct trainer *t, struct err *err)
{
    const char *name[TARGET_BLOCKS];
    double norm[TARGET_BLOCKS], square[TARGET_BLOCKS] = {0};
    bool used[TARGET_BLOCKS] = {false};
    const double *norms = optim_fetch(t->optim, false, err) ? NULL : network_norms(t->net, err);
    size_t n = 0;

    if (!norms)
        return -1;
    for (size_t i = 0; i < t->net->count; i++) {
        const struct network_spec *s = &t->net->module[i].spec;

        if (s->block < 0)
            continue;
        square[s->block] += norms[i] * norms[i];
        used[s->block] = true;
    }
    for (int b = 0; b < TARGET_BLOCKS; b++)
        if (used[b]) {
            name[n] = target_block_name(b);
            norm[n++] = sqrt(square[b]);
        }
    return n ? report_norms(t->report, t->now.step, name, norm, n, err) : 0;
}

double train_clock(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

void train_seen_page(struct trainer *t)
{
    double before = train_clock();

    if (before - t->page_at < PAGE_SHARE * t->page_seconds)
        return;
    train_seen_save(t, "running");
    t->page_at = train_clock();
    t->page_seconds = t->page_at - before;
}

void train_seen_save(struct trainer *t, const char *status)
{
    struct arena a = {0};
    struct err err = {0};
    char *path = report_path(t, &a, &err);

    if (t->report &&
        (!path || report_blocks(t, &err) || fact(t, REPORT_TIMES, &err, "steps done", "%zu", t->now.step) ||
         fact(t, REPORT_TIMES, &err, "seconds", "%.0f", t->now.seconds) ||
         fact(t, REPORT_TIMES, &err, "seconds a step", "%.2f", t->now.step ? t->now.seconds / (double)t->now.step : 0) ||
         report_write(t->report, path, status, &err)))
        give_up_report(t, &err);
    arena_free(&a);
}

void train_seen_close(struct trainer *t)
{
    struct err err = {0};

    if (t->logs && logs_close(t->logs, &err))
        command_warn(t->run, "%s", err.msg);
    report_free(t->report);
    t->logs = NULL;
    t->report = NULL;
}
