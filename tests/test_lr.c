/* Learning rate schedules, whole runs, against diffusers and transformers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/optim/lr.h"

enum { TOTAL = 60, MAX_LINE = 4096 };

static double next(char **at)
{
    char *word = strtok_r(NULL, " \n", at);

    assert_non_null(word);
    return strtod(word, NULL);
}

static void check_line(char *text, bool seen[16])
{
    char *at, *rules;
    struct lr_options o = {.total = TOTAL, .rate = 3e-4};
    struct lr_schedule s;
    struct err err = {0};

    o.name = strtok_r(text, " ", &at);
    rules = strtok_r(NULL, " ", &at);
    o.rules = strcmp(rules, "-") ? rules : NULL;
    o.warmup = next(&at);
    o.decay = next(&at);
    o.cycles = next(&at);
    o.power = next(&at);
    o.timescale = next(&at);
    o.min_ratio = next(&at);
    if (lr_open(&s, &o, &err))
        fail_msg("%s: %s", o.name, err.msg);
    for (size_t i = 0; lr_names[i]; i++)
        seen[i] |= strcmp(lr_names[i], o.name) == 0;
    for (size_t step = 0; step < TOTAL + 5; step++) {
        double want = next(&at), got = lr_factor(&s, step);

        /* Both in double; the oracle's value went through a product and a quotient with the rate, the argument of a cosine
         * is rounded after up to three operations: 8 eps of its size, which 2 pi * 3 bounds. */
        if (fabs(got - want) > 8 * 20 * DBL_EPSILON)
            fail_msg("%s, warm-up %g, step %zu: %.17g, not %.17g", o.name, o.warmup, step, got, want);
    }
}

static void whole_runs(void **state)
{
    FILE *f = fopen("golden/lr.txt", "r");
    char line[MAX_LINE];
    bool seen[16] = {false};

    (void)state;
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        check_line(line, seen);
    fclose(f);
    for (size_t i = 0; lr_names[i]; i++)
        if (!seen[i])
            fail_msg("golden/lr.txt has no run of %s", lr_names[i]);
}

static void shares(void **state)
{
    const struct lr_options a = {.name = "linear", .warmup = 0.1, .total = 200}, b = {.name = "linear", .warmup = 20, .total = 200},
                            none = {.total = 5};
    struct lr_schedule x, y;
    struct err err = {0};

    (void)state;
    assert_int_equal(lr_open(&x, &a, &err), 0);
    assert_int_equal(lr_open(&y, &b, &err), 0);
    for (size_t step = 0; step < 210; step++)
        assert_true(lr_factor(&x, step) == lr_factor(&y, step));
    assert_int_equal(lr_open(&x, &none, &err), 0); /* no name: constant */
    assert_true(lr_factor(&x, 0) == 1 && lr_factor(&x, 99) == 1);
}

static void refused(struct lr_options o, const char *message)
{
    struct lr_schedule s;
    struct err err = {0};

    o.total = 100;
    assert_int_equal(lr_open(&s, &o, &err), -1);
    assert_int_equal(err.kind, ERR_USAGE);
    assert_string_equal(err.msg, message);
}

static void errors(void **state)
{
    static const char rules[] = "' are no rules of a piecewise_constant schedule; write factor:step, with growing steps, and the last "
                                "factor, as in 1:100,0.1:200,0.01";
    static const char *const bad[] = {"", "1:10", "1:10,x", "1:10,0.5:5,1", "1:-3,1", "nan", "1;2", "1:99999999999999999999999,", "-1"};
    char message[256];

    (void)state;
    refused((struct lr_options){.name = "cosin"},
            "there is no learning rate schedule 'cosin'; choose one of constant, constant_with_warmup, linear, cosine, "
            "cosine_with_restarts, polynomial, cosine_with_min_lr, inverse_sqrt, warmup_stable_decay, piecewise_constant");
    refused((struct lr_options){.name = "constant", .warmup = 10},
            "the learning rate schedule 'constant' has no warm-up; use constant_with_warmup, or leave --lr_warmup_steps out");
    refused((struct lr_options){.name = "piecewise_constant", .warmup = 10, .rules = "1"},
            "the learning rate schedule 'piecewise_constant' has no warm-up; leave --lr_warmup_steps out");
    refused((struct lr_options){.name = "polynomial", .rate = 1e-8},
            "the learning rate schedule 'polynomial' ends at 1e-7, and the rate is 1e-08; choose a larger one");
    refused((struct lr_options){.name = "warmup_stable_decay", .warmup = 60, .decay = 50},
            "60 steps of warm-up and 50 of decay are more than the run's 100; choose fewer");
    refused((struct lr_options){.name = "piecewise_constant"},
            "the learning rate schedule 'piecewise_constant' needs rules; give them with --lr_scheduler_args, as in "
            "step_rules=1:100,0.1:200,0.01");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(message, sizeof message, "'%s%s", bad[i], rules);
        refused((struct lr_options){.name = "piecewise_constant", .rules = bad[i]}, message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_runs),
        cmocka_unit_test(shares),
        cmocka_unit_test(errors),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
