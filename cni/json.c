// SPDX-License-Identifier: Apache-2.0
/*
 * Just enough JSON: the value of a key of the outermost object. The agent parses the configuration properly; here only
 * the version to answer in is wanted, and what loopback passes on. Any input is safe, whatever its nesting.
 */
#include "tulle-cni.h"

#include <string.h>

static size_t skip_space(struct span json, size_t at)
{
	while (at < json.length && strchr(" \t\r\n", json.data[at]) != NULL && json.data[at] != '\0')
		at++;
	return at;
}

/* From the opening quote to after the closing one. */
static size_t skip_string(struct span json, size_t at)
{
	for (at++; at < json.length && json.data[at] != '"'; at++)
		if (json.data[at] == '\\')
			at++;
	return at < json.length ? at + 1 : json.length;
}

static size_t skip_value(struct span json, size_t at)
{
	size_t depth = 0;

	while (at < json.length) {
		char c = json.data[at];
		if (c == '"') {
			at = skip_string(json, at);
			if (depth == 0)
				return at;
			continue;
		}
		if (depth == 0 && (c == ',' || c == '}' || c == ']'))
			return at;
		if (c == '{' || c == '[')
			depth++;
		if ((c == '}' || c == ']') && --depth == 0)
			return at + 1;
		at++;
	}
	return at;
}

/* Finds `"key": value` in the outermost object. An incomplete or foreign text has no keys beyond its fault. */
bool find_value(struct span json, const char *quoted_key, struct span *value)
{
	size_t at = skip_space(json, 0);

	if (at >= json.length || json.data[at] != '{')
		return false;
	do {
		size_t key = skip_space(json, at + 1);
		if (key >= json.length || json.data[key] != '"')
			return false;
		size_t key_end = skip_string(json, key);
		at = skip_space(json, key_end);
		if (at >= json.length || json.data[at] != ':')
			return false;
		size_t start = skip_space(json, at + 1);
		at = skip_value(json, start);
		if (key_end - key == strlen(quoted_key) && memcmp(json.data + key, quoted_key, key_end - key) == 0) {
			*value = (struct span){ json.data + start, at - start };
			return at < json.length;
		}
		at = skip_space(json, at);
	} while (at < json.length && json.data[at] == ',');
	return false;
}
