/* Hashes by which web UIs know models and LoRA files.
 *
 *   sha256          of the whole file (the web UI's "new" hash; its first 10 digits are shown)
 *   sshs_model_hash SHA-256 of a safetensors file behind its header: metadata may change, this stays
 *   legacy          first 8 hex digits of the SHA-256 of the 65,536 bytes at 1 MiB (fewer at the end of a short file)
 *
 * SHA-256 (FIPS 180-4) is written here: none of the program's libraries has it, and linking one for 60 lines would be its
 * only use. It takes the CPU's SHA instructions when there are any (2 GB/s instead of 0.4).
 */
#ifndef FORMATS_HASH_H
#define FORMATS_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "formats/tensor_file.h"
#include "ref/base/err.h"

struct sha256 {
    uint32_t state[8];
    uint64_t nbytes;
    unsigned char block[64];
};

enum { SHA256_TEXT = 65, HASH_LEGACY_TEXT = 9 }; /* bytes of the hex texts with their 0 */

void sha256_start(struct sha256 *h);
void sha256_add(struct sha256 *h, const void *data, size_t n);
void sha256_text(struct sha256 *h, char out[SHA256_TEXT]); /* ends the hash; lower-case hex */

/* Tests set it to leave the CPU's instructions out. */
extern bool sha256_plain;

/* Of any file. */
int hash_file(const char *path, char out[SHA256_TEXT], struct err *err);
int hash_legacy(const char *path, char out[HASH_LEGACY_TEXT], struct err *err);

/* sshs_legacy_hash of an open LoRA file: the legacy hash of the file as it would be with its ss_* metadata alone, which is when
 * sd-scripts computes it. 1 when out is filled; 0 when that cannot be told: no safetensors file, no ss_* metadata, tensors in
 * another order than the reference library writes, or a header longer than 1 MiB. -1: it cannot be read. */
int hash_legacy_lora(const struct tensor_file *f, char out[HASH_LEGACY_TEXT], struct err *err);

/* sshs_model_hash of an open safetensors file; -1 for other formats, which have no such hash. */
int hash_behind_header(const struct tensor_file *f, char out[SHA256_TEXT], struct err *err);

#endif
