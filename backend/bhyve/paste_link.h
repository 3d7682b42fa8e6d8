/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * What the files of this directory share: reaching pasted, also in capability
 * mode, and descriptors with no more rights than they need.
 */

#ifndef PASTE_LINK_H
#define PASTE_LINK_H

#include <sys/param.h>
#ifndef WITHOUT_CAPSICUM
#include <sys/capsicum.h>
#endif
#include <sys/socket.h>
#include <sys/un.h>

#ifndef WITHOUT_CAPSICUM
#include <capsicum_helpers.h>
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "debug.h"

#define	PASTE_SOCKET	"/var/run/pasted/control.sock"

/* Seconds to wait for an answer, and between attempts. */
#define	PASTE_ANSWER	5
#define	PASTE_RETRY	1

static inline void
paste_wake(int fd)
{
	/* A pipe that is full wakes as well. */
	(void)!write(fd, "", 1);
}

static inline void
paste_drain(int fd)
{
	char buf[64];

	while (read(fd, buf, sizeof(buf)) > 0)
		;
}

static inline void
paste_close(int *fd)
{
	if (*fd != -1)
		close(*fd);
	*fd = -1;
}

static inline void
paste_limit(int fd __unused, bool reads __unused, bool writes __unused)
{
#ifndef WITHOUT_CAPSICUM
	cap_rights_t rights;

	cap_rights_init(&rights, CAP_EVENT);
	if (reads)
		cap_rights_set(&rights, CAP_READ);
	if (writes)
		cap_rights_set(&rights, CAP_WRITE);
	if (caph_rights_limit(fd, &rights) == -1)
		EPRINTLN("paste: a descriptor's rights cannot be limited: %s",
		    strerror(errno));
#endif
}

/* Waits for an answer of pasted's; false if there is none in these seconds. */
static inline bool
paste_wait_answer(int sock, int seconds)
{
	struct pollfd pfd = { .fd = sock, .events = POLLIN };
	int ready;

	do {
		ready = poll(&pfd, 1, seconds * 1000);
	} while (ready == -1 && errno == EINTR);
	return (ready == 1);
}

static inline int
paste_copy(char *to, size_t size, const char *what, const char *text)
{
	if (strlcpy(to, text, size) < size && text[0] != '\0')
		return (0);
	EPRINTLN("paste: %s \"%s\": it has 1 to %zu characters", what, text,
	    size - 1);
	return (-1);
}

/*
 * Where pasted is: opens the directory, as connecting needs it later on, and
 * gives the name in it.  -1 with a line of why.
 */
static inline int
paste_open_dir(const char *path, char *name, size_t size)
{
	char dir[sizeof(((struct sockaddr_un *)0)->sun_path)];
	const char *slash;
	int fd;

	slash = strrchr(path, '/');
	if (slash == NULL || (size_t)(slash - path) >= sizeof(dir)) {
		EPRINTLN("paste: socket \"%s\": it is an absolute path of at most "
		    "%zu characters", path, sizeof(dir) - 1);
		return (-1);
	}
	memcpy(dir, path, (size_t)(slash - path));
	dir[slash - path] = '\0';
	if (paste_copy(name, size, "socket", slash + 1) == -1)
		return (-1);
	fd = open(dir[0] == '\0' ? "/" : dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd == -1) {
		EPRINTLN("paste: %s: %s: is pasted running, with \"control\" in its "
		    "configuration?", dir, strerror(errno));
		return (-1);
	}
#ifndef WITHOUT_CAPSICUM
	cap_rights_t rights;

	cap_rights_init(&rights, CAP_CONNECTAT, CAP_LOOKUP);
	if (caph_rights_limit(fd, &rights) == -1) {
		EPRINTLN("paste: %s: %s", dir, strerror(errno));
		close(fd);
		return (-1);
	}
#endif
	return (fd);
}

/* Connects to the socket of this name in the directory; -1 with errno. */
static inline int
paste_connect(int dir, const char *name)
{
	struct sockaddr_un sun;
	int error, sock;

	sock = socket(PF_LOCAL, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (sock == -1)
		return (-1);
	memset(&sun, 0, sizeof(sun));
	sun.sun_family = AF_LOCAL;
	strlcpy(sun.sun_path, name, sizeof(sun.sun_path));
	if (connectat(dir, sock, (const struct sockaddr *)&sun,
	    sizeof(sun)) == -1) {
		error = errno;
		close(sock);
		errno = error;
		return (-1);
	}
	paste_limit(sock, true, true);
	return (sock);
}

#endif /* PASTE_LINK_H */
