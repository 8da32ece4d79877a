#include "formats/pickle_vm.h"

#include <stdio.h>
#include <string.h>

int pickle_broken(struct vm *vm, const char *what, struct err *err)
{
    return err_set(err, "cannot read '%s': its pickle %s; the file is damaged or not a checkpoint, get it again", vm->path,
                   what);
}

/* ---- Input */

const unsigned char *pickle_take(struct vm *vm, uint64_t n, struct err *err)
{
    const unsigned char *p = vm->at;

    if (n > (uint64_t)(vm->end - vm->at)) {
        vm->p->cut = true;
        pickle_broken(vm, "ends in its middle", err);
        return NULL;
    }
    vm->at += n;
    return p;
}

int pickle_take_number(struct vm *vm, unsigned bytes, uint64_t *out, struct err *err)
{
    const unsigned char *p = pickle_take(vm, bytes, err);

    if (!p)
        return -1;
    *out = 0;
    for (unsigned i = 0; i < bytes; i++)
        *out |= (uint64_t)p[i] << (8 * i);
    return 0;
}

int pickle_take_line(struct vm *vm, const char **s, size_t *n, struct err *err)
{
    const unsigned char *nl = vm->at == vm->end ? NULL : memchr(vm->at, '\n', (size_t)(vm->end - vm->at));

    if (!nl) {
        pickle_take(vm, UINT64_MAX, err);
        return -1;
    }
    *s = (const char *)vm->at;
    *n = (size_t)(nl - vm->at);
    vm->at = nl + 1;
    return 0;
}

/* Table 3-7 of the Unicode standard: no overlong forms, no surrogates, nothing above U+10FFFF. */
bool pickle_is_utf8(const unsigned char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        unsigned char c = s[i++];
        size_t more = c < 0x80 ? 0 : c < 0xc2 ? 9 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : c < 0xf5 ? 3 : 9;

        if (more > n - i)
            return false;
        if ((c == 0xe0 && s[i] < 0xa0) || (c == 0xed && s[i] > 0x9f) || (c == 0xf0 && s[i] < 0x90) ||
            (c == 0xf4 && s[i] > 0x8f))
            return false;
        for (; more > 0; more--)
            if ((s[i++] & 0xc0) != 0x80)
                return false;
    }
    return true;
}

/* ---- Values and the stack */

int pickle_count(struct vm *vm, size_t n, struct err *err)
{
    if (n > PICKLE_MAX_VALUES - vm->p->n_values)
        return pickle_broken(vm, "holds more than 4 million values", err);
    vm->p->n_values += n;
    return 0;
}

struct pickle_value *pickle_new(struct vm *vm, enum pickle_kind kind, struct err *err)
{
    struct pickle_value *v;

    if (pickle_count(vm, 1, err) != 0)
        return NULL;
    v = arena_alloc(&vm->p->arena, sizeof *v, err);
    if (v)
        v->kind = kind;
    return v;
}

int pickle_push(struct vm *vm, struct pickle_value *v, struct err *err)
{
    if (!v)
        return -1;
    if (vm->n_stack == PICKLE_MAX_STACK)
        return pickle_broken(vm, "keeps more than a million values on its stack", err);
    if (mem_grow(&vm->stack, &vm->cap_stack, vm->n_stack, sizeof *vm->stack, "a pickle's stack", err) != 0)
        return -1;
    vm->stack[vm->n_stack++] = v;
    return 0;
}

size_t pickle_floor(const struct vm *vm)
{
    return vm->n_mark ? vm->mark[vm->n_mark - 1] : 0;
}

struct pickle_value *pickle_pop(struct vm *vm, struct err *err)
{
    if (vm->n_stack == pickle_floor(vm)) {
        pickle_broken(vm, "takes a value from an empty stack", err);
        return NULL;
    }
    return vm->stack[--vm->n_stack];
}

struct pickle_value *pickle_top(struct vm *vm, struct err *err)
{
    struct pickle_value *v = pickle_pop(vm, err);

    if (v)
        vm->n_stack++;
    return v;
}

int pickle_pop_mark(struct vm *vm, struct pickle_value ***item, size_t *n, struct err *err)
{
    *item = NULL;
    *n = 0;
    if (vm->n_mark == 0)
        return pickle_broken(vm, "closes a group that it did not open", err);
    vm->n_mark--;
    *item = vm->stack + vm->mark[vm->n_mark];
    *n = vm->n_stack - vm->mark[vm->n_mark];
    vm->n_stack = vm->mark[vm->n_mark];
    return 0;
}

int pickle_add(struct vm *vm, struct pickle_value *seq, struct pickle_value *const *item, size_t n, struct err *err)
{
    size_t want = seq->seq.n + n; /* both bounded by PICKLE_MAX_STACK + PICKLE_MAX_VALUES */

    if (want > seq->seq.cap) {
        size_t cap = want > 2 * seq->seq.cap ? want : 2 * seq->seq.cap;
        struct pickle_value **grown = arena_alloc(&vm->p->arena, cap * sizeof *grown, err);

        if (!grown)
            return -1;
        if (seq->seq.n)
            memcpy(grown, seq->seq.item, seq->seq.n * sizeof *grown);
        seq->seq.item = grown;
        seq->seq.cap = cap;
    }
    if (n)
        memcpy(seq->seq.item + seq->seq.n, item, n * sizeof *item);
    seq->seq.n = want;
    return 0;
}

int pickle_push_seq(struct vm *vm, enum pickle_kind kind, struct pickle_value *const *item, size_t n, struct err *err)
{
    struct pickle_value *v = pickle_new(vm, kind, err);

    if (!v || pickle_add(vm, v, item, n, err) != 0)
        return -1;
    return pickle_push(vm, v, err);
}

int pickle_push_text(struct vm *vm, enum pickle_kind kind, const void *s, size_t n, struct err *err)
{
    struct pickle_value *v;

    if (kind == PICKLE_STR && !pickle_is_utf8(s, n))
        return pickle_broken(vm, "holds a string that is not UTF-8", err);
    v = pickle_new(vm, kind, err);
    if (!v)
        return -1;
    v->text.s = s;
    v->text.n = n;
    return pickle_push(vm, v, err);
}

int pickle_push_int(struct vm *vm, int64_t i, struct err *err)
{
    struct pickle_value *v = pickle_new(vm, PICKLE_INT, err);

    if (v)
        v->i = i;
    return pickle_push(vm, v, err);
}

/* ---- Looking at values */

const char *pickle_quote(const char *text, size_t n, char *buf, size_t size)
{
    size_t k = 0;

    for (; k < n && k + 4 < size; k++)
        buf[k] = (unsigned char)text[k] >= 0x20 && text[k] != 0x7f ? text[k] : '?';
    snprintf(buf + k, size - k, "%s", k < n ? "..." : "");
    return buf;
}

bool pickle_is(const struct pickle_value *v, const char *s)
{
    return v->kind == PICKLE_STR && v->text.n == strlen(s) && memcmp(v->text.s, s, v->text.n) == 0;
}

const struct pickle_value *pickle_get(const struct pickle_value *dict, const char *key)
{
    const struct pickle_value *found = NULL;

    if (dict->kind == PICKLE_DICT)
        for (size_t i = 0; i + 1 < dict->seq.n; i += 2)
            if (pickle_is(dict->seq.item[i], key))
                found = dict->seq.item[i + 1];
    return found;
}
