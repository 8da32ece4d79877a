#include "formats/toml.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/toml_scan.h"

enum {
    MAX_DEPTH = 32, /* arrays and inline tables inside each other; the parser recurses into them */
    MAX_PARTS = 16, /* of a dotted key */
    MAX_KEY = 256,
};

/* How a table came to be decides what may still be added to it. Kept in the table itself under a key that no text can have
 * (keys with control characters are refused), removed at the end. */
#define STATE "\001"
enum state { IMPLICIT, HEADER, DOTTED, INLINE, ELEMENT };

struct key {
    char part[MAX_PARTS][MAX_KEY];
    size_t n;
};

static int parse_key_part(struct toml *t, char *part)
{
    struct text x = {0};
    int c = toml_peek(t), rc = -1;

    if ((c == '"' || c == '\'') && t->end - t->s >= 3 && t->s[1] == c && t->s[2] == c) {
        toml_fail(t, "a name cannot be a text of several lines");
        goto out;
    }
    if (c == '"' || c == '\'') {
        if (toml_text(t, &x))
            goto out;
    } else {
        while (toml_is_bare(toml_peek(t)))
            if (toml_text_add(t, &x, t->s++, 1))
                goto out;
        if (x.n == 0) {
            toml_fail(t, "a name is expected here, as in: name = value");
            goto out;
        }
    }
    if (x.n >= MAX_KEY) {
        toml_fail(t, "the name is too long");
        goto out;
    }
    for (size_t i = 0; i < x.n; i++)
        if (toml_is_control((unsigned char)x.data[i]) || x.data[i] == '\t') {
            toml_fail(t, "control character in a name");
            goto out;
        }
    memcpy(part, x.data, x.n + 1);
    rc = 0;
out:
    free(x.data);
    return rc;
}

static int parse_key(struct toml *t, struct key *k)
{
    k->n = 0;
    do {
        if (k->n == MAX_PARTS)
            return toml_fail(t, "the name has too many parts");
        toml_skip_blanks(t);
        if (parse_key_part(t, k->part[k->n]))
            return -1;
        k->n++;
        toml_skip_blanks(t);
    } while (toml_take(t, '.'));
    return 0;
}

static enum state state_of(const json_t *table)
{
    return (enum state)json_integer_value(json_object_get(table, STATE));
}

static int set_state(struct toml *t, json_t *table, enum state s)
{
    return json_object_set_new_nocheck(table, STATE, json_integer(s)) ? toml_no_memory(t) : 0;
}

/* Puts value (whose reference is consumed) under a name that must be new. */
static int put(struct toml *t, json_t *table, const char *name, json_t *value)
{
    char msg[MAX_KEY + 64];

    if (json_object_get(table, name)) {
        json_decref(value);
        snprintf(msg, sizeof msg, "'%s' is given twice", name);
        return toml_fail(t, msg);
    }
    if (!value)
        return toml_no_memory(t);
    if (json_object_set_new(table, name, value))
        return toml_fail(t, "the name is not UTF-8 text");
    return 0;
}

static json_t *new_table(struct toml *t, json_t *parent, const char *name, enum state s)
{
    json_t *table = json_object();

    if (!table || set_state(t, table, s)) {
        json_decref(table);
        return NULL;
    }
    return put(t, parent, name, table) ? NULL : table;
}

/* The table that holds the last part of a dotted key; tables on the way are made. Inside a [header] walk existing tables may
 * be entered, arrays by their last element; a dotted key may only enter tables that dotted keys made. */
static json_t *walk(struct toml *t, json_t *table, const struct key *k, bool header)
{
    for (size_t i = 0; i + 1 < k->n; i++) {
        json_t *next = json_object_get(table, k->part[i]);

        if (!next) {
            next = new_table(t, table, k->part[i], header ? IMPLICIT : DOTTED);
            if (!next)
                return NULL;
        } else if (header && json_is_array(next)) {
            next = json_array_get(next, json_array_size(next) - 1);
        }
        if (!json_is_object(next) || state_of(next) == INLINE || (!header && state_of(next) != DOTTED)) {
            toml_fail(t, "a name on the way is taken already by something that cannot be added to");
            return NULL;
        }
        table = next;
    }
    return table;
}

static json_t *parse_value(struct toml *t);

static int parse_pair(struct toml *t, json_t *table)
{
    struct key k;
    json_t *value;

    if (parse_key(t, &k))
        return -1;
    if (!toml_take(t, '='))
        return toml_fail(t, "'=' is expected after the name");
    toml_skip_blanks(t);
    value = parse_value(t);
    if (!value)
        return -1;
    table = walk(t, table, &k, false);
    if (!table) {
        json_decref(value);
        return -1;
    }
    return put(t, table, k.part[k.n - 1], value);
}

static json_t *parse_array(struct toml *t)
{
    json_t *a = json_array();

    t->s++;
    for (;;) {
        json_t *v;

        if (toml_skip_space(t))
            break;
        if (toml_take(t, ']'))
            return a;
        v = parse_value(t);
        if (!v)
            break;
        if (json_array_append_new(a, v)) {
            toml_no_memory(t);
            break;
        }
        if (toml_skip_space(t))
            break;
        if (!toml_take(t, ',') && toml_peek(t) != ']') {
            toml_fail(t, "',' or ']' is expected in the list");
            break;
        }
    }
    json_decref(a);
    return NULL;
}

/* All tables inside an inline table are closed with it. */
static int close_inline(struct toml *t, json_t *table)
{
    const char *key;
    json_t *v;

    json_object_foreach(table, key, v)
    {
        if (json_is_object(v) && close_inline(t, v))
            return -1;
    }
    return set_state(t, table, INLINE);
}

static json_t *parse_inline(struct toml *t)
{
    json_t *o = json_object();
    bool first = true;

    t->s++;
    toml_skip_blanks(t);
    while (o && !toml_take(t, '}')) {
        if (!first && !toml_take(t, ',')) {
            toml_fail(t, "',' or '}' is expected in the table");
            goto bad;
        }
        first = false;
        toml_skip_blanks(t);
        if (parse_pair(t, o))
            goto bad;
        toml_skip_blanks(t);
    }
    if (!o || close_inline(t, o))
        goto bad;
    return o;
bad:
    json_decref(o);
    return NULL;
}

static json_t *parse_value(struct toml *t)
{
    struct text x = {0};
    json_t *v = NULL;
    int c = toml_peek(t);

    if (t->depth >= MAX_DEPTH) {
        toml_fail(t, "lists and tables are nested too deep");
        return NULL;
    }
    t->depth++;
    if (c == '"' || c == '\'') {
        if (toml_text(t, &x) == 0 && !(v = json_stringn(x.data, x.n)))
            toml_fail(t, "the text is not UTF-8");
        free(x.data);
    } else if (c == '[') {
        v = parse_array(t);
    } else if (c == '{') {
        v = parse_inline(t);
    } else {
        v = toml_word(t);
    }
    t->depth--;
    return v;
}

/* [name] or [[name]]: returns the table that the lines below belong to, or NULL. */
static json_t *parse_header(struct toml *t, json_t *root)
{
    bool element = t->end - t->s >= 2 && t->s[1] == '[';
    struct key k;
    json_t *parent, *old, *table;

    t->s += 1 + element;
    if (parse_key(t, &k))
        return NULL;
    if (!toml_take(t, ']') || (element && !toml_take(t, ']'))) {
        toml_fail(t, element ? "']]' is expected after the name" : "']' is expected after the name");
        return NULL;
    }
    parent = walk(t, root, &k, true);
    if (!parent)
        return NULL;
    old = json_object_get(parent, k.part[k.n - 1]);
    if (!element) {
        if (!old)
            return new_table(t, parent, k.part[k.n - 1], HEADER);
        if (json_is_object(old) && state_of(old) == IMPLICIT)
            return set_state(t, old, HEADER) ? NULL : old;
        toml_fail(t, "the table is given twice");
        return NULL;
    }
    if (!old) {
        if (put(t, parent, k.part[k.n - 1], old = json_array()))
            return NULL;
    } else if (!json_is_array(old) || state_of(json_array_get(old, 0)) != ELEMENT) {
        toml_fail(t, "the name is taken already by something that is no list of [[tables]]");
        return NULL;
    }
    table = json_object();
    if (!table || set_state(t, table, ELEMENT) || json_array_append(old, table)) {
        json_decref(table);
        toml_no_memory(t);
        return NULL;
    }
    json_decref(table); /* the list holds it */
    return table;
}

static void remove_states(json_t *v)
{
    const char *key;
    json_t *x;
    size_t i;

    if (json_is_object(v)) {
        json_object_del(v, STATE);
        json_object_foreach(v, key, x)
        {
            remove_states(x);
        }
    } else if (json_is_array(v)) {
        json_array_foreach(v, i, x)
        {
            remove_states(x);
        }
    }
}

json_t *toml_parse(const char *text, size_t n, const char *path, struct err *err)
{
    struct toml t = {.s = text, .end = text + n, .line = 1, .path = path, .err = err};
    json_t *root = json_object(), *table = root;

    if (!root) {
        toml_no_memory(&t);
        return NULL;
    }
    if (n >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) /* a byte order mark, as some editors leave */
        t.s += 3;
    while (t.s < t.end) {
        if (toml_skip_comment(&t))
            goto bad;
        if (toml_take_newline(&t) || t.s == t.end)
            continue;
        if (toml_peek(&t) == '[' ? !(table = parse_header(&t, root)) : parse_pair(&t, table))
            goto bad;
        if (toml_skip_comment(&t))
            goto bad;
        if (t.s < t.end && !toml_take_newline(&t)) {
            toml_fail(&t, "the line goes on after its value");
            goto bad;
        }
    }
    remove_states(root);
    return root;
bad:
    json_decref(root);
    return NULL;
}
