/*
 * What the files of backend/bhyve call of bhyve, so that they can be linked for
 * FreeBSD and nothing of its C library is missing.  It is never run.
 */

#include <string.h>

#include "net_backends_priv.h"
#include "net_utils.h"
#include "pci_emul.h"

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
main(void)
{
	struct net_backend **be;
	int count = 0;

	for (be = SET_BEGIN(net_backend_set); be < SET_LIMIT(net_backend_set); be++)
		count += (*be)->init != NULL;
	return (count == 1 ? 0 : 1);
}
