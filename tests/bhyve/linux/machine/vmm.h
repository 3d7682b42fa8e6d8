/* FreeBSD's, as far as it is used: types of addresses. */
#ifndef COMPAT_VMM_H
#define COMPAT_VMM_H

#include <stdint.h>

typedef uint64_t vm_paddr_t;
typedef int64_t vm_ooffset_t;

#endif
