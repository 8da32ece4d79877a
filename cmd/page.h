/* Self-contained HTML pages: one file, no script, nothing loaded from elsewhere, light and dark. Reports are written with this.
 *
 * Functions print to a stream (open_memstream()); the caller checks it once at the end. */
#ifndef CMD_PAGE_H
#define CMD_PAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* Everything up to and including the title as a headline. `style`: more CSS, may be NULL. */
void page_begin(FILE *out, const char *title, const char *style);

/* The program's name and version, and the end. Text in front of it is printed by the caller after page_footer(). */
void page_footer(FILE *out);
void page_end(FILE *out);

/* A card with a headline and a line about it (HTML, may be NULL); </section> ends it. */
void page_section(FILE *out, const char *title, const char *about);

/* Text as text: <, >, & and quotes become entities. */
void page_text(FILE *out, const char *s);

/* One of the numbers at the top, between <div class=tiles> and </div>; value is HTML. */
void page_tile(FILE *out, const char *label, const char *value);

/* Bytes as base64. */
void page_base64(FILE *out, const void *data, size_t n);

/* The frame of charts: viewBox 940 x 288, the field is LEFT .. RIGHT, TOP .. BOTTOM. */
enum { PAGE_LEFT = 60, PAGE_RIGHT = 920, PAGE_TOP = 16, PAGE_BOTTOM = 246 };
#define PAGE_CHART "<svg viewBox='0 0 940 288'>"

/* A horizontal line at y with its label (HTML) on the left. */
void page_level(FILE *out, double y, const char *label);

/* Where a share of the field's height lies (0: bottom, 1: top; clipped), and of its width. */
double page_y(double share);
double page_x(double share);

/* A round step (1, 2 or 5 times a power of ten) that divides 0 .. most into at most n parts; most > 0. */
double page_round_step(double most, int n);

#endif
