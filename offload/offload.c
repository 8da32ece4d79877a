#include "offload/offload.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ref/base/thread.h"

/* "dnnl:bf16" in its two parts. A name is letters and digits: it becomes a file's name. */
static int parse(const char *device, char name[32], enum dtype *arithmetic, struct err *err)
{
    size_t n = strspn(device, "abcdefghijklmnopqrstuvwxyz0123456789");

    *arithmetic = DT_COUNT;
    if (n == 0 || n >= 32 || (device[n] != '\0' && device[n] != ':'))
        return err_usage(err, "'%s' is no device; use cpu, or the name of a plug-in such as dnnl or dnnl:f32", device);
    memcpy(name, device, n);
    name[n] = '\0';
    if (device[n] == ':' && (!dtype_parse(device + n + 1, arithmetic) || (*arithmetic != DT_F32 && *arithmetic != DT_BF16)))
        return err_usage(err, "'%s': arithmetic is f32 or bf16, as in %s:f32", device, name);
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

/* Opens lora-NAME.so from the first folder that has it. */
static int open_library(struct offload *o, const char *name, const char *folder, struct err *err)
{
    static const char *const places[] = {"plugins", "../lib/lora"};
    char base[PATH_MAX], path[PATH_MAX + 80];

    program_folder(base);
    for (size_t i = 0; i < (folder ? 1 : sizeof places / sizeof *places); i++) {
        if (folder)
            snprintf(path, sizeof path, "%s/lora-%s.so", folder, name);
        else
            snprintf(path, sizeof path, "%s/%s/lora-%s.so", base, places[i], name);
        if (access(path, R_OK) != 0)
            continue;
        o->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (o->library)
            return 0;
        return err_set(err, "cannot open device '%s': %s; install what it needs, or use --device cpu", name, dlerror());
    }
    return err_set(err, "there is no device '%s': no lora-%s.so in '%s'; build or install that plug-in, or use --device cpu",
                   name, name, folder ? folder : "plugins' beside the program or '../lib/lora");
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

static int open_plugin(struct offload *o, const char *name, const char *folder, enum dtype arithmetic, struct err *err)
{
    struct offload_options options = {arithmetic, thread_count()};
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
    if (check(p, name, err) < 0 || p->open(&o->ref, &options, &o->ops, &o->info, err) < 0)
        return -1;
    o->plugin = p;
    return 0;
}

int offload_open(struct offload *o, const char *device, const char *folder, struct err *err)
{
    enum dtype arithmetic;
    char name[32];

    *o = (struct offload){.info = {"this program's own code", DT_F32, true}};
    ops_ref(&o->ref);
    o->ops = o->ref;
    if (parse(device, name, &arithmetic, err) < 0)
        return -1;
    if (strcmp(name, "cpu") == 0)
        return arithmetic == DT_BF16 ? err_usage(err, "device cpu computes in f32; for bf16 use dnnl:bf16") : 0;
    if (open_plugin(o, name, folder, arithmetic, err) == 0)
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
