/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * mac.h - SHA-256 (FIPS 180-4) and HMAC-SHA-256 (RFC 2104)
 *
 * Own code and not a library's: a preload library must not pull a crypto library into every program
 * that it is loaded into. Pure functions, thread-safe, no allocation, no errors.
 */
#ifndef RSOCK_MAC_H
#define RSOCK_MAC_H

#include <stddef.h>
#include <stdint.h>

#define RS_KEY_LEN 32
#define RS_HASH_LEN 32

void rs_sha256(const void *msg, size_t len, uint8_t out[RS_HASH_LEN]);
/* HMAC-SHA-256 of `msg`, truncated to its first `out_len` (<= 32) bytes. */
void rs_hmac(const uint8_t key[RS_KEY_LEN], const void *msg, size_t len, uint8_t *out,
	     size_t out_len);
/* Compares in time that does not depend on the contents. Returns 1 when equal. */
int rs_mem_equal(const void *a, const void *b, size_t len);

#endif
