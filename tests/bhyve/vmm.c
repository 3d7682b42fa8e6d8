/* See vmm.h. */

#include <sys/mman.h>
#include <machine/vmm.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "vmm.h"
#include "vmmapi.h"

#define	SEGMENTS	11
#define	MAPS		4

struct vmctx {
	char name[64];
};

static struct vmctx vm;
static struct {
	size_t len;
	char name[16];
	uint8_t *memory;
} segments[SEGMENTS];
static struct {
	uint64_t gpa;
	size_t len;
	uint8_t *memory;
} maps[MAPS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t bars[7];

struct vmctx *
vmm_begin(const char *name)
{
	snprintf(vm.name, sizeof(vm.name), "%s", name);
	/* The machine's own memory. */
	segments[VM_SYSMEM].len = 1 << 20;
	return (&vm);
}

const char *
vm_get_name(struct vmctx *ctx)
{
	return (ctx->name);
}

int
vm_get_memseg(struct vmctx *ctx, int ident, size_t *lenp, char *name, size_t namesiz)
{
	(void)ctx;
	if (ident < 0 || ident >= SEGMENTS) {
		errno = EINVAL;
		return (-1);
	}
	*lenp = segments[ident].len;
	snprintf(name, namesiz, "%s", segments[ident].name);
	return (0);
}

void *
vm_create_devmem(struct vmctx *ctx, int segid, const char *name, size_t len)
{
	char path[128], target[64];
	int fd;

	/* As vm_alloc_memseg(): one that is there is taken if it is the same. */
	assert(segid > VM_SYSMEM && segid < SEGMENTS && strlen(name) <= 15);
	if (segments[segid].len != 0)
		return (segments[segid].len == len && strcmp(segments[segid].name, name) == 0 ?
		    segments[segid].memory : MAP_FAILED);
	fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd == -1 || ftruncate(fd, (off_t)len) == -1 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == -1)
		return (MAP_FAILED);
	segments[segid].memory = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (segments[segid].memory == MAP_FAILED)
		return (MAP_FAILED);
	segments[segid].len = len;
	snprintf(segments[segid].name, sizeof(segments[0].name), "%s", name);
	snprintf(path, sizeof(path), "vmm.io/%s.%s", ctx->name, name);
	snprintf(target, sizeof(target), "/proc/%d/fd/%d", getpid(), fd);
	(void)unlink(path);
	if (symlink(target, path) == -1)
		return (MAP_FAILED);
	return (segments[segid].memory);
}

int
vm_mmap_memseg(struct vmctx *ctx, vm_paddr_t gpa, int segid, vm_ooffset_t segoff, size_t len,
    int prot)
{
	int i, error = -1;

	(void)ctx;
	assert(prot == (PROT_READ | PROT_WRITE));
	pthread_mutex_lock(&lock);
	errno = EINVAL;
	if (segid > VM_SYSMEM && segid < SEGMENTS && segoff >= 0 && len > 0 &&
	    (size_t)segoff + len <= segments[segid].len)
		for (i = 0; i < MAPS && error == -1; i++)
			if (maps[i].len == 0) {
				maps[i].gpa = gpa;
				maps[i].len = len;
				maps[i].memory = segments[segid].memory + segoff;
				error = 0;
			}
	pthread_mutex_unlock(&lock);
	return (error);
}

int
vm_munmap_memseg(struct vmctx *ctx, vm_paddr_t gpa, size_t len)
{
	int i, error = -1;

	(void)ctx;
	pthread_mutex_lock(&lock);
	for (i = 0; i < MAPS; i++)
		if (maps[i].len == len && maps[i].gpa == gpa) {
			maps[i].len = 0;
			error = 0;
		}
	pthread_mutex_unlock(&lock);
	errno = EINVAL;
	return (error);
}

uint8_t *
vmm_guest(uint64_t gpa, size_t len)
{
	uint8_t *at = NULL;
	int i;

	pthread_mutex_lock(&lock);
	for (i = 0; i < MAPS; i++)
		if (gpa >= maps[i].gpa && gpa - maps[i].gpa < maps[i].len &&
		    len <= maps[i].len - (gpa - maps[i].gpa))
			at = maps[i].memory + (gpa - maps[i].gpa);
	pthread_mutex_unlock(&lock);
	return (at);
}

unsigned int
vmm_maps(void)
{
	unsigned int i, count = 0;

	pthread_mutex_lock(&lock);
	for (i = 0; i < MAPS; i++)
		count += maps[i].len != 0;
	pthread_mutex_unlock(&lock);
	return (count);
}

/* --- the bus ------------------------------------------------------------ */

int
pci_emul_alloc_bar(struct pci_devinst *pdi, int idx, enum pcibar_type type, uint64_t size)
{
	(void)pdi;
	assert(idx >= 0 && idx < 6 && (type == PCIBAR_MEM32 || type == PCIBAR_MEM64));
	for (bars[idx] = 16; bars[idx] < size; bars[idx] *= 2)
		;
	return (0);
}

uint64_t
pci_bar_len(int idx)
{
	return (bars[idx]);
}

const struct pci_devemu *
pci_emulation(void)
{
	assert(SET_LIMIT(pci_devemu_set) - SET_BEGIN(pci_devemu_set) == 1);
	return (*SET_BEGIN(pci_devemu_set));
}

bool
pci_begin(struct pci_devinst *pi, struct vmctx *ctx, nvlist_t *nvl)
{
	memset(pi, 0, sizeof(*pi));
	pi->pi_vmctx = ctx;
	pi->pi_slot = 6;
	return (pci_emulation()->pe_init(pi, nvl) == 0);
}
