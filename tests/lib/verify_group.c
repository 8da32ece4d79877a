#include "tests/lib/verify_group.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

void verify_group_report(void *ctx, const struct verify_row *row, bool ok)
{
    (void)ctx;
    if (!ok)
        print_error("%s %s, %s: off by %g, limit %g\n", row->group, row->what, row->name, row->worst, row->limit);
}

struct verify verify_group_new(struct ops *ops)
{
    ops_ref(ops);
    return (struct verify){.golden = "golden", .ops = ops, .arithmetic = verify_arithmetics, .report = verify_group_report};
}

void verify_group(int (*group)(struct verify *v, struct err *err), size_t at_least)
{
    struct ops ops;
    struct verify v = verify_group_new(&ops);
    struct err err = {0};

    if (group(&v, &err) != 0)
        fail_msg("%s", err.msg);
    assert_true(v.rows >= at_least);
    assert_int_equal(v.failed, 0);
}
