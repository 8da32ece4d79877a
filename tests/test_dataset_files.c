/* Training data from folders and descriptions: what is read, what is told, what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/data.h"

static void test_plain_folder(void **state)
{
    struct data x = {0};

    (void)state;
    data_small();
    data_open(&x, "--train_data_dir|%s|--resolution|64", data_path("train/2_red cat"));
    assert_int_equal(dataset_train_samples(x.d), 6);
    assert_string_equal(data_caption(&x, 0), "red cat");
    data_close(&x);
    data_dir("loose");
    data_picture("loose/a.png", 64, 64, 1);
    data_text("loose/a.txt", "words");
    data_open(&x, "--train_data_dir|%s/|--resolution|64|--caption_extension|.txt", data_path("loose"));
    assert_int_equal(dataset_train_samples(x.d), 1);
    assert_string_equal(data_caption(&x, 0), "words");
    data_close(&x);
}

/* ---- dataset_config */

static void test_config(void **state)
{
    struct data x = {0};
    json_t *meta = json_object(), *sets;
    char text[4096], dir[2][512];

    (void)state;
    data_small();
    snprintf(dir[0], sizeof dir[0], "%s", data_path("train/2_red cat"));
    snprintf(dir[1], sizeof dir[1], "%s", data_path("train/1_dog"));
    snprintf(
        text, sizeof text,
        "[general]\nshuffle_caption = true\nenable_bucket = true\nmin_bucket_reso = 64\nmax_bucket_reso = 128\n"
        "[[datasets]]\nresolution = [128, 64]\nbatch_size = 3\nkeep_tokens = 1\n"
        "  [[datasets.subsets]]\n  image_dir = '%s'\n  num_repeats = 4\n  class_tokens = 'w'\n  caption_extension = '.txt'\n"
        "  [[datasets.subsets]]\n  image_dir = '%s'\n  is_reg = true\n  class_tokens = 'r'\n"
        "[[datasets]]\nresolution = [128, 64]\nenable_bucket = false\n"
        "  [[datasets.subsets]]\n  image_dir = '%s'\n  class_tokens = 'z'\n",
        dir[0], dir[1], dir[1]);
    data_text("data.toml", text);
    data_open(&x, "--dataset_config|%s|--train_batch_size|7", data_path("data.toml"));
    assert_int_equal(dataset_train_samples(x.d), 12 + 2);
    assert_int_equal(dataset_reg_samples(x.d), 12);
    assert_int_equal(dataset_max_batch(x.d), 7);
    assert_int_equal(dataset_batches(x.d), 7 + 2 + 1); /* 20 of 64 x 64 by 3, 4 of 128 x 64 by 3, 2 by 7 */
    assert_int_equal(dataset_metadata(x.d, meta, &x.err), 0);
    sets = json_loads(json_string_value(json_object_get(meta, "ss_datasets")), 0, NULL);
    assert_int_equal(json_array_size(sets), 2);
    json_decref(sets);
    json_decref(meta);
    data_close(&x);
}

/* ---- Metadata, table, contact sheet */

static void test_metadata(void **state)
{
    static const struct {
        const char *key, *value;
    } want[] = {
        {"ss_num_train_images", "8"},
        {"ss_num_reg_images", "0"},
        {"ss_num_batches_per_epoch", "8"},
        {"ss_resolution", "(64, 64)"},
        {"ss_color_aug", "False"},
        {"ss_flip_aug", "True"},
        {"ss_random_crop", "False"},
        {"ss_shuffle_caption", "False"},
        {"ss_cache_latents", "True"},
        {"ss_enable_bucket", "True"},
        {"ss_min_bucket_reso", "64"},
        {"ss_max_bucket_reso", "128"},
        {"ss_face_crop_aug_range", "None"},
        {"ss_caption_dropout_rate", "0.0"},
        {"ss_dataset_dirs",
         "{\"1_dog\": {\"n_repeats\": 1, \"img_count\": 2}, \"2_red cat\": {\"n_repeats\": 2, \"img_count\": 3}}"},
        {"ss_reg_dataset_dirs", "{}"},
        {"ss_tag_frequency",
         "{\"1_dog\": {\"dog\": 2}, \"2_red cat\": {\"one\": 1, \"two\": 1, \"three\": 1, \"b1\": 1, \"b2\": 1, "
         "\"b3\": 1, \"b4\": 1, \"red cat\": 1}}"},
    };
    struct data x = {0};
    json_t *meta = json_object();
    char *table;

    (void)state;
    data_small();
    data_open(&x,
              "--train_data_dir|%s|--resolution|64|--caption_extension|.txt|--flip_aug|--cache_latents|--enable_bucket"
              "|--min_bucket_reso|64|--max_bucket_reso|128",
              data_path("train"));
    assert_int_equal(dataset_metadata(x.d, meta, &x.err), 0);
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++)
        assert_string_equal(json_string_value(json_object_get(meta, want[i].key)), want[i].value);
    assert_null(strstr(json_string_value(json_object_get(meta, "ss_bucket_info")), data_folder));
    table = dataset_table(x.d, &x.err);
    assert_non_null(strstr(table, "2_red cat      3 pictures ->      6 samples an epoch\n"));
    assert_non_null(strstr(table, "8 batches an epoch\n"));
    free(table);
    json_decref(meta);
    data_close(&x);
}

static void test_sheet(void **state)
{
    struct data x = {0};
    struct picture p;
    unsigned char *page;
    size_t n, figures = 0;

    (void)state;
    data_small();
    data_text("train/2_red cat/a.txt", "a <b> & \"c\"");
    data_open(&x, "--train_data_dir|%s|--resolution|64|--caption_extension|.txt|--flip_aug", data_path("train"));
    data_dir("out");
    assert_int_equal(dataset_sheet(x.d, 0, 100, data_path("out"), &x.err), 0);
    assert_int_equal(picture_read(&p, data_path("out/dataset.png"), &x.err), 0);
    assert_int_equal(p.height, 8 + 2 * (96 + 41 + 8));
    assert_int_equal(p.data[0], 48);
    picture_free(&p);
    page = scratch_read(data_path("out/dataset.html"), &n);
    for (char *s = (char *)page; (s = strstr(s, "<figure>")); s++)
        figures++;
    assert_int_equal(figures, 8);
    assert_non_null(strstr((char *)page, "a &lt;b&gt; &amp; &quot;c&quot;"));
    free(page);
    data_close(&x);
}

/* ---- Bad input */

struct refusal {
    const char *line, *message;
};

static void test_refusals(void **state)
{
    static const struct refusal cases[] = {
        {"", "name their folder with --train_data_dir"},
        {"--train_data_dir|DIR/none|--resolution|64", "cannot read the folder 'DIR/none': No such file"},
        {"--train_data_dir|DIR/empty|--resolution|64", "no folders to train on in 'DIR/empty'"},
        {"--train_data_dir|DIR/numberless|--resolution|64", "whose name is REPEATS_words, as in '10_sks dog'"},
        {"--train_data_dir|DIR/hollow|--resolution|64", "no pictures in 'DIR/hollow/3_x'"},
        {"--train_data_dir|DIR/train", "--resolution is needed"},
        {"--train_data_dir|DIR/train|--resolution|x", "neither a size nor width,height"},
        {"--train_data_dir|DIR/train|--resolution|64,", "neither a size nor width,height"},
        {"--train_data_dir|DIR/train|--resolution|0", "out of range"},
        {"--train_data_dir|DIR/train|--resolution|-64", "out of range"},
        {"--train_data_dir|DIR/train|--resolution|100", "sides have to be multiples of 8; take 96,96"},
        {"--train_data_dir|DIR/train|--resolution|500,500|--enable_bucket",
         "sides have to be multiples of 64 where there are buckets (see --bucket_reso_steps); take 448,448"},
        {"--train_data_dir|DIR/train|--resolution|512|--enable_bucket|--bucket_reso_steps|20", "no multiple of 8"},
        {"--train_data_dir|DIR/train|--resolution|512|--enable_bucket|--min_bucket_reso|576", "larger than the resolution"},
        {"--train_data_dir|DIR/train|--resolution|512|--enable_bucket|--max_bucket_reso|448", "smaller than the resolution"},
        {"--train_data_dir|DIR/train|--resolution|512|--enable_bucket|--max_bucket_reso|1000", "multiples of 64"},
        {"--train_data_dir|DIR/train|--resolution|64|--color_aug|--cache_latents", "leave one of them out"},
        {"--train_data_dir|DIR/train|--resolution|64|--face_crop_aug_range|2", "no pair low,high"},
        {"--train_data_dir|DIR/train|--resolution|64|--face_crop_aug_range|4,2", "no pair low,high"},
        {"--train_data_dir|DIR/train|--resolution|64|--dataset_config|DIR/a.toml", "or the other way round"},
        {"--train_data_dir|DIR/train|--in_json|DIR/none.json",
         "there is no such file; 'lora prepare FOLDER --out DIR/none.json' makes one"},
        {"--train_data_dir|DIR/train|--in_json|DIR/broken.json", "'DIR/broken.json': line 2: "},
        {"--train_data_dir|DIR/train|--in_json|DIR/list.json", "no metadata file"},
        {"--train_data_dir|DIR/train|--in_json|DIR/number.json", "'caption' of picture 'a' is no text"},
        {"--train_data_dir|DIR/train|--in_json|DIR/gone.json|--resolution|64",
         "no picture can be used; the first is 'gone': not found"},
        {"--train_data_dir|DIR/train|--in_json|DIR/odd.json", "sides have to be multiples of 8"},
        {"--train_data_dir|DIR/train|--in_json|DIR/pair.json", "no pair of numbers"},
        {"--dataset_config|DIR/none.toml", "no such file"},
        {"--dataset_config|DIR/unknown.toml",
         "'shufle_caption' in [[datasets]] is no key known here; did you mean 'shuffle_caption'?"},
        {"--dataset_config|DIR/place.toml", "'batch_size' in [[datasets.subsets]] belongs to [[datasets]]"},
        {"--dataset_config|DIR/type.toml", "'num_repeats' in [[datasets.subsets]] has to be a whole number"},
        {"--dataset_config|DIR/mask.toml", "are for --masked_loss; give that, too"},
        {"--train_data_dir|DIR/train|--resolution|64|--masked_loss", "--masked_loss has no masks"},
        {"--train_data_dir|DIR/train|--resolution|64|--masked_loss|--conditioning_data_dir|DIR/none", "cannot read the folder"},
        {"--dataset_config|DIR/nodir.toml", "neither 'image_dir' nor 'metadata_file'"},
        {"--dataset_config|DIR/nosets.toml", "there is no [[datasets]]"},
        {"--dataset_config|DIR/nosubsets.toml", "has no [[datasets.subsets]]"},
    };

    (void)state;
    data_small();
    data_dir("empty");
    data_dir("numberless/cats");
    data_dir("hollow/3_x");
    data_text("broken.json", "{\n\"a\": {\"caption\": }}");
    data_text("list.json", "[1]");
    data_text("number.json", "{\"a\": {\"caption\": 3}}");
    data_text("gone.json", "{\"gone\": {\"caption\": \"c\"}}");
    data_text("odd.json", "{\"2_red cat/a\": {\"caption\": \"c\", \"train_resolution\": [63, 64]}}");
    data_text("pair.json", "{\"2_red cat/a\": {\"caption\": \"c\", \"train_resolution\": [64]}}");
    data_text("unknown.toml", "[[datasets]]\nshufle_caption = true\n");
    data_text("place.toml", "[[datasets]]\n[[datasets.subsets]]\nbatch_size = 2\n");
    data_text("type.toml", "[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 'x'\n");
    data_text("mask.toml", "[general]\ncache_info = true\nconditioning_data_dir = 'm'\n[[datasets]]\n[[datasets.subsets]]\n"
                           "image_dir = 'x'\n");
    data_text("nodir.toml", "[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2\n");
    data_text("nosets.toml", "[general]\nnum_repeats = 2\n");
    data_text("nosubsets.toml", "[[datasets]]\nnum_repeats = 2\n");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char line[4096] = "", message[4096] = "";
        struct data x = {0};
        const char *from[] = {cases[i].line, cases[i].message};
        char *to[] = {line, message};

        for (int k = 0; k < 2; k++)
            for (const char *s = from[k]; *s;)
                if (!strncmp(s, "DIR", 3)) {
                    strcat(to[k], data_folder);
                    s += 3;
                } else {
                    strncat(to[k], s++, 1);
                }
        assert_int_equal(data_try_open(&x, "%s", line), -1);
        if (!strstr(x.err.msg, message))
            fail_msg("%s\nsays: %s\nnot:  %s", line, x.err.msg, message);
        data_close(&x);
    }
}

static bool found(const struct data *x, enum finding_kind kind, const char *name)
{
    for (size_t i = 0; i < x->d->findings; i++)
        if (x->d->finding[i].kind == kind && strstr(x->d->finding[i].name, name))
            return true;
    return false;
}

static void test_findings(void **state)
{
    struct data x = {0};
    size_t n;
    unsigned char *data;
    char text[2048] = "";

    (void)state;
    data_small();
    data = scratch_read(data_path("train/1_dog/d.png"), &n);
    scratch_write(data_path("train/1_dog/cut.png"), data, n - 20);
    free(data);
    data_text("train/1_dog/text.jpg", "this is no picture");
    data_picture("train/1_dog/tiny.png", 16, 16, 1);
    data_picture("train/1_dog/latin.png", 64, 64, 1);
    data_text("train/1_dog/latin.txt", "caf\xe9");
    data_picture("train/1_dog/wide.png", 64, 64, 1);
    scratch_write(data_path("train/1_dog/wide.txt"),
                  "\xff\xfe"
                  "a\0",
                  4);
    data_picture("train/1_dog/void.png", 64, 64, 1);
    data_text("train/1_dog/void.txt", "");
    data_picture("train/1_dog/long.png", 64, 64, 1);
    for (int i = 0; i < 80; i++)
        strcat(text, "word, ");
    data_text("train/1_dog/long.txt", text);
    data_dir("train/nonumber");
    data_picture("train/loose.png", 64, 64, 1);
    data_open(&x, "--train_data_dir|%s|--resolution|64|--caption_extension|.txt", data_path("train"));
    assert_true(found(&x, FINDING_UNREADABLE, "cut.png"));
    assert_true(found(&x, FINDING_UNREADABLE, "text.jpg"));
    assert_true(found(&x, FINDING_TINY, "tiny.png"));
    assert_true(found(&x, FINDING_CAPTION_BAD, "latin.txt"));
    assert_true(found(&x, FINDING_CAPTION_BAD, "wide.txt"));
    assert_true(found(&x, FINDING_CAPTION_EMPTY, "void.txt"));
    assert_true(found(&x, FINDING_CAPTION_LONG, "long.png"));
    assert_true(found(&x, FINDING_FOLDER, "nonumber"));
    assert_true(found(&x, FINDING_LOOSE, "loose.png"));
    assert_true(found(&x, FINDING_CAPTION_WORDS, "d.png"));
    assert_int_equal(dataset_pictures(x.d), 8);
    assert_int_equal(dataset_print_findings(x.d, &data_quiet, &x.err), -1);
    assert_non_null(strstr(x.err.msg, "4 files of the training data cannot be used"));
    data_close(&x);
    data_open(&x, "--train_data_dir|%s|--resolution|64|--caption_extension|.txt|--skip_bad_pictures", data_path("train"));
    assert_int_equal(dataset_pictures(x.d), 8);
    assert_int_equal(dataset_print_findings(x.d, &data_quiet, &x.err), 0);
    data_close(&x);
    data_open(&x, "--train_data_dir|%s|--resolution|64|--skip_bad_pictures", data_path("train"));
    assert_true(found(&x, FINDING_CAPTION_WORDS, "a.png"));
    for (size_t i = 0; i < x.d->findings; i++)
        if (strstr(x.d->finding[i].name, "a.png"))
            assert_string_equal(x.d->finding[i].detail, "but there is 'a.txt'; to use it, give --caption_extension .txt");
    data_close(&x);
    data_open(&x, "--train_data_dir|%s|--resolution|64|--skip_bad_pictures|--caption_extension|txt", data_path("train"));
    assert_false(found(&x, FINDING_CAPTION_WORDS, "a.png"));
    data_close(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_plain_folder, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_config, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_metadata, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_sheet, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_refusals, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_findings, data_setup, data_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
