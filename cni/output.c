// SPDX-License-Identifier: Apache-2.0
/* Text, JSON strings, and the error object of the CNI SPEC. */
#include "tulle-cni.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void append(struct buffer *to, const char *data, size_t length)
{
	if (length > to->capacity - to->length) {
		to->overflow = true;
		return;
	}
	memcpy(to->data + to->length, data, length);
	to->length += length;
}

void append_text(struct buffer *to, const char *text)
{
	append(to, text, strlen(text));
}

/* A JSON string. Bytes beyond ASCII are shown one by one (as if Latin-1): valid JSON whatever the input was. */
void append_json(struct buffer *to, const char *text)
{
	append_text(to, "\"");
	for (const char *at = text; *at != '\0'; at++) {
		unsigned char byte = (unsigned char)*at;
		char escaped[8];
		if (byte == '"' || byte == '\\')
			snprintf(escaped, sizeof escaped, "\\%c", byte);
		else if (byte < 0x20 || byte > 0x7e)
			snprintf(escaped, sizeof escaped, "\\u%04x", byte);
		else
			snprintf(escaped, sizeof escaped, "%c", byte);
		append_text(to, escaped);
	}
	append_text(to, "\"");
}

bool write_all(int fd, const char *data, size_t length)
{
	while (length > 0) {
		ssize_t written = write(fd, data, length);
		if (written < 0 && errno == EINTR)
			continue;
		if (written <= 0)
			return false;
		data += written;
		length -= (size_t)written;
	}
	return true;
}

void die(enum code code, const char *details, const char *format, ...)
{
	char msg[1024], number[16], out[10240];
	struct buffer to = { out, 0, sizeof out, false };
	va_list args;

	va_start(args, format);
	vsnprintf(msg, sizeof msg, format, args);
	va_end(args);
	snprintf(number, sizeof number, "%d", (int)code);

	append_text(&to, "{\"cniVersion\":");
	append_json(&to, call.version);
	append_text(&to, ",\"code\":");
	append_text(&to, number);
	append_text(&to, ",\"msg\":");
	append_json(&to, msg);
	if (details != NULL) {
		append_text(&to, ",\"details\":");
		append_json(&to, details);
	}
	append_text(&to, "}\n");
	write_all(STDOUT_FILENO, to.data, to.length);
	exit(1);
}
