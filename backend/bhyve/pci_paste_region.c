/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The PCI device "paste-region" of bhyve: shows a guest the region that it
 * shares with pasted.
 *
 *	-s 6,paste-region
 *	-s 6,paste-region,guest=web1,socket=/var/run/pasted/control.sock
 *
 * vmm(4) maps no memory into a guest but its own.  So the region lies in a
 * segment of the VM's (vm_create_devmem), and pasted is given a descriptor of
 * it, which is all that it gets of the VM.  BAR 2 is what the guest may see of
 * the segment: behind the head, which is pasted's.  It is memory as any other;
 * an access to it is no exit of the VM.
 *
 * The device is an ivshmem device without interrupts (1af4:1110), so that a
 * guest finds it as it does on QEMU.  In BAR 0, behind the registers of that,
 * it has those to make durable what was stored, with the meaning of virtio-pmem's
 * FLUSH: all that was stored before is durable when the request is answered.
 *
 *	0x80	r	"PASR"
 *	0x84	r	version, 1
 *	0x88	r	bytes of the guest's part of BAR 2 (8)
 *	0x90	r	1: requests are of use; otherwise all of them fail
 *	0x94	w	makes a request, whatever is written
 *		r	the number of the last one that was made
 *	0x98	r	the number of the last one that was answered
 *	0x9c	r	the number of the last one that failed, and 0 before any
 *
 * A request n is done when 0x98, as a counter that wraps, is not before n; and
 * has failed if 0x9c is not before n then.  Requests are answered in order, many
 * of them by one.
 *
 * A thread of the device's own does all that could wait: a vCPU only adds one
 * to a counter.  When pasted goes, the memory stays, requests wait, and the
 * thread gives the segment to the next pasted.
 *
 * Threads: pe_init() before all others; the other callbacks on any vCPU.  "mtx"
 * guards the registers and is not held over a system call that can wait, and
 * "barmtx" where the guest has the memory.
 */

#include <sys/param.h>
#include <sys/endian.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <machine/vmm.h>
#include <vmmapi.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <pthread_np.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "debug.h"
#include "paste_link.h"
#include "paste_wire.h"
#include "pci_emul.h"

/* Where vmm(4) shows segments. */
#ifndef PASTE_VMM_IO
#define	PASTE_VMM_IO	"/dev/vmm.io"
#endif
/* Seconds that pasted may take to copy a mirror into the segment. */
#define	PASTE_COPY	600
/* The segment's name, of at most 15 characters. */
#define	PASTE_SEGMENT_NAME	"paste"

/* An ivshmem device, and the registers of BAR 0. */
#define	PASTE_VENDOR	0x1af4
#define	PASTE_DEVICE	0x1110
#define	PASTE_SUBDEVICE	0x1100
#define	PASTE_BAR_REGS	0
#define	PASTE_BAR_MEM	2
#define	PASTE_REGS_LEN	0x100
#define	PASTE_REG_MAGIC	0x80
#define	PASTE_REG_VERSION 0x84
#define	PASTE_REG_LEN	0x88
#define	PASTE_REG_USE	0x90
#define	PASTE_REG_FLUSH	0x94
#define	PASTE_REG_DONE	0x98
#define	PASTE_REG_FAILED 0x9c
#define	PASTE_MAGIC	0x52534150	/* "PASR" */

struct paste_region_softc {
	struct pci_devinst *pi;
	char		guest[64];
	char		name[64];	/* of the socket in its directory */

	int		segid;
	int		segfd;
	uint64_t	len;		/* of the segment */
	uint64_t	guest_offset;
	uint64_t	guest_len;

	pthread_mutex_t	barmtx;
	uint64_t	gpa;		/* where the guest has it; 0: nowhere */

	int		dir;
	int		sock;		/* the thread's own; -1 without pasted */
	int		wake[2];	/* wakes the thread */
	pthread_t	thread;
	bool		refused;	/* the thread's own: it was told why */
	bool		under_way;	/* the thread's own: a FLUSH is */
	uint32_t	sent;		/* the thread's own: its number */

	pthread_mutex_t	mtx;
	bool		durable;
	uint32_t	asked;
	uint32_t	done;
	uint32_t	failed;
};

/* The only one: there is one region for a guest. */
static bool paste_region_used;

/* Sends a REGION, with the segment if there is one, and takes the answer. */
static int
paste_region_ask(struct paste_region_softc *sc, int sock,
    struct paste_segment *segment)
{
	struct {
		struct paste_head head;
		struct paste_region region;
	} __attribute__((packed)) ask;
	struct {
		struct paste_head head;
		struct paste_segment segment;
	} __attribute__((packed)) answer;
	union {
		struct cmsghdr hdr;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = { .iov_base = &ask, .iov_len = sizeof(ask) };
	struct msghdr msg;
	struct cmsghdr *cmsg;
	ssize_t n;

	memset(&ask, 0, sizeof(ask));
	ask.head.version = PASTE_WIRE_VERSION;
	ask.head.kind = PASTE_REGION;
	memcpy(ask.region.name, sc->guest, sizeof(ask.region.name));
	memset(&msg, 0, sizeof(msg));
	msg.msg_iov = &iov;
	msg.msg_iovlen = 1;
	if (sc->segfd != -1) {
		ask.region.len = htole64(sc->len);
		memset(&control, 0, sizeof(control));
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control.room);
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cmsg), &sc->segfd, sizeof(int));
	}
	if (sendmsg(sock, &msg, MSG_NOSIGNAL) != sizeof(ask))
		return (-1);
	if (!paste_wait_answer(sock, sc->segfd != -1 ? PASTE_COPY :
	    PASTE_ANSWER)) {
		errno = ETIMEDOUT;
		return (-1);
	}
	n = recv(sock, &answer, sizeof(answer), 0);
	if (n != sizeof(answer) || answer.head.version != PASTE_WIRE_VERSION ||
	    answer.head.kind != PASTE_SEGMENT) {
		errno = n == -1 ? errno : EPROTO;
		return (-1);
	}
	*segment = answer.segment;
	segment->text[sizeof(segment->text) - 1] = '\0';
	return (0);
}

/* The thread: pasted is gone, or was not understood. */
static void
paste_region_lose(struct paste_region_softc *sc, const char *why)
{
	EPRINTLN("paste-region: guest %s: %s; trying again", sc->guest, why);
	paste_close(&sc->sock);
	/* What was asked for is asked for again. */
	sc->under_way = false;
}

/* The thread: is there a pasted again?  It is given the segment. */
static bool
paste_region_reconnect(struct paste_region_softc *sc)
{
	struct paste_segment segment;
	int sock;

	sock = paste_connect(sc->dir, sc->name);
	if (sock == -1)
		return (false);
	if (paste_region_ask(sc, sock, &segment) == -1) {
		close(sock);
		return (false);
	}
	if (segment.status == 0 && (le64toh(segment.len) != sc->len ||
	    le64toh(segment.guest_offset) != sc->guest_offset ||
	    le64toh(segment.guest_len) != sc->guest_len)) {
		segment.status = htole16(PASTE_STATUS_REFUSED);
		snprintf(segment.text, sizeof(segment.text),
		    "the region has another size now: start the VM anew");
	}
	if (segment.status != 0) {
		/* That the guest is not there yet is no news. */
		if (!sc->refused &&
		    le16toh(segment.status) != PASTE_STATUS_BUSY)
			EPRINTLN("paste-region: guest %s: pasted says: %s",
			    sc->guest, segment.text);
		sc->refused = le16toh(segment.status) != PASTE_STATUS_BUSY;
		close(sock);
		return (false);
	}
	EPRINTLN("paste-region: guest %s: connected again", sc->guest);
	sc->refused = false;
	sc->sock = sock;
	pthread_mutex_lock(&sc->mtx);
	sc->durable = segment.durable != 0;
	pthread_mutex_unlock(&sc->mtx);
	return (true);
}

/* The thread: asks for what vCPUs have asked for, one request at a time. */
static void
paste_region_transmit(struct paste_region_softc *sc)
{
	struct {
		struct paste_head head;
		uint64_t number;
	} __attribute__((packed)) flush;
	ssize_t n;

	if (sc->under_way)
		return;
	pthread_mutex_lock(&sc->mtx);
	sc->sent = sc->asked;
	sc->under_way = sc->asked != sc->done;
	pthread_mutex_unlock(&sc->mtx);
	if (!sc->under_way)
		return;
	memset(&flush, 0, sizeof(flush));
	flush.head.version = PASTE_WIRE_VERSION;
	flush.head.kind = PASTE_FLUSH;
	flush.number = htole64(sc->sent);
	/* Alone on its way, it has room. */
	n = send(sc->sock, &flush, sizeof(flush), MSG_NOSIGNAL);
	if (n != sizeof(flush))
		paste_region_lose(sc, n == -1 ? strerror(errno) :
		    "a record was cut");
}

/* The thread: takes in the answer. */
static void
paste_region_receive(struct paste_region_softc *sc)
{
	struct {
		struct paste_head head;
		struct paste_flushed flushed;
	} __attribute__((packed)) answer;
	ssize_t n;

	do {
		n = recv(sc->sock, &answer, sizeof(answer), MSG_DONTWAIT);
	} while (n == -1 && errno == EINTR);
	if (n == -1 && errno == EAGAIN)
		return;
	if (n <= 0) {
		paste_region_lose(sc, n == 0 ? "pasted has gone" :
		    strerror(errno));
		return;
	}
	if (n != sizeof(answer) || answer.head.version != PASTE_WIRE_VERSION ||
	    answer.head.kind != PASTE_FLUSHED || !sc->under_way ||
	    le64toh(answer.flushed.number) != sc->sent) {
		paste_region_lose(sc, "pasted sent what does not belong here");
		return;
	}
	sc->under_way = false;
	pthread_mutex_lock(&sc->mtx);
	sc->done = sc->sent;
	if (answer.flushed.outcome != 0)
		sc->failed = sc->sent;
	pthread_mutex_unlock(&sc->mtx);
}

static void *
paste_region_loop(void *param)
{
	struct paste_region_softc *sc = param;
	struct pollfd pfd[2];
	int timeout;

	for (;;) {
		timeout = -1;
		if (sc->sock == -1 && !paste_region_reconnect(sc))
			timeout = PASTE_RETRY * 1000;
		if (sc->sock != -1)
			paste_region_receive(sc);
		if (sc->sock != -1)
			paste_region_transmit(sc);
		/* What was lost just now is tried again at once, and then in time. */
		if (sc->sock == -1 && timeout == -1)
			timeout = 10;
		pfd[0].fd = sc->wake[0];
		pfd[1].fd = sc->sock;
		pfd[0].events = pfd[1].events = POLLIN;
		if (poll(pfd, 2, timeout) == -1 && errno != EINTR) {
			EPRINTLN("paste-region: poll: %s", strerror(errno));
			return (NULL);
		}
		paste_drain(sc->wake[0]);
	}
}

/* --- the callbacks of struct pci_devemu ------------------------------------ */

static uint64_t
paste_region_barread(struct pci_devinst *pi, int baridx, uint64_t offset,
    int size)
{
	struct paste_region_softc *sc = pi->pi_arg;
	uint64_t value;

	/* Of BAR 2, what is behind the memory; as on a bus where nobody answers. */
	if (baridx != PASTE_BAR_REGS)
		return (UINT64_MAX);
	if (size == 8 && offset == PASTE_REG_LEN)
		return (sc->guest_len);
	if (size != 4)
		return (0);
	value = 0;
	pthread_mutex_lock(&sc->mtx);
	switch (offset) {
	case PASTE_REG_MAGIC:
		value = PASTE_MAGIC;
		break;
	case PASTE_REG_VERSION:
		value = 1;
		break;
	case PASTE_REG_LEN:
		value = sc->guest_len & UINT32_MAX;
		break;
	case PASTE_REG_LEN + 4:
		value = sc->guest_len >> 32;
		break;
	case PASTE_REG_USE:
		value = sc->durable;
		break;
	case PASTE_REG_FLUSH:
		value = sc->asked;
		break;
	case PASTE_REG_DONE:
		value = sc->done;
		break;
	case PASTE_REG_FAILED:
		value = sc->failed;
		break;
	}
	pthread_mutex_unlock(&sc->mtx);
	return (value);
}

static void
paste_region_barwrite(struct pci_devinst *pi, int baridx, uint64_t offset,
    int size, uint64_t value __unused)
{
	struct paste_region_softc *sc = pi->pi_arg;
	bool wake;

	if (baridx != PASTE_BAR_REGS || offset != PASTE_REG_FLUSH || size != 4)
		return;
	pthread_mutex_lock(&sc->mtx);
	/* Who is busy with requests looks for more by itself. */
	wake = sc->asked == sc->done;
	/* 0 is the number of none. */
	if (++sc->asked == 0)
		sc->asked = 1;
	pthread_mutex_unlock(&sc->mtx);
	if (wake)
		paste_wake(sc->wake[1]);
}

/* The guest has moved BAR 2, or turned it on or off. */
static void
paste_region_baraddr(struct pci_devinst *pi, int baridx, int enabled,
    uint64_t address)
{
	struct paste_region_softc *sc = pi->pi_arg;

	if (baridx != PASTE_BAR_MEM)
		return;
	pthread_mutex_lock(&sc->barmtx);
	if (sc->gpa != 0 &&
	    vm_munmap_memseg(pi->pi_vmctx, sc->gpa, sc->guest_len) != 0)
		EPRINTLN("paste-region: guest %s: vm_munmap_memseg: %s",
		    sc->guest, strerror(errno));
	sc->gpa = enabled ? address : 0;
	if (enabled && vm_mmap_memseg(pi->pi_vmctx, address, sc->segid,
	    (vm_ooffset_t)sc->guest_offset, sc->guest_len,
	    PROT_READ | PROT_WRITE) != 0) {
		EPRINTLN("paste-region: guest %s: vm_mmap_memseg: %s",
		    sc->guest, strerror(errno));
		sc->gpa = 0;
	}
	pthread_mutex_unlock(&sc->barmtx);
}

/*
 * A segment of the VM: one that it has already, of this name and length, or a
 * number that nobody uses.  vmm(4) ties no number to a use; on FreeBSD 15 the
 * last one of those for the memory of NUMA domains is free as a rule, before
 * that the one for a PCI ROM.
 */
static int
paste_region_segment(struct paste_region_softc *sc)
{
	const int numbers[] = { VM_BOOTROM - 1, VM_PCIROM, VM_FRAMEBUFFER };
	struct vmctx *ctx = sc->pi->pi_vmctx;
	char name[64], path[128];
	size_t len;
	unsigned int i;

	sc->segid = -1;
	for (i = 0; i < nitems(numbers) && sc->segid == -1; i++) {
		if (numbers[i] == VM_SYSMEM)
			continue;
		len = 0;
		memset(name, 0, sizeof(name));
		if (vm_get_memseg(ctx, numbers[i], &len, name,
		    sizeof(name)) != 0)
			continue;
		if (len == 0 || (len == sc->len &&
		    strcmp(name, PASTE_SEGMENT_NAME) == 0))
			sc->segid = numbers[i];
	}
	if (sc->segid == -1) {
		EPRINTLN("paste-region: guest %s: the VM has no number left for a "
		    "segment: take a frame buffer or a PCI ROM away, or destroy "
		    "a VM of another size", sc->guest);
		return (-1);
	}
	if (vm_create_devmem(ctx, sc->segid, PASTE_SEGMENT_NAME,
	    sc->len) == MAP_FAILED) {
		EPRINTLN("paste-region: guest %s: a segment of %ju bytes cannot be "
		    "made: %s", sc->guest, (uintmax_t)sc->len, strerror(errno));
		return (-1);
	}
	snprintf(path, sizeof(path), "%s/%s.%s", PASTE_VMM_IO, vm_get_name(ctx),
	    PASTE_SEGMENT_NAME);
	sc->segfd = open(path, O_RDWR | O_CLOEXEC);
	if (sc->segfd == -1) {
		EPRINTLN("paste-region: guest %s: %s: %s", sc->guest, path,
		    strerror(errno));
		return (-1);
	}
#ifndef WITHOUT_CAPSICUM
	cap_rights_t rights;

	/* pasted gets no more than this either. */
	cap_rights_init(&rights, CAP_FSTAT, CAP_MMAP_RW);
	if (caph_rights_limit(sc->segfd, &rights) == -1) {
		EPRINTLN("paste-region: %s: %s", path, strerror(errno));
		return (-1);
	}
#endif
	return (0);
}

/* Asks pasted how long the segment has to be, makes it, and gives it. */
static int
paste_region_start(struct paste_region_softc *sc)
{
	struct paste_segment segment;
	int round;

	sc->sock = paste_connect(sc->dir, sc->name);
	for (round = 0; round < 2; round++) {
		if (sc->sock == -1 ||
		    paste_region_ask(sc, sc->sock, &segment) == -1) {
			EPRINTLN("paste-region: guest %s: %s: %s: is pasted "
			    "running, with \"control\" in its configuration?",
			    sc->guest, sc->name, strerror(errno));
			return (-1);
		}
		if (segment.status != 0) {
			EPRINTLN("paste-region: guest %s: pasted says: %s",
			    sc->guest, segment.text);
			return (-1);
		}
		if (round == 1)
			break;
		sc->len = le64toh(segment.len);
		sc->guest_offset = le64toh(segment.guest_offset);
		sc->guest_len = le64toh(segment.guest_len);
		if (sc->guest_len == 0 || sc->guest_offset > sc->len ||
		    sc->guest_len > sc->len - sc->guest_offset ||
		    ((sc->guest_offset | sc->guest_len) & PAGE_MASK) != 0) {
			EPRINTLN("paste-region: guest %s: pasted says what "
			    "cannot be: is it another version?", sc->guest);
			return (-1);
		}
		if (paste_region_segment(sc) == -1)
			return (-1);
	}
	sc->durable = segment.durable != 0;
	return (0);
}

static int
paste_region_options(struct paste_region_softc *sc, nvlist_t *nvl)
{
	const char *value;

	value = get_config_value_node(nvl, "guest");
	if (value == NULL)
		value = get_config_value("name");
	if (value == NULL) {
		EPRINTLN("paste-region: the VM has no name: write guest=NAME");
		return (-1);
	}
	if (paste_copy(sc->guest, sizeof(sc->guest), "guest", value) == -1)
		return (-1);
	value = get_config_value_node(nvl, "socket");
	sc->dir = paste_open_dir(value != NULL ? value : PASTE_SOCKET, sc->name,
	    sizeof(sc->name));
	return (sc->dir == -1 ? -1 : 0);
}

static int
paste_region_init(struct pci_devinst *pi, nvlist_t *nvl)
{
	struct paste_region_softc *sc;
	int error;

	if (paste_region_used) {
		EPRINTLN("paste-region: a VM has one region: leave this device out");
		return (-1);
	}
	sc = calloc(1, sizeof(*sc));
	if (sc == NULL) {
		EPRINTLN("paste-region: no memory");
		return (-1);
	}
	sc->pi = pi;
	sc->dir = sc->sock = sc->segfd = sc->wake[0] = sc->wake[1] = -1;
	pthread_mutex_init(&sc->mtx, NULL);
	pthread_mutex_init(&sc->barmtx, NULL);
	if (paste_region_options(sc, nvl) == -1)
		goto fail;
	if (pipe2(sc->wake, O_NONBLOCK | O_CLOEXEC) == -1) {
		EPRINTLN("paste-region: pipe: %s", strerror(errno));
		goto fail;
	}
	paste_limit(sc->wake[0], true, false);
	paste_limit(sc->wake[1], false, true);
	if (paste_region_start(sc) == -1)
		goto fail;

	pi->pi_arg = sc;
	pci_set_cfgdata16(pi, PCIR_VENDOR, PASTE_VENDOR);
	pci_set_cfgdata16(pi, PCIR_DEVICE, PASTE_DEVICE);
	pci_set_cfgdata8(pi, PCIR_REVID, 1);
	pci_set_cfgdata8(pi, PCIR_CLASS, PCIC_MEMORY);
	pci_set_cfgdata8(pi, PCIR_SUBCLASS, PCIS_MEMORY_RAM);
	pci_set_cfgdata16(pi, PCIR_SUBVEND_0, PASTE_VENDOR);
	pci_set_cfgdata16(pi, PCIR_SUBDEV_0, PASTE_SUBDEVICE);
	/* From here on the BAR may be mapped at any time. */
	if (pci_emul_alloc_bar(pi, PASTE_BAR_REGS, PCIBAR_MEM32,
	    PASTE_REGS_LEN) != 0 ||
	    pci_emul_alloc_bar(pi, PASTE_BAR_MEM, PCIBAR_MEM64,
	    sc->guest_len) != 0) {
		EPRINTLN("paste-region: guest %s: no room for %ju bytes in the "
		    "guest's address space", sc->guest,
		    (uintmax_t)sc->guest_len);
		goto fail;
	}
	error = pthread_create(&sc->thread, NULL, paste_region_loop, sc);
	if (error != 0) {
		EPRINTLN("paste-region: a thread cannot be started: %s",
		    strerror(error));
		goto fail;
	}
	pthread_set_name_np(sc->thread, "paste region");
	paste_region_used = true;
	return (0);

fail:
	paste_close(&sc->sock);
	paste_close(&sc->dir);
	paste_close(&sc->segfd);
	paste_close(&sc->wake[0]);
	paste_close(&sc->wake[1]);
	pthread_mutex_destroy(&sc->mtx);
	pthread_mutex_destroy(&sc->barmtx);
	pi->pi_arg = NULL;
	free(sc);
	return (-1);
}

static const struct pci_devemu pci_paste_region = {
	.pe_emu = "paste-region",
	.pe_init = paste_region_init,
	.pe_barwrite = paste_region_barwrite,
	.pe_barread = paste_region_barread,
	.pe_baraddr = paste_region_baraddr,
};
PCI_EMUL_SET(pci_paste_region);
