/*
 * The device "paste-region" under random interleavings: vCPUs that store, ask and
 * poll, one that moves the BAR, and a peer in this process that answers, fails, is
 * slow, and goes away at random.
 *
 *	region_interleave ROUNDS SEED
 *
 * What was answered as durable must have been in the memory that the peer was
 * given when it answered; what it failed must not be.  At the end, when nobody
 * disturbs, every request must succeed.
 */

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "bhyve.h"
#include "paste_wire.h"
#include "random.h"
#include "vmm.h"

#define	VCPUS	3
#define	LEN	(4UL << 20)
#define	HEAD	(2UL << 20)
#define	GPA	0x400000000UL

static struct pci_devinst pi;
static atomic_bool stop, calm;
static atomic_uint rounds, connections, refusals, answers, failures, moves;
/* What each vCPU had stored when the peer last answered that all is durable. */
static atomic_ulong durable[VCPUS];
static uint64_t seed;

static void
fail(const char *what)
{
	fprintf(stderr, "round %u, seed %llu: %s\n", atomic_load(&rounds),
	    (unsigned long long)seed, what);
	abort();
}

/* --- the peer -------------------------------------------------------------- */

struct answer {
	struct paste_head head;
	struct paste_segment segment;
} __attribute__((packed));

static void
answer(int sock, uint16_t status)
{
	struct answer a;

	memset(&a, 0, sizeof(a));
	a.head.version = PASTE_WIRE_VERSION;
	a.head.kind = PASTE_SEGMENT;
	a.segment.len = htole64(LEN);
	a.segment.guest_offset = htole64(HEAD);
	a.segment.guest_len = htole64(LEN - HEAD);
	a.segment.status = htole16(status);
	a.segment.durable = 1;
	strcpy(a.segment.text, "at random");
	(void)!send(sock, &a, sizeof(a), MSG_NOSIGNAL);
}

/* Takes a REGION: -2 if it is gone, -1 without a segment. */
static int
take(int sock)
{
	struct { struct paste_head head; struct paste_region region; } __attribute__((packed)) ask;
	union { struct cmsghdr hdr; char room[CMSG_SPACE(sizeof(int))]; } control;
	struct iovec iov = { &ask, sizeof(ask) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
	    .msg_controllen = sizeof(control) };
	struct pollfd pfd = { .fd = sock, .events = POLLIN };
	struct cmsghdr *cmsg;
	int fd = -1;

	if (poll(&pfd, 1, 5000) != 1 || recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) != sizeof(ask))
		return (-2);
	cmsg = CMSG_FIRSTHDR(&msg);
	if (cmsg != NULL)
		memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
	if (ask.head.version != PASTE_WIRE_VERSION || ask.head.kind != PASTE_REGION ||
	    strcmp(ask.region.name, "vm1") != 0 ||
	    le64toh(ask.region.len) != (fd == -1 ? 0 : LEN))
		fail("a REGION that is not what it should be");
	return (fd);
}

static void
peer_serve(int sock, uint64_t *state)
{
	struct { struct paste_head head; uint64_t number; } __attribute__((packed)) flush;
	struct { struct paste_head head; struct paste_flushed flushed; } __attribute__((packed)) done;
	struct pollfd pfd = { .fd = sock, .events = POLLIN };
	atomic_ulong *memory;
	unsigned long seen[VCPUS];
	uint64_t last = 0;
	void *at;
	int fd, i;

	fd = take(sock);
	if (fd == -1) {
		answer(sock, 0);
		fd = take(sock);
	}
	if (fd < 0)
		return;
	at = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (at == MAP_FAILED)
		fail("the segment cannot be mapped");
	memory = (atomic_ulong *)((uint8_t *)at + HEAD);
	if (!atomic_load(&calm) && atomic_load(&connections) > 0 && next(state) % 32 == 0) {
		answer(sock, next(state) % 2 == 0 ? PASTE_STATUS_BUSY : PASTE_STATUS_REFUSED);
		atomic_fetch_add(&refusals, 1);
		munmap(at, LEN);
		return;
	}
	answer(sock, 0);
	atomic_fetch_add(&connections, 1);
	while (!atomic_load(&stop)) {
		if (poll(&pfd, 1, 20) != 1)
			continue;
		if (recv(sock, &flush, sizeof(flush), 0) != sizeof(flush))
			break;
		if (flush.head.version != PASTE_WIRE_VERSION || flush.head.kind != PASTE_FLUSH ||
		    flush.number <= last)
			fail("a record out of turn");
		last = flush.number;
		pause_a_little(state);
		if (!atomic_load(&calm) && next(state) % 100 == 0)
			break;
		memset(&done, 0, sizeof(done));
		done.head.version = PASTE_WIRE_VERSION;
		done.head.kind = PASTE_FLUSHED;
		done.flushed.number = flush.number;
		for (i = 0; i < VCPUS; i++)
			seen[i] = atomic_load(&memory[i]);
		if (!atomic_load(&calm) && next(state) % 16 == 0) {
			done.flushed.outcome = (int32_t)htole32((uint32_t)-1);
			atomic_fetch_add(&failures, 1);
		} else {
			for (i = 0; i < VCPUS; i++)
				atomic_store(&durable[i], seen[i]);
		}
		atomic_fetch_add(&answers, 1);
		if (!atomic_load(&calm) && next(state) % 300 == 0)
			done.flushed.number++;
		if (send(sock, &done, sizeof(done), MSG_NOSIGNAL) != sizeof(done))
			break;
	}
	munmap(at, LEN);
}

static void *
peer(void *param)
{
	int listener = *(int *)param, sock;
	struct pollfd pfd = { .fd = listener, .events = POLLIN };
	uint64_t state = seed ^ 0x9e3779b97f4a7c15ULL;

	while (!atomic_load(&stop)) {
		if (poll(&pfd, 1, 20) != 1)
			continue;
		sock = accept(listener, NULL, NULL);
		if (sock == -1)
			continue;
		peer_serve(sock, &state);
		close(sock);
	}
	return (NULL);
}

/* --- the machine ------------------------------------------------------------ */

static uint32_t
get(uint64_t offset)
{
	return ((uint32_t)pci_emulation()->pe_barread(&pi, 0, offset, 4));
}

/* As a guest that maps the BAR: what it has stays where it is while the BAR moves. */
static atomic_ulong *
guest_memory(void)
{
	uint8_t *at;

	while ((at = vmm_guest(GPA, LEN - HEAD)) == NULL &&
	    (at = vmm_guest(2 * GPA, LEN - HEAD)) == NULL)
		sched_yield();
	return ((atomic_ulong *)at);
}

static bool
flush(void)
{
	uint32_t number;

	pci_emulation()->pe_barwrite(&pi, 0, 0x94, 4, 0);
	number = get(0x94);
	while ((int32_t)(get(0x98) - number) < 0)
		sched_yield();
	return (get(0x9c) == 0 || (int32_t)(get(0x9c) - number) < 0);
}

static void *
vcpu(void *param)
{
	unsigned int index = (unsigned int)(uintptr_t)param;
	uint64_t state = seed * 31 + index;
	atomic_ulong *memory = guest_memory();
	unsigned long stored = atomic_load(&memory[index]);

	while (!atomic_load(&calm)) {
		stored++;
		atomic_store(&memory[index], stored);
		/* A register that is none, or of another size, is nothing. */
		pci_emulation()->pe_barwrite(&pi, next(&state) % 4 == 0 ? 2 : 0,
		    next(&state) % 0x110, 1 << next(&state) % 2, 1);
		if (flush() && atomic_load(&durable[index]) < stored)
			fail("what was answered as durable was not");
		atomic_fetch_add(&rounds, 1);
		pause_a_little(&state);
	}
	return (NULL);
}

int
main(int argc, char **argv)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	char dir[] = "/tmp/region.XXXXXX", option[256];
	pthread_t peer_thread, vcpus[VCPUS];
	unsigned int i, max;
	uint64_t gpa, state;
	int listener;

	if (argc != 3) {
		fprintf(stderr, "usage: region_interleave ROUNDS SEED\n");
		return (2);
	}
	max = (unsigned int)strtoul(argv[1], NULL, 10);
	seed = strtoull(argv[2], NULL, 10) * 2 + 1;
	state = seed ^ 0xdeadbeefULL;
	if (mkdtemp(dir) == NULL || chdir(dir) == -1 || mkdir("vmm.io", 0700) == -1)
		return (1);
	snprintf(sun.sun_path, sizeof(sun.sun_path), "%s/control.sock", dir);
	listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (listener == -1 || bind(listener, (struct sockaddr *)&sun, sizeof(sun)) == -1 ||
	    listen(listener, 8) == -1) {
		perror(dir);
		return (1);
	}
	if (pthread_create(&peer_thread, NULL, peer, &listener) != 0)
		abort();
	config_set("name", "vm1");
	snprintf(option, sizeof(option), "6,paste-region,socket=%s", sun.sun_path);
	if (!pci_begin(&pi, vmm_begin("vm1"), config_slot(option)))
		fail("init failed");
	gpa = GPA;
	pci_emulation()->pe_baraddr(&pi, 2, 1, gpa);
	for (i = 0; i < VCPUS; i++)
		if (pthread_create(&vcpus[i], NULL, vcpu, (void *)(uintptr_t)i) != 0)
			abort();
	while (atomic_load(&rounds) < max) {
		pci_emulation()->pe_baraddr(&pi, 2, 0, gpa);
		gpa = gpa == GPA ? 2 * GPA : GPA;
		pci_emulation()->pe_baraddr(&pi, 2, 1, gpa);
		if (vmm_maps() != 1)
			fail("the memory is there twice, or not at all");
		atomic_fetch_add(&moves, 1);
		pause_a_little(&state);
		usleep(100);
	}
	/* Nobody disturbs any more. */
	atomic_store(&calm, true);
	for (i = 0; i < VCPUS; i++)
		pthread_join(vcpus[i], NULL);
	/* One may still have been failed before. */
	(void)flush();
	for (i = 0; i < 100; i++)
		if (!flush())
			fail("a request failed");
	printf("%u rounds, seed %s: %u answers, %u of them failed, %u connections, "
	    "%u refusals, %u moves\n", atomic_load(&rounds), argv[2], atomic_load(&answers),
	    atomic_load(&failures), atomic_load(&connections), atomic_load(&refusals),
	    atomic_load(&moves));
	atomic_store(&stop, true);
	pthread_join(peer_thread, NULL);
	unlink("vmm.io/vm1.paste");
	rmdir("vmm.io");
	unlink("control.sock");
	(void)!chdir("/");
	rmdir(dir);
	return (0);
}
