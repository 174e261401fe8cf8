/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * fuzz.h - what the fuzz targets share: an input taken apart into numbers, and a check that ends the run
 *
 * Each other file here is a libFuzzer target of one parser, or of one module that works on what a peer
 * can write at any time. Such a module has its input as a sequence of operations: what the peer does,
 * and what this end does with it.
 */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(cond)                                                                \
	do {                                                                       \
		if (!(cond)) {                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond); \
			abort();                                                   \
		}                                                                  \
	} while (0)

struct fuzz_in {
	const uint8_t *p;
	size_t left;
};

/* The next bytes of the input as a number, little-endian; behind its end all are 0. */
static inline uint64_t fuzz_int(struct fuzz_in *in, size_t bytes)
{
	uint64_t v = 0;

	for (size_t i = 0; i < bytes && in->left; i++, in->p++, in->left--)
		v |= (uint64_t)*in->p << (8 * i);
	return v;
}

/* As many bytes as there are; the rest is 0. */
static inline void fuzz_bytes(struct fuzz_in *in, void *out, size_t n)
{
	size_t k = n < in->left ? n : in->left;

	memset(out, 0, n);
	memcpy(out, in->p, k);
	in->p += k;
	in->left -= k;
}

/* A number that a check may get wrong: close to `near`, to a power of 2 or to the ends; or any. */
static inline uint64_t fuzz_wild(struct fuzz_in *in, uint64_t near)
{
	uint8_t how = (uint8_t)fuzz_int(in, 1);

	switch (how >> 5) {
	case 0:
	case 1:
	case 2:
		return near + how % 32 - 8;
	case 3:
		return near + ((uint64_t)1 << how % 32);
	case 4:
		return near - ((uint64_t)1 << how % 32);
	case 5:
		return ((uint64_t)1 << 2 * (how % 32)) - (how & 1);
	case 6:
		return UINT64_MAX - how % 32;
	default:
		return fuzz_int(in, 8);
	}
}

#endif
