/* Charts made of text, for a terminal that shows UTF-8, with plain ASCII where it does not. */
#ifndef CMD_CHART_H
#define CMD_CHART_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* Whether the locale's variables (LC_ALL, LC_CTYPE, LANG) say UTF-8. */
bool chart_utf8(void);

/* Columns of the terminal behind the stream, at most `most`; 80 when it is none. */
size_t chart_columns(FILE *out, size_t most);

/* Writes a bar `width` columns wide that is filled to `share` (0 .. 1, clipped) in eighths of a column. `rest`: the unfilled
 * part is drawn too. Bytes: up to 4 * width + 1. Returns buf. */
const char *chart_bar(char *buf, size_t size, double share, size_t width, bool rest);

/* Prints n rows "label  ######   value", bars relative to the largest value; format prints the value (one %g-like). Values
 * are >= 0; a NaN row shows "-". label [n] are borrowed. width: columns of the bar. */
void chart_rows(FILE *out, const char *const *label, const double *value, size_t n, size_t width, const char *format);

/* Plots y [n] (>= 0, finite) against its index as a field of width x height characters with an axis; log_y draws decades.
 * For spectra: y sorted downwards. Prints nothing when n is 0. */
void chart_plot(FILE *out, const double *y, size_t n, size_t width, size_t height, bool log_y);

#endif
