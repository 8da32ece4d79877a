/* A line of a prompt file, or what a person types: a prompt and the options behind it.
 *
 *     a red fox, (snow:1.2) <lora:style:0.8> --n blurry --w 768 --h 512 --s 30 --d 1,2 --l 7
 *
 * Options are those of sd-scripts v0.3.0 (gen_img_diffusers.py, lines 2346-2407), in any case of letters: the text is cut
 * where a blank and two dashes stand, and each piece is one option. A piece that is none is an error here (v0.3.0 left it out
 * without a word, and took "512x" for 512).
 *
 *     w, h  width, height in pixels          l   guidance scale              n  negative prompt
 *     s     steps, 1 to 1000                 nl  negative scale, or "none"   c  prompt for CLIP guidance
 *     d     seeds, separated by commas       t   strength, 0 to 1
 */
#ifndef FORMATS_PROMPT_LINE_H
#define FORMATS_PROMPT_LINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ref/base/err.h"

/* Bits of prompt_line.given */
enum {
    PROMPT_WIDTH = 1,
    PROMPT_HEIGHT = 2,
    PROMPT_STEPS = 4,
    PROMPT_SEEDS = 8,
    PROMPT_SCALE = 16,
    PROMPT_NEGATIVE_SCALE = 32,
    PROMPT_STRENGTH = 64,
    PROMPT_NEGATIVE = 128,
    PROMPT_CLIP = 256,
};

/* A LoRA that a prompt asks for, "<lora:name>", "<lora:name:0.8>" or, with the U-Net's own multiplier, "<lora:name:0.8:0.5>".
 */
struct prompt_lora {
    char *name;
    double text_encoder, unet; /* multipliers; 1 unless given */
};

struct prompt_line {
    char *text;     /* without options and without <lora:...> */
    char *negative; /* "" unless given */
    char *clip;     /* NULL unless given */
    unsigned given; /* which of the following were */
    size_t width, height, steps;
    double scale, negative_scale, strength;
    bool negative_scale_none; /* --nl none: no negative scale, whatever the command line says */
    uint64_t *seed;
    size_t seeds;
    struct prompt_lora *lora;
    size_t loras;
    size_t number; /* of the line in its file; 0 when there is none */
};

/* Parses a line [n bytes, UTF-8]. path and number (from 1) are for messages; path NULL: the text came from an option or from
 * a person. Returns 0, or -1 with kind ERR_USAGE; out is to be given to prompt_line_free() after 0. */
int prompt_line_parse(struct prompt_line *out, const char *line, size_t n, const char *path, size_t number, struct err *err);
void prompt_line_free(struct prompt_line *p);

struct prompt_file {
    struct prompt_line *line; /* [count]; blank lines are left out */
    size_t count;
};

/* Reads a file of prompts, one a line (LF, CR LF or CR; a byte order mark is skipped). Text that is not UTF-8, bad options and
 * a file without any prompt are errors that tell the line. Returns 0 or -1; out is to be given to prompt_file_free() after 0.
 */
int prompt_file_read(struct prompt_file *out, const char *path, struct err *err);

/* The same for text [n bytes] that is in memory already. */
int prompt_file_parse(struct prompt_file *out, const char *text, size_t n, const char *path, struct err *err);
void prompt_file_free(struct prompt_file *f);

#endif
