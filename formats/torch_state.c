#include "formats/torch_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_DEPTH = 64,
    MAX_NAME = 1000,
    MAX_NAMES = 64 << 20, /* bytes of all names together: one long key may stand above many tensors */
};

#define NO_NAME SIZE_MAX

#define STORAGE(name, what)                                                                                                    \
    {"torch." name, PICKLE_NEVER, (what)},                                                                                     \
    {                                                                                                                          \
        "torch.cuda." name, PICKLE_NEVER, (what)                                                                               \
    }
#define DTYPE(name, dt)                                                                                                        \
    {                                                                                                                          \
        "torch." name, PICKLE_NEVER, TORCH_DTYPE | (dt)                                                                        \
    }
#define INERT(name)                                                                                                            \
    {                                                                                                                          \
        name, PICKLE_OBJECT, TORCH_INERT                                                                                       \
    }
#define BUILTIN(name) INERT("builtins." name), INERT("__builtin__." name)
#define DICT(name)                                                                                                             \
    {                                                                                                                          \
        name, PICKLE_MAKES_DICT, TORCH_INERT                                                                                   \
    }

/* Who may be "called". The inert ones hold settings and counters beside the tensors; a call leaves a name behind. */
const struct pickle_global torch_globals[] = {
    {"torch._utils._rebuild_tensor_v2", PICKLE_VALUE, TORCH_REBUILD},
    {"torch._utils._rebuild_tensor", PICKLE_VALUE, TORCH_REBUILD},
    {"torch._utils._rebuild_tensor_v3", PICKLE_VALUE, TORCH_REBUILD_V3},
    {"torch._utils._rebuild_parameter", PICKLE_VALUE, TORCH_WRAPPER},
    {"torch._utils._rebuild_parameter_with_state", PICKLE_VALUE, TORCH_WRAPPER},
    {"torch.nn.parameter.Parameter", PICKLE_VALUE, TORCH_WRAPPER},
    {"torch._tensor._rebuild_from_type_v2", PICKLE_VALUE, TORCH_TYPED},
    {"torch.Size", PICKLE_VALUE, TORCH_SIZE},
    STORAGE("FloatStorage", TORCH_STORAGE | DT_F32),
    STORAGE("HalfStorage", TORCH_STORAGE | DT_F16),
    STORAGE("BFloat16Storage", TORCH_STORAGE | DT_BF16),
    STORAGE("DoubleStorage", TORCH_STORAGE | DT_F64),
    STORAGE("LongStorage", TORCH_STORAGE | DT_I64),
    STORAGE("IntStorage", TORCH_STORAGE | DT_I32),
    STORAGE("ShortStorage", TORCH_STORAGE | DT_I16),
    STORAGE("CharStorage", TORCH_STORAGE | DT_I8),
    STORAGE("ByteStorage", TORCH_STORAGE | DT_U8),
    STORAGE("BoolStorage", TORCH_STORAGE | DT_BOOL),
    STORAGE("ComplexFloatStorage", TORCH_ODD | 8),
    STORAGE("ComplexDoubleStorage", TORCH_ODD | 16),
    STORAGE("QInt8Storage", TORCH_ODD | 1),
    STORAGE("QUInt8Storage", TORCH_ODD | 1),
    STORAGE("QInt32Storage", TORCH_ODD | 4),
    {"torch.storage.UntypedStorage", PICKLE_NEVER, TORCH_BYTES},
    DTYPE("float32", DT_F32),
    DTYPE("float16", DT_F16),
    DTYPE("bfloat16", DT_BF16),
    DTYPE("float64", DT_F64),
    DTYPE("float8_e4m3fn", DT_F8_E4M3),
    DTYPE("float8_e5m2", DT_F8_E5M2),
    DTYPE("int64", DT_I64),
    DTYPE("int32", DT_I32),
    DTYPE("int16", DT_I16),
    DTYPE("int8", DT_I8),
    DTYPE("uint64", DT_U64),
    DTYPE("uint32", DT_U32),
    DTYPE("uint16", DT_U16),
    DTYPE("uint8", DT_U8),
    DTYPE("bool", DT_BOOL),
    DICT("collections.OrderedDict"),
    DICT("collections.defaultdict"),
    DICT("collections.Counter"),
    DICT("builtins.dict"),
    DICT("__builtin__.dict"),
    DICT("pytorch_lightning.utilities.parsing.AttributeDict"),
    DICT("lightning_fabric.utilities.data.AttributeDict"),
    DICT("lightning.fabric.utilities.data.AttributeDict"),
    INERT("_codecs.encode"),
    BUILTIN("set"),
    BUILTIN("frozenset"),
    BUILTIN("bytearray"),
    BUILTIN("complex"),
    BUILTIN("slice"),
    BUILTIN("list"),
    INERT("torch.device"),
    INERT("torch.serialization._get_layout"),
    INERT("numpy.dtype"),
    INERT("numpy.ndarray"),
    INERT("numpy.core.multiarray.scalar"),
    INERT("numpy._core.multiarray.scalar"),
    INERT("numpy.core.multiarray._reconstruct"),
    INERT("numpy._core.multiarray._reconstruct"),
    INERT("pathlib.Path"),
    INERT("pathlib.PosixPath"),
    INERT("pathlib.PurePosixPath"),
    INERT("pathlib.WindowsPath"),
    INERT("pathlib.PureWindowsPath"),
    INERT("argparse.Namespace"),
    INERT("datetime.datetime"),
    INERT("datetime.date"),
    INERT("datetime.timezone"),
    INERT("datetime.timedelta"),
    INERT("omegaconf.dictconfig.DictConfig"),
    INERT("omegaconf.listconfig.ListConfig"),
    INERT("omegaconf.base.Metadata"),
    INERT("omegaconf.base.ContainerMetadata"),
    INERT("omegaconf.nodes.AnyNode"),
    INERT("omegaconf.nodes.IntegerNode"),
    INERT("omegaconf.nodes.FloatNode"),
    INERT("omegaconf.nodes.StringNode"),
    INERT("omegaconf.nodes.BooleanNode"),
    {0},
};

/* Where a state dict may stand, the more specific first. */
static const char *const wrappers[] = {"state_dict", "model_state_dict", "params_ema", "params",
                                       "model",      "module",           "net",        NULL};

/* What stands beside one and may hold tensors that are none of the model's. */
static const char *const extras[] = {"optimizer",
                                     "optimizers",
                                     "optimizer_states",
                                     "optimizer_state_dict",
                                     "lr_schedulers",
                                     "lr_scheduler",
                                     "scheduler",
                                     "scheduler_state_dict",
                                     "callbacks",
                                     "loops",
                                     "hyper_parameters",
                                     "rng_state",
                                     "random_states",
                                     "scaler",
                                     "amp",
                                     "amp_scaling_state",
                                     "native_amp_scaling_state",
                                     NULL};

static bool listed(const struct pickle_value *key, const char *const *names)
{
    for (; *names; names++)
        if (pickle_is(key, *names))
            return true;
    return false;
}

enum torch_what torch_what(const struct pickle_value *v)
{
    const struct pickle_global *row = v->kind == PICKLE_GLOBAL ? v->global.row : v->kind == PICKLE_CALL ? v->call.row : NULL;

    return row ? (enum torch_what)(row->what & TORCH_WHAT) : TORCH_INERT;
}

bool torch_tensor_args(const struct pickle_value *v, const struct pickle_global **row, const struct pickle_value **args)
{
    for (int wrapped = 0; v->kind == PICKLE_CALL && wrapped < 8; wrapped++) {
        const struct pickle_value *a = v->call.args;

        switch (torch_what(v)) {
        case TORCH_REBUILD:
        case TORCH_REBUILD_V3:
            *row = v->call.row;
            *args = a;
            return true;
        case TORCH_TYPED:
            if (a->seq.n < 3 || a->seq.item[2]->kind != PICKLE_TUPLE || a->seq.item[0]->kind != PICKLE_GLOBAL)
                return false;
            if (torch_what(a->seq.item[0]) == TORCH_REBUILD || torch_what(a->seq.item[0]) == TORCH_REBUILD_V3) {
                *row = a->seq.item[0]->global.row;
                *args = a->seq.item[2];
                return true;
            }
            if (torch_what(a->seq.item[0]) != TORCH_WRAPPER || a->seq.item[2]->seq.n == 0)
                return false;
            v = a->seq.item[2]->seq.item[0];
            break;
        case TORCH_WRAPPER:
            if (a->seq.n == 0)
                return false;
            v = a->seq.item[0];
            break;
        default:
            return false;
        }
    }
    return false;
}

static bool is_tensor(const struct pickle_value *v)
{
    const struct pickle_global *row;
    const struct pickle_value *args;

    return torch_tensor_args(v, &row, &args);
}

static bool is_container(const struct pickle_value *v)
{
    return v->kind == PICKLE_DICT || v->kind == PICKLE_LIST || v->kind == PICKLE_TUPLE;
}

/* ---- The walk: depth first over containers, with its own stack */

struct frame {
    const struct pickle_value *v;
    size_t next;   /* index into its items */
    size_t n_name; /* length of the name down to here, or NO_NAME */
};

struct walk {
    const char *path;
    size_t visits, max_visits; /* shared parts are visited again each time: bounded */
    char name[MAX_NAME + 1];
    struct frame frame[MAX_DEPTH];
    size_t depth;
    bool skip_extras; /* at the top */
};

static int cannot(const struct walk *w, const char *what, struct err *err)
{
    return err_set(err, "cannot read '%s': its pickle %s; the file is damaged or not a checkpoint, get it again", w->path,
                   what);
}

/* Makes the name of a part: the name of length n so far, a dot, part. Returns its length, or NO_NAME when none can be made:
 * that matters only if a tensor turns up below. */
static size_t add_name(struct walk *w, size_t n, const char *part, size_t n_part)
{
    size_t dot = n ? 1 : 0;

    if (n == NO_NAME || n_part > MAX_NAME || n + dot + n_part > MAX_NAME || n + n_part == 0 ||
        (n_part && memchr(part, 0, n_part)))
        return NO_NAME;
    if (n)
        w->name[n] = '.';
    if (n_part)
        memcpy(w->name + n + dot, part, n_part);
    w->name[n + dot + n_part] = 0;
    return n + dot + n_part;
}

/* Steps to the next value below the frame on top: *v, or NULL when the frame is done. *n gets the length of its name. */
static int next_value(struct walk *w, const struct pickle_value **v, size_t *n, struct err *err)
{
    struct frame *f = &w->frame[w->depth - 1];
    bool dict = f->v->kind == PICKLE_DICT;
    char number[24];

    while (f->next < f->v->seq.n) {
        size_t at = f->next;
        const struct pickle_value *key = dict ? f->v->seq.item[at] : NULL;

        *v = f->v->seq.item[dict ? at + 1 : at];
        f->next += dict ? 2 : 1;
        if (++w->visits > w->max_visits)
            return cannot(w, "has parts that hold themselves or are repeated too often", err);
        if (!is_container(*v) && !is_tensor(*v))
            continue;
        if (dict && (key->kind != PICKLE_STR || (w->skip_extras && w->depth == 1 && is_container(*v) && listed(key, extras))))
            continue;
        snprintf(number, sizeof number, "%zu", at);
        *n = add_name(w, f->n_name, dict ? key->text.s : number, dict ? key->text.n : strlen(number));
        if (*n == NO_NAME && is_tensor(*v))
            return cannot(w, "has a tensor without a name, or with one that is too long or has a zero byte", err);
        return 0;
    }
    *v = NULL;
    return 0;
}

/* Calls for every tensor below root; seen returns 1 to stop. Returns 0, 1 when stopped, or -1. */
static int walk_tensors(struct walk *w, const struct pickle_value *root,
                        int (*seen)(void *ctx, const char *name, const struct pickle_value *v, struct err *err), void *ctx,
                        struct err *err)
{
    w->depth = 1;
    w->frame[0] = (struct frame){.v = root};
    while (w->depth > 0) {
        const struct pickle_value *v;
        size_t n = 0;
        int status = next_value(w, &v, &n, err);

        if (status != 0)
            return status;
        if (!v) {
            w->depth--;
        } else if (!is_container(v)) {
            status = seen(ctx, w->name, v, err);
            if (status != 0)
                return status;
        } else if (w->depth == MAX_DEPTH) {
            return cannot(w, "nests its state dict deeper than 64 levels", err);
        } else {
            w->frame[w->depth++] = (struct frame){.v = v, .n_name = n};
        }
    }
    return 0;
}

static int stop_at_first(void *ctx, const char *name, const struct pickle_value *v, struct err *err)
{
    (void)ctx, (void)name, (void)v, (void)err;
    return 1;
}

/* 1 when there is a tensor below v, 0 when not, -1 after an error. */
static int holds_tensors(struct walk *w, const struct pickle_value *v, struct err *err)
{
    return is_tensor(v) ? 1 : is_container(v) ? walk_tensors(w, v, stop_at_first, NULL, err) : 0;
}

/* ---- Finding the state dict */

/* True when nothing of dict but wrappers and extras may hold tensors: then "model" is the model and not a part of it. */
static int only_wrapped(struct walk *w, const struct pickle_value *dict, struct err *err)
{
    for (size_t i = 0; i + 1 < dict->seq.n; i += 2) {
        const struct pickle_value *key = dict->seq.item[i], *v = dict->seq.item[i + 1];
        int holds;

        if (key->kind != PICKLE_STR || listed(key, wrappers) || listed(key, extras))
            continue;
        holds = holds_tensors(w, v, err);
        if (holds != 0)
            return holds < 0 ? -1 : 0;
    }
    return 1;
}

static bool has_direct_tensor(const struct pickle_value *v)
{
    for (size_t i = v->kind == PICKLE_DICT ? 1 : 0; i < v->seq.n; i += v->kind == PICKLE_DICT ? 2 : 1)
        if (is_tensor(v->seq.item[i]))
            return true;
    return false;
}

/* *inner = the state dict within root, or root itself; *key its wrapper's name or NULL. */
static int unwrap(struct walk *w, const struct pickle_value *root, const struct pickle_value **inner, const char **key,
                  struct err *err)
{
    *inner = root;
    *key = NULL;
    if (root->kind != PICKLE_DICT || has_direct_tensor(root))
        return 0;
    for (size_t i = 0; wrappers[i]; i++) {
        const struct pickle_value *v = pickle_get(root, wrappers[i]);
        int holds = v && is_container(v) ? holds_tensors(w, v, err) : 0;
        int sure = holds <= 0 ? holds : i == 0 ? 1 : only_wrapped(w, root, err);

        if (sure < 0)
            return -1;
        if (sure > 0) {
            *inner = v;
            *key = wrappers[i];
            return 0;
        }
    }
    return 0;
}

struct collect {
    struct torch_state *s;
    struct walk *w;
    struct arena *arena;
    size_t cap, bytes;
};

static int collect(void *ctx, const char *name, const struct pickle_value *v, struct err *err)
{
    struct collect *c = ctx;
    struct torch_named *t;

    c->bytes += strlen(name) + 1;
    if (c->bytes > MAX_NAMES)
        return cannot(c->w, "has names of more than 64 MiB", err);
    if (mem_grow(&c->s->tensor, &c->cap, c->s->count, sizeof *c->s->tensor, "a list of tensors", err) != 0)
        return -1;
    t = &c->s->tensor[c->s->count];
    t->name = arena_str(c->arena, name, err);
    if (!t->name || !torch_tensor_args(v, &t->row, &t->args))
        return -1;
    c->s->count++;
    return 0;
}

int torch_state_find(struct torch_state *s, const struct pickle *p, const char *path, struct arena *arena, struct err *err)
{
    struct walk *w = mem_zero(1, sizeof *w, "reading a state dict", err);
    struct collect c = {.s = s, .w = w, .arena = arena};
    const struct pickle_value *inner;
    const char *key;
    int status = -1;

    *s = (struct torch_state){.root = p->root};
    if (!w)
        return -1;
    w->path = path;
    w->max_visits = 8 * p->n_values + 64; /* the search for the wrapper looks at each part a few times */
    if (is_tensor(p->root)) {
        w->name[0] = '0'; /* a bare tensor: the list of one */
        status = collect(&c, w->name, p->root, err);
        goto out;
    }
    if (unwrap(w, p->root, &inner, &key, err) != 0)
        goto out;
    if (key && !(s->root_key = arena_str(arena, key, err)))
        goto out;
    w->skip_extras = key == NULL;
    if (is_container(inner) && walk_tensors(w, inner, collect, &c, err) != 0)
        goto out;
    if (s->count == 0) {
        err_set(err, "cannot read '%s': it holds no tensors; give a checkpoint or a LoRA", path);
        goto out;
    }
    status = 0;
out:
    free(w);
    return status;
}

void torch_state_free(struct torch_state *s)
{
    free(s->tensor);
    *s = (struct torch_state){0};
}
