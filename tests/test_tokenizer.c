/* Token ids against transformers' CLIPTokenizer (the group "tokenizer" of lora verify), malformed text, the files it writes. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "formats/tokenizer.h"
#include "tests/lib/scratch.h"
#include "tests/lib/verify_group.h"

static struct tokenizer *tok;

static void encode(const char *text, size_t n, struct token_list *ids)
{
    struct err err = {0};

    memset(ids, 0, sizeof *ids);
    if (tokenizer_encode(tok, text, n, ids, &err) != 0)
        fail_msg("%s", err.msg);
}

static void test_cases(void **state)
{
    (void)state;
    verify_group(verify_tokenizer, 50);
}

/* Each malformed sequence equals the same text with U+FFFD written out where Python's decoder puts it. */
static void test_malformed(void **state)
{
    static const char *const pairs[][2] = {
        {"a\xff" "b", "a\xef\xbf\xbd" "b"},
        {"\xc3", "\xef\xbf\xbd"},
        {"\xe2\x82", "\xef\xbf\xbd"},
        {"\xe2\x28\xa1", "\xef\xbf\xbd(\xef\xbf\xbd"},
        {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xf0\x9f\x98", "\xef\xbf\xbd"},
        {"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xf5\x80", "\xef\xbf\xbd\xef\xbf\xbd"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        struct token_list a, b;

        encode(pairs[i][0], strlen(pairs[i][0]), &a);
        encode(pairs[i][1], strlen(pairs[i][1]), &b);
        assert_int_equal(a.count, b.count);
        assert_memory_equal(a.id, b.id, a.count * sizeof *a.id);
        free(a.id);
        free(b.id);
    }
}

static void test_text(void **state)
{
    struct token_list ids;
    char buf[80];

    (void)state;
    encode("Photograph", 10, &ids);
    assert_int_equal(ids.count, 1);
    assert_string_equal(tokenizer_text(tok, ids.id[0], buf, sizeof buf), "photograph ");
    assert_string_equal(tokenizer_text(tok, TOKEN_END, buf, sizeof buf), "<|endoftext|>");
    assert_string_equal(tokenizer_text(tok, TOKEN_COUNT, buf, sizeof buf), "?");
    for (int32_t id = 0; id < TOKEN_BEGIN; id++)
        assert_true(strlen(tokenizer_text(tok, id, buf, sizeof buf)) < sizeof buf - 2);
    free(ids.id);
}

/* The lists in vocab.json (by id) and merges.txt are those of the oracle. */
static void test_files(void **state)
{
    static const char *by_id[TOKEN_COUNT];
    const char *folder = scratch_new();
    FILE *in = fopen("golden/tokenizer_files.txt", "r");
    unsigned want_vocab, want_merges;
    uLong vocab = 0, merges = 0;
    struct err err = {0};
    const char *name;
    char line[1024];
    json_t *all, *id;

    (void)state;
    assert_non_null(in);
    assert_int_equal(fscanf(in, "%8x %8x", &want_vocab, &want_merges), 2);
    fclose(in);
    assert_int_equal(tokenizer_write(folder, true, &err), 0);
    all = json_load_file(scratch_path(folder, "vocab.json"), 0, NULL);
    assert_int_equal(json_object_size(all), TOKEN_COUNT);
    json_object_foreach(all, name, id)
    {
        assert_in_range(json_integer_value(id), 0, TOKEN_COUNT - 1);
        by_id[json_integer_value(id)] = name;
    }
    for (size_t i = 0; i < TOKEN_COUNT; i++) {
        assert_non_null(by_id[i]);
        vocab = crc32(crc32(vocab, (const Bytef *)by_id[i], (uInt)strlen(by_id[i])), (const Bytef *)"\n", 1);
    }
    assert_int_equal(vocab, want_vocab);
    json_decref(all);
    in = fopen(scratch_path(folder, "merges.txt"), "r");
    assert_non_null(in);
    assert_string_equal(fgets(line, sizeof line, in), "#version: 0.2\n");
    while (fgets(line, sizeof line, in))
        merges = crc32(merges, (const Bytef *)line, (uInt)strlen(line));
    fclose(in);
    assert_int_equal(merges, want_merges);
    all = json_load_file(scratch_path(folder, "special_tokens_map.json"), 0, NULL);
    assert_string_equal(json_string_value(json_object_get(all, "pad_token")), "!");
    json_decref(all);
    scratch_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_files),
    };
    struct err err = {0};
    int failed;

    if (tokenizer_open(&tok, &err) != 0)
        return 1;
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    tokenizer_close(tok);
    return failed;
}
