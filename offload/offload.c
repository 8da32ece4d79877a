#include "offload/offload.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ref/base/thread.h"
#include "ref/op/kernel_bf16.h"

/* One part behind a name. */
static int parse_part(const char *device, const char *part, struct offload_options *o, struct err *err)
{
    char *end;
    long index = strtol(part, &end, 10);

    o->tf32 |= strcmp(part, "tf32") == 0;
    if (strcmp(part, "tf32") == 0)
        o->arithmetic = DT_F32;
    else if (strcmp(part, "int8") == 0)
        o->base = OFFLOAD_BASE_INT8;
    else if (strcmp(part, "nf4") == 0)
        o->base = OFFLOAD_BASE_NF4;
    else if (*part >= '0' && *part <= '9' && *end == '\0' && index < 1024)
        o->index = (int)index;
    else if (!dtype_parse(part, &o->arithmetic) || o->arithmetic == DT_F64)
        return err_usage(err, "'%s': '%s' is no arithmetic (f32, tf32, bf16, fp16), no form of weights (int8, nf4) and no number "
                              "of a device; an example is cuda:bf16:1", device, part);
    return 0;
}

/* "cuda:bf16:1" in its parts. A name is letters and digits: it becomes a file's name. */
static int parse(const char *device, char name[32], struct offload_options *o, struct err *err)
{
    size_t n = strspn(device, "abcdefghijklmnopqrstuvwxyz0123456789");
    char copy[64], *part, *rest = copy;

    *o = (struct offload_options){.arithmetic = DT_COUNT, .index = -1, .threads = thread_count()};
    if (n == 0 || n >= 32 || (device[n] != '\0' && device[n] != ':') || strlen(device) >= sizeof copy)
        return err_usage(err, "'%s' is no device; use auto, cpu, or the name of a plug-in such as cuda, dnnl or dnnl:f32", device);
    strcpy(copy, device);
    strcpy(name, strsep(&rest, ":"));
    while ((part = strsep(&rest, ":")) != NULL)
        if (parse_part(device, part, o, err) < 0)
            return -1;
    return 0;
}

/* The folder of the program itself; "." where the system does not tell. */
static void program_folder(char path[PATH_MAX])
{
    ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - 1);
    char *slash;

    path[n > 0 ? n : 0] = '\0';
    slash = strrchr(path, '/');
    if (slash)
        *slash = '\0';
    else
        strcpy(path, ".");
}

/* The file of a plug-in, in the first folder that has it; false: in none. */
static bool locate(const char *name, const char *folder, char path[PATH_MAX + 80])
{
    static const char *const places[] = {"plugins", "../lib/lora"};
    char base[PATH_MAX];

    program_folder(base);
    for (size_t i = 0; i < (folder ? 1 : sizeof places / sizeof *places); i++) {
        if (folder)
            snprintf(path, PATH_MAX + 80, "%s/lora-%s.so", folder, name);
        else
            snprintf(path, PATH_MAX + 80, "%s/%s/lora-%s.so", base, places[i], name);
        if (access(path, R_OK) == 0)
            return true;
    }
    return false;
}

bool offload_has(const char *name, const char *folder)
{
    char path[PATH_MAX + 80];

    return locate(name, folder, path);
}

static int open_library(struct offload *o, const char *name, const char *folder, struct err *err)
{
    char path[PATH_MAX + 80];

    if (!locate(name, folder, path))
        return err_set(err, "there is no device '%s': no lora-%s.so in '%s'; build or install that plug-in, or use --device cpu",
                       name, name, folder ? folder : "plugins' beside the program or '../lib/lora");
    /* It stays loaded: what a vendor's library has begun or allocated outlives dlclose(). */
    o->library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (o->library)
        return 0;
    return err_set(err, "cannot open device '%s': %s; install what it needs, or use --device cpu", name, dlerror());
}

static int check(const struct offload_plugin *p, const char *name, struct err *err)
{
    if (p->version != OFFLOAD_VERSION)
        return err_set(err, "device '%s' was built for plug-in contract %u, this program has %d; build both from one source",
                       name, p->version, OFFLOAD_VERSION);
    if (p->layout != OFFLOAD_LAYOUT)
        return err_set(err, "device '%s' was built from another version of this program; build both from one source", name);
    return 0;
}

static int open_plugin(struct offload *o, const char *name, const char *folder, const struct offload_options *options,
                       struct err *err)
{
    const struct offload_plugin *p;
    offload_plugin_fn *get;
    void *symbol;

    if (open_library(o, name, folder, err) < 0)
        return -1;
    symbol = dlsym(o->library, OFFLOAD_SYMBOL);
    if (!symbol)
        return err_set(err, "device '%s': the file is no plug-in of this program; build it again", name);
    memcpy(&get, &symbol, sizeof get); /* ISO C has no cast from an object to a function */
    p = get();
    if (check(p, name, err) < 0 || p->open(&o->ref, options, &o->ops, &o->info, err) < 0)
        return -1;
    o->plugin = p;
    return 0;
}

static void open_cpu(struct offload *o)
{
    *o = (struct offload){.info = {.text = "this program's own code", .arithmetic = DT_F32, .same_bytes = true}};
    ops_ref(&o->ref);
    o->ops = o->ref;
}

/* The program's own code, in f32 or, where the processor can, with factors of products in bf16. */
static int choose_cpu(struct offload *o, enum dtype arithmetic, struct err *err)
{
    if (arithmetic == DT_COUNT || arithmetic == DT_F32)
        return 0;
    if (arithmetic != DT_BF16)
        return err_usage(err, "device cpu computes in f32 or bf16, not in %s", dtype_name(arithmetic));
    if (!kernel_has_bf16())
        return err_usage(err, "this processor has no bf16 arithmetic (AVX-512 BF16); use --device cpu");
    o->ops.arithmetic = o->info.arithmetic = DT_BF16;
    return 0;
}

/* As choose_cpu(), but what the processor cannot do is left out. */
static int prefer(struct offload *o, enum dtype arithmetic)
{
    if (arithmetic == DT_BF16 && kernel_has_bf16())
        o->ops.arithmetic = o->info.arithmetic = DT_BF16;
    return 0;
}

/* The best device that opens. A GPU that cannot be used is no error, but somebody who built the plug-in wants to know why. */
static int open_auto(struct offload *o, const char *folder, const struct offload_options *options, struct err *err)
{
    char note[sizeof o->note];
    const char *end;

    if (!locate("cuda", folder, (char[PATH_MAX + 80]){0}))
        return prefer(o, options->arithmetic);
    if (open_plugin(o, "cuda", folder, options, err) == 0)
        return 0;
    end = strrchr(err->msg, ';'); /* its advice is for those who asked for the GPU */
    snprintf(note, sizeof note, "computing on the processor: %.*s", end ? (int)(end - err->msg) : 440, err->msg);
    offload_close(o);
    open_cpu(o);
    memcpy(o->note, note, sizeof note);
    *err = (struct err){0};
    return prefer(o, options->arithmetic);
}

int offload_open(struct offload *o, const char *device, const char *folder, struct err *err)
{
    struct offload_options options;
    char name[32];

    open_cpu(o);
    if (parse(device, name, &options, err) < 0)
        return -1;
    if (strcmp(name, "auto") == 0)
        return open_auto(o, folder, &options, err);
    if (strcmp(name, "cpu") == 0 && choose_cpu(o, options.arithmetic, err) < 0)
        return -1;
    if (strcmp(name, "cpu") == 0 || open_plugin(o, name, folder, &options, err) == 0)
        return 0;
    offload_close(o);
    return -1;
}

void offload_close(struct offload *o)
{
    if (o->plugin)
        o->plugin->close();
    if (o->library)
        dlclose(o->library);
    *o = (struct offload){0};
}
