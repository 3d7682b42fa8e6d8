/* The functions of compat.h. */

#include "compat.h"

#include <sys/un.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

size_t
compat_strlcpy(char *to, const char *from, size_t size)
{
	size_t len = strlen(from);

	if (size > 0) {
		size_t n = len < size ? len : size - 1;

		memcpy(to, from, n);
		to[n] = '\0';
	}
	return (len);
}

/* By the directory's name in /proc, as Linux has no such call. */
int
connectat(int dir, int sock, const struct sockaddr *name, socklen_t len)
{
	struct sockaddr_un sun;
	int n;

	(void)len;
	sun.sun_family = AF_UNIX;
	n = snprintf(sun.sun_path, sizeof(sun.sun_path), "/proc/self/fd/%d/%s", dir,
	    ((const struct sockaddr_un *)name)->sun_path);
	if (n < 0 || (size_t)n >= sizeof(sun.sun_path)) {
		errno = ENAMETOOLONG;
		return (-1);
	}
	return (connect(sock, (const struct sockaddr *)&sun, sizeof(sun)));
}
