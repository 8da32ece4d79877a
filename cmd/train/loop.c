/* Epochs and steps, and what happens between them. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/train/train.h"

volatile sig_atomic_t train_stop_signal;

static const int stop_signals[] = {SIGINT, SIGTERM, SIGHUP};
static struct sigaction before[3];

/* The first signal asks for an end after this step; the second one ends the program as it would have done without us. */
static void on_signal(int number)
{
    if (train_stop_signal) {
        for (int i = 0; i < 3; i++)
            sigaction(stop_signals[i], &before[i], NULL);
        raise(number);
    }
    train_stop_signal = number;
}

static void catch_signals(void)
{
    struct sigaction a = {.sa_handler = on_signal};

    train_stop_signal = 0;
    sigemptyset(&a.sa_mask);
    for (int i = 0; i < 3; i++) {
        sigaction(stop_signals[i], NULL, &before[i]);
        if (before[i].sa_handler != SIG_IGN)
            sigaction(stop_signals[i], &a, NULL);
    }
}

static void release_signals(void)
{
    for (int i = 0; i < 3; i++)
        sigaction(stop_signals[i], &before[i], NULL);
}

static bool due(size_t every, size_t count)
{
    return every && count % every == 0;
}

static int measure(struct trainer *t, struct err *err)
{
    if (train_validate(t, &t->validation_loss, err))
        return -1;
    train_seen_validation(t);
    return 0;
}

/* What can go wrong with a file or picture on the way need not end the training: the disk may have room again in the end. */
static void tell_failure(struct trainer *t, const char *what, const struct err *err)
{
    command_warn(t->run, "%s: %s; the training goes on", what, err->msg);
}

/* LoRA files and states on the way. -1: the factors are not finite any more. */
static int save(struct trainer *t, bool epoch_ended, struct err *err)
{
    struct err now = {0};

    if (train_save_step(t, &now) == 0 && (!epoch_ended || train_save_epoch(t, &now) == 0))
        return 0;
    if (network_find_nonfinite(t->net)) {
        *err = now;
        t->diverged = true;
        return -1;
    }
    tell_failure(t, "saving failed", &now);
    return 0;
}

static void sample_now(struct trainer *t)
{
    struct err err = {0};

    if (train_sample(t, &err))
        tell_failure(t, "drawing samples failed", &err);
}

/* What is due after a step; a full epoch is counted first. */
static int after_step(struct trainer *t, bool epoch_ended, struct err *err)
{
    const struct train_options *o = t->o;
    bool sample = due(o->sample_every_n_steps, t->now.step) || (epoch_ended && due(o->sample_every_n_epochs, t->now.epoch));
    bool validate = due(o->validate_every_n_steps, t->now.step) || (epoch_ended && due(o->validate_every_n_epochs, t->now.epoch));

    if (save(t, epoch_ended, err))
        return -1;
    if (t->validation && validate && measure(t, err))
        return -1;
    if (o->sample_prompts && sample)
        sample_now(t);
    if (sample || due(o->save_every_n_steps, t->now.step)) /* somebody asked to see something now */
        train_seen_save(t, "running");
    else if (epoch_ended)
        train_seen_page(t);
    return 0;
}

/* A state against accidents, every so many minutes. A full disk does not end the training: the old state stays whole. */
static void save_auto(struct trainer *t, double *last)
{
    double now = train_clock();
    struct err err = {0};
    char name[600];

    if (t->o->save_state_every_n_minutes == 0 || now - *last < 60 * t->o->save_state_every_n_minutes)
        return;
    *last = now;
    snprintf(name, sizeof name, "%s-auto", train_name(t, "last"));
    if (train_state_write(t, name, &err))
        command_warn(t->run, "%s", err.msg);
}

static int run_steps(struct trainer *t, struct dataset_prefetch *data, struct err *err)
{
    double last_state = train_clock(), last = last_state;

    while (t->now.step < t->steps && !train_stop_signal) {
        struct train_counters start = t->now;
        int rc = train_step(t, data, err);
        bool epoch_ended = t->now.batch == t->batches;
        double now = train_clock();

        if (rc < 0) { /* nothing has changed but the counters: what is saved now is the end of the step before */
            t->now = start;
            return -1;
        }
        t->now.seconds += now - last;
        train_seen_step(t, rc > 0, now - last);
        if (epoch_ended) {
            t->now.epoch++;
            t->now.batch = 0;
            train_seen_epoch(t);
        }
        if (after_step(t, epoch_ended, err))
            return -1;
        if (epoch_ended)
            t->now.loss_sum = (double)(t->now.loss_count = 0);
        save_auto(t, &last_state);
        last = train_clock();
    }
    return 0;
}

static int stopped(struct trainer *t, struct err *err)
{
    const char *name = train_stop_signal == SIGINT ? "SIGINT" : train_stop_signal == SIGTERM ? "SIGTERM" : "SIGHUP";

    if (train_save_last(t, false, err))
        return -1;
    return err_set(err, "stopped by %s after step %zu of %zu; LoRA and state are saved: go on with --resume '%s/%s-stopped.state'", name,
                   t->now.step, t->steps, t->o->output_dir, train_name(t, "last"));
}

/* After an error on the way: what was learned is kept, unless it is broken. */
static void rescue(struct trainer *t)
{
    struct err err = {0};

    if (t->diverged && t->last_written)
        command_note(t->run, "the last good LoRA is '%s'", t->last_written);
    if (t->diverged || t->now.step == 0)
        return;
    if (train_save_last(t, false, &err))
        command_warn(t->run, "%s", err.msg);
    else
        command_note(t->run, "LoRA and state of step %zu are saved as '%s/%s-stopped'; --resume goes on", t->now.step,
                     t->o->output_dir, train_name(t, "last"));
}

/* All steps are done, and the LoRA cannot be written. */
static void tell_way_out(const struct trainer *t)
{
    struct arena a = {0};
    struct err err = {0};
    char *path = arena_printf(&a, &err, "%s/%s-auto.state", t->o->output_dir, train_name(t, "last"));

    if (path && access(path, R_OK) == 0)
        command_note(t->run, "there is a state to go on from when that is mended: --resume '%s'", path);
    arena_free(&a);
}

int train_loop(struct trainer *t, struct err *err)
{
    struct dataset_prefetch *data = NULL;
    int rc = -1;

    catch_signals();
    if (t->o->sample_at_first && t->now.step == 0)
        sample_now(t);
    if (dataset_prefetch_open(&data, t->data, t->now.epoch, t->now.batch, err))
        goto out;
    t->progress = progress_start(t->run, "training", t->steps, "steps");
    progress_step(t->progress, t->now.step);
    rc = run_steps(t, data, err);
    progress_end(t->progress);
    t->progress = NULL;
    if (rc)
        rescue(t);
    else
        rc = train_stop_signal ? stopped(t, err) : train_save_last(t, true, err);
    if (rc && t->now.step >= t->steps)
        tell_way_out(t);
    train_seen_save(t, rc == 0 ? "finished" : "stopped");
out:
    dataset_prefetch_close(data);
    release_signals();
    return rc;
}
