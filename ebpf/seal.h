/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A lookup returns a pointer into an entry that the agent may delete at that moment, and whose memory the kernel may give
 * to another key at once: what is read may be half of one entry and half of another, or wholly another's. So the agent
 * seals each value together with its key, and nothing is believed without its seal.
 */
#ifndef TULLE_SEAL_H
#define TULLE_SEAL_H

#include "types.h"

static __always_inline __u32 seal_word(__u32 seal, __u32 word)
{
	seal = (seal ^ word) * 0x9e3779b1u;
	return seal ^ (seal >> 15);
}

/* Both are made of 32-bit words; bytes is a constant. */
static __always_inline __u32 seal_words(__u32 seal, const void *words, __u32 bytes)
{
	const __u32 *word = words;

#pragma unroll
	for (__u32 i = 0; i < bytes / sizeof(*word); i++)
		seal = seal_word(seal, word[i]);
	return seal;
}

/* A value's own seal is its last word. */
#define is_sealed(key, value)                                                                          \
	((value)->seal == seal_words(seal_words(0, key, sizeof(*(key))), value, sizeof(*(value)) - 4))

#endif
