/* From argv to rows: names, prefixes, suggestions. The values themselves are option.c's. */
#include "cmd/option.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Compares up to n characters with '-' and '_' equal. */
static bool same_letters(const char *a, const char *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char x = a[i] == '-' ? '_' : a[i], y = b[i] == '-' ? '_' : b[i];

        if (x != y || !x)
            return false;
    }
    return true;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Edits between two words: insert, delete, replace, swap of neighbours. Words over 63 letters are never near. */
static size_t distance(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b), d[64][64];

    if (n > 63 || m > 63)
        return SIZE_MAX;
    for (size_t i = 0; i <= n; i++)
        d[i][0] = i;
    for (size_t j = 0; j <= m; j++)
        d[0][j] = j;
    for (size_t i = 1; i <= n; i++)
        for (size_t j = 1; j <= m; j++) {
            d[i][j] = least(least(d[i - 1][j], d[i][j - 1]) + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                d[i][j] = least(d[i][j], d[i - 2][j - 2] + 1);
        }
    return d[n][m];
}

const char *option_nearest(const char *word, const char *const *words, size_t n)
{
    size_t len = strlen(word), best = len < 6 ? 1 : len / 3;
    const char *found = NULL;

    for (size_t i = 0; i < n; i++) {
        size_t d = distance(word, words[i]);

        if (d < best || (d == best && !found)) {
            best = d;
            found = words[i];
        }
    }
    return found;
}

size_t option_find(const struct option_values *v, const char *name)
{
    while (*name == '-')
        name++;
    for (size_t i = 0; i < v->count; i++)
        if (strlen(v->rows[i].name) == strlen(name) && same_letters(v->rows[i].name, name, strlen(name)))
            return i;
    return SIZE_MAX;
}

struct parse {
    struct option_values *tables;
    size_t n_tables;
    const char *who;
    int argc, at;
    char *const *argv;
    const char **positional; /* [argc] */
    size_t n_positional;
};

static int unknown_option(const struct parse *p, const char *typed, struct err *err)
{
    const char *words[512], *near;
    size_t n = 0;

    for (size_t t = 0; t < p->n_tables; t++)
        for (size_t i = 0; i < p->tables[t].count; i++) {
            const struct option_row *r = &p->tables[t].rows[i];

            if (n < sizeof words / sizeof *words && !(r->flags & (OPTION_POSITIONAL | OPTION_HIDDEN)))
                words[n++] = r->name;
        }
    near = option_nearest(typed + strspn(typed, "-"), words, n);
    if (near)
        return err_usage(err, "'%s' has no option '%s'; did you mean '--%s'? see '%s --help'", p->who, typed, near, p->who);
    return err_usage(err, "'%s' has no option '%s'; see '%s --help'", p->who, typed, p->who);
}

/* Second choice for a prefix: what other programs' command lines do not know, so that their short forms keep their meaning. */
static bool is_second_choice(size_t table, const struct option_row *r)
{
    return table > 0 || r->ignored || (r->flags & OPTION_HIDDEN);
}

/* Looks for rows that begin with name [len], of first or second choice. Returns how many there are; the shortest is kept in
 * *table and *row, all are listed in text. */
static size_t find_prefix(const struct parse *p, const char *name, size_t len, bool second, size_t *table, size_t *row,
                          char *text, size_t size)
{
    size_t found = 0, shortest = SIZE_MAX;

    for (size_t t = 0; t < p->n_tables; t++)
        for (size_t i = 0; i < p->tables[t].count; i++) {
            const struct option_row *r = &p->tables[t].rows[i];
            size_t room = strlen(text), n = strlen(r->name);

            /* An alias would make every prefix of both spellings ambiguous. */
            if (r->flags & OPTION_POSITIONAL || r->alias_of || is_second_choice(t, r) != second || n < len ||
                !same_letters(r->name, name, len))
                continue;
            snprintf(text + room, size - room, "%s--%s", found++ ? ", " : "", r->name);
            if (n < shortest) {
                shortest = n;
                *table = t;
                *row = i;
            }
        }
    return found;
}

/* Finds the row that `typed` (with dashes, without "=value") names: exactly; or as a prefix of one option only; or of several
 * that all begin with the shortest of them (--ratio: --ratios, not --ratios_te). */
static int find_row(const struct parse *p, const char *typed, size_t *table, size_t *row, struct err *err)
{
    size_t len = strlen(typed), found = 0;
    char list[512] = "";

    if (len < 3 || typed[1] != '-')
        return unknown_option(p, typed, err);
    for (*table = 0; *table < p->n_tables; (*table)++) {
        *row = option_find(&p->tables[*table], typed);
        if (*row != SIZE_MAX && !(p->tables[*table].rows[*row].flags & OPTION_POSITIONAL))
            return 0;
    }
    found = find_prefix(p, typed + 2, len - 2, false, table, row, list, sizeof list);
    if (!found)
        found = find_prefix(p, typed + 2, len - 2, true, table, row, list, sizeof list);
    if (!found)
        return unknown_option(p, typed, err);
    if (found > 1) {
        const char *shortest = p->tables[*table].rows[*row].name;
        char again[512] = "";
        size_t t, i;

        if (find_prefix(p, shortest, strlen(shortest), is_second_choice(*table, &p->tables[*table].rows[*row]), &t, &i, again,
                        sizeof again) != found)
            return err_usage(err, "option '%s' of '%s' could mean: %s; type more of the name", typed, p->who, list);
    }
    return 0;
}

/* "-5", "-.5", "-1e-3": values, not options. */
static bool is_number(const char *s)
{
    char *end;

    if (strchr("0123456789.", s[1]) == NULL || !s[1])
        return false;
    strtod(s, &end);
    return !*end;
}

/* A word that begins with a dash is an option, unless it is a number or has a blank before any '='. */
static bool looks_like_option(const char *s)
{
    size_t len = strcspn(s, "=");

    return s[0] == '-' && s[1] && !is_number(s) && memchr(s, ' ', len) == NULL;
}

/* Reads the option at p->at and its values. *stop is set after "help". */
static int parse_option(struct parse *p, bool *stop, struct err *err)
{
    const char *arg = p->argv[p->at], *equals = strchr(arg, '='), *one[1];
    char name[256];
    size_t t = 0, i = 0, n = 0;
    const struct option_row *r;

    snprintf(name, sizeof name, "%.*s", equals ? (int)(equals - arg) : (int)strlen(arg), arg);
    if (strcmp(name, "-h") == 0)
        strcpy(name, "--help");
    if (find_row(p, name, &t, &i, err))
        return -1;
    r = &p->tables[t].rows[i];
    p->at++;
    *stop = strcmp(r->name, "help") == 0;
    if (equals) {
        one[0] = equals + 1;
        return option_set(&p->tables[t], i, one, 1, OPTION_FROM_LINE, err);
    }
    if (r->type != OPTION_FLAG) {
        size_t most = r->type == OPTION_STRINGS || r->type == OPTION_FLOATS || r->type == OPTION_INTS ? SIZE_MAX : 1;

        while (n < most && p->at + (int)n < p->argc && !looks_like_option(p->argv[p->at + (int)n]))
            n++;
    }
    p->at += (int)n;
    return option_set(&p->tables[t], i, (const char *const *)p->argv + p->at - n, n, OPTION_FROM_LINE, err);
}

/* Deals the positional words to the rows: a list takes what the rows after it do not need. */
static int deal_positional(struct parse *p, struct err *err)
{
    struct option_values *v = &p->tables[0];
    size_t used = 0, singles_left = 0;

    for (size_t i = 0; i < v->count; i++)
        if (v->rows[i].flags & OPTION_POSITIONAL && v->rows[i].type != OPTION_STRINGS)
            singles_left++;
    for (size_t i = 0; i < v->count && used < p->n_positional; i++) {
        size_t n = 1, left = p->n_positional - used;

        if (!(v->rows[i].flags & OPTION_POSITIONAL))
            continue;
        if (v->rows[i].type == OPTION_STRINGS)
            n = left > singles_left ? left - singles_left : 0;
        else
            singles_left--;
        if (n && option_set(v, i, p->positional + used, n, OPTION_FROM_LINE, err))
            return -1;
        used += n;
    }
    if (used < p->n_positional)
        return err_usage(err, "'%s' does not know what to do with '%s'; see '%s --help'", p->who, p->positional[used], p->who);
    return 0;
}

int option_parse(struct option_values *tables, size_t n_tables, const char *who, int argc, char *const *argv, struct err *err)
{
    struct parse p = {.tables = tables, .n_tables = n_tables, .who = who, .argc = argc, .argv = argv};
    bool stop = false, options_end = false;

    /* The words stay as long as the values do: a list points into this array. */
    p.positional = arena_alloc(&tables[0].arena, ((size_t)argc + 1) * sizeof *p.positional, err);
    if (!p.positional)
        return -1;
    while (p.at < argc && !stop) {
        if (!options_end && strcmp(argv[p.at], "--") == 0) {
            options_end = true;
            p.at++;
        } else if (!options_end && looks_like_option(argv[p.at])) {
            if (parse_option(&p, &stop, err))
                return -1;
        } else {
            p.positional[p.n_positional++] = argv[p.at++];
        }
    }
    return stop ? 0 : deal_positional(&p, err);
}
