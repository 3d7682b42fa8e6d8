/*
 * Stands in for bhyve's header of this name: where a device is, and what one
 * implements.
 */
#ifndef STAND_IN_PCI_EMUL_H
#define STAND_IN_PCI_EMUL_H

#include <sys/types.h>
#include <sys/linker_set.h>
#include <stdint.h>
#include "config.h"

/* Of dev/pci/pcireg.h, which bhyve's header includes. */
#define PCIR_VENDOR	0x00
#define PCIR_DEVICE	0x02
#define PCIR_REVID	0x08
#define PCIR_SUBCLASS	0x0a
#define PCIR_CLASS	0x0b
#define PCIR_SUBVEND_0	0x2c
#define PCIR_SUBDEV_0	0x2e
#define PCIC_MEMORY	0x05
#define PCIS_MEMORY_RAM	0x00

struct vmctx;
struct pci_devinst;

enum pcibar_type {
	PCIBAR_NONE,
	PCIBAR_IO,
	PCIBAR_MEM32,
	PCIBAR_MEM64,
};

struct pci_devemu {
	const char *pe_emu;
	int (*pe_init)(struct pci_devinst *pi, nvlist_t *nvl);
	void (*pe_barwrite)(struct pci_devinst *pi, int baridx, uint64_t offset,
	    int size, uint64_t value);
	uint64_t (*pe_barread)(struct pci_devinst *pi, int baridx,
	    uint64_t offset, int size);
	void (*pe_baraddr)(struct pci_devinst *pi, int baridx, int enabled,
	    uint64_t address);
};
#define PCI_EMUL_SET(x)	DATA_SET(pci_devemu_set, x)

struct pci_devinst {
	struct vmctx *pi_vmctx;
	uint8_t pi_bus;
	uint8_t pi_slot;
	uint8_t pi_func;
	void *pi_arg;
	uint8_t pi_cfgdata[256];
};

int pci_emul_alloc_bar(struct pci_devinst *pdi, int idx, enum pcibar_type type,
    uint64_t size);

static inline void
pci_set_cfgdata8(struct pci_devinst *pi, int offset, uint8_t val)
{
	pi->pi_cfgdata[offset] = val;
}

static inline void
pci_set_cfgdata16(struct pci_devinst *pi, int offset, uint16_t val)
{
	pi->pi_cfgdata[offset] = (uint8_t)val;
	pi->pi_cfgdata[offset + 1] = (uint8_t)(val >> 8);
}

SET_DECLARE(pci_devemu_set, const struct pci_devemu);

#endif
