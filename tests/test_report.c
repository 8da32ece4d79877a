/* The page about a training: what stands in it, that it is whole HTML, that its history comes back; the folders of its logs.
 * test_report PAGE writes an example page, to look at. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <ctype.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/train/logs.h"
#include "cmd/train/report.h"
#include "formats/picture.h"
#include "ref/base/rng.h"
#include "tests/lib/scratch.h"

enum { STEPS = 300 };

static struct report *new_report(size_t steps)
{
    const struct report_options o = {
        .title = "rocket <1> & 'co'",
        .subtitle = "rank 8 for 264 modules of small.safetensors",
        .steps = steps,
        .epoch_steps = 50,
        .rate = {"U-Net", "text encoder"},
        .rates = 2,
    };
    struct report *r;
    struct err err = {0};

    assert_int_equal(report_new(&r, &o, &err), 0);
    return r;
}

/* A made-up step: a loss that falls, with noise. */
static void step(struct report *r, struct rng *rng, size_t i)
{
    double x = 0.25 * exp(-(double)i / 120) + 0.08 + 0.1 * (double)rng_uniform(rng), rate[2];

    rate[0] = 1e-3 * (1 - (double)i / STEPS);
    rate[1] = 5e-4;
    report_step(r, i, x, rate, i == 77, 0.4);
}

static void picture(const char *folder, const char *name, size_t width, size_t height, unsigned colour)
{
    char path[512];
    struct picture p;
    struct err err = {0};

    assert_int_equal(picture_new(&p, width, height, 3, &err), 0);
    for (size_t i = 0; i < width * height * 3; i++)
        p.data[i] = (uint8_t)(colour + i / 96);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_int_equal(picture_write(path, &p, NULL, 0, (struct picture_format){0}, &err), 0);
    picture_free(&p);
}

static void fill(struct report *r, const char *folder, size_t until)
{
    const char *block[] = {"BASE", "IN01", "IN02", "MID", "OUT03", "OUT04"};
    struct rng rng;
    struct err err = {0};

    rng_seed(&rng, 1);
    picture(folder, "a.png", 64, 64, 40);
    picture(folder, "b.png", 640, 320, 90);
    assert_int_equal(report_sample(r, 0, "sks rocket at \"night\"", folder, "a.png", &err), 0);
    for (size_t i = 0; i < until; i++) {
        step(r, &rng, i);
        if ((i + 1) % 100 == 0) {
            double norm[6];

            for (size_t k = 0; k < 6; k++)
                norm[k] = (double)(i + 1) / 100 * (0.2 + 0.1 * (double)k);
            assert_int_equal(report_norms(r, i + 1, block, norm, 6, &err), 0);
            assert_int_equal(report_validation(r, i + 1, 0.2 - 0.0002 * (double)i, &err), 0);
            assert_int_equal(report_sample(r, i + 1, "sks rocket at \"night\"", folder, "a.png", &err), 0);
            assert_int_equal(report_sample(r, i + 1, "a red house", folder, "b.png", &err), 0);
        }
    }
    assert_int_equal(report_fact(r, REPORT_SETTINGS, "network_dim", "8", &err), 0);
    assert_int_equal(report_fact(r, REPORT_SETTINGS, "optimizer_type", "AdamW", &err), 0);
    assert_int_equal(report_fact(r, REPORT_SETTINGS, "network_dim", "16", &err), 0);
    assert_int_equal(report_fact(r, REPORT_MACHINE, "device", "cpu, 2 threads", &err), 0);
    assert_int_equal(report_fact(r, REPORT_TIMES, "loading the model", "0.3 s", &err), 0);
    assert_int_equal(report_data(r, "10_rocket   10 pictures x 10\n", &err), 0);
}

static char *page_of(struct report *r, const char *folder)
{
    char path[512];
    size_t n;
    struct err err = {0};

    snprintf(path, sizeof path, "%s/report.html", folder);
    assert_int_equal(report_write(r, path, "finished", &err), 0);
    return (char *)scratch_read(path, &n);
}

static size_t count(const char *text, const char *what)
{
    size_t n = 0;

    for (const char *at = text; (at = strstr(at, what)); at += strlen(what))
        n++;
    return n;
}

/* Elements that must be closed are, and no attribute's quotes are open: enough to catch a value that was not escaped. */
static void whole(const char *page)
{
    static const char *const pairs[] = {"section", "table", "svg", "p", "div", "g", "text", "pre", "style", "title", "script", "main",
                                        "html", "span", "h1", "h2", "footer", "b"};

    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        char open[2][32], close[32];

        snprintf(open[0], sizeof open[0], "<%s>", pairs[i]);
        snprintf(open[1], sizeof open[1], "<%s ", pairs[i]);
        snprintf(close, sizeof close, "</%s>", pairs[i]);
        if (count(page, open[0]) + count(page, open[1]) != count(page, close))
            fail_msg("<%s> is opened %zu times and closed %zu times", pairs[i], count(page, open[0]) + count(page, open[1]),
                     count(page, close));
    }
    assert_null(strstr(page, "nan"));
    assert_null(strstr(page, "inf,"));
    assert_null(strstr(page, "http"));
}

static void has(const char *page, const char *text)
{
    if (!strstr(page, text))
        fail_msg("the page has no \"%s\"", text);
}

static void structure(void **state)
{
    const char *folder = scratch_new();
    struct report *r = new_report(STEPS);
    char *page;

    (void)state;
    fill(r, folder, STEPS);
    page = page_of(r, folder);
    whole(page);
    has(page, "<title>rocket &lt;1&gt; &amp; &#39;co&#39;</title>");
    has(page, "finished</span>rank 8 for 264 modules of small.safetensors");
    has(page, "<b>300 of 300</b><span>steps</span>");
    has(page, "<span>steps skipped (not finite)</span>");
    has(page, "<h2>Samples</h2>");
    has(page, "<th>before<th>step 100, epoch 2<th>step 200, epoch 4<th>step 300, epoch 6");
    has(page, "sks rocket at &quot;night&quot;");
    has(page, "<h2>Loss</h2>");
    has(page, "<h2>Learning rate</h2>");
    has(page, "<h2>What the LoRA adds, by block</h2>");
    has(page, "10_rocket   10 pictures x 10");
    has(page, "<td>network_dim<td>16");
    assert_null(strstr(page, "network_dim<td>8"));
    has(page, "cpu, 2 threads");
    has(page, "loading the model");
    assert_int_equal(count(page, "<img "), 7);
    assert_int_equal(count(page, "data:image/png;base64,"), 4);  /* 64 x 64: the file as it is */
    assert_int_equal(count(page, "data:image/jpeg;base64,"), 3); /* 640 x 320: made smaller */
    free(page);
    report_free(r);
    scratch_remove(folder);
}

static unsigned digit(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = strchr(digits, c);

    assert_non_null(at);
    return (unsigned)(at - digits);
}

/* The bytes behind the n-th picture of a kind. */
static unsigned char *picture_bytes(const char *page, const char *kind, size_t *n)
{
    const char *at = strstr(page, kind);
    unsigned char *out;

    assert_non_null(at);
    at += strlen(kind);
    *n = 0;
    out = malloc(strlen(at));
    assert_non_null(out);
    for (; *at != '"'; at += 4) {
        unsigned x = digit(at[0]) << 18 | digit(at[1]) << 12 | (at[2] == '=' ? 0 : digit(at[2]) << 6) | (at[3] == '=' ? 0 : digit(at[3]));

        out[(*n)++] = (unsigned char)(x >> 16);
        if (at[2] != '=')
            out[(*n)++] = (unsigned char)(x >> 8);
        if (at[3] != '=')
            out[(*n)++] = (unsigned char)x;
    }
    return out;
}

static void pictures(void **state)
{
    const char *folder = scratch_new();
    struct report *r = new_report(STEPS);
    unsigned char *got, *want;
    struct picture small;
    char *page;
    size_t n, m;
    struct err err = {0};

    (void)state;
    fill(r, folder, 100);
    page = page_of(r, folder);
    got = picture_bytes(page, "data:image/png;base64,", &n);
    want = scratch_read(scratch_path(folder, "a.png"), &m);
    assert_int_equal(n, m);
    assert_memory_equal(got, want, n);
    free(got);
    free(want);
    got = picture_bytes(page, "data:image/jpeg;base64,", &n);
    assert_int_equal(picture_decode(&small, got, n, "page", &err), 0);
    assert_int_equal(small.width, 256);
    assert_int_equal(small.height, 128);
    picture_free(&small);
    free(got);
    free(page);
    report_free(r);
    scratch_remove(folder);
}

static char *history(const char *page)
{
    const char *from = strstr(page, "id=history>"), *to = from ? strstr(from, "</script>") : NULL;

    assert_non_null(to);
    return strndup(from, (size_t)(to - from));
}

/* A run that was stopped at step 200, went on from its state at 150 and ended: its page is that of a run that was not. */
static void resumed(void **state)
{
    const char *folder = scratch_new();
    struct report *r = new_report(STEPS), *second = new_report(STEPS), *all = new_report(STEPS);
    char path[512], *page, *want, *got;
    const char *block[] = {"BASE", "IN01", "IN02", "MID", "OUT03", "OUT04"};
    struct rng rng;
    struct err err = {0};

    (void)state;
    fill(r, folder, 200);
    free(page_of(r, folder));
    snprintf(path, sizeof path, "%s/report.html", folder);
    assert_int_equal(report_resume(second, path, 150, &err), 0);
    rng_seed(&rng, 1);
    for (size_t i = 0; i < STEPS; i++) {
        if (i < 150) {
            rng_uniform(&rng);
            continue;
        }
        step(second, &rng, i);
        if ((i + 1) % 100 == 0) {
            double norm[6];

            for (size_t k = 0; k < 6; k++)
                norm[k] = (double)(i + 1) / 100 * (0.2 + 0.1 * (double)k);
            report_norms(second, i + 1, block, norm, 6, &err);
            report_validation(second, i + 1, 0.2 - 0.0002 * (double)i, &err);
            report_sample(second, i + 1, "sks rocket at \"night\"", folder, "a.png", &err);
            report_sample(second, i + 1, "a red house", folder, "b.png", &err);
        }
    }
    page = page_of(second, folder);
    got = history(page);
    free(page);
    fill(all, folder, STEPS);
    page = page_of(all, folder);
    want = history(page);
    assert_string_equal(got, want);
    free(page);
    free(got);
    free(want);
    report_free(r);
    report_free(second);
    report_free(all);
    scratch_remove(folder);
}

static void resume_errors(void **state)
{
    const char *folder = scratch_new();
    struct report *r = new_report(10);
    char path[512], message[1024];
    static const char *const bad[] = {"", "<html>", "<script type='application/json' id=history>{</script>",
                                      "<script type='application/json' id=history>[]</script>"};
    static const char broken[] = "<script type='application/json' id=history>{\"loss\":[1,\"x\",null],\"skipped\":[-5,99999999],"
                                 "\"rate\":{\"U-Net\":7},\"norms\":[3],\"samples\":[{\"step\":-1}],\"validation\":[[]]}</script>";
    struct err err = {0};

    (void)state;
    snprintf(path, sizeof path, "%s/none.html", folder);
    assert_int_equal(report_resume(r, path, 5, &err), 0); /* nothing to take */
    snprintf(path, sizeof path, "%s/report.html", folder);
    snprintf(message, sizeof message, "'%s' is no report of a training; move it away, or choose another --output_dir", path);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        scratch_write(path, bad[i], strlen(bad[i]));
        assert_int_equal(report_resume(r, path, 5, &err), -1);
        assert_string_equal(err.msg, message);
    }
    /* Numbers that a broken file may have are not trusted. */
    scratch_write(path, broken, sizeof broken - 1);
    report_resume(r, path, 5, &err);
    free(page_of(r, folder));
    report_free(r);
    scratch_remove(folder);
}

/* A run of no step, one step, and one that diverges. */
static void odd_runs(void **state)
{
    const char *folder = scratch_new();
    const double rate[2] = {0, 0};
    char *page;

    (void)state;
    for (size_t steps = 0; steps < 3; steps++) {
        struct report *r = new_report(steps);

        page = page_of(r, folder);
        whole(page);
        has(page, "No step is done yet");
        free(page);
        for (size_t i = 0; i < steps + 2; i++)
            report_step(r, i, i ? HUGE_VAL : 0.5, rate, i > 0, 0);
        page = page_of(r, folder);
        whole(page);
        free(page);
        report_free(r);
    }
    scratch_remove(folder);
}

static void no_picture(void **state)
{
    const char *folder = scratch_new();
    struct report *r = new_report(10);
    char message[1024];
    struct err err = {0};

    (void)state;
    snprintf(message, sizeof message, "cannot read '%s/gone.png': No such file or directory", folder);
    assert_int_equal(report_sample(r, 1, "x", folder, "gone.png", &err), -1);
    assert_string_equal(err.msg, message);
    scratch_write(scratch_path(folder, "text.png"), "hello", 5);
    assert_int_equal(report_sample(r, 1, "x", folder, "text.png", &err), -1);
    report_free(r);
    scratch_remove(folder);
}

/* ---- logs ---- */

/* The only entry of a folder. */
static void only(const char *folder, char *name, size_t size)
{
    DIR *d = opendir(folder);
    struct dirent *e;

    assert_non_null(d);
    while ((e = readdir(d)))
        if (e->d_name[0] != '.')
            snprintf(name, size, "%s", e->d_name);
    closedir(d);
}

static void logs(void **state)
{
    const char *folder = scratch_new(), *const rate[] = {"textencoder", "unet"};
    const double lr[] = {1e-4, 2e-4};
    struct logs_options o = {.logging_dir = folder, .log_prefix = "test_", .rate = rate, .rates = 2};
    struct logs *l;
    char name[256], inner[512];
    struct err err = {0};

    (void)state;
    assert_int_equal(logs_open(&l, &o, &err), 0);
    assert_int_equal(logs_step(l, 1, 0.5, 0.5, lr, 1, &err), 0);
    assert_int_equal(logs_epoch(l, 1, 0.5, &err), 0);
    only(folder, name, sizeof name);
    assert_int_equal(strlen(name), strlen("test_YYYYMMDDhhmmss"));
    assert_memory_equal(name, "test_20", 7);
    for (size_t i = 5; name[i]; i++)
        assert_true(isdigit((unsigned char)name[i]));
    snprintf(inner, sizeof inner, "%s/%s/network_train", folder, name);
    assert_string_equal(logs_folder(l), inner);
    assert_int_equal(scratch_count(inner), 1);
    assert_int_equal(logs_close(l, &err), 0);
    /* resumed: another file in the same folder */
    o.resume = inner;
    o.step = 1;
    assert_int_equal(logs_open(&l, &o, &err), 0);
    assert_int_equal(logs_step(l, 2, 0.4, 0.45, lr, 1e-3, &err), 0);
    assert_int_equal(logs_close(l, &err), 0);
    assert_int_equal(scratch_count(inner), 2);
    scratch_remove(folder);
}

static void no_logs(void **state)
{
    const struct logs_options o = {0};
    const double lr = 1;
    struct logs *l;
    struct err err = {0};

    (void)state;
    assert_int_equal(logs_open(&l, &o, &err), 0);
    assert_null(l);
    assert_int_equal(logs_step(l, 1, 1, 1, &lr, 1, &err), 0);
    assert_int_equal(logs_epoch(l, 1, 1, &err), 0);
    assert_int_equal(logs_validation(l, 1, 1, &err), 0);
    assert_int_equal(logs_sample(l, 1, "a", "nowhere", &err), 0);
    assert_null(logs_folder(l));
    assert_int_equal(logs_close(l, &err), 0);
}

static int example(const char *path)
{
    const char *folder = scratch_new();
    struct report *r = new_report(STEPS);
    struct err err = {0};
    int rc;

    fill(r, folder, STEPS);
    rc = report_write(r, path, "finished", &err);
    report_free(r);
    scratch_remove(folder);
    return rc ? 1 : 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(structure), cmocka_unit_test(pictures), cmocka_unit_test(resumed), cmocka_unit_test(resume_errors),
        cmocka_unit_test(odd_runs),  cmocka_unit_test(no_picture), cmocka_unit_test(logs),  cmocka_unit_test(no_logs),
    };

    if (argc == 2)
        return example(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
