/* lora info's numbers against golden/convert/. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <string.h>

#include "cmd/info.h"
#include "ref/lora/target.h"

static void norms_of_a_lora(void **state)
{
    json_t *golden = json_load_file("golden/convert/lora_norms.json", 0, NULL), *norms, *module;
    struct info_subject s;
    struct err err = {0};
    double total = 0;
    size_t i;

    (void)state;
    assert_non_null(golden);
    assert_int_equal(info_open(&s, "golden/convert/lora.safetensors", &err), 0);
    norms = info_norms(&s, &err);
    if (!norms)
        fail_msg("%s", err.msg);
    assert_int_equal(json_array_size(json_object_get(norms, "largest")), json_object_size(golden));
    json_array_foreach(json_object_get(norms, "largest"), i, module)
    {
        enum model_part part =
            strcmp(json_string_value(json_object_get(module, "part")), "U-Net") == 0 ? MODEL_UNET : MODEL_TEXT_ENCODER;
        double got = json_real_value(json_object_get(module, "norm")), want;
        char key[256];

        assert_non_null(target_kohya_key(part, json_string_value(json_object_get(module, "name")), key, sizeof key));
        want = json_real_value(json_object_get(golden, key));
        if (want == 0)
            fail_msg("no golden norm of '%s'", key);
        /* Both are sums in double of exact f16 products: at most (24 + 6 + 4) terms, relative to a norm that does not cancel
         * here by more than a factor of 10. */
        if (fabs(got - want) > 10 * 34 * DBL_EPSILON * want)
            fail_msg("%s: %.17g, not %.17g", key, got, want);
        total += got * got;
    }
    assert_true(fabs(json_real_value(json_object_get(norms, "total")) - sqrt(total)) <= 8 * DBL_EPSILON * sqrt(total));
    json_decref(norms);
    json_decref(golden);
    info_close(&s);
}

static void same_model_in_three_containers(void **state)
{
    static const char *const path[] = {"golden/convert/ldm.safetensors", "golden/convert/ldm.ckpt", "golden/convert/diffusers"};
    json_t *first = NULL;

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct info_subject s;
        struct info_options o = {0};
        struct err err = {0};
        json_t *norms = NULL, *info = NULL;

        if (info_open(&s, path[i], &err) || !(info = info_to_json(&s, &o, &err)) || !(norms = info_norms(&s, &err)))
            fail_msg("%s: %s", path[i], err.msg);
        assert_string_equal(json_string_value(json_object_get(json_object_get(info, "model"), "architecture")), "sd1");
        if (!first)
            first = json_incref(json_object_get(norms, "blocks"));
        else if (!json_equal(first, json_object_get(norms, "blocks")))
            fail_msg("%s: other norms", path[i]);
        json_decref(norms);
        json_decref(info);
        info_close(&s);
    }
    json_decref(first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_of_a_lora),
        cmocka_unit_test(same_model_in_three_containers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
