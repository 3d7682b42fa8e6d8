/* FreeBSD's has one more. */
#include_next <sys/param.h>
#ifndef roundup2
#define roundup2(x, y) (((x) + ((y) - 1)) & (~((y) - 1)))
#endif
#ifndef nitems
#define nitems(x) (sizeof((x)) / sizeof((x)[0]))
#endif
#ifndef PAGE_MASK
#define PAGE_MASK 4095
#endif
