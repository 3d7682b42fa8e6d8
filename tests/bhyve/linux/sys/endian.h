/* FreeBSD's, as far as it is used: numbers at any address. */
#ifndef COMPAT_ENDIAN_H
#define COMPAT_ENDIAN_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t
le32dec(const void *at)
{
	uint32_t n;

	memcpy(&n, at, sizeof(n));
	return (le32toh(n));
}

static inline uint16_t
be16dec(const void *at)
{
	uint16_t n;

	memcpy(&n, at, sizeof(n));
	return (be16toh(n));
}

static inline void
le32enc(void *at, uint32_t n)
{
	n = htole32(n);
	memcpy(at, &n, sizeof(n));
}

static inline void
le16enc(void *at, uint16_t n)
{
	n = htole16(n);
	memcpy(at, &n, sizeof(n));
}

#endif
