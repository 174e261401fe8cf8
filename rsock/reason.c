/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/reason.h"

static const char *const words[] = {
#define X(sym, word, text) word,
	RS_REASONS(X)
#undef X
};

static const char *const texts[] = {
#define X(sym, word, text) text,
	RS_REASONS(X)
#undef X
};

const char *rs_reason_word(unsigned int r)
{
	return r < RS_REASON_COUNT ? words[r] : "unknown";
}

const char *rs_reason_text(unsigned int r)
{
	return r < RS_REASON_COUNT ? texts[r] : "unknown";
}
