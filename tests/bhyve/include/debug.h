/* Stands in for bhyve's header of this name: lines on standard error. */
#ifndef STAND_IN_DEBUG_H
#define STAND_IN_DEBUG_H

#include <stdio.h>

#define EPRINTLN(...) do {			\
	fprintf(stderr, __VA_ARGS__);		\
	fprintf(stderr, "\n");			\
} while (0)

#endif
