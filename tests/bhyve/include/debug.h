/* Stands in for bhyve's header of this name: lines on standard error. */
#ifndef STAND_IN_DEBUG_H
#define STAND_IN_DEBUG_H

#include <stdio.h>

/* At once, so that a line stays whole among others. */
#define EPRINTLN(format, ...) fprintf(stderr, format "\n", ##__VA_ARGS__)

#endif
