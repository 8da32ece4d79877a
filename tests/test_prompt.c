/* Prompts against sd-scripts v0.3.0's own functions (golden/make_prompts.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "formats/prompt.h"
#include "formats/prompt_line.h"
#include "ref/diffusion/weigh.h"

static json_t *golden;
static struct tokenizer *tok;

static const char *text_of(const json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

static double number_of(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

/* The same products in the same order: equal to the last bit. */
static void test_weights(void **state)
{
    size_t i, k;
    json_t *c, *want;

    (void)state;
    json_array_foreach(json_object_get(golden, "weights"), i, c)
    {
        const char *text = text_of(c, "text");
        json_t *parts = json_object_get(c, "parts");
        struct prompt_parts p;
        struct err err;

        if (prompt_parse(&p, text, strlen(text), &err))
            fail_msg("'%s': %s", text, err.msg);
        if (p.count != json_array_size(parts))
            fail_msg("'%s': %zu parts, the oracle has %zu", text, p.count, json_array_size(parts));
        json_array_foreach(parts, k, want)
        {
            const char *part = json_string_value(json_array_get(want, 0));

            if (strlen(part) != p.part[k].n || memcmp(part, p.part[k].text, p.part[k].n) != 0 ||
                p.part[k].weight != json_number_value(json_array_get(want, 1)))
                fail_msg("'%s': part %zu is '%.*s' %.17g", text, k, (int)p.part[k].n, p.part[k].text, p.part[k].weight);
        }
        prompt_parts_free(&p);
    }
    assert_int_equal(i, 60);
}

static void test_bad_weights(void **state)
{
    static const char *const bad[] = {"(a:1.2.3)", "(a:.)", "((b) (c:..5))",
                                      "(a:1111111111111111111111111111111111111111111111111111111111111111111111111)"};
    struct prompt_parts p;
    struct err err;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(prompt_parse(&p, bad[i], strlen(bad[i]), &err), -1);
        assert_int_equal(err.kind, ERR_USAGE);
        assert_non_null(strstr(err.msg, "write it as in (words:1.3)"));
    }
    assert_int_equal(prompt_parse(&p, "a:1.2.3)", 8, &err), 0);
    prompt_parts_free(&p);
}

static void same_chunks(const json_t *c, const char *key, const struct prompt_tokens *t, size_t chunks, int32_t pad,
                        int32_t *ids, float *weights)
{
    const json_t *want = json_object_get(c, key);

    if (chunks != json_array_size(want))
        fail_msg("'%s': %zu chunks, the oracle has %zu", text_of(c, "prompt"), chunks, json_array_size(want));
    prompt_fill(t, chunks, pad, ids, weights);
    for (size_t i = 0; i < chunks * TOKEN_CHUNK; i++) {
        long long id = json_integer_value(json_array_get(json_array_get(want, i / TOKEN_CHUNK), i % TOKEN_CHUNK));

        if (ids[i] != id)
            fail_msg("'%s', pad %d: id %zu is %d, the oracle has %lld", text_of(c, "prompt"), pad, i, ids[i], id);
    }
}

/* The stand-in for the text encoder in make_prompts.py */
static void encode(const int32_t *ids, size_t chunks, float *x)
{
    for (size_t i = 0; i < chunks * TOKEN_CHUNK; i++) {
        int32_t id = ids[i], at = (int32_t)(i % TOKEN_CHUNK);

        x[3 * i] = (float)((id * 7 + at) % 32 - 9) / 8;
        x[3 * i + 1] = (float)((id + 3 * at) % 64 - 17) / 8;
        x[3 * i + 2] = (float)(id % 16 + at % 8) / 8;
    }
}

/* Two products rounded on both sides (2 u each side, u = 2^-24) and a ratio of two means. Ours are f64 sums of the rounded
 * products. torch's are f32 sums of n values in a tree of depth below 16: each off by at most 16 u of the sum of absolute
 * values A, which for these numbers is below 6 times the sum itself; so the ratio is off by 2 * 96 u + 2 u. */
static void same_embeddings(const json_t *c, const char *key, float *x, const float *weights, size_t chunks)
{
    const json_t *want = json_object_get(c, key);
    size_t n = chunks * TOKEN_CHUNK * 3;

    if (!want)
        return;
    assert_int_equal(json_array_size(want), n);
    weigh(x, weights, chunks * TOKEN_CHUNK, 3);
    for (size_t i = 0; i < n; i++) {
        double y = json_number_value(json_array_get(want, i));

        if (!(fabs((double)x[i] - y) <= 198 * 0x1p-24 * fabs(y)))
            fail_msg("'%s': embedding %zu is %.9g, the oracle has %.9g", text_of(c, "prompt"), i, (double)x[i], y);
    }
}

static void test_embeddings(void **state)
{
    size_t i, k;
    json_t *c;

    (void)state;
    json_array_foreach(json_object_get(golden, "embeddings"), i, c)
    {
        const char *prompt = text_of(c, "prompt"), *other = text_of(c, "other");
        size_t most = (size_t)number_of(c, "multiples"), chunks;
        int32_t pad = (int32_t)number_of(c, "pad"), ids[4 * TOKEN_CHUNK];
        float weights[4 * TOKEN_CHUNK], x[4 * TOKEN_CHUNK * 3];
        json_t *tokens = json_object_get(c, "tokens"), *want = json_object_get(c, "weights");
        struct prompt_tokens t, o, full;
        struct err err;

        assert_int_equal(prompt_tokenize(&t, tok, prompt, strlen(prompt), 75 * most, &err), 0);
        assert_int_equal(prompt_tokenize(&o, tok, other, strlen(other), 75 * most, &err), 0);
        if (t.count != json_array_size(tokens))
            fail_msg("'%s': %zu tokens, the oracle has %zu", prompt, t.count, json_array_size(tokens));
        for (k = 0; k < t.count; k++) {
            assert_int_equal(t.id[k], json_integer_value(json_array_get(tokens, k)));
            assert_true(t.weight[k] == (float)json_number_value(json_array_get(want, k)));
        }
        assert_int_equal(prompt_tokenize(&full, tok, prompt, strlen(prompt), 1000, &err), 0);
        assert_int_equal(t.truncated, full.count > 75 * most);
        prompt_tokens_free(&full);
        chunks = prompt_chunks(t.count > o.count ? t.count : o.count, most);
        same_chunks(c, "chunks", &t, chunks, pad, ids, weights);
        encode(ids, chunks, x);
        same_embeddings(c, "embeddings", x, weights, chunks);
        same_chunks(c, "other_chunks", &o, chunks, pad, ids, weights);
        encode(ids, chunks, x);
        same_embeddings(c, "other_embeddings", x, weights, chunks);
        prompt_tokens_free(&t);
        prompt_tokens_free(&o);
    }
    assert_true(i > 20);
}

/* An exclamation mark has the id of SD2's padding; it stays a token at both edges of a chunk. */
static void test_exclamation_mark(void **state)
{
    int32_t id[76], ids[2 * TOKEN_CHUNK];
    float weight[76], weights[2 * TOKEN_CHUNK];
    struct prompt_tokens t = {id, weight, 76, false};

    (void)state;
    for (size_t i = 0; i < 76; i++) {
        id[i] = TOKEN_PAD_SD2;
        weight[i] = 2;
    }
    prompt_fill(&t, 2, TOKEN_PAD_SD2, ids, weights);
    assert_int_equal(ids[1], TOKEN_PAD_SD2);
    assert_int_equal(ids[76], TOKEN_END);
    assert_int_equal(ids[TOKEN_CHUNK + 1], TOKEN_PAD_SD2);
    assert_int_equal(ids[TOKEN_CHUNK + 2], TOKEN_END);
    assert_true(weights[75] == 2 && weights[76] == 1 && weights[TOKEN_CHUNK + 1] == 2 && weights[TOKEN_CHUNK + 2] == 1);
}

static void test_weigh_zero(void **state)
{
    float x[2] = {1, -1}, zero[2] = {0, 0}, two[1] = {2};

    (void)state;
    weigh(x, zero, 2, 1); /* 0 / 0 */
    assert_true(x[0] == 0 && x[1] == 0);
    x[0] = 3, x[1] = 5;
    weigh(x, two, 1, 2);
    assert_true(x[0] == 3 && x[1] == 5);
}

static void same_number(const json_t *c, const char *key, const struct prompt_line *p, unsigned bit, double value)
{
    const json_t *want = json_object_get(c, key);

    if (!!want != !!(p->given & bit) || (want && json_number_value(want) != value))
        fail_msg("'%s': %s is %g", text_of(c, "line"), key, value);
}

static void test_lines(void **state)
{
    size_t i, k;
    json_t *c, *seed;

    (void)state;
    json_array_foreach(json_object_get(golden, "lines"), i, c)
    {
        const char *line = text_of(c, "line"), *negative = text_of(c, "negative_prompt"), *clip = text_of(c, "clip_prompt");
        const json_t *scale = json_object_get(c, "negative_scale");
        struct prompt_line p;
        struct err err;

        if (prompt_line_parse(&p, line, strlen(line), NULL, 0, &err))
            fail_msg("'%s': %s", line, err.msg);
        assert_string_equal(p.text, text_of(c, "prompt"));
        assert_string_equal(p.negative, negative ? negative : "");
        assert_int_equal(!!(p.given & PROMPT_NEGATIVE), !!negative);
        assert_true(clip ? !strcmp(p.clip, clip) : !p.clip);
        same_number(c, "width", &p, PROMPT_WIDTH, (double)p.width);
        same_number(c, "height", &p, PROMPT_HEIGHT, (double)p.height);
        same_number(c, "steps", &p, PROMPT_STEPS, (double)p.steps);
        same_number(c, "scale", &p, PROMPT_SCALE, p.scale);
        same_number(c, "strength", &p, PROMPT_STRENGTH, p.strength);
        assert_int_equal(!!(p.given & PROMPT_NEGATIVE_SCALE), !json_is_string(scale)); /* "unset" */
        assert_int_equal(p.negative_scale_none, json_is_null(scale));
        assert_true(!json_is_number(scale) || p.negative_scale == json_number_value(scale));
        assert_int_equal(p.seeds, json_array_size(json_object_get(c, "seeds")));
        json_array_foreach(json_object_get(c, "seeds"), k, seed) assert_true(p.seed[k] == (uint64_t)json_integer_value(seed));
        prompt_line_free(&p);
    }
    assert_true(i > 10);
}

static void test_loras(void **state)
{
    static const char line[] = "a <lora:one>cat<lora: two words :0.5> b <lora:three:-1:0.25> <hypernet:x:1> --n <lora:kept:1>";
    struct prompt_line p;
    struct err err;

    (void)state;
    assert_int_equal(prompt_line_parse(&p, line, strlen(line), NULL, 0, &err), 0);
    assert_string_equal(p.text, "a cat b  <hypernet:x:1>");
    assert_string_equal(p.negative, "<lora:kept:1>");
    assert_int_equal(p.loras, 3);
    assert_string_equal(p.lora[0].name, "one");
    assert_true(p.lora[0].text_encoder == 1 && p.lora[0].unet == 1);
    assert_string_equal(p.lora[1].name, "two words");
    assert_true(p.lora[1].text_encoder == 0.5 && p.lora[1].unet == 0.5);
    assert_string_equal(p.lora[2].name, "three");
    assert_true(p.lora[2].text_encoder == -1 && p.lora[2].unet == 0.25);
    prompt_line_free(&p);
}

static void test_bad_lines(void **state)
{
    static const char *const bad[][2] = {
        {"x --q 5", "cannot read 'p.txt': line 7: unknown option '--q 5'; a prompt has --w --h --s --d --l --nl --t --n --c"},
        {"x --w", "cannot read 'p.txt': line 7: no value for '--w'; write it behind a blank, as in '--w 512'"},
        {"x --w 512x", "cannot read 'p.txt': line 7: bad number '512x'; give the width in pixels, as in '--w 512'"},
        {"x --h -8", "cannot read 'p.txt': line 7: bad number '-8'; give the height in pixels, as in '--h 512'"},
        {"x --s 0", "cannot read 'p.txt': line 7: bad number '0'; give 1 to 1000 steps"},
        {"x --s 1001", "cannot read 'p.txt': line 7: bad number '1001'; give 1 to 1000 steps"},
        {"x --d 1,,2", "cannot read 'p.txt': line 7: bad seeds '1,,2'; give seeds as in '--d 1,2,3', each below 2^64"},
        {"x --d 18446744073709551616",
         "cannot read 'p.txt': line 7: bad seeds '18446744073709551616'; give seeds as in '--d 1,2,3', each below 2^64"},
        {"x --l 7,5", "cannot read 'p.txt': line 7: bad number '7,5'; give a number, as in '--l 7.5'"},
        {"x --t 1.5", "cannot read 'p.txt': line 7: bad number '1.5'; give a strength of 0 to 1"},
        {"x --nl maybe", "cannot read 'p.txt': line 7: bad number 'maybe'; give a number, or 'none'"},
        {"x <lora:a:b>",
         "cannot read 'p.txt': line 7: bad LoRA 'a:b'; write <lora:name>, <lora:name:0.8> or <lora:name:0.8:0.5>"},
        {"x <lora:a:1:2:3>",
         "cannot read 'p.txt': line 7: bad LoRA 'a:1:2:3'; write <lora:name>, <lora:name:0.8> or <lora:name:0.8:0.5>"},
        {"x <lora::1>",
         "cannot read 'p.txt': line 7: LoRA without a name ':1'; write <lora:name>, <lora:name:0.8> or <lora:name:0.8:0.5>"},
        {"x <lora:a", "cannot read 'p.txt': line 7: LoRA without its '>' '<lora:a'; close it, as in <lora:name:0.8>"},
    };
    struct prompt_line p;
    struct err err;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(prompt_line_parse(&p, bad[i][0], strlen(bad[i][0]), "p.txt", 7, &err), -1);
        assert_string_equal(err.msg, bad[i][1]);
        assert_int_equal(err.kind, ERR_USAGE);
    }
    assert_int_equal(prompt_line_parse(&p, "x --s 0", 7, NULL, 0, &err), -1);
    assert_string_equal(err.msg, "cannot read the prompt: bad number '0'; give 1 to 1000 steps");
    assert_int_equal(prompt_line_parse(&p, "x\0y", 3, NULL, 0, &err), -1);
}

static void test_files(void **state)
{
    static const char text[] = "\xef\xbb\xbf"
                               "one\r\n\n  \t\ntwo --s 3\rthree";
    struct prompt_file f;
    struct err err;

    (void)state;
    assert_int_equal(prompt_file_parse(&f, text, sizeof text - 1, "p.txt", &err), 0);
    assert_int_equal(f.count, 3);
    assert_string_equal(f.line[0].text, "one");
    assert_int_equal(f.line[0].number, 1);
    assert_string_equal(f.line[1].text, "two");
    assert_int_equal(f.line[1].number, 4);
    assert_int_equal(f.line[1].steps, 3);
    assert_string_equal(f.line[2].text, "three");
    assert_int_equal(f.line[2].number, 5);
    prompt_file_free(&f);
    assert_int_equal(prompt_file_parse(&f, "a\nb\xff\n", 5, "p.txt", &err), -1);
    assert_string_equal(err.msg, "cannot read 'p.txt': line 2 is not UTF-8; save the file as UTF-8");
    assert_int_equal(prompt_file_parse(&f, " \n", 2, "p.txt", &err), -1);
    assert_string_equal(err.msg, "cannot read 'p.txt': it holds no prompt; write one a line");
    assert_int_equal(prompt_file_read(&f, "/nowhere/p.txt", &err), -1);
    assert_string_equal(err.msg, "cannot read '/nowhere/p.txt': No such file or directory");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights),    cmocka_unit_test(test_bad_weights),
        cmocka_unit_test(test_embeddings), cmocka_unit_test(test_exclamation_mark),
        cmocka_unit_test(test_weigh_zero), cmocka_unit_test(test_lines),
        cmocka_unit_test(test_loras),      cmocka_unit_test(test_bad_lines),
        cmocka_unit_test(test_files),
    };
    int failed;
    struct err err;
    json_error_t error;

    golden = json_load_file("golden/prompts.json", 0, &error);
    if (!golden || tokenizer_open(&tok, &err))
        return 1;
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    tokenizer_close(tok);
    json_decref(golden);
    return failed;
}
