/* TOML against golden/toml.json, which Python's tomllib made. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "formats/toml.h"

static json_t *golden(void)
{
    json_error_t e;
    json_t *j = json_load_file("golden/toml.json", 0, &e);

    if (!j)
        fail_msg("golden/toml.json: %s", e.text);
    return j;
}

static void same_as_tomllib(void **state)
{
    json_t *all = golden(), *one;
    size_t i, accepted = 0;

    (void)state;
    json_array_foreach(json_object_get(all, "cases"), i, one)
    {
        const char *text = json_string_value(json_object_get(one, "text"));
        json_t *want = json_object_get(one, "value");
        struct err err = {0};
        json_t *got = toml_parse(text, json_string_length(json_object_get(one, "text")), "x.toml", &err);

        if (json_is_null(want)) {
            if (got)
                fail_msg("accepted, but tomllib refuses it: %s", text);
            if (!strstr(err.msg, "cannot read 'x.toml': line "))
                fail_msg("message without file and line: %s", err.msg);
            continue;
        }
        if (!got)
            fail_msg("refused (%s): %s", err.msg, text);
        if (!json_equal(got, want))
            fail_msg("another value: %s\n%s", text, json_dumps(got, JSON_INDENT(1)));
        accepted++;
        json_decref(got);
    }
    assert_true(accepted >= 20);
    json_decref(all);
}

static void left_out(void **state)
{
    json_t *all = golden(), *one;
    size_t i;

    (void)state;
    json_array_foreach(json_object_get(all, "left_out"), i, one)
    {
        struct err err = {0};

        if (toml_parse(json_string_value(one), json_string_length(one), "x.toml", &err))
            fail_msg("accepted: %s", json_string_value(one));
    }
    json_decref(all);
}

static void messages(void **state)
{
    static const char *const cases[][2] = {
        {"a = 1\nb = C:\\dir", "line 2: "},
        {"a = \"C:\\dir\"", "put the text between single quotes"},
        {"\n\nday = 2023-01-15", "line 3: dates and times mean nothing"},
        {"a = inf", "inf and nan"},
        {"a = 1\na = 2", "line 2: 'a' is given twice"},
        {"a = [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", "nested too deep"},
        {"a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q = 1", "too many parts"},
        {"a = \"\xff\"", "not UTF-8"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err err = {0};

        assert_null(toml_parse(cases[i][0], strlen(cases[i][0]), "x.toml", &err));
        if (!strstr(err.msg, cases[i][1]))
            fail_msg("'%s' is not in: %s", cases[i][1], err.msg);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_as_tomllib),
        cmocka_unit_test(left_out),
        cmocka_unit_test(messages),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
