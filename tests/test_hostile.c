/* Models whose names and shapes are wrong: every one an error with a message, or a graph; never a crash. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <string.h>

#include "cmd/verify/golden_model.h"
#include "ref/model/clip.h"
#include "ref/model/unet.h"
#include "tests/lib/golden.h"

static json_t *models;

/* Each tensor of the model in turn missing, or of another size: an error that names something, or a graph; never a crash. */
static json_t *hostile_dims;
static const char *hostile_name;
static enum model_part hostile_part;

static int hostile_find(void *ctx, enum model_part part, const char *name, struct weight_info *out, struct err *err)
{
    int found = golden_model_find(ctx, part, name, out, err);
    size_t i;
    json_t *d;

    if (found != 1 || part != hostile_part || strcmp(name, hostile_name) != 0)
        return found;
    if (json_is_null(hostile_dims))
        return 0;
    out->shape.ndim = (int)json_array_size(hostile_dims);
    json_array_foreach(hostile_dims, i, d)
        out->shape.dim[i] = (size_t)json_integer_value(d);
    return 1;
}

/* Text encoder and U-Net in one graph, nothing read. */
static bool hostile_build(json_t *tensors)
{
    struct golden_model source = {"sd1", tensors, DT_F16};
    struct weight_source door = {"hostile model", &source, hostile_find, golden_model_read};
    struct err err = {0};
    struct layers l = {.part = MODEL_TEXT_ENCODER};
    struct clip clip;
    struct unet unet;
    bool built;

    assert_int_equal(weights_new(&l.w, &door, &err), 0);
    l.g = graph_new(&err);
    assert_non_null(l.g);
    built = clip_build(&l, NULL, 1, 5, &clip, &err) == 0;
    l.part = MODEL_UNET;
    built = built && unet_build(&l, NULL, 1, 5, 3, clip.out, 0, &unet, &err) == 0;
    if (!built && (err.kind != ERR_FAILED || strlen(err.msg) < 20))
        fail_msg("'%s': no message", hostile_name);
    graph_free(l.g);
    weights_free(l.w);
    return built;
}

static void test_hostile(void **state)
{
    static const char *const changes[] = {"null", "[]", "[0]", "[33]", "[64, 0]", "[7, 5]", "[64, 64, 3, 3]", "[64, 64, 0, 3]",
                                          "[9223372036854775807, 9223372036854775807]"};
    json_t *tensors = json_object_get(json_object_get(models, "sd1"), "tensors");
    size_t refused = 0, all = 0;

    (void)state;
    for (int part = MODEL_UNET; part <= MODEL_TEXT_ENCODER; part++) {
        json_t *names = json_object_get(tensors, golden_model_part(part)), *dims;
        const char *name;
        size_t turn = 0;

        json_object_foreach(names, name, dims) {
            hostile_part = (enum model_part)part;
            hostile_name = name;
            hostile_dims = json_loads(changes[turn++ % (sizeof changes / sizeof changes[0])], JSON_DECODE_ANY, NULL);
            refused += !hostile_build(tensors);
            all++;
            json_decref(hostile_dims);
        }
    }
    assert_true(refused > all * 3 / 4); /* a missing bias is a layer without one, a missing transformer another model */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostile),
    };
    struct tensor_file *f = golden_open("models.safetensors");
    int failed;

    models = json_loads(tensor_file_metadata(f, "models"), 0, NULL);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(models);
    tensor_file_close(f);
    return failed;
}
