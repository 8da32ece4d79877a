/* The state of a training as one file, from which it goes on bit for bit: a safetensors file with the factors, the optimizer's
 * arrays, and in its metadata the counters and the options. Nothing random needs to be in it (train.h). */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cmd/train/train.h"
#include "formats/tensor_writer.h"

#define STATE_FORMAT "lora training state 1"

/* ---- Counters as JSON ---- */

static json_t *counters_to_json(const struct trainer *t)
{
    const struct train_counters *c = &t->now;

    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:f, s:I, s:f, s:I, s:f, s:I, s:I, s:I}", "step", (json_int_t)c->step, "epoch",
                     (json_int_t)c->epoch, "batch", (json_int_t)c->batch, "skipped", (json_int_t)c->skipped, "skipped_in_row",
                     (json_int_t)c->skipped_in_row, "loss_scale", c->loss_scale, "good_steps", (json_int_t)c->good_steps,
                     "loss_sum", c->loss_sum, "loss_count", (json_int_t)c->loss_count, "seconds", c->seconds, "seed",
                     (json_int_t)t->seed, "batches", (json_int_t)t->batches, "lr_from", (json_int_t)c->lr_from);
}

static size_t whole(const json_t *j, const char *key)
{
    json_int_t v = json_integer_value(json_object_get(j, key));

    return v > 0 ? (size_t)v : 0;
}

static void counters_from_json(struct train_counters *c, const json_t *j)
{
    *c = (struct train_counters){
        .step = whole(j, "step"), .epoch = whole(j, "epoch"), .batch = whole(j, "batch"), .skipped = whole(j, "skipped"),
        .skipped_in_row = whole(j, "skipped_in_row"), .good_steps = whole(j, "good_steps"), .loss_count = whole(j, "loss_count"),
        .loss_scale = json_number_value(json_object_get(j, "loss_scale")), .loss_sum = json_number_value(json_object_get(j, "loss_sum")),
        .seconds = json_number_value(json_object_get(j, "seconds")),
        .lr_from = json_integer_value(json_object_get(j, "lr_from"))};
    if (c->batch == 0) /* written at an epoch's end, when its sum was not yet done with */
        c->loss_sum = (double)(c->loss_count = 0);
}

/* ---- Writing ---- */

static int write_tensors(struct trainer *t, const char *path, const struct optim_state *row, size_t rows,
                         const struct metadata_item *meta, size_t n_meta, struct err *err)
{
    struct tensor_spec *spec = mem_zero(rows + 1, sizeof *spec, "the state", err);
    struct tensor_writer *w = NULL;
    struct arena names = {0};
    int rc = spec ? 0 : -1;

    if (rc == 0)
        spec[0] = (struct tensor_spec){"factors", DT_F32, {1, {t->net->size}}};
    for (size_t i = 0; rc == 0 && i < rows; i++) {
        spec[i + 1] = (struct tensor_spec){arena_printf(&names, err, "optimizer/%s", row[i].name), row[i].dtype, {1, {row[i].count}}};
        rc = spec[i + 1].name ? 0 : -1;
    }
    if (rc == 0)
        rc = tensor_writer_open(&w, path, &format_safetensors, spec, rows + 1, meta, n_meta, err);
    if (rc == 0)
        rc = tensor_writer_put(w, 0, t->net->params, err);
    for (size_t i = 0; rc == 0 && i < rows; i++)
        rc = tensor_writer_put(w, i + 1, row[i].data, err);
    if (rc == 0)
        rc = tensor_writer_commit(w, err);
    else
        tensor_writer_abort(w);
    free(spec);
    arena_free(&names);
    return rc;
}

int train_state_write(struct trainer *t, const char *name, struct err *err)
{
    const struct optim_state *row;
    size_t rows = optim_state(t->optim, &row);
    json_t *counters = counters_to_json(t), *options = option_to_json(t->run->values, err);
    char *a = counters ? json_dumps(counters, JSON_COMPACT) : NULL, *b = options ? json_dumps(options, JSON_COMPACT) : NULL;
    struct arena arena = {0};
    char data[SHA256_TEXT], *path = arena_printf(&arena, err, "%s/%s.state", t->o->output_dir, name);
    int rc = -1;

    dataset_fingerprint(t->data, data);
    if (a && b && path && optim_fetch(t->optim, true, err) == 0) {
        const char *logs = logs_folder(t->logs);
        struct metadata_item meta[] = {{"counters", a}, {"data", data}, {"format", STATE_FORMAT}, {"logs", logs ? logs : ""},
                                       {"optimizer", optim_name(t->optim)}, {"options", b}};

        rc = write_tensors(t, path, row, rows, meta, sizeof meta / sizeof *meta, err);
    } else if (options && err->kind == ERR_NONE) {
        err_memory(err, 4096, "the state");
    }
    if (rc)
        err_prefix(err, "the state was not written: ");
    free(a);
    free(b);
    json_decref(counters);
    json_decref(options);
    arena_free(&arena);
    return rc;
}

/* ---- Reading ---- */

/* The newest state file of a folder, or the path itself. */
static char *find_state(const char *path, struct err *err)
{
    struct stat st;
    struct dirent *e;
    char *best = NULL;
    struct timespec newest = {0};
    DIR *d;

    if (stat(path, &st) || !S_ISDIR(st.st_mode))
        return mem_str(path, err);
    d = opendir(path);
    while (d && (e = readdir(d)) != NULL) {
        size_t n = strlen(e->d_name), size = strlen(path) + n + 2;
        char *full = n > 6 && strcmp(e->d_name + n - 6, ".state") == 0 ? malloc(size) : NULL;

        if (!full)
            continue;
        snprintf(full, size, "%s/%s", path, e->d_name);
        if (stat(full, &st) == 0 && (st.st_mtim.tv_sec > newest.tv_sec ||
                                     (st.st_mtim.tv_sec == newest.tv_sec && st.st_mtim.tv_nsec > newest.tv_nsec))) {
            newest = st.st_mtim;
            free(best);
            best = full;
        } else {
            free(full);
        }
    }
    if (d)
        closedir(d);
    if (!best)
        err_set(err, "cannot go on from '%s': no file in it ends in .state; give one, or start without --resume", path);
    return best;
}

static int open_state(const char *path, struct tensor_file **f, json_t **counters, json_t **options, struct err *err)
{
    char *file = find_state(path, err);
    const char *format, *a, *b;
    int rc;

    *f = NULL;
    *counters = *options = NULL;
    if (!file)
        return -1;
    rc = tensor_file_open(f, file, err);
    format = rc == 0 ? tensor_file_metadata(*f, "format") : NULL;
    a = rc == 0 ? tensor_file_metadata(*f, "counters") : NULL;
    b = rc == 0 ? tensor_file_metadata(*f, "options") : NULL;
    if (rc == 0 && (!format || strcmp(format, STATE_FORMAT) != 0 || !a || !b || !(*counters = json_loads(a, 0, NULL)) ||
                    !(*options = json_loads(b, 0, NULL))))
        rc = err_set(err, "cannot go on from '%s': it is no training state; give a file that --save_state wrote (a LoRA goes to "
                          "--network_weights)", file);
    free(file);
    return rc;
}

static void close_state(struct tensor_file *f, json_t *counters, json_t *options)
{
    tensor_file_close(f);
    json_decref(counters);
    json_decref(options);
}

int train_state_seed(const char *path, uint64_t *seed, struct err *err)
{
    struct tensor_file *f;
    json_t *counters, *options;
    int rc = open_state(path, &f, &counters, &options, err);

    if (rc == 0)
        *seed = (uint64_t)whole(counters, "seed");
    close_state(f, counters, options);
    return rc;
}

char *train_state_logs(const char *path)
{
    struct tensor_file *f;
    json_t *counters, *options;
    struct err err = {0};
    const char *logs = open_state(path, &f, &counters, &options, &err) == 0 ? tensor_file_metadata(f, "logs") : NULL;
    char *copy = logs && *logs ? mem_str(logs, &err) : NULL;

    close_state(f, counters, options);
    return copy;
}

/* Options that change what is written or told, and not what is learned. */
static bool is_free(const char *key, bool constant)
{
    static const char *const list[] = {
        "output_dir", "output_name", "save_", "resume", "logging_dir", "log_prefix", "sample_", "validate_", "max_validation_steps",
        "initial_", "skip_until_initial_step", "no_metadata", "training_comment", "max_skipped_steps", "cache_latents_to_disk", "seed"};

    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (strncmp(key, list[i], strlen(list[i])) == 0)
            return true;
    return constant && strncmp(key, "max_train_", 10) == 0; /* a longer run at a constant rate is the same run */
}

/* Whether both runs were told to begin at the same place: then the state's run has done so, and goes on. */
static bool same_start(json_t *then, json_t *now)
{
    static const char *const keys[] = {"initial_epoch", "initial_step", "skip_until_initial_step"};

    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        json_t *x = json_object_get(then, keys[i]), *y = json_object_get(now, keys[i]);

        if (x != y && (!x || !y || !json_equal(x, y)))
            return false;
    }
    return true;
}

/* Whether the state was written by a program that did not know this option yet, which is not given now either: its default is what
 * that program did. */
static bool is_new(const struct trainer *t, const json_t *then, const char *key)
{
    size_t i = option_find(t->run->values, key);

    return !json_object_get(then, key) && i != SIZE_MAX && t->run->values->source[i] == OPTION_FROM_DEFAULT;
}

static int print_value(const json_t *v, char *out, size_t size)
{
    char *text = v ? json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;

    snprintf(out, size, "%.40s", text ? text : "not given");
    free(text);
    return 0;
}

/* -1 with what differs, unless --resume_changed. */
static int compare_options(struct trainer *t, json_t *then, const char *path, struct err *err)
{
    json_t *now = option_to_json(t->run->values, err), *both = now ? json_copy(now) : NULL, *v;
    bool constant = strncmp(t->o->lr_scheduler, "constant", 8) == 0;
    char list[1024] = "", a[64], b[64];
    size_t used = 0, count = 0;
    const char *key;

    if (!both)
        return now ? err_memory(err, 4096, "options") : -1;
    t->resumed_same_start = same_start(then, now);
    json_object_update_missing(both, then);
    json_object_foreach(both, key, v)
    {
        json_t *x = json_object_get(then, key), *y = json_object_get(now, key);

        if (is_free(key, constant) || (x && y && json_equal(x, y)) || is_new(t, then, key))
            continue;
        print_value(x, a, sizeof a);
        print_value(y, b, sizeof b);
        count++;
        if (used < sizeof list - 200)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s--%s %s then, %s now", used ? ", " : "", key, a, b);
    }
    json_decref(now);
    json_decref(both);
    if (count && t->o->resume_changed)
        command_note(t->run, "going on with other options: %s", list);
    else if (count)
        return err_set(err, "cannot go on from '%s': %s; give the same options, or --resume_changed to go on all the same", path, list);
    return 0;
}

static int read_array(const struct tensor_file *f, const char *name, enum dtype dtype, size_t count, void *to, struct err *err)
{
    const struct tensor_entry *e = tensor_file_find(f, name);

    if (!e || e->dtype != dtype || e->shape.ndim != 1 || e->shape.dim[0] != count)
        return err_set(err, "cannot go on from '%s': '%s' is not of this LoRA and optimizer; give the same --network_dim, "
                            "--network_args and --optimizer_type", f->path, name);
    return tensor_file_read(f, e, to, err);
}

static int read_arrays(struct trainer *t, const struct tensor_file *f, struct err *err)
{
    const struct optim_state *row;
    size_t rows = optim_state(t->optim, &row);
    char name[64];

    if (read_array(f, "factors", DT_F32, t->net->size, t->net->params, err))
        return -1;
    for (size_t i = 0; i < rows; i++) {
        snprintf(name, sizeof name, "optimizer/%s", row[i].name);
        if (read_array(f, name, row[i].dtype, row[i].count, row[i].data, err))
            return -1;
    }
    return 0;
}

/* States of older programs do not say which data they had. */
static int compare_data(const struct trainer *t, const struct tensor_file *f, struct err *err)
{
    const char *then = tensor_file_metadata(f, "data");
    char now[SHA256_TEXT];

    dataset_fingerprint(t->data, now);
    if (!then || strcmp(then, now) == 0)
        return 0;
    if (!t->o->resume_changed)
        return err_set(err, "cannot go on from '%s': pictures or captions are not those of then; give the same, or --resume_changed to "
                            "go on all the same", f->path);
    command_note(t->run, "going on with other pictures or captions");
    return 0;
}

int train_state_read(struct trainer *t, struct err *err)
{
    struct tensor_file *f;
    json_t *counters, *options;
    int rc = open_state(t->o->resume, &f, &counters, &options, err);

    if (rc == 0)
        rc = compare_options(t, options, f->path, err);
    if (rc == 0 && t->seed != whole(counters, "seed") && !t->o->resume_changed)
        rc = err_set(err, "cannot go on from '%s': --seed %zu then, %llu now; leave --seed out, or give --resume_changed", f->path,
                     whole(counters, "seed"), (unsigned long long)t->seed);
    if (rc == 0 && whole(counters, "batches") != t->batches)
        rc = err_set(err, "cannot go on from '%s': an epoch had %zu batches then, it has %zu now; give the same pictures", f->path,
                     whole(counters, "batches"), t->batches);
    if (rc == 0)
        rc = compare_data(t, f, err);
    if (rc == 0)
        rc = read_arrays(t, f, err);
    if (rc == 0) {
        counters_from_json(&t->now, counters);
        command_note(t->run, "going on from '%s' at step %zu of %zu", f->path, t->now.step, t->steps);
        if (t->now.step > t->steps) /* at the last step: what remains is to write the LoRA */
            rc = err_set(err, "'%s' is at step %zu already; raise --max_train_steps", f->path, t->now.step);
    }
    close_state(f, counters, options);
    return rc;
}
