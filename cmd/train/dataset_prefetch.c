/* One thread that makes the next batches while the step runs. */
#include <pthread.h>
#include <stdlib.h>

#include "cmd/train/dataset_inside.h"

enum { AHEAD = 4, HELD = 2 }; /* batches: those that the caller holds, and two that wait */

struct dataset_prefetch {
    struct dataset *d;
    size_t epoch, index; /* of the next batch to make */
    struct dataset_batch batch[AHEAD];
    struct err err[AHEAD];
    int rc[AHEAD];
    size_t made, taken; /* counted up for ever; batch i lies in i % AHEAD */
    bool stop;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
};

static void *work(void *arg)
{
    struct dataset_prefetch *p = arg;

    for (;;) {
        size_t at;

        pthread_mutex_lock(&p->lock);
        /* the last ones that were taken must stay as they are */
        while (!p->stop && p->made + HELD >= p->taken + AHEAD)
            pthread_cond_wait(&p->changed, &p->lock);
        at = p->made % AHEAD;
        if (p->stop) {
            pthread_mutex_unlock(&p->lock);
            return NULL;
        }
        pthread_mutex_unlock(&p->lock);
        p->rc[at] = dataset_batch(p->d, p->epoch, p->index, &p->batch[at], &p->err[at]);
        if (++p->index >= dataset_batches(p->d)) {
            p->index = 0;
            p->epoch++;
        }
        pthread_mutex_lock(&p->lock);
        p->made++;
        pthread_cond_broadcast(&p->changed);
        pthread_mutex_unlock(&p->lock);
    }
}

int dataset_prefetch_open(struct dataset_prefetch **out, struct dataset *d, size_t epoch, size_t index, struct err *err)
{
    struct dataset_prefetch *p = mem_zero(1, sizeof *p, "loading ahead", err);

    *out = NULL;
    if (!p)
        return -1;
    p->d = d;
    p->epoch = epoch;
    p->index = index;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    if (pthread_create(&p->thread, NULL, work, p) != 0) {
        pthread_cond_destroy(&p->changed);
        pthread_mutex_destroy(&p->lock);
        free(p);
        return err_set(err, "cannot start a thread that loads pictures; close other programs");
    }
    *out = p;
    return 0;
}

int dataset_prefetch_next(struct dataset_prefetch *p, const struct dataset_batch **b, struct err *err)
{
    size_t at;

    pthread_mutex_lock(&p->lock);
    while (p->made == p->taken)
        pthread_cond_wait(&p->changed, &p->lock);
    at = p->taken++ % AHEAD;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    if (p->rc[at])
        *err = p->err[at];
    *b = &p->batch[at];
    return p->rc[at];
}

void dataset_prefetch_close(struct dataset_prefetch *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);
    for (size_t i = 0; i < AHEAD; i++)
        dataset_batch_free(&p->batch[i]);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    free(p);
}
