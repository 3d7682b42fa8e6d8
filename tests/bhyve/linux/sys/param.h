/* FreeBSD's has one more. */
#include_next <sys/param.h>
#ifndef roundup2
#define roundup2(x, y) (((x) + ((y) - 1)) & (~((y) - 1)))
#endif
