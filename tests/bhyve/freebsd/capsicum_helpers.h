/*
 * Stands in for FreeBSD's header of this name, which the cross compiler lacks.
 * The linker gets what is called here from libc.
 */
#ifndef STAND_IN_CAPSICUM_HELPERS_H
#define STAND_IN_CAPSICUM_HELPERS_H

#include <sys/capsicum.h>
#include <errno.h>

static inline int
caph_rights_limit(int fd, const cap_rights_t *rights)
{
	return (cap_rights_limit(fd, rights) < 0 && errno != ENOSYS ? -1 : 0);
}

#endif
