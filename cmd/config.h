/* Option files: --config reads them, a run that writes an output leaves one beside it. */
#ifndef CMD_CONFIG_H
#define CMD_CONFIG_H

#include "cmd/option.h"

/* Reads options from a JSON file, or from TOML when its name ends in .toml, into the tables; values from the command line win.
 * A file that was written for another command (its key "command") is refused. Returns 0 or -1. */
int config_read(struct option_values *tables, size_t n_tables, const char *command, const char *path, struct err *err);

#endif
