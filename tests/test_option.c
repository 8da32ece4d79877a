/* The parser's rules, and that every row of every command keeps them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/command.h"

struct sample {
    bool v2, flip;
    int64_t keep;
    size_t dim;
    double ratio;
    const char *save_to, *model_org, *first;
    int method;
    struct option_dtype save_precision;
    struct string_list models, rest;
    struct float_list ratios;
    struct int_list seeds, seeds_te;
};

static const char *const methods[] = {"svd", "concat", "factors", NULL};

static const struct option_row rows[] = {
    {OPTION(struct sample, first), .arg = "IN", .flags = OPTION_POSITIONAL, .help = "x"},
    {OPTION(struct sample, rest), .arg = "FILE", .flags = OPTION_POSITIONAL, .help = "x"},
    {OPTION(struct sample, v2), .help = "x"},
    {OPTION(struct sample, flip), .help = "x"},
    {OPTION(struct sample, keep), .arg = "N", .def = "-3", .help = "x"},
    {OPTION(struct sample, dim), .arg = "N", .def = "4", .min = 1, .max = 100, .help = "x"},
    {OPTION(struct sample, ratio), .arg = "X", .def = "0.5", .help = "x"},
    {OPTION(struct sample, save_to), .arg = "FILE", .help = "x"},
    {OPTION(struct sample, model_org), .arg = "FILE", .flags = OPTION_REQUIRED, .help = "base checkpoint"},
    {OPTION_NAMED(struct sample, model_org, "model_original"), .arg = "FILE", .alias_of = "model_org"},
    {OPTION(struct sample, method), .choices = methods, .def = "svd", .help = "x"},
    {OPTION(struct sample, save_precision), .help = "x"},
    {OPTION(struct sample, models), .arg = "FILE", .help = "x"},
    {OPTION(struct sample, ratios), .arg = "X", .help = "x"},
    {OPTION(struct sample, seeds_te), .arg = "N", .help = "x"},
    {OPTION(struct sample, seeds), .arg = "N", .help = "x"},
    {OPTION_IGNORED_FLAG("xformers", "not needed")},
    {OPTION_IGNORED_VALUE("device_map", "TEXT", "not needed")},
    {0},
};

struct fixture {
    struct sample s;
    struct option_values v;
    struct err err;
};

/* Parses a line given as words, NULL at the end; returns option_parse()'s result. */
static int parse(struct fixture *f, ...)
{
    char *argv[64];
    int argc = 0;
    va_list ap;

    memset(f, 0, sizeof *f);
    va_start(ap, f);
    while ((argv[argc] = va_arg(ap, char *)))
        argc++;
    va_end(ap);
    assert_int_equal(option_values_init(&f->v, rows, &f->s, &f->err), 0);
    /* argv's array may go away: only the words must stay. */
    return option_parse(&f->v, 1, "lora test", argc, argv, &f->err);
}

/* The line must be refused as wrong usage with a message that contains `part`. */
#define REFUSED(part, ...)                                                                                                     \
    do {                                                                                                                       \
        struct fixture f_;                                                                                                     \
        assert_int_equal(parse(&f_, __VA_ARGS__, NULL), -1);                                                                   \
        assert_int_equal(f_.err.kind, ERR_USAGE);                                                                              \
        if (!strstr(f_.err.msg, part))                                                                                         \
            fail_msg("'%s' is not in: %s", part, f_.err.msg);                                                                  \
        option_values_free(&f_.v);                                                                                             \
    } while (0)

static void defaults(void **state)
{
    struct fixture f;

    (void)state;
    assert_int_equal(parse(&f, NULL), 0);
    assert_false(f.s.v2);
    assert_int_equal(f.s.keep, -3);
    assert_int_equal(f.s.dim, 4);
    assert_true(f.s.ratio == 0.5);
    assert_null(f.s.save_to);
    assert_int_equal(f.s.method, 0);
    assert_false(f.s.save_precision.set);
    assert_int_equal(f.s.models.count, 0);
    assert_false(option_given(&f.v, &f.s.dim));
    assert_int_equal(option_check_required(&f.v, "lora test", &f.err), -1);
    assert_non_null(strstr(f.err.msg, "'lora test' needs --model_org FILE (base checkpoint)"));
    option_values_free(&f.v);
}

static void values(void **state)
{
    struct fixture f;

    (void)state;
    assert_int_equal(parse(&f, "--dim", "8", "--ratio=-.5", "--keep", "-7", "--save-to", "networks\\x.pt", "--v2", "--method",
                           "concat", "--save_precision", "bf16", "--model_org=a=b", NULL),
                     0);
    assert_int_equal(f.s.dim, 8);
    assert_true(option_given(&f.v, &f.s.dim));
    assert_true(f.s.ratio == -.5);
    assert_int_equal(f.s.keep, -7);
    assert_string_equal(f.s.save_to, "networks\\x.pt");
    assert_string_equal(f.s.model_org, "a=b");
    assert_true(f.s.v2);
    assert_int_equal(f.s.method, 1);
    assert_true(f.s.save_precision.set && f.s.save_precision.dtype == DT_BF16);
    assert_int_equal(option_check_required(&f.v, "lora test", &f.err), 0);
    option_values_free(&f.v);
}

static void lists(void **state)
{
    struct fixture f;

    (void)state;
    assert_int_equal(parse(&f, "--models", "a", "b", "c", "--ratios", "-0.5", "1e-3", ".7", "--seeds", "-1", "2", "--v2", NULL),
                     0);
    assert_int_equal(f.s.models.count, 3);
    assert_string_equal(f.s.models.item[2], "c");
    assert_int_equal(f.s.ratios.count, 3);
    assert_true(f.s.ratios.item[0] == -0.5 && f.s.ratios.item[1] == 1e-3 && f.s.ratios.item[2] == .7);
    assert_int_equal(f.s.seeds.count, 2);
    assert_int_equal(f.s.seeds.item[0], -1);
    option_values_free(&f.v);
    /* The last one counts; with '=' a list has that one value. */
    assert_int_equal(parse(&f, "--models", "a", "b", "--models=c", "d", NULL), 0);
    assert_int_equal(f.s.models.count, 1);
    assert_string_equal(f.s.models.item[0], "c");
    assert_string_equal(f.s.first, "d");
    option_values_free(&f.v);
}

static void positional(void **state)
{
    struct fixture f;

    (void)state;
    assert_int_equal(parse(&f, "one", "--v2", "two", "--", "--three", "-4", NULL), 0);
    assert_string_equal(f.s.first, "one");
    assert_int_equal(f.s.rest.count, 3);
    assert_string_equal(f.s.rest.item[0], "two");
    assert_string_equal(f.s.rest.item[1], "--three");
    assert_string_equal(f.s.rest.item[2], "-4");
    option_values_free(&f.v);
}

static void names(void **state)
{
    struct fixture f;

    (void)state;
    assert_int_equal(
        parse(&f, "--save_t", "x", "--di=9", "--fl", "--model_original", "m", "--xf", "--device_map", "auto", NULL), 0);
    assert_string_equal(f.s.save_to, "x");
    assert_int_equal(f.s.dim, 9);
    assert_true(f.s.flip);
    assert_string_equal(f.s.model_org, "m");
    assert_true(option_given(&f.v, &f.s.model_org));
    assert_int_equal(f.v.source[option_find(&f.v, "--xformers")], OPTION_FROM_LINE);
    option_values_free(&f.v);
    /* The shortest of several that all begin with it; a dash of either kind; what is ignored comes second. */
    assert_int_equal(parse(&f, "--seed", "2", "--seeds-te", "3", "--x", NULL), 0);
    assert_true(f.s.seeds.item[0] == 2 && f.s.seeds_te.item[0] == 3);
    assert_int_equal(f.v.source[option_find(&f.v, "xformers")], OPTION_FROM_LINE);
    option_values_free(&f.v);
    /* A word with a blank before '=' is a value, a lone dash too. */
    assert_int_equal(parse(&f, "--save_to", "-a b", "--model_org", "-", NULL), 0);
    assert_string_equal(f.s.save_to, "-a b");
    assert_string_equal(f.s.model_org, "-");
    option_values_free(&f.v);
}

static void refused(void **state)
{
    (void)state;
    REFUSED("has no option '--dimm'; did you mean '--dim'?", "--dimm", "4");
    REFUSED("has no option '--save_ot'; did you mean '--save_to'?", "--save_ot", "4");
    REFUSED("has no option '--qqqqqqqq'; see", "--qqqqqqqq");
    REFUSED("has no option '-x'", "-x");
    REFUSED("could mean: --model_org, --models; type more", "--mod", "x");
    REFUSED("'--dim' needs a value", "--dim");
    REFUSED("'--dim' needs a value", "--dim", "--v2");
    REFUSED("'--models' needs at least one value", "--models", "--v2");
    REFUSED("'--v2' takes no value", "--v2=1");
    REFUSED("'4.5' is not an integer", "--dim", "4.5");
    REFUSED("'' is not an integer", "--dim=");
    REFUSED("'-4' is out of range", "--dim", "-4");
    REFUSED("'0' is out of range; give a value from 1 to 100", "--dim", "0");
    REFUSED("'99999999999999999999' is too large", "--dim", "99999999999999999999");
    REFUSED("'nan' is not a finite number", "--ratio", "nan");
    REFUSED("'x' is not a number", "--ratios", "1", "x");
    REFUSED("'1x' is not a number", "--ratio=1x");
    REFUSED("is not one of: svd, concat, factors; did you mean 'concat'?", "--method", "concta");
    REFUSED("'int8' is not a number format", "--save_precision", "int8");
}

static void json_round_trip(void **state)
{
    struct fixture f, g;
    json_t *a, *b;

    (void)state;
    assert_int_equal(parse(&f, "--dim", "8", "--ratio", "0.1", "--ratios", "-1", "0.30000000000000004", "--models", "a b", "é",
                           "--v2", "--method", "factors", "--save_precision", "fp16", "in", "r1", "r2", NULL),
                     0);
    a = option_to_json(&f.v, &f.err);
    assert_non_null(a);
    assert_int_equal(parse(&g, "--dim", "9", NULL), 0);
    assert_int_equal(option_from_json(&g.v, 1, a, "x.json", &g.err), 0);
    assert_int_equal(g.s.dim, 9); /* the line wins */
    assert_true(g.s.ratio == 0.1);
    assert_true(g.s.ratios.item[1] == 0.30000000000000004);
    assert_string_equal(g.s.rest.item[1], "r2");
    g.s.dim = 8;
    b = option_to_json(&g.v, &g.err);
    assert_true(json_equal(a, b));
    json_decref(a);
    json_decref(b);
    option_values_free(&f.v);
    option_values_free(&g.v);
}

static void config_refused(void **state)
{
    static const char *const cases[][2] = {
        {"{\"dimm\": 4}", "unknown option 'dimm'; did you mean 'dim'?"},
        {"{\"dim\": true}", "option 'dim': must be a text, a number"},
        {"{\"dim\": [4, 5]}", "takes one value, not 2"},
        {"{\"v2\": 1}", "option 'v2': must be true or false"},
        {"{\"g\": {\"dim\": \"x\"}}", "'x' is not an integer"},
        {"[1]", "holds no table of options"},
    };
    struct fixture f;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *j = json_loads(cases[i][0], 0, NULL);

        assert_int_equal(parse(&f, NULL), 0);
        assert_int_equal(option_from_json(&f.v, 1, j, "c.json", &f.err), -1);
        assert_int_equal(f.err.kind, ERR_USAGE);
        if (!strstr(f.err.msg, cases[i][1]) || !strstr(f.err.msg, "c.json"))
            fail_msg("'%s' is not in: %s", cases[i][1], f.err.msg);
        json_decref(j);
        option_values_free(&f.v);
    }
}

/* What a row must be so that help, man page and completion can print it. */
static void check_rows(const struct command *c, const struct option_row *list, size_t size)
{
    unsigned char *base = calloc(1, size + 1);
    struct option_values v;
    struct err err = {0};

    if (option_values_init(&v, list, base, &err))
        fail_msg("%s: %s", c->name, err.msg);
    for (size_t i = 0; i < v.count; i++) {
        const struct option_row *r = &v.rows[i];

        if (!r->ignored && !r->alias_of && (!r->help || !r->help[0] || r->help[strlen(r->help) - 1] == '.'))
            fail_msg("%s --%s: help is missing or ends with a full stop", c->name, r->name);
        if (r->alias_of &&
            (option_find(&v, r->alias_of) == SIZE_MAX || v.rows[option_find(&v, r->alias_of)].offset != r->offset))
            fail_msg("%s --%s: alias of an option with another field", c->name, r->name);
        if (r->type == OPTION_CHOICE && !r->choices)
            fail_msg("%s --%s: no choices", c->name, r->name);
        if (!r->ignored && r->offset >= size)
            fail_msg("%s --%s: field outside of the struct", c->name, r->name);
        for (size_t k = 0; k < i; k++)
            if (strcmp(v.rows[k].name, r->name) == 0)
                fail_msg("%s --%s: listed twice", c->name, r->name);
        for (const struct option_row *g = command_global_rows; list != g && g->name; g++)
            if (strcmp(g->name, r->name) == 0 || strcmp(r->name, "compat") == 0)
                fail_msg("%s --%s: is an option of every command", c->name, r->name);
    }
    option_values_free(&v);
    free(base);
}

static void all_commands(void **state)
{
    (void)state;
    for (size_t i = 0; i < command_count; i++) {
        const struct command *c = command_table[i];

        assert_true(c->name && c->summary && c->run);
        assert_ptr_equal(command_find(c->name), c);
        if (c->options)
            check_rows(c, c->options, c->options_size);
        for (const char *const *a = c->aliases; a && *a; a++) {
            char typed[256];
            static const char *const forms[] = {"%s", "%s.py", "networks/%s.py", "networks\\%s.py", "networks%s.py", "../x/%s"};

            for (size_t k = 0; k < sizeof forms / sizeof *forms; k++) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
                snprintf(typed, sizeof typed, forms[k], *a);
#pragma GCC diagnostic pop
                assert_ptr_equal(command_find(typed), c);
            }
        }
    }
    assert_null(command_find("nothing"));
    assert_null(command_find(""));
}

static void sizes(void **state)
{
    char b[32];

    (void)state;
    assert_string_equal(command_bytes(0, b, sizeof b), "0 bytes");
    assert_string_equal(command_bytes(999, b, sizeof b), "999 bytes");
    assert_string_equal(command_bytes(1000, b, sizeof b), "0.98 KiB");
    assert_string_equal(command_bytes(1536, b, sizeof b), "1.50 KiB");
    assert_string_equal(command_bytes(10 * 1024, b, sizeof b), "10.0 KiB");
    assert_string_equal(command_bytes(2132856686, b, sizeof b), "1.99 GiB");
    assert_string_equal(command_bytes(UINT64_MAX, b, sizeof b), "16.0 EiB");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),        cmocka_unit_test(values),         cmocka_unit_test(lists),
        cmocka_unit_test(positional),      cmocka_unit_test(names),          cmocka_unit_test(refused),
        cmocka_unit_test(json_round_trip), cmocka_unit_test(config_refused), cmocka_unit_test(all_commands),
        cmocka_unit_test(sizes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
