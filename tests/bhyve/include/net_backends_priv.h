/* Stands in for bhyve's header of this name: what a backend implements. */
#ifndef STAND_IN_NET_BACKENDS_PRIV_H
#define STAND_IN_NET_BACKENDS_PRIV_H

#include <sys/types.h>
#include <sys/linker_set.h>
#include <sys/uio.h>
#include <stddef.h>
#include "net_backends.h"

struct pci_vtnet_softc;

struct net_backend {
	const char *prefix;
	int (*init)(struct net_backend *be, const char *devname, nvlist_t *nvl,
	    net_be_rxeof_t cb, void *param);
	void (*cleanup)(struct net_backend *be);
	ssize_t (*send)(struct net_backend *be, const struct iovec *iov,
	    int iovcnt);
	ssize_t (*peek_recvlen)(struct net_backend *be);
	ssize_t (*recv)(struct net_backend *be, const struct iovec *iov,
	    int iovcnt);
	void (*recv_enable)(struct net_backend *be);
	void (*recv_disable)(struct net_backend *be);
	uint64_t (*get_cap)(struct net_backend *be);
	int (*set_cap)(struct net_backend *be, uint64_t features,
	    unsigned int vnet_hdr_len);
	struct pci_vtnet_softc *sc;
	int fd;
	unsigned int be_vnet_hdr_len;
	unsigned int fe_vnet_hdr_len;
	size_t priv_size;
};

#define NET_BE_PRIV(be)	((void *)((be) + 1))

SET_DECLARE(net_backend_set, struct net_backend);

#endif
