/* lora devices: what this machine can compute with. */
#include <cblas.h>
#include <stdio.h>
#include <string.h>

#include "cmd/command.h"
#include "offload/offload.h"
#include "ref/base/thread.h"
#include "ref/op/kernel_bf16.h"

enum { MOST = 16 }; /* devices of one kind that are listed */

struct devices_options {
    bool ops;
};

static const struct option_row rows[] = {
    {OPTION(struct devices_options, ops), .help = "list the operations that each device has of its own"},
    {0},
};

/* "AVX2, AVX-512, bf16" */
static void describe_processor(char *text, size_t size)
{
    bool avx2 = __builtin_cpu_supports("avx2"), avx512 = __builtin_cpu_supports("avx512f");

    snprintf(text, size, "%s%s%s", avx512 ? "AVX-512" : avx2 ? "AVX2" : "no AVX2", kernel_has_bf16() ? ", bf16 arithmetic" : "",
             avx2 ? "" : " (slow)");
}

/* Names of the slots that are not the program's own: "linear", "conv2d (backward only)". */
static json_t *list_ops(const struct ops *ops)
{
    json_t *list = json_array();

    for (int i = 0; list && i < OP_COUNT; i++) {
        bool forward = !ops_is_ref(ops, (enum op_id)i, false);
        bool backward = op_table[i]->backward && !ops_is_ref(ops, (enum op_id)i, true);
        const char *half = !op_table[i]->backward || (forward && backward) ? "" : forward ? " (forward only)" : " (backward only)";

        if (forward || backward)
            json_array_append_new(list, json_sprintf("%s%s", op_table[i]->name, half));
    }
    return list;
}

static json_t *device_row(const char *name, const struct offload *o)
{
    json_t *row = json_pack("{s:s, s:s, s:s, s:b, s:o}", "name", name, "text", o->info.text, "arithmetic",
                            o->info.tf32 ? "tf32" : dtype_name(o->info.arithmetic), "same_bytes", o->info.same_bytes, "ops",
                            list_ops(&o->ops));

    if (row && o->info.memory)
        json_object_update_new(row, json_pack("{s:I, s:I}", "memory", (json_int_t)o->info.memory, "free", (json_int_t)o->info.free));
    return row;
}

static json_t *error_row(const char *name, const struct err *err)
{
    return json_pack("{s:s, s:s}", "name", name, "error", err->msg);
}

/* Appends a row for every device of a kind; one with the reason where none opens. */
static void probe(json_t *list, const char *kind, bool several)
{
    for (int i = 0; i < (several ? MOST : 1); i++) {
        struct err err = {0};
        struct offload o;
        char name[40];

        snprintf(name, sizeof name, several ? "%s:%d" : "%s", kind, i);
        if (offload_open(&o, name, NULL, &err) == 0) {
            json_array_append_new(list, device_row(name, &o));
            offload_close(&o);
            continue;
        }
        if (i == 0)
            json_array_append_new(list, error_row(kind, &err));
        return;
    }
}

static void print_device(const json_t *row, bool ops)
{
    const char *error = json_string_value(json_object_get(row, "error")), *name = json_string_value(json_object_get(row, "name"));
    const json_t *memory = json_object_get(row, "memory"), *op;
    char total[32], rest[32];
    size_t i;

    if (error) {
        printf("%-8s not usable: %s\n", name, error);
        return;
    }
    printf("%-8s %s; computes in %s\n", name, json_string_value(json_object_get(row, "text")),
           json_string_value(json_object_get(row, "arithmetic")));
    if (memory)
        printf("         %s of memory, %s free\n",
               command_bytes((unsigned long long)json_integer_value(memory), total, sizeof total),
               command_bytes((unsigned long long)json_integer_value(json_object_get(row, "free")), rest, sizeof rest));
    if (!ops)
        return;
    printf("         operations of its own:");
    json_array_foreach(json_object_get(row, "ops"), i, op)
        printf("%s %s", i ? "," : "", json_string_value(op));
    puts(json_array_size(json_object_get(row, "ops")) ? "" : " none");
}

static int run_devices(const struct command_run *run, void *options, struct err *err)
{
    const struct devices_options *o = options;
    char processor[80];
    json_t *list = json_array(), *row;
    size_t i;

    if (!list)
        return err_memory(err, 0, "the list");
    probe(list, "cpu", false);
    if (offload_has("dnnl", NULL))
        probe(list, "dnnl", false);
    if (offload_has("cuda", NULL))
        probe(list, "cuda", true);
    describe_processor(processor, sizeof processor);
    if (run->json)
        return command_print_json(json_pack("{s:s, s:i, s:s, s:o}", "processor", processor, "threads", thread_count(), "blas",
                                            openblas_get_config(), "devices", list), err);
    printf("processor: %s; %d threads; %s\n", processor, thread_count(), openblas_get_config());
    json_array_foreach(list, i, row)
        print_device(row, o->ops);
    if (!offload_has("cuda", NULL))
        puts("no plug-in for NVIDIA GPUs: build with CUDA (nvcc and cuBLASLt) to have one");
    json_decref(list);
    return 0;
}

static const struct command_example examples[] = {
    {"what can this machine compute with?", "lora devices"},
    {"which operations run on the GPU itself?", "lora devices --ops"},
    {0},
};

const struct command command_devices = {
    .name = "devices",
    .summary = "list what this machine can compute with",
    .description = "Shows the processor, its threads and BLAS library, and every device that --device takes: what it is, how much "
                   "memory it has, and the arithmetic it uses unless told otherwise. A plug-in that is there but cannot be used "
                   "says why.\n\n"
                   "A device's name takes more behind colons: arithmetic (f32, tf32, bf16, fp16), the form of frozen weights "
                   "(int8, nf4), and a number: cuda:bf16:1. 'auto' is the GPU where there is one, else the processor.",
    .options = rows,
    .options_size = sizeof(struct devices_options),
    .examples = examples,
    .run = run_devices,
};
