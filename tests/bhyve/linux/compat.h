/*
 * What FreeBSD has and this C library lacks, for the unchanged files of
 * backend/bhyve; included before each of them.
 */
#ifndef COMPAT_H
#define COMPAT_H

#include <sys/cdefs.h>
#include <sys/socket.h>
#include <stddef.h>

#ifndef __unused
#define __unused __attribute__((unused))
#endif
#ifndef AF_LOCAL
#define AF_LOCAL AF_UNIX
#endif

size_t compat_strlcpy(char *to, const char *from, size_t size);
#define strlcpy compat_strlcpy

int connectat(int dir, int sock, const struct sockaddr *name, socklen_t len);

#endif
