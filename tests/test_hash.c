/* formats/hash.c: FIPS 180-4's examples, and against coreutils' sha256sum on every length up to three blocks */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/hash.h"
#include "formats/tensor_writer.h"
#include "tests/lib/scratch.h"

static int plain; /* any address: the plain rounds are asked for */

static const char *hash_of(const void *data, size_t n, size_t piece)
{
    static char text[SHA256_TEXT];
    struct sha256 h;

    sha256_start(&h);
    for (size_t i = 0; i < n; i += piece)
        sha256_add(&h, (const char *)data + i, n - i < piece ? n - i : piece);
    sha256_text(&h, text);
    return text;
}

static void test_examples(void **state)
{
    char *a = malloc(1000000);

    sha256_plain = *state != NULL;
    memset(a, 'a', 1000000);
    assert_string_equal(hash_of("", 0, 1), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_string_equal(hash_of("abc", 3, 1), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_string_equal(hash_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56, 7),
                        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    assert_string_equal(hash_of(a, 1000000, 999), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    sha256_plain = false;
    free(a);
}

/* The oracle is coreutils. */
static void sum_by_coreutils(const char *path, const char *what, char out[SHA256_TEXT])
{
    char command[512];
    FILE *p;

    snprintf(command, sizeof command, what, path);
    p = popen(command, "r");
    assert_non_null(p);
    assert_int_equal(fread(out, 1, SHA256_TEXT - 1, p), SHA256_TEXT - 1);
    out[SHA256_TEXT - 1] = 0;
    pclose(p);
}

static void test_files(void **state)
{
    const char *folder = scratch_new(), *path = scratch_path(folder, "f");
    size_t n = 3 << 19;
    unsigned char *data = malloc(n);
    char want[SHA256_TEXT], got[SHA256_TEXT];
    struct err err = {0};

    (void)state;
    for (size_t i = 0; i < n; i++)
        data[i] = (unsigned char)(i * 2654435761u >> 13);
    for (size_t cut = 0; cut < 200; cut += cut < 130 ? 1 : 23) {
        scratch_write(path, data, cut);
        sum_by_coreutils(path, "sha256sum < %s", want);
        assert_int_equal(hash_file(path, got, &err), 0);
        assert_string_equal(got, want);
    }
    scratch_write(path, data, n);
    sum_by_coreutils(path, "sha256sum < %s", want);
    assert_int_equal(hash_file(path, got, &err), 0);
    assert_string_equal(got, want);
    sum_by_coreutils(path, "tail -c +1048577 %s | head -c 65536 | sha256sum", want);
    assert_int_equal(hash_legacy(path, got, &err), 0);
    want[8] = 0;
    assert_string_equal(got, want);
    assert_int_equal(hash_file("/nowhere", got, &err), -1);
    free(data);
    scratch_remove(folder);
}

static void test_behind_header(void **state)
{
    struct err err = {0};
    struct tensor_file *f;
    char want[SHA256_TEXT], got[SHA256_TEXT];
    static const char *const path = "golden/safetensors/lora.safetensors";

    (void)state;
    assert_int_equal(tensor_file_open(&f, path, &err), 0);
    assert_int_equal(hash_behind_header(f, got, &err), 0);
    sum_by_coreutils(path, "n=$(od -An -t u8 -N 8 %1$s | tr -d ' '); tail -c +$((n + 9)) %1$s | sha256sum", want);
    assert_string_equal(got, want);
    tensor_file_close(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_examples),
        {"test_examples without instructions", test_examples, NULL, NULL, &plain},
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_behind_header),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
