/*
 * Stands in for FreeBSD's header of this name, which the cross compiler lacks:
 * segments of a VM's memory, numbered as on the release that is compiled for.
 */
#ifndef STAND_IN_VMMAPI_H
#define STAND_IN_VMMAPI_H

#include <sys/types.h>
#include <stddef.h>
#include <stdint.h>

struct vmctx;

#if defined(__FreeBSD_version) && __FreeBSD_version < 1500000
enum { VM_SYSMEM, VM_BOOTROM, VM_FRAMEBUFFER, VM_PCIROM };
#else
enum { VM_SYSMEM, VM_BOOTROM = 8, VM_FRAMEBUFFER, VM_PCIROM };
#endif

const char *vm_get_name(struct vmctx *ctx);
int vm_get_memseg(struct vmctx *ctx, int ident, size_t *lenp, char *name,
    size_t namesiz);
void *vm_create_devmem(struct vmctx *ctx, int segid, const char *name,
    size_t len);
int vm_mmap_memseg(struct vmctx *ctx, vm_paddr_t gpa, int segid,
    vm_ooffset_t segoff, size_t len, int prot);
int vm_munmap_memseg(struct vmctx *ctx, vm_paddr_t gpa, size_t len);

#endif
