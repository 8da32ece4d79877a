/* lora info --tokens: CLIP's token ids of texts. */
#include <stdlib.h>
#include <string.h>

#include "cmd/info.h"
#include "formats/tokenizer.h"

static int print_one(struct tokenizer *t, const char *text, size_t n, struct token_list *ids, struct err *err)
{
    ids->count = 0;
    if (tokenizer_encode(t, text, n, ids, err))
        return -1;
    printf("[%d", TOKEN_BEGIN);
    for (size_t i = 0; i < ids->count; i++)
        printf(", %d", (int)ids->id[i]);
    printf(", %d]\n", TOKEN_END);
    return 0;
}

/* Lines end with a line feed or a carriage return and one; the last may lack its end. NUL is a character like any other. */
static int print_lines(struct tokenizer *t, FILE *in, struct token_list *ids, struct err *err)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    int rc = 0;

    while (rc == 0 && (n = getline(&line, &cap, in)) >= 0) {
        if (n > 0 && line[n - 1] == '\n')
            n -= n > 1 && line[n - 2] == '\r' ? 2 : 1;
        rc = print_one(t, line, (size_t)n, ids, err);
    }
    free(line);
    if (rc == 0 && !feof(in))
        rc = err_set(err, "cannot read texts from standard input; check what is piped in");
    return rc;
}

int info_tokens(const char *text, FILE *in, struct err *err)
{
    struct tokenizer *t = NULL;
    struct token_list ids = {0};
    int rc = tokenizer_open(&t, err);

    if (rc == 0)
        rc = strcmp(text, "-") == 0 ? print_lines(t, in, &ids, err) : print_one(t, text, strlen(text), &ids, err);
    free(ids.id);
    tokenizer_close(t);
    return rc;
}
