/* Stands in for bhyve's header of this name: where a device is. */
#ifndef STAND_IN_PCI_EMUL_H
#define STAND_IN_PCI_EMUL_H

#include <stdint.h>

struct pci_devinst {
	uint8_t pi_bus;
	uint8_t pi_slot;
	uint8_t pi_func;
};

#endif
