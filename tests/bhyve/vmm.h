/*
 * Stands in for vmm(4) and bhyve's PCI bus on Linux: segments are memory files
 * that cannot be cut, shown by name in the directory "vmm.io" of where the
 * process is, and what a guest has mapped of them is found by its address.
 */
#ifndef STAND_IN_VMM_H
#define STAND_IN_VMM_H

#include <stdint.h>
#include "config.h"
#include "pci_emul.h"

/* A VM of this name; one at a time. */
struct vmctx *vmm_begin(const char *name);

/* As init_pci(): the device of a node; false if it does not begin. */
bool pci_begin(struct pci_devinst *pi, struct vmctx *ctx, nvlist_t *nvl);
const struct pci_devemu *pci_emulation(void);
/* Bytes of a BAR, as the guest finds them. */
uint64_t pci_bar_len(int idx);

/* What the guest has at an address, or NULL; and how many maps there are. */
uint8_t *vmm_guest(uint64_t gpa, size_t len);
unsigned int vmm_maps(void);

#endif
