#include "formats/pickle.h"

#include <stdlib.h>
#include <string.h>

#include "formats/pickle_vm.h"

enum {
    MAX_NAME = 256 /* bytes of a "module.name" that a table could hold */
};

struct op {
    const char *name; /* NULL: not an opcode */
    int (*run)(struct vm *vm, unsigned arg, struct err *err);
    unsigned arg;
};

/* ---- Opcodes that make plain values */

static int op_proto(struct vm *vm, unsigned arg, struct err *err)
{
    uint64_t version;

    (void)arg;
    if (pickle_take_number(vm, 1, &version, err) != 0)
        return -1;
    return version <= 5 ? 0 : pickle_broken(vm, "has a protocol newer than 5", err);
}

static int op_frame(struct vm *vm, unsigned arg, struct err *err)
{
    return pickle_take(vm, arg, err) ? 0 : -1; /* the frame's length: of use to readers of streams only */
}

static int op_constant(struct vm *vm, unsigned arg, struct err *err)
{
    return pickle_push(vm, &vm->constant[arg], err); /* 0, 1: False, True; 2: None */
}

static int op_int(struct vm *vm, unsigned bytes, struct err *err)
{
    uint64_t u;

    if (pickle_take_number(vm, bytes, &u, err) != 0)
        return -1;
    return pickle_push_int(vm, bytes == 4 ? (int64_t)(int32_t)(uint32_t)u : (int64_t)u, err);
}

/* LONG1, LONG4: a length, then that many bytes of little-endian two's complement */
static int op_long(struct vm *vm, unsigned bytes, struct err *err)
{
    uint64_t n, u = 0;
    const unsigned char *p;

    if (pickle_take_number(vm, bytes, &n, err) != 0)
        return -1;
    if (n > INT32_MAX)
        return pickle_broken(vm, "holds an integer of impossible length", err);
    p = pickle_take(vm, n, err);
    if (!p)
        return -1;
    if (n > 8)
        return pickle_push_text(vm, PICKLE_BIGINT, p, (size_t)n, err);
    for (unsigned i = 0; i < n; i++)
        u |= (uint64_t)p[i] << (8 * i);
    if (n && n < 8 && p[n - 1] & 0x80)
        u |= ~UINT64_C(0) << (8 * n);
    return pickle_push_int(vm, (int64_t)u, err);
}

static int op_float(struct vm *vm, unsigned arg, struct err *err)
{
    const unsigned char *p = pickle_take(vm, 8, err);
    struct pickle_value *v = p ? pickle_new(vm, PICKLE_FLOAT, err) : NULL;
    uint64_t u = 0;

    (void)arg;
    if (!v)
        return -1;
    for (int i = 0; i < 8; i++) /* the one big-endian opcode */
        u = u << 8 | p[i];
    memcpy(&v->f, &u, sizeof u);
    return pickle_push(vm, v, err);
}

/* Strings and bytes: arg = bytes of the length, plus 16 for strings, plus 32 for the str of Python 2 */
enum { TEXT = 16, TEXT2 = 32 };

static int op_text(struct vm *vm, unsigned arg, struct err *err)
{
    enum pickle_kind kind = arg & TEXT ? PICKLE_STR : PICKLE_BYTES;
    const unsigned char *p;
    uint64_t n;

    if (pickle_take_number(vm, arg & 15, &n, err) != 0)
        return -1;
    p = pickle_take(vm, n, err);
    if (!p)
        return -1;
    if (arg & TEXT2 && pickle_is_utf8(p, (size_t)n)) /* Python 2 had one type for text and bytes */
        kind = PICKLE_STR;
    return pickle_push_text(vm, kind, p, (size_t)n, err);
}

/* Protocol 0: a line of text. arg is the opcode. */
static int op_line(struct vm *vm, unsigned arg, struct err *err)
{
    char number[64], *rest;
    const char *s;
    size_t n;

    if (pickle_take_line(vm, &s, &n, err) != 0)
        return -1;
    if (arg == 'V' || arg == 'S') {
        if (n && memchr(s, '\\', n))
            return pickle_broken(vm, "uses escapes in strings of protocol 0, which checkpoints do not", err);
        if (arg == 'S' && (n < 2 || s[0] != s[n - 1] || (s[0] != '\'' && s[0] != '"')))
            return pickle_broken(vm, "holds a string without quotes", err);
        return arg == 'S' ? pickle_push_text(vm, PICKLE_STR, s + 1, n - 2, err) : pickle_push_text(vm, PICKLE_STR, s, n, err);
    }
    if (arg == 'I' && n == 2 && s[0] == '0' && (s[1] == '0' || s[1] == '1'))
        return op_constant(vm, s[1] == '1', err);
    if (n == 0 || n >= sizeof number)
        return pickle_broken(vm, "holds a number of impossible length", err);
    memcpy(number, s, n);
    number[n] = 0;
    if (arg == 'F') {
        struct pickle_value *v = pickle_new(vm, PICKLE_FLOAT, err);

        if (v)
            v->f = strtod(number, &rest);
        return v && *rest ? pickle_broken(vm, "holds a malformed number", err) : pickle_push(vm, v, err);
    }
    if (arg == 'L' && number[n - 1] == 'L')
        number[n - 1] = 0;
    int64_t i = strtoll(number, &rest, 10);
    return rest == number || *rest ? pickle_broken(vm, "holds a malformed number", err) : pickle_push_int(vm, i, err);
}

/* ---- Stack and memo */

static int op_mark(struct vm *vm, unsigned arg, struct err *err)
{
    (void)arg;
    if (vm->n_mark == PICKLE_MAX_MARKS)
        return pickle_broken(vm, "nests deeper than 1,000 levels", err);
    vm->mark[vm->n_mark++] = vm->n_stack;
    return 0;
}

static int op_pop(struct vm *vm, unsigned arg, struct err *err)
{
    struct pickle_value **item;
    size_t n;

    if (arg || (vm->n_mark && vm->n_stack == pickle_floor(vm))) /* POP of a mark takes the mark */
        return pickle_pop_mark(vm, &item, &n, err);
    return pickle_pop(vm, err) ? 0 : -1;
}

static int op_dup(struct vm *vm, unsigned arg, struct err *err)
{
    struct pickle_value *v = pickle_top(vm, err);

    (void)arg;
    return pickle_push(vm, v, err);
}

static int memo_index(struct vm *vm, unsigned bytes, uint64_t *index, struct err *err)
{
    const char *s;
    size_t n;

    if (bytes)
        return pickle_take_number(vm, bytes, index, err);
    if (pickle_take_line(vm, &s, &n, err) != 0)
        return -1;
    *index = 0;
    for (size_t i = 0; i < n; i++) {
        if (s[i] < '0' || s[i] > '9' || i == 10)
            return pickle_broken(vm, "holds a malformed memo index", err);
        *index = *index * 10 + (uint64_t)(s[i] - '0');
    }
    return 0;
}

static int memo_put(struct vm *vm, uint64_t index, struct err *err)
{
    struct pickle_value *v = pickle_top(vm, err);

    if (!v)
        return -1;
    /* A writer numbers its entries from 0 and spends two bytes or more on each. */
    if (index >= vm->limit_memo)
        return pickle_broken(vm, "remembers a value at an impossible place", err);
    if (index >= vm->cap_memo) {
        size_t cap = vm->cap_memo;
        size_t want = 2 * (size_t)index + 64;
        struct pickle_value **grown = realloc(vm->memo, want * sizeof *grown);

        if (!grown)
            return err_memory(err, want * sizeof *grown, "a pickle's memo");
        memset(grown + cap, 0, (want - cap) * sizeof *grown);
        vm->memo = grown;
        vm->cap_memo = want;
    }
    vm->n_memo += vm->memo[index] == NULL;
    vm->memo[index] = v;
    return 0;
}

static int op_put(struct vm *vm, unsigned bytes, struct err *err)
{
    uint64_t index;

    return memo_index(vm, bytes, &index, err) != 0 ? -1 : memo_put(vm, index, err);
}

static int op_memoize(struct vm *vm, unsigned arg, struct err *err)
{
    (void)arg;
    return memo_put(vm, vm->n_memo, err);
}

static int op_get(struct vm *vm, unsigned bytes, struct err *err)
{
    uint64_t index;

    if (memo_index(vm, bytes, &index, err) != 0)
        return -1;
    if (index >= vm->cap_memo || !vm->memo[index])
        return pickle_broken(vm, "recalls a value that it never remembered", err);
    return pickle_push(vm, vm->memo[index], err);
}

/* ---- Containers */

static int op_empty(struct vm *vm, unsigned kind, struct err *err)
{
    return pickle_push_seq(vm, (enum pickle_kind)kind, NULL, 0, err);
}

static int op_group(struct vm *vm, unsigned kind, struct err *err)
{
    struct pickle_value **item;
    size_t n;

    if (pickle_pop_mark(vm, &item, &n, err) != 0)
        return -1;
    if (kind == PICKLE_DICT && n % 2)
        return pickle_broken(vm, "has a key without a value", err);
    return pickle_push_seq(vm, (enum pickle_kind)kind, item, n, err);
}

static int op_tuple(struct vm *vm, unsigned n, struct err *err)
{
    if (vm->n_stack - pickle_floor(vm) < n)
        return pickle_broken(vm, "takes a value from an empty stack", err);
    vm->n_stack -= n;
    return pickle_push_seq(vm, PICKLE_TUPLE, vm->stack + vm->n_stack, n, err);
}

/* Adds items [n] to the container on top, which must be of that kind. */
static int extend(struct vm *vm, enum pickle_kind kind, struct pickle_value **item, size_t n, struct err *err)
{
    struct pickle_value *seq = pickle_top(vm, err);

    if (!seq)
        return -1;
    if (seq->kind != kind)
        return pickle_broken(vm, kind == PICKLE_DICT ? "sets items of what is no dictionary" : "adds items to what is no list",
                             err);
    if (kind == PICKLE_DICT && n % 2)
        return pickle_broken(vm, "has a key without a value", err);
    return pickle_add(vm, seq, item, n, err);
}

static int op_extend(struct vm *vm, unsigned kind, struct err *err)
{
    struct pickle_value **item;
    size_t n;

    if (pickle_pop_mark(vm, &item, &n, err) != 0)
        return -1;
    return extend(vm, (enum pickle_kind)kind, item, n, err);
}

/* APPEND, SETITEM: the one item, or key and value, on top of the container */
static int op_extend_one(struct vm *vm, unsigned kind, struct err *err)
{
    size_t n = kind == PICKLE_DICT ? 2 : 1;

    if (vm->n_stack - pickle_floor(vm) < n)
        return pickle_broken(vm, "takes a value from an empty stack", err);
    vm->n_stack -= n;
    return extend(vm, (enum pickle_kind)kind, vm->stack + vm->n_stack, n, err);
}

/* ---- Names and calls */

static int push_global(struct vm *vm, const char *module, size_t n_module, const char *name, size_t n_name, struct err *err)
{
    struct pickle_value *v = pickle_new(vm, PICKLE_GLOBAL, err);

    if (!v)
        return -1;
    v->global.module = module;
    v->global.n_module = n_module;
    v->global.name = name;
    v->global.n_name = n_name;
    if (n_module < MAX_NAME && n_name < MAX_NAME - 1 - n_module) {
        char full[MAX_NAME];
        size_t n = n_module + 1 + n_name;

        if (n_module)
            memcpy(full, module, n_module);
        full[n_module] = '.';
        if (n_name)
            memcpy(full + n_module + 1, name, n_name);
        for (const struct pickle_global *g = vm->globals; g->name && !v->global.row; g++)
            if (strlen(g->name) == n && memcmp(g->name, full, n) == 0)
                v->global.row = g;
    }
    return pickle_push(vm, v, err);
}

static int op_global(struct vm *vm, unsigned arg, struct err *err)
{
    const char *module, *name;
    size_t n_module, n_name;

    (void)arg;
    if (pickle_take_line(vm, &module, &n_module, err) != 0 || pickle_take_line(vm, &name, &n_name, err) != 0)
        return -1;
    return push_global(vm, module, n_module, name, n_name, err);
}

static int op_stack_global(struct vm *vm, unsigned arg, struct err *err)
{
    struct pickle_value *name = pickle_pop(vm, err), *module = name ? pickle_pop(vm, err) : NULL;

    (void)arg;
    if (!module)
        return -1;
    if (name->kind != PICKLE_STR || module->kind != PICKLE_STR)
        return pickle_broken(vm, "names an object by what is no string", err);
    return push_global(vm, module->text.s, module->text.n, name->text.s, name->text.n, err);
}

static int refuse_call(struct vm *vm, const struct pickle_value *callee, struct err *err)
{
    char module[128], name[128];

    if (callee->kind != PICKLE_GLOBAL)
        return pickle_broken(vm, "calls what is no function", err);
    return err_set(err,
                   "cannot read '%s': pickle wants to call '%s.%s'; this is not a plain checkpoint and nothing of it was "
                   "executed; convert it with a tool you trust",
                   vm->path, pickle_quote(callee->global.module, callee->global.n_module, module, sizeof module),
                   pickle_quote(callee->global.name, callee->global.n_name, name, sizeof name));
}

/* dict(x), OrderedDict(x): items of a dictionary, or pairs. Anything else (a default_factory) adds nothing. */
static int add_pairs(struct vm *vm, struct pickle_value *dict, const struct pickle_value *from, struct err *err)
{
    if (from->kind != PICKLE_DICT && from->kind != PICKLE_LIST && from->kind != PICKLE_TUPLE)
        return 0;
    /* Copying must not multiply: one list, many calls. */
    if (pickle_count(vm, from->seq.n, err) != 0)
        return -1;
    if (from->kind == PICKLE_DICT)
        return pickle_add(vm, dict, from->seq.item, from->seq.n, err);
    for (size_t i = 0; i < from->seq.n; i++) {
        const struct pickle_value *pair = from->seq.item[i];

        if ((pair->kind != PICKLE_LIST && pair->kind != PICKLE_TUPLE) || pair->seq.n != 2)
            return pickle_broken(vm, "makes a dictionary of what are no pairs", err);
        if (pickle_add(vm, dict, pair->seq.item, 2, err) != 0)
            return -1;
    }
    return 0;
}

static int call(struct vm *vm, const struct pickle_value *callee, struct pickle_value *args, struct err *err)
{
    const struct pickle_global *row = callee->kind == PICKLE_GLOBAL ? callee->global.row : NULL;
    struct pickle_value *v;

    if (!row || row->call == PICKLE_NEVER)
        return refuse_call(vm, callee, err);
    if (args->kind != PICKLE_TUPLE)
        return pickle_broken(vm, "calls with what is no tuple", err);
    v = pickle_new(vm, row->call == PICKLE_MAKES_DICT ? PICKLE_DICT : PICKLE_CALL, err);
    if (!v)
        return -1;
    if (row->call != PICKLE_MAKES_DICT) {
        v->call.row = row;
        v->call.args = args;
        return pickle_push(vm, v, err);
    }
    for (size_t i = 0; i < args->seq.n; i++)
        if (add_pairs(vm, v, args->seq.item[i], err) != 0)
            return -1;
    return pickle_push(vm, v, err);
}

/* REDUCE, NEWOBJ (arg 0), NEWOBJ_EX (arg 1: keyword arguments on top, which are dropped) */
static int op_call(struct vm *vm, unsigned keywords, struct err *err)
{
    struct pickle_value *args, *callee;

    if (keywords && !pickle_pop(vm, err))
        return -1;
    args = pickle_pop(vm, err);
    callee = args ? pickle_pop(vm, err) : NULL;
    return callee ? call(vm, callee, args, err) : -1;
}

/* OBJ (arg 1: the class lies above the mark) and INST (arg 0: the class is named in two lines) */
static int op_instance(struct vm *vm, unsigned on_stack, struct err *err)
{
    struct pickle_value **item, *callee, *args = pickle_new(vm, PICKLE_TUPLE, err);
    size_t n;

    if (!args || (!on_stack && op_global(vm, 0, err) != 0))
        return -1;
    callee = on_stack ? NULL : vm->stack[--vm->n_stack];
    if (pickle_pop_mark(vm, &item, &n, err) != 0)
        return -1;
    if (on_stack && n == 0)
        return pickle_broken(vm, "takes a value from an empty stack", err);
    if (on_stack) {
        callee = item[0];
        item++;
        n--;
    }
    return pickle_add(vm, args, item, n, err) != 0 ? -1 : call(vm, callee, args, err);
}

static int op_build(struct vm *vm, unsigned arg, struct err *err)
{
    struct pickle_value *state = pickle_pop(vm, err), *v = state ? pickle_top(vm, err) : NULL;

    (void)arg;
    if (!v)
        return -1;
    if (v->kind == PICKLE_GLOBAL)
        return refuse_call(vm, v, err);
    if (v->kind == PICKLE_CALL && v->call.row->call == PICKLE_VALUE)
        return err_set(err,
                       "cannot read '%s': pickle sets the state of a '%s'; this is not a plain checkpoint and nothing of it "
                       "was executed; convert it with a tool you trust",
                       vm->path, v->call.row->name);
    return v->kind == PICKLE_CALL || v->kind == PICKLE_DICT ? 0 : pickle_broken(vm, "sets the state of a plain value", err);
}

static int op_persid(struct vm *vm, unsigned arg, struct err *err)
{
    struct pickle_value *id = pickle_pop(vm, err), *v;

    (void)arg;
    if (!id)
        return -1;
    if (id->kind != PICKLE_TUPLE)
        return pickle_broken(vm, "has a persistent id that is no tuple", err);
    v = pickle_new(vm, PICKLE_PERSID, err);
    if (!v ||
        mem_grow(&vm->p->persid, &vm->cap_persid, vm->p->n_persid, sizeof *vm->p->persid, "a pickle's storages", err) != 0)
        return -1;
    v->seq = id->seq; /* tuples do not change */
    vm->p->persid[vm->p->n_persid++] = v;
    return pickle_push(vm, v, err);
}

/* ---- The machine */

/* Named, so that a refusal can say what it met: EXT calls copyreg's table, buffers lie outside of the pickle, and persistent
 * ids in text form are not torch's. */
static const struct op ops[256] = {
    [0x80] = {"PROTO", op_proto, 0},
    [0x95] = {"FRAME", op_frame, 8},
    ['N'] = {"NONE", op_constant, 2},
    [0x88] = {"NEWTRUE", op_constant, 1},
    [0x89] = {"NEWFALSE", op_constant, 0},
    ['K'] = {"BININT1", op_int, 1},
    ['M'] = {"BININT2", op_int, 2},
    ['J'] = {"BININT", op_int, 4},
    [0x8a] = {"LONG1", op_long, 1},
    [0x8b] = {"LONG4", op_long, 4},
    ['G'] = {"BINFLOAT", op_float, 0},
    ['U'] = {"SHORT_BINSTRING", op_text, 1 | TEXT2},
    ['T'] = {"BINSTRING", op_text, 4 | TEXT2},
    ['C'] = {"SHORT_BINBYTES", op_text, 1},
    ['B'] = {"BINBYTES", op_text, 4},
    [0x8e] = {"BINBYTES8", op_text, 8},
    [0x96] = {"BYTEARRAY8", op_text, 8},
    [0x8c] = {"SHORT_BINUNICODE", op_text, 1 | TEXT},
    ['X'] = {"BINUNICODE", op_text, 4 | TEXT},
    [0x8d] = {"BINUNICODE8", op_text, 8 | TEXT},
    ['I'] = {"INT", op_line, 'I'},
    ['L'] = {"LONG", op_line, 'L'},
    ['F'] = {"FLOAT", op_line, 'F'},
    ['S'] = {"STRING", op_line, 'S'},
    ['V'] = {"UNICODE", op_line, 'V'},
    ['('] = {"MARK", op_mark, 0},
    ['0'] = {"POP", op_pop, 0},
    ['1'] = {"POP_MARK", op_pop, 1},
    ['2'] = {"DUP", op_dup, 0},
    ['p'] = {"PUT", op_put, 0},
    ['q'] = {"BINPUT", op_put, 1},
    ['r'] = {"LONG_BINPUT", op_put, 4},
    [0x94] = {"MEMOIZE", op_memoize, 0},
    ['g'] = {"GET", op_get, 0},
    ['h'] = {"BINGET", op_get, 1},
    ['j'] = {"LONG_BINGET", op_get, 4},
    [')'] = {"EMPTY_TUPLE", op_empty, PICKLE_TUPLE},
    [']'] = {"EMPTY_LIST", op_empty, PICKLE_LIST},
    ['}'] = {"EMPTY_DICT", op_empty, PICKLE_DICT},
    [0x8f] = {"EMPTY_SET", op_empty, PICKLE_SET},
    ['t'] = {"TUPLE", op_group, PICKLE_TUPLE},
    ['l'] = {"LIST", op_group, PICKLE_LIST},
    ['d'] = {"DICT", op_group, PICKLE_DICT},
    [0x91] = {"FROZENSET", op_group, PICKLE_SET},
    [0x85] = {"TUPLE1", op_tuple, 1},
    [0x86] = {"TUPLE2", op_tuple, 2},
    [0x87] = {"TUPLE3", op_tuple, 3},
    ['a'] = {"APPEND", op_extend_one, PICKLE_LIST},
    ['e'] = {"APPENDS", op_extend, PICKLE_LIST},
    ['s'] = {"SETITEM", op_extend_one, PICKLE_DICT},
    ['u'] = {"SETITEMS", op_extend, PICKLE_DICT},
    [0x90] = {"ADDITEMS", op_extend, PICKLE_SET},
    ['c'] = {"GLOBAL", op_global, 0},
    [0x93] = {"STACK_GLOBAL", op_stack_global, 0},
    ['R'] = {"REDUCE", op_call, 0},
    [0x81] = {"NEWOBJ", op_call, 0},
    [0x92] = {"NEWOBJ_EX", op_call, 1},
    ['i'] = {"INST", op_instance, 0},
    ['o'] = {"OBJ", op_instance, 1},
    ['b'] = {"BUILD", op_build, 0},
    ['Q'] = {"BINPERSID", op_persid, 0},
    ['P'] = {"PERSID", NULL, 0},
    [0x82] = {"EXT1", NULL, 0},
    [0x83] = {"EXT2", NULL, 0},
    [0x84] = {"EXT4", NULL, 0},
    [0x97] = {"NEXT_BUFFER", NULL, 0},
    [0x98] = {"READONLY_BUFFER", NULL, 0},
};

static int run(struct vm *vm, struct err *err)
{
    for (;;) {
        const unsigned char *code = pickle_take(vm, 1, err);

        if (!code)
            return -1;
        if (*code == '.')
            break;
        const struct op *op = &ops[*code];
        if (!op->name)
            return pickle_broken(vm, "holds bytes that are no opcode", err);
        if (!op->run)
            return err_set(err,
                           "cannot read '%s': its pickle uses opcode %s, which no plain checkpoint needs, and was not "
                           "executed; convert it with a tool you trust",
                           vm->path, op->name);
        if (op->run(vm, op->arg, err) != 0)
            return -1;
    }
    vm->p->root = pickle_pop(vm, err);
    return vm->p->root ? 0 : -1;
}

int pickle_parse(struct pickle *p, const void *data, size_t n, const struct pickle_global *globals, const char *path,
                 struct err *err)
{
    struct vm vm = {.p = p, .at = data, .end = (const unsigned char *)data + n, .globals = globals, .path = path};
    int status;

    *p = (struct pickle){0};
    vm.limit_memo = n < PICKLE_MAX_VALUES ? n : PICKLE_MAX_VALUES;
    vm.constant = arena_alloc(&p->arena, 3 * sizeof *vm.constant, err);
    if (!vm.constant)
        return -1;
    vm.constant[0].kind = vm.constant[1].kind = PICKLE_BOOL;
    vm.constant[1].i = 1;
    vm.constant[2].kind = PICKLE_NONE;
    status = run(&vm, err);
    p->used = (size_t)(vm.at - (const unsigned char *)data);
    free(vm.stack);
    free(vm.memo);
    return status;
}

void pickle_free(struct pickle *p)
{
    free(p->persid);
    arena_free(&p->arena);
    *p = (struct pickle){0};
}
