/*
 * What the files of backend/bhyve call of bhyve, so that they can be linked for
 * FreeBSD and nothing of its C library is missing.  It is never run.
 */

#include <string.h>

#include "net_backends_priv.h"
#include "net_utils.h"
#include "pci_emul.h"

#include <machine/vmm.h>
#include "vmmapi.h"

const char *
get_config_value_node(const nvlist_t *parent, const char *name)
{
	return (parent != NULL ? name : NULL);
}

const char *
get_config_value(const char *path)
{
	return (path);
}

nvlist_t *
find_config_node(const char *path)
{
	return (*path == '\0' ? (nvlist_t *)(uintptr_t)path : NULL);
}

struct mevent *
mevent_add_disabled(int fd, enum ev_type type,
    void (*func)(int, enum ev_type, void *), void *param)
{
	func(fd, type, param);
	return (param);
}

int
mevent_enable(struct mevent *evp)
{
	return (evp == NULL);
}

int
mevent_disable(struct mevent *evp)
{
	return (evp == NULL);
}

int
mevent_delete(struct mevent *evp)
{
	return (evp == NULL);
}

void
net_genmac(struct pci_devinst *pi, uint8_t *macaddr)
{
	memset(macaddr, pi->pi_slot, 6);
}

int
pci_emul_alloc_bar(struct pci_devinst *pdi, int idx, enum pcibar_type type,
    uint64_t size)
{
	return (pdi == NULL || idx < 0 || type == PCIBAR_NONE || size == 0);
}

const char *
vm_get_name(struct vmctx *ctx)
{
	return (ctx != NULL ? "vm" : NULL);
}

int
vm_get_memseg(struct vmctx *ctx, int ident, size_t *lenp, char *name,
    size_t namesiz)
{
	*lenp = 0;
	memset(name, 0, namesiz);
	return (ctx == NULL || ident < 0);
}

void *
vm_create_devmem(struct vmctx *ctx, int segid, const char *name, size_t len)
{
	return (segid > 0 && *name != '\0' && len > 0 ? ctx : NULL);
}

int
vm_mmap_memseg(struct vmctx *ctx, vm_paddr_t gpa, int segid,
    vm_ooffset_t segoff, size_t len, int prot)
{
	return (ctx == NULL || gpa == 0 || segid < 0 || segoff < 0 || len == 0 ||
	    prot == 0);
}

int
vm_munmap_memseg(struct vmctx *ctx, vm_paddr_t gpa, size_t len)
{
	return (ctx == NULL || gpa == 0 || len == 0);
}

int
main(void)
{
	struct net_backend **be;
	const struct pci_devemu **device;
	int count = 0;

	for (be = SET_BEGIN(net_backend_set); be < SET_LIMIT(net_backend_set); be++)
		count += (*be)->init != NULL;
	for (device = SET_BEGIN(pci_devemu_set); device < SET_LIMIT(pci_devemu_set);
	    device++)
		count += (*device)->pe_init != NULL;
	return (count == 2 ? 0 : 1);
}
