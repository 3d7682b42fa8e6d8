/*
 * The backend "paste" under random interleavings: a transmit thread, the event
 * thread and a thread that kicks, resets and negotiates, as in bhyve, against a
 * peer in this process that sends back what it gets and goes away at random.
 *
 *	interleave ROUNDS SEED
 *
 * Every frame that comes back must be whole, in order, and no earlier driver's.
 * At the end, when nobody disturbs, every frame of a batch must come back.
 */

#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bhyve.h"
#include "paste_wire.h"
#include "random.h"

#define	OFFERED	((1ULL << 0) | (1ULL << 1) | (1ULL << 11))
#define	BATCH	200

static struct net_backend *be;
static atomic_bool stop, calm, starved;
static atomic_uint rounds, sent, received, driver, connections, refusals;
static atomic_uint hdr_len;
/* The newest frame that came back, and how many of those behind "counted". */
static atomic_uint newest, counted, calm_received;
static pthread_mutex_t rx_mtx = PTHREAD_MUTEX_INITIALIZER;
static char path[108];
static uint64_t seed;

static void
fail(const char *what)
{
	fprintf(stderr, "round %u, seed %llu: %s\n", atomic_load(&rounds),
	    (unsigned long long)seed, what);
	abort();
}

/* --- the peer -------------------------------------------------------------- */

static void
peer_serve(int sock, uint64_t *state)
{
	static uint8_t record[PASTE_RECORD_MAX + 1];
	struct pollfd pfd = { .fd = sock, .events = POLLIN };
	struct paste_head head;
	struct { struct paste_head head; struct paste_hello hello; } __attribute__((packed)) ask;
	struct { struct paste_head head; struct paste_welcome welcome; } __attribute__((packed)) answer;
	ssize_t n;
	bool started;

	if (poll(&pfd, 1, 5000) != 1 || recv(sock, &ask, sizeof(ask), 0) != sizeof(ask))
		return;
	if (ask.head.kind != PASTE_HELLO || strcmp(ask.hello.name, "vm1") != 0 ||
	    strcmp(ask.hello.interface, "ix0") != 0 ||
	    (ask.hello.features & ~OFFERED) != 0)
		fail("a HELLO that is not what it should be");
	memset(&answer, 0, sizeof(answer));
	answer.head.version = PASTE_WIRE_VERSION;
	answer.head.kind = PASTE_WELCOME;
	answer.welcome.features = OFFERED | (1ULL << 5);
	if (!atomic_load(&calm) && atomic_load(&connections) > 0 && next(state) % 8 == 0) {
		answer.welcome.status = PASTE_STATUS_BUSY;
		strcpy(answer.welcome.text, "at random");
		atomic_fetch_add(&refusals, 1);
		(void)!send(sock, &answer, sizeof(answer), MSG_NOSIGNAL);
		return;
	}
	(void)!send(sock, &answer, sizeof(answer), MSG_NOSIGNAL);
	atomic_fetch_add(&connections, 1);
	started = ask.hello.has_driver != 0;
	while (!atomic_load(&stop)) {
		if (poll(&pfd, 1, 20) != 1)
			continue;
		n = recv(sock, record, sizeof(record), 0);
		if (n <= 0)
			return;
		if (n > PASTE_RECORD_MAX)
			fail("a record that is too long");
		memcpy(&head, record, sizeof(head));
		if (head.version != PASTE_WIRE_VERSION || head.reserved != 0)
			fail("a bad head");
		if (head.kind == PASTE_FEATURES && n == 16)
			started = true;
		else if (head.kind != PASTE_FRAMES || !started || head.count == 0)
			fail("a record out of turn");
		/* Now and then it is slow, or gone. */
		pause_a_little(state);
		if (!atomic_load(&calm) && next(state) % 200 == 0)
			return;
		pfd.events = POLLOUT;
		while (send(sock, record, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) == -1) {
			if (errno != EAGAIN)
				return;
			if (atomic_load(&stop))
				return;
			poll(&pfd, 1, 20);
		}
		pfd.events = POLLIN;
	}
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

/* --- the device ------------------------------------------------------------ */

/* A frame says its number, its driver and its length, and is filled by these. */
static void
fill(uint8_t *frame, size_t len, unsigned int number, unsigned int of_driver)
{
	uint32_t words[3] = { number, of_driver, (uint32_t)len };
	size_t i;

	memset(frame, 0x11, 12);
	/* Some are of PASTE's ethertype. */
	frame[12] = number % 5 == 0 ? 0x88 : 0x08;
	frame[13] = number % 5 == 0 ? 0xb5 : 0x00;
	memcpy(frame + 14, words, sizeof(words));
	for (i = 26; i < len; i++)
		frame[i] = (uint8_t)(number * 7 + i);
}

static void
check(const uint8_t *frame, size_t len, unsigned int *last)
{
	static uint8_t expected[65536];
	uint32_t words[3];

	memcpy(words, frame + 14, sizeof(words));
	if (words[2] != len)
		fail("a frame of another length");
	fill(expected, len, words[0], words[1]);
	if (memcmp(expected, frame, len) != 0)
		fail("a frame that was changed");
	if (words[0] <= *last)
		fail("a frame out of order, or twice");
	*last = words[0];
	/* A negotiation holds rx_mtx, so the driver is still this one. */
	if (words[1] != atomic_load(&driver))
		fail("a frame of an earlier driver");
}

static void
receive(int fd, enum ev_type type, void *param)
{
	static uint8_t packet[65600];
	static unsigned int last;
	static uint64_t state = 88172645463325252ULL;
	struct iovec iov[3];
	unsigned int hdr, i, max;
	ssize_t len, got;
	size_t cut;

	(void)fd, (void)type, (void)param;
	pthread_mutex_lock(&rx_mtx);
	hdr = atomic_load(&hdr_len);
	max = 1 + next(&state) % 64;
	for (i = 0; (len = be->peek_recvlen(be)) > 0; i++) {
		if (i == max) {
			be->recv_disable(be);
			atomic_store(&starved, true);
			break;
		}
		memset(packet, 0xee, (size_t)len);
		cut = next(&state) % ((size_t)len + 1);
		iov[0].iov_base = packet;
		iov[0].iov_len = cut;
		iov[1].iov_base = packet + cut;
		iov[1].iov_len = 0;
		iov[2].iov_base = packet + cut;
		iov[2].iov_len = sizeof(packet) - cut;
		got = be->recv(be, iov, 3);
		if (got != len)
			fail("another length than was peeked");
		if (hdr == 12 && (packet[10] != 1 || packet[11] != 0))
			fail("not one buffer");
		check(packet + hdr, (size_t)len - hdr, &last);
		atomic_fetch_add(&received, 1);
		atomic_store(&newest, last);
		if (last > atomic_load(&counted))
			atomic_fetch_add(&calm_received, 1);
		pause_a_little(&state);
	}
	if (len < 0)
		fail("peek failed");
	pthread_mutex_unlock(&rx_mtx);
}

static pthread_mutex_t tx_mtx = PTHREAD_MUTEX_INITIALIZER;

static void
send_one(uint64_t *state, unsigned int number, bool small)
{
	static uint8_t packet[65600];
	struct iovec iov[3];
	unsigned int hdr = atomic_load(&hdr_len);
	size_t cut, len;

	len = 26 + next(state) % (!small && next(state) % 32 == 0 ? 65500 : 1490);
	memset(packet, 0, hdr);
	fill(packet + hdr, len, number, atomic_load(&driver));
	len += hdr;
	cut = next(state) % (len + 1);
	iov[0].iov_base = packet;
	iov[0].iov_len = cut;
	iov[1].iov_base = packet + cut;
	iov[1].iov_len = 0;
	iov[2].iov_base = packet + cut;
	iov[2].iov_len = len - cut;
	if (be->send(be, iov, 3) != (ssize_t)len)
		fail("send took less");
	atomic_fetch_add(&sent, 1);
}

static void *
transmit(void *param)
{
	uint64_t state = seed * 31 + 7;
	unsigned int i, n, number = 0;

	(void)param;
	while (!atomic_load(&calm)) {
		/* bhyve stops the transmit thread for a reset. */
		pthread_mutex_lock(&tx_mtx);
		n = next(&state) % 40;
		for (i = 0; i < n; i++)
			send_one(&state, ++number, false);
		pthread_mutex_unlock(&tx_mtx);
		pause_a_little(&state);
	}
	return ((void *)(uintptr_t)number);
}

static void
negotiate(uint64_t *state)
{
	static const unsigned int lens[] = { 0, 10, 12, 12 };
	unsigned int hdr = lens[next(state) % 4];

	pthread_mutex_lock(&tx_mtx);
	pthread_mutex_lock(&rx_mtx);
	be->recv_disable(be);
	atomic_store(&hdr_len, hdr);
	atomic_fetch_add(&driver, 1);
	net_negotiate(be, next(state), hdr);
	atomic_store(&starved, true);
	pthread_mutex_unlock(&rx_mtx);
	pthread_mutex_unlock(&tx_mtx);
}

static void
kick(void)
{
	if (atomic_exchange(&starved, false)) {
		pthread_mutex_lock(&rx_mtx);
		be->recv_enable(be);
		pthread_mutex_unlock(&rx_mtx);
	}
}

int
main(int argc, char **argv)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	char dir[] = "/tmp/interleave.XXXXXX", option[256];
	pthread_t peer_thread, tx;
	uint64_t state;
	unsigned int i, max, number;
	void *last;
	int listener;

	if (argc != 3) {
		fprintf(stderr, "usage: interleave ROUNDS SEED\n");
		return (2);
	}
	max = (unsigned int)strtoul(argv[1], NULL, 10);
	seed = strtoull(argv[2], NULL, 10) * 2 + 1;
	state = seed ^ 0xdeadbeefULL;
	if (mkdtemp(dir) == NULL)
		return (1);
	snprintf(path, sizeof(path), "%s/control.sock", dir);
	snprintf(sun.sun_path, sizeof(sun.sun_path), "%s", path);
	listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (listener == -1 || bind(listener, (struct sockaddr *)&sun, sizeof(sun)) == -1 ||
	    listen(listener, 8) == -1) {
		perror(path);
		return (1);
	}
	if (pthread_create(&peer_thread, NULL, peer, &listener) != 0)
		abort();
	mevent_start();
	config_set("name", "vm1");
	snprintf(option, sizeof(option), "5,virtio-net,paste=ix0,socket=%s", path);
	be = net_begin(config_slot(option), receive, NULL);
	if (be == NULL)
		fail("init failed");
	if (be->get_cap(be) != OFFERED)
		fail("other capabilities than were offered");
	negotiate(&state);
	if (pthread_create(&tx, NULL, transmit, NULL) != 0)
		abort();
	for (i = 0; i < max; i++) {
		atomic_fetch_add(&rounds, 1);
		switch (next(&state) % 64) {
		case 0:
			negotiate(&state);
			break;
		case 1:
			pthread_mutex_lock(&rx_mtx);
			be->recv_disable(be);
			atomic_store(&starved, true);
			pthread_mutex_unlock(&rx_mtx);
			break;
		default:
			kick();
		}
		pause_a_little(&state);
	}
	/* Nobody disturbs any more: what is sent comes back, all of it. */
	atomic_store(&calm, true);
	pthread_join(tx, &last);
	number = (unsigned int)(uintptr_t)last;
	for (i = 0; i < 100; i++) {
		kick();
		usleep(100000);
		pthread_mutex_lock(&tx_mtx);
		send_one(&state, ++number, true);
		pthread_mutex_unlock(&tx_mtx);
		for (unsigned int w = 0; w < 50 && atomic_load(&newest) != number; w++) {
			kick();
			usleep(2000);
		}
		if (atomic_load(&newest) == number)
			break;
	}
	if (i == 100)
		fail("the link did not come back");
	atomic_store(&counted, number);
	atomic_store(&calm_received, 0);
	for (i = 0; i < BATCH; i++) {
		pthread_mutex_lock(&tx_mtx);
		send_one(&state, ++number, true);
		pthread_mutex_unlock(&tx_mtx);
	}
	for (i = 0; i < 5000 && atomic_load(&calm_received) < BATCH; i++) {
		kick();
		usleep(1000);
	}
	if (atomic_load(&calm_received) != BATCH)
		fail("frames are missing");
	printf("%u rounds, seed %s: %u frames sent, %u came back, %u connections, "
	    "%u refusals, %u drivers\n", max, argv[2], atomic_load(&sent),
	    atomic_load(&received), atomic_load(&connections),
	    atomic_load(&refusals), atomic_load(&driver));
	atomic_store(&stop, true);
	pthread_join(peer_thread, NULL);
	mevent_stop();
	net_end(be);
	unlink(path);
	rmdir(dir);
	return (0);
}
