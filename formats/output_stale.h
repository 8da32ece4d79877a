/* What a killed run left behind: NAME.tmp.PID beside NAME. */
#ifndef FORMATS_OUTPUT_STALE_H
#define FORMATS_OUTPUT_STALE_H

/* Removes folder/NAME.tmp.PID[.N] for `name`, where no process PID runs on this machine and no process anywhere holds the file's
 * lock (flock; writers hold it as long as they live, also on network drives). Trouble is passed over: it is a courtesy. A folder
 * without any such file is not read again by this process, so that ten thousand outputs do not read it ten thousand times. */
void output_stale_remove(const char *folder, const char *name);

#endif
