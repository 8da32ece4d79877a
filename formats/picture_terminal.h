/* Pictures as text that terminals show.
 *
 *   kitty   the graphics protocol of kitty (also ghostty, WezTerm, Konsole): PNG in base64, in pieces
 *   iterm   iTerm2's inline images (also WezTerm, VS Code, mintty): PNG in base64
 *   sixel   DEC's sixels (xterm -ti vt340, foot, mlterm): 216 colours
 *   blocks  Unicode half blocks in 24-bit colours: any terminal of today
 */
#ifndef FORMATS_PICTURE_TERMINAL_H
#define FORMATS_PICTURE_TERMINAL_H

#include "formats/picture.h"

enum picture_terminal { TERMINAL_NONE, TERMINAL_KITTY, TERMINAL_ITERM, TERMINAL_SIXEL, TERMINAL_BLOCKS };

/* What the terminal shows, by its environment variables; get is getenv(). TERMINAL_NONE: nothing. */
enum picture_terminal picture_terminal_guess(char *(*get)(const char *name));

/* *text: p (RGB) as a string for that terminal, NUL-terminated, freed by the caller; the cursor ends at the beginning of the
 * line below. Blocks take a column a pixel and a line for two rows of pixels, the others columns x lines. *lines: how many
 * lines it takes. */
int picture_terminal_text(enum picture_terminal kind, const struct picture *p, size_t columns, char **text, size_t *lines,
                          struct err *err);

#endif
