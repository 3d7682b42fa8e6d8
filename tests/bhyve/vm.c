/*
 * A virtual machine whose guest kernel is this one: the device's frames go to
 * and come from a TAP device.  Threads are as in bhyve: one transmits, the event
 * thread receives, and a third one kicks.
 *
 *	vm [-f FEATURES] [-h HEADER] TAP NAME SLOT-OPTION [SLOT-OPTION]
 *
 * The driver accepts all features that it is offered, or those of FEATURES alone, and
 * has a virtio-net header of 12 bytes, or 10.  With a second device that shows the guest its region, it is in a directory with
 * another one, "vmm.io".
 *
 * Prints "running" with the features that were negotiated, and ends on SIGTERM.
 */

#include <sys/ioctl.h>
#include <sys/uio.h>
#include <net/if.h>
#include <linux/if_tun.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bhyve.h"
#include "vmm.h"

#define	HDR_MAX	12
#define	FRAME	(HDR_MAX + 14 + 65535 + 64)

/* Virtio-net's CSUM and HOST_TSO4 and 6: what the guest's kernel may leave to others. */
#define	F_CSUM		(1ULL << 0)
#define	F_HOST_TSO4	(1ULL << 11)
#define	F_HOST_TSO6	(1ULL << 12)

static int tap;
static int hdr = HDR_MAX;
static struct net_backend *be;
static atomic_bool stop, starved;
static pthread_mutex_t rx_mtx = PTHREAD_MUTEX_INITIALIZER;

/* Frames received until the guest has no more buffers, and kicks again. */
#define	BUFFERS	37

static void
receive(int fd, enum ev_type type, void *param)
{
	static uint8_t frame[FRAME];
	struct iovec iov[2];
	ssize_t len, got;
	int i;

	(void)fd, (void)type, (void)param;
	pthread_mutex_lock(&rx_mtx);
	for (i = 0; (len = be->peek_recvlen(be)) > 0; i++) {
		if (i == BUFFERS) {
			be->recv_disable(be);
			atomic_store(&starved, true);
			break;
		}
		/* In two pieces that split in the middle of anything. */
		iov[0].iov_base = frame;
		iov[0].iov_len = (size_t)(len / 3 + 1);
		iov[1].iov_base = frame + iov[0].iov_len;
		iov[1].iov_len = sizeof(frame) - iov[0].iov_len;
		got = be->recv(be, iov, 2);
		if (got != len) {
			fprintf(stderr, "expected %zd bytes, got %zd\n", len, got);
			abort();
		}
		if (write(tap, frame, (size_t)len) != len && errno != EIO)
			perror("write to TAP");
	}
	pthread_mutex_unlock(&rx_mtx);
}

static void *
transmit(void *unused)
{
	static uint8_t frame[FRAME];
	struct pollfd pfd = { .fd = tap, .events = POLLIN };
	struct iovec iov[3];
	ssize_t len;

	while (!atomic_load(&stop)) {
		if (poll(&pfd, 1, 100) != 1)
			continue;
		len = read(tap, frame, sizeof(frame));
		if (len < hdr + 14)
			continue;
		iov[0].iov_base = frame;
		iov[0].iov_len = (size_t)hdr;
		iov[1].iov_base = frame + hdr;
		iov[1].iov_len = 14;
		iov[2].iov_base = frame + hdr + 14;
		iov[2].iov_len = (size_t)(len - hdr) - 14;
		if (be->send(be, iov, 3) != len)
			abort();
	}
	return (unused);
}

static void *
kick(void *unused)
{
	while (!atomic_load(&stop)) {
		if (atomic_exchange(&starved, false)) {
			pthread_mutex_lock(&rx_mtx);
			be->recv_enable(be);
			pthread_mutex_unlock(&rx_mtx);
		}
		usleep(50);
	}
	return (unused);
}

int
main(int argc, char **argv)
{
	struct pci_devinst region;
	struct ifreq ifr;
	pthread_t tx, vcpu;
	sigset_t signals;
	uint64_t features, wanted = UINT64_MAX;
	unsigned int offload;
	int option, signal;

	while ((option = getopt(argc, argv, "f:h:")) != -1) {
		if (option == 'f')
			wanted = strtoull(optarg, NULL, 0);
		else if (option == 'h')
			hdr = atoi(optarg);
	}
	argc -= optind - 1;
	argv += optind - 1;
	if ((argc != 4 && argc != 5) || (hdr != HDR_MAX && hdr != HDR_MAX - 2)) {
		fprintf(stderr, "usage: vm [-f FEATURES] [-h HEADER] TAP NAME SLOT-OPTION "
		    "[SLOT-OPTION]\n");
		return (2);
	}
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);

	memset(&ifr, 0, sizeof(ifr));
	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", argv[1]);
	ifr.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
	tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (tap == -1 || ioctl(tap, TUNSETIFF, &ifr) == -1 ||
	    ioctl(tap, TUNSETVNETHDRSZ, &hdr) == -1) {
		perror(argv[1]);
		return (1);
	}
	config_set("name", argv[2]);
	mevent_start();
	be = net_begin(config_slot(argv[3]), receive, NULL);
	if (be == NULL)
		return (1);
	if (argc == 5) {
		if (!pci_begin(&region, vmm_begin(argv[2]), config_slot(argv[4])))
			return (1);
		pci_emulation()->pe_baraddr(&region, 2, 1, 0x400000000);
	}
	/* The guest's driver accepts what its kernel and the host both can. */
	features = be->get_cap(be) & wanted;
	offload = 0;
	if ((features & F_CSUM) != 0)
		offload |= TUN_F_CSUM;
	if ((features & F_HOST_TSO4) != 0)
		offload |= TUN_F_TSO4;
	if ((features & F_HOST_TSO6) != 0)
		offload |= TUN_F_TSO6;
	if (ioctl(tap, TUNSETOFFLOAD, offload) == -1) {
		perror("TUNSETOFFLOAD");
		return (1);
	}
	net_negotiate(be, features, (unsigned int)hdr);
	if (pthread_create(&tx, NULL, transmit, NULL) != 0 ||
	    pthread_create(&vcpu, NULL, kick, NULL) != 0)
		abort();
	atomic_store(&starved, true);
	printf("running, features %#llx\n", (unsigned long long)features);
	fflush(stdout);

	sigwait(&signals, &signal);
	atomic_store(&stop, true);
	pthread_join(tx, NULL);
	pthread_join(vcpu, NULL);
	mevent_stop();
	net_end(be);
	return (0);
}
