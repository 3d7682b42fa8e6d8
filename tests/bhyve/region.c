/*
 * A virtual machine with a region, and what a guest does with it, as told on
 * standard input.  It is in a directory with another one, "vmm.io".
 *
 *	region NAME SLOT-OPTION [SLOT-OPTION]
 *
 * The device is in the first slot; one in a second is expected to be refused.
 *
 *	store OFFSET TEXT	to its memory
 *	load OFFSET LENGTH
 *	flush			asks, waits, and prints "flushed" or "failed"
 *	ask			asks, and does not wait
 *	wait			waits for what was asked for, as flush does
 *	move			has the BAR elsewhere
 *	info			prints what its registers and the bus say
 *
 * Prints "running", and an answer to each line.
 */

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bhyve.h"
#include "vmm.h"

#define	REGS	0
#define	MEMORY	2

static struct pci_devinst pi;
static uint64_t gpa = 0x400000000;

static uint32_t
get(uint64_t offset)
{
	return ((uint32_t)pci_emulation()->pe_barread(&pi, REGS, offset, 4));
}

static uint32_t
ask(void)
{
	pci_emulation()->pe_barwrite(&pi, REGS, 0x94, 4, 1);
	return (get(0x94));
}

static void
await(uint32_t number)
{
	while ((int32_t)(get(0x98) - number) < 0)
		usleep(200);
	puts((int32_t)(get(0x9c) - number) >= 0 && get(0x9c) != 0 ? "failed" : "flushed");
}

static uint16_t
config16(int at)
{
	return ((uint16_t)(pi.pi_cfgdata[at] | pi.pi_cfgdata[at + 1] << 8));
}

int
main(int argc, char **argv)
{
	struct pci_devinst second;
	struct vmctx *ctx;
	char line[512], text[256];
	unsigned long offset, len;
	uint32_t number = 0;
	uint8_t *at;

	if (argc < 3) {
		fprintf(stderr, "usage: region NAME SLOT-OPTION [SLOT-OPTION]\n");
		return (2);
	}
	config_set("name", argv[1]);
	ctx = vmm_begin(argv[1]);
	if (!pci_begin(&pi, ctx, config_slot(argv[2])))
		return (1);
	if (argc > 3 && pci_begin(&second, ctx, config_slot(argv[3])))
		return (3);
	pci_emulation()->pe_baraddr(&pi, MEMORY, 1, gpa);
	puts("running");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) != NULL) {
		if (sscanf(line, "store %lu %255s", &offset, text) == 2) {
			at = vmm_guest(gpa + offset, strlen(text));
			if (at != NULL)
				memcpy(at, text, strlen(text));
			puts(at != NULL ? "stored" : "outside");
		} else if (sscanf(line, "load %lu %lu", &offset, &len) == 2) {
			at = vmm_guest(gpa + offset, len);
			printf("%.*s\n", at != NULL ? (int)len : 7,
			    at != NULL ? (const char *)at : "outside");
		} else if (strcmp(line, "flush\n") == 0) {
			await(ask());
		} else if (strcmp(line, "ask\n") == 0) {
			number = ask();
			puts("asked");
		} else if (strcmp(line, "wait\n") == 0) {
			await(number);
		} else if (strcmp(line, "move\n") == 0) {
			pci_emulation()->pe_baraddr(&pi, MEMORY, 0, gpa);
			if (vmm_maps() != 0)
				abort();
			gpa *= 2;
			pci_emulation()->pe_baraddr(&pi, MEMORY, 1, gpa);
			puts("moved");
		} else if (strcmp(line, "info\n") == 0) {
			printf("id %04x:%04x magic %08x version %u length %llu use %u "
			    "bars %llu %llu behind %llx odd %llx\n", config16(0), config16(2),
			    get(0x80), get(0x84),
			    (unsigned long long)pci_emulation()->pe_barread(&pi, REGS, 0x88, 8),
			    get(0x90), (unsigned long long)pci_bar_len(REGS),
			    (unsigned long long)pci_bar_len(MEMORY),
			    (unsigned long long)pci_emulation()->pe_barread(&pi, MEMORY, 0, 8),
			    (unsigned long long)pci_emulation()->pe_barread(&pi, REGS, 0x81, 2));
		} else {
			puts("what?");
		}
		fflush(stdout);
	}
	return (0);
}
