/* The loss of pictures that are not learned, always at the same timesteps and with the same noises, so that its values can be
 * compared with each other. */
#include "cmd/train/train.h"

int train_validate(struct trainer *t, double *loss, struct err *err)
{
    size_t n = dataset_batches(t->validation), samples = 0;
    struct dataset_batch b = {0};
    double sum = 0;
    int rc = 0;

    if (t->o->max_validation_steps && n > t->o->max_validation_steps)
        n = t->o->max_validation_steps;
    for (size_t i = 0; rc == 0 && i < n; i++) {
        struct train_graph *g;
        struct train_shape shape;
        float one = 0;

        rc = dataset_batch(t->validation, 0, i, &b, err);
        shape = (struct train_shape){b.n, b.height / t->factor, b.width / t->factor, t->chunks};
        if (rc || train_get_graph(t, &shape, TRAIN_LOSS, &g, err) || train_write_validation(t, g, &b, i, err) ||
            run_graph(g->run, NULL, err) || run_read(g->run, g->loss, &one, err))
            rc = -1;
        sum += (double)one * (double)b.n;
        samples += b.n;
    }
    dataset_batch_free(&b);
    *loss = samples ? sum / (double)samples : 0;
    return rc;
}
