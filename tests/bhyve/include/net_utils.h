/* Stands in for bhyve's header of this name. */
#ifndef STAND_IN_NET_UTILS_H
#define STAND_IN_NET_UTILS_H

#include <stdint.h>

struct pci_devinst;

void net_genmac(struct pci_devinst *pi, uint8_t *macaddr);

#endif
