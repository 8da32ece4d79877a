/* pickles: values of every protocol, and programs that must not run */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "formats/pickle.h"

static const struct pickle_global globals[] = {
    {"collections.OrderedDict", PICKLE_MAKES_DICT, 0},
    {"torch._utils.rebuild", PICKLE_VALUE, 7},
    {"numpy.dtype", PICKLE_OBJECT, 8},
    {"torch.float32", PICKLE_NEVER, 9},
    {0},
};

/* Parses a copy in a block of exactly n bytes, so that a read past the end is seen by the sanitizer. */
static int parse(struct pickle *p, unsigned char **block, const void *data, size_t n, struct err *err)
{
    *block = malloc(n ? n : 1);
    assert_non_null(*block);
    memcpy(*block, data, n);
    return pickle_parse(p, *block, n, globals, "a.ckpt", err);
}

static void refused(const void *data, size_t n, const char *words)
{
    struct err err = {0};
    struct pickle p;
    unsigned char *block;

    assert_int_equal(parse(&p, &block, data, n, &err), -1);
    if (!strstr(err.msg, words) || !strstr(err.msg, "cannot read 'a.ckpt': "))
        fail_msg("expected '%s' in: %s", words, err.msg);
    pickle_free(&p);
    free(block);
}

#define REFUSED(bytes, words) refused(bytes, sizeof(bytes) - 1, words)

/* {'a': [1, -2, 3.5, None, True], 'b': (b'xy', 2**70), 'a': {}} by hand, the second 'a' counts */
static void test_values(void **state)
{
    static const char bytes[] = "\x80\x02}q\x00(X\x01\x00\x00\x00"
                                "aq\x01](K\x01J\xfe\xff\xff\xffG\x40\x0c\0\0\0\0\0\0N\x88"
                                "eX\x01\0\0\0"
                                "bC\x02xy\x8a\x09\0\0\0\0\0\0\0\0\x40\x86h\x01}u.tail";
    const struct pickle_value *v, *list;
    struct err err = {0};
    struct pickle p;
    unsigned char *block;

    (void)state;
    assert_int_equal(parse(&p, &block, bytes, sizeof bytes - 1, &err), 0);
    assert_int_equal(p.used, sizeof bytes - 1 - 4);
    assert_int_equal(p.root->kind, PICKLE_DICT);
    assert_int_equal(p.root->seq.n, 6);
    list = p.root->seq.item[1];
    assert_int_equal(list->kind, PICKLE_LIST);
    assert_int_equal(list->seq.n, 5);
    assert_int_equal(list->seq.item[0]->i, 1);
    assert_int_equal(list->seq.item[1]->i, -2);
    assert_true(list->seq.item[2]->f == 3.5);
    assert_int_equal(list->seq.item[3]->kind, PICKLE_NONE);
    assert_int_equal(list->seq.item[4]->kind, PICKLE_BOOL);
    assert_int_equal(list->seq.item[4]->i, 1);
    v = pickle_get(p.root, "b");
    assert_int_equal(v->kind, PICKLE_TUPLE);
    assert_int_equal(v->seq.item[0]->kind, PICKLE_BYTES);
    assert_int_equal(v->seq.item[1]->kind, PICKLE_BIGINT);
    assert_int_equal(v->seq.item[1]->text.n, 9);
    assert_int_equal(pickle_get(p.root, "a")->kind, PICKLE_DICT);
    assert_null(pickle_get(p.root, "c"));
    assert_null(pickle_get(list, "a"));
    pickle_free(&p);
    free(block);
}

static int64_t one_int(const char *bytes, size_t n)
{
    struct err err = {0};
    struct pickle p;
    unsigned char *block;
    int64_t i;

    assert_int_equal(parse(&p, &block, bytes, n, &err), 0);
    assert_int_equal(p.root->kind, PICKLE_INT);
    i = p.root->i;
    pickle_free(&p);
    free(block);
    return i;
}

#define ONE_INT(bytes) one_int(bytes, sizeof(bytes) - 1)

static void test_integers(void **state)
{
    (void)state;
    assert_int_equal(ONE_INT("K\xff."), 255);
    assert_int_equal(ONE_INT("M\xff\xff."), 65535);
    assert_int_equal(ONE_INT("J\x00\x00\x00\x80."), INT32_MIN);
    assert_int_equal(ONE_INT("\x8a\x00."), 0);
    assert_int_equal(ONE_INT("\x8a\x01\xff."), -1);
    assert_int_equal(ONE_INT("\x8a\x05\x00\x00\x00\x00\x01."), INT64_C(1) << 32);
    assert_true(ONE_INT("\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80.") == INT64_MIN);
    assert_int_equal(ONE_INT("\x8b\x02\x00\x00\x00\xff\x7f."), 32767);
    assert_int_equal(ONE_INT("I-12\n."), -12);
    assert_int_equal(ONE_INT("L34L\n."), 34);
    assert_int_equal(ONE_INT("K\x01K\x02"
                             "0."),
                     1);
    assert_int_equal(ONE_INT("K\x05(K\x06K\x07"
                             "1."),
                     5);
    assert_int_equal(ONE_INT("K\x09\x94K\x01h\x00."), 9);
    assert_int_equal(ONE_INT("K\x09p3\nK\x01g3\n."), 9);
    assert_int_equal(ONE_INT("\x80\x04\x95\x03\0\0\0\0\0\0\0K\x07."), 7);
}

static void test_calls_kept(void **state)
{
    static const char dict[] = "ccollections\nOrderedDict\n](X\x01\0\0\0xK\x01\x86X\x01\0\0\0yK\x02\x86"
                               "e\x85R}b.";
    static const char tensor[] = "ctorch._utils\nrebuild\n(U\x07storageK\x03tQ\x85R.";
    static const char object[] = "\x80\x04\x8c\x05numpy\x8c\x05"
                                 "dtype\x93)\x81N"
                                 "b.";
    static const char unknown[] = "}cpytorch_lightning\nModelCheckpoint\nK\x01s.";
    struct err err = {0};
    struct pickle p;
    unsigned char *block;

    (void)state;
    assert_int_equal(parse(&p, &block, dict, sizeof dict - 1, &err), 0);
    assert_int_equal(p.root->kind, PICKLE_DICT);
    assert_int_equal(p.root->seq.n, 4);
    assert_int_equal(pickle_get(p.root, "y")->i, 2);
    pickle_free(&p);
    free(block);
    assert_int_equal(parse(&p, &block, tensor, sizeof tensor - 1, &err), 0);
    assert_int_equal(p.root->kind, PICKLE_CALL);
    assert_int_equal(p.root->call.row->what, 7);
    assert_int_equal(p.n_persid, 1);
    assert_ptr_equal(p.root->call.args->seq.item[0], p.persid[0]);
    assert_true(pickle_is(p.persid[0]->seq.item[0], "storage"));
    pickle_free(&p);
    free(block);
    assert_int_equal(parse(&p, &block, object, sizeof object - 1, &err), 0);
    assert_int_equal(p.root->kind, PICKLE_CALL);
    assert_int_equal(p.root->call.row->what, 8);
    pickle_free(&p);
    free(block);
    /* named but not called: a dictionary key, as Lightning writes it */
    assert_int_equal(parse(&p, &block, unknown, sizeof unknown - 1, &err), 0);
    assert_int_equal(p.root->seq.item[0]->kind, PICKLE_GLOBAL);
    assert_null(p.root->seq.item[0]->global.row);
    pickle_free(&p);
    free(block);
}

/* Every way that a pickle has to call os.system, or to set a state where it may do harm */
static void test_malicious(void **state)
{
    (void)state;
    REFUSED("cos\nsystem\n(S'true'\ntR.", "call 'os.system'");
    REFUSED("cposix\nsystem\nX\x04\0\0\0true\x85R.", "call 'posix.system'");
    REFUSED("\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "call 'os.system'");
    REFUSED("(S'true'\nios\nsystem\n.", "call 'os.system'");
    REFUSED("(cos\nsystem\nS'true'\no.", "call 'os.system'");
    REFUSED("\x80\x02"
            "cos\nsystem\nX\x04\0\0\0true\x85\x81.",
            "call 'os.system'");
    REFUSED("\x80\x04"
            "cos\nsystem\nX\x04\0\0\0true\x85}\x92.",
            "call 'os.system'");
    REFUSED("cos\nsystem\n}b.", "call 'os.system'");
    REFUSED("cbuiltins\neval\nX\x01\0\0\0"
            "1\x85R.",
            "call 'builtins.eval'");
    REFUSED("c__builtin__\ngetattr\n)R.", "call '__builtin__.getattr'");
    REFUSED("ctorch.storage\n_load_from_bytes\nC\x01x\x85R.", "call 'torch.storage._load_from_bytes'");
    REFUSED("\x80\x04\x8c\x0b"
            "collections\x8c\x12OrderedDict.copy.x\x93)R.",
            "call 'collections.OrderedDict.copy.x'");
    REFUSED("ctorch\nfloat32\n)R.", "call 'torch.float32'");
    REFUSED("c\n\n)R.", "call '.'");
    REFUSED("cos\x01\x1b[2J\nx\x7fy\n)R.", "call 'os??[2J.x?y'");
    REFUSED("ctorch._utils\nrebuild\n)R}b.", "sets the state of a 'torch._utils.rebuild'");
    REFUSED("\x82\x01.", "opcode EXT1");
    REFUSED("\x83\x01\x01.", "opcode EXT2");
    REFUSED("\x84\x01\x01\x01\x01.", "opcode EXT4");
    REFUSED("\x97.", "opcode NEXT_BUFFER");
    REFUSED("Pabc\n.", "opcode PERSID");
}

static void test_broken(void **state)
{
    (void)state;
    REFUSED("", "ends in its middle");
    REFUSED("\x80\x06N.", "newer than 5");
    REFUSED("\xff.", "no opcode");
    REFUSED(".", "empty stack");
    REFUSED("0.", "empty stack");
    REFUSED("2.", "empty stack");
    REFUSED("\x86.", "empty stack");
    REFUSED("(\x85.", "empty stack"); /* not through a mark */
    REFUSED("K\x01(a.", "empty stack");
    REFUSED("t.", "did not open");
    REFUSED("1.", "did not open");
    REFUSED("(o.", "empty stack");
    REFUSED("}(K\x01u.", "without a value");
    REFUSED("(K\x01"
            "d.",
            "without a value");
    REFUSED("]K\x01K\x02s.", "no dictionary");
    REFUSED("}K\x01"
            "a.",
            "no list");
    REFUSED("K\x01K\x02\x93.", "no string");
    REFUSED("K\x01)R.", "no function");
    REFUSED("cnumpy\ndtype\n]R.", "no tuple");
    REFUSED("ccollections\nOrderedDict\n]K\x01"
            "a\x85R.",
            "no pairs");
    REFUSED("K\x01}b.", "plain value");
    REFUSED("K\x01Q.", "no tuple");
    REFUSED("h\x00.", "never remembered");
    REFUSED("g1234567890123\n.", "malformed memo");
    REFUSED("K\x01r\xff\xff\xff\x7f.", "impossible place");
    REFUSED("X\xff\xff\xff\xff"
            "abc",
            "ends in its middle");
    REFUSED("\x8d\xff\xff\xff\xff\xff\xff\xff\xff"
            "abc",
            "ends in its middle");
    REFUSED("\x8b\xff\xff\xff\x7f"
            "abc",
            "ends in its middle");
    REFUSED("\x8b\xff\xff\xff\xff"
            "abc",
            "impossible length");
    REFUSED("\x95\xff\xff\xff", "ends in its middle");
    REFUSED("X\x02\0\0\0\xc0\x80.", "not UTF-8");
    REFUSED("X\x03\0\0\0\xed\xa0\x80.", "not UTF-8");
    REFUSED("X\x01\0\0\0\xe2.", "not UTF-8");
    REFUSED("S'a\n.", "without quotes");
    REFUSED("S'a\\n'\n.", "escapes");
    REFUSED("I\n.", "impossible length");
    REFUSED("I12x\n.", "malformed number");
    REFUSED("Fabc\n.", "malformed number");
}

/* A program of n bytes made of copies of one opcode, with a head and a tail */
static char *repeat(const char *head, const char *op, size_t times, const char *tail, size_t *n)
{
    char *bytes = malloc(strlen(head) + strlen(op) * times + strlen(tail) + 1), *p = bytes;

    assert_non_null(bytes);
    p = stpcpy(p, head);
    for (size_t i = 0; i < times; i++)
        p = stpcpy(p, op);
    p = stpcpy(p, tail);
    *n = (size_t)(p - bytes);
    return bytes;
}

/* Bombs: the answer takes memory in proportion to the input */
static void test_bombs(void **state)
{
    static const struct {
        const char *head, *op, *tail, *words; /* words NULL: harmless after all */
    } bombs[] = {
        {"", "(", "", "nests deeper"},
        {"N", "\x85", ".", NULL}, /* a tuple in a tuple in a tuple ... */
        {"", "]", "", "ends in its middle"},
        {"]q\x01",
         "h\x01"
         "a",
         ".", NULL}, /* a list that holds itself, often */
        {"ccollections\nOrderedDict\nq\x01](I1\nI2\n\x86I1\nI2\n\x86I1\nI2\n\x86I1\nI2\n\x86"
         "e\x85q\x02",
         "0h\x01h\x02R", ".", NULL},
    };

    (void)state;
    for (size_t i = 0; i < sizeof bombs / sizeof bombs[0]; i++) {
        struct err err = {0};
        struct pickle p;
        unsigned char *block;
        size_t n;
        char *bytes = repeat(bombs[i].head, bombs[i].op, 200000, bombs[i].tail, &n);
        int status = parse(&p, &block, bytes, n, &err);

        assert_int_equal(status, bombs[i].words ? -1 : 0);
        if (bombs[i].words && !strstr(err.msg, bombs[i].words))
            fail_msg("expected '%s' in: %s", bombs[i].words, err.msg);
        /* a value takes 48 bytes, its items 8 each, at most doubled as they grow */
        assert_true(p.arena.total <= 512 * n + (1 << 20));
        pickle_free(&p);
        free(block);
        free(bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),    cmocka_unit_test(test_integers), cmocka_unit_test(test_calls_kept),
        cmocka_unit_test(test_malicious), cmocka_unit_test(test_broken),   cmocka_unit_test(test_bombs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
