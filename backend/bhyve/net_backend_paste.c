/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The network backend "paste" of bhyve: a guest's virtio-net device on an
 * interface that pasted serves.
 *
 *	-s 5,virtio-net,paste=ix0
 *	-s 5,virtio-net,paste,ifname=ix0,guest=web1,mac=58:9c:fc:00:00:01,mtu=1500
 *
 * Frames travel in batches over a Unix socket (paste_wire.h).  A thread of this
 * backend's own does all that could wait: send() copies a frame into the record
 * that is being filled, recv() copies one out of a record that has arrived, and
 * neither makes a system call but a wake-up of somebody who sleeps.  What
 * pasted does not take in time is dropped, as a NIC would; the conversation of
 * PASTE applications has the last records for itself, since it must not lose
 * any, and is bounded by its own credit.
 *
 * When pasted goes, the device stays, silent, and the thread asks again every
 * second.  In capability mode this needs the directory of the socket, which is
 * opened before.
 *
 * Threads: init() before all others.  send() on the device's transmit thread;
 * peek_recvlen() and recv() on the event thread; recv_enable(), recv_disable(),
 * set_cap() on any.  "txmtx" guards what is to be sent, "rxmtx" what has
 * arrived, and neither is held over a system call that can wait.
 */

#include <sys/param.h>
#include <sys/endian.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <pthread_np.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "config.h"
#include "debug.h"
#include "mevent.h"
#include "net_backends.h"
#include "net_backends_priv.h"
#include "net_utils.h"
#include "paste_link.h"
#include "paste_wire.h"
#include "pci_emul.h"

/* Records in each direction. */
#define	PASTE_RECORDS	16
/* Of those to pasted, what only PASTE frames may fill. */
#define	PASTE_RESERVE	4
#define	PASTE_ETHERTYPE	0x88b5

/*
 * The offloads of virtio-net (VIRTIO 1.2 section 5.1.3) that concern a backend:
 * checksums, and TCP segmentation over IPv4 and IPv6 with ECN, both ways.
 */
#define	PASTE_OFFLOADS							\
	((1ULL << 0) | (1ULL << 1) | (1ULL << 7) | (1ULL << 8) |	\
	(1ULL << 9) | (1ULL << 11) | (1ULL << 12) | (1ULL << 13))

struct paste_record {
	size_t		len;
	unsigned int	count;
	unsigned int	driver;		/* that it is for */
	uint8_t		bytes[PASTE_RECORD_MAX];
};

/*
 * Records in order.  Those from "first" on, "used" of them, are whole or being
 * filled; they are counted without end and found modulo PASTE_RECORDS.
 */
struct paste_queue {
	unsigned int	first;
	unsigned int	used;
	struct paste_record *records;
};

struct paste_priv {
	char		guest[64];
	char		ifname[32];
	char		name[64];	/* of the socket in its directory */
	uint16_t	mtu;
	uint8_t		mac[6];
	uint64_t	offered;	/* fixed once init() is through */

	int		dir;
	int		sock;		/* the thread's own; -1 without pasted */
	int		wake[2];	/* wakes the thread */
	int		note[2];	/* readable while frames have arrived */
	struct mevent	*mevp;
	pthread_t	thread;
	bool		has_thread;
	atomic_uint	hdr_len;	/* of the guest's virtio-net header */

	pthread_mutex_t	txmtx;
	bool		stop;
	bool		connected;
	bool		asleep;		/* the thread has nothing to send */
	bool		begins;		/* a driver begins with "accepted" */
	bool		has_driver;
	uint64_t	accepted;
	struct paste_queue tx;
	uint64_t	tx_dropped;

	atomic_uint	driver;		/* counts them */
	unsigned int	told;		/* the thread's own: the last one told of */
	unsigned int	echoes;		/* the thread's own: FEATURES under way */
	bool		refused;	/* the thread's own: it was told why */

	pthread_mutex_t	rxmtx;
	bool		full;		/* the thread waits for room */
	struct paste_queue rx;
	size_t		at;		/* the event thread's own: next frame */
	unsigned int	done;		/* likewise: frames of the record taken */
};

/* The length of a frame in a record, with its virtio-net header. */
static size_t
paste_frame_len(const uint8_t *at)
{
	return (le32dec(at));
}

static size_t
paste_frame_room(size_t len)
{
	return (4 + roundup2(len, PASTE_ALIGN));
}

/*
 * Whether the frames of a record are as they should be: what is not is found
 * here, once, and not in the middle of a batch.
 */
static bool
paste_record_good(const struct paste_record *r)
{
	size_t at, len;
	unsigned int i;

	at = sizeof(struct paste_head);
	for (i = 0; i < r->count; i++) {
		if (r->len - at < 4)
			return (false);
		len = paste_frame_len(r->bytes + at);
		if (len < PASTE_FRAME_MIN || len > PASTE_FRAME_MAX ||
		    r->len - at < paste_frame_room(len))
			return (false);
		at += paste_frame_room(len);
	}
	return (at == r->len);
}

/*
 * Asks for the guest on a new socket.  Returns it, or -1 with errno, or -2 when
 * pasted has said no.
 */
static int
paste_ask(struct paste_priv *p, bool has_driver, uint64_t features,
    struct paste_welcome *welcome)
{
	struct {
		struct paste_head head;
		struct paste_hello hello;
	} __attribute__((packed)) ask;
	struct {
		struct paste_head head;
		struct paste_welcome welcome;
	} __attribute__((packed)) answer;
	ssize_t n;
	int error, size, sock;

	sock = paste_connect(p->dir, p->name);
	if (sock == -1)
		return (-1);
	/* A record must fit at once, and several should. */
	size = PASTE_RECORDS * PASTE_RECORD_MAX;
	(void)setsockopt(sock, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	(void)setsockopt(sock, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));

	memset(&ask, 0, sizeof(ask));
	ask.head.version = PASTE_WIRE_VERSION;
	ask.head.kind = PASTE_HELLO;
	ask.hello.has_driver = has_driver;
	ask.hello.features = htole64(features);
	ask.hello.mtu = htole16(p->mtu);
	memcpy(ask.hello.mac, p->mac, sizeof(ask.hello.mac));
	memcpy(ask.hello.name, p->guest, sizeof(ask.hello.name));
	memcpy(ask.hello.interface, p->ifname, sizeof(ask.hello.interface));
	if (send(sock, &ask, sizeof(ask), MSG_NOSIGNAL) != sizeof(ask))
		goto fail;
	if (!paste_wait_answer(sock, PASTE_ANSWER)) {
		errno = ETIMEDOUT;
		goto fail;
	}
	n = recv(sock, &answer, sizeof(answer), 0);
	if (n != sizeof(answer) || answer.head.version != PASTE_WIRE_VERSION ||
	    answer.head.kind != PASTE_WELCOME) {
		errno = n == -1 ? errno : EPROTO;
		goto fail;
	}
	*welcome = answer.welcome;
	welcome->text[sizeof(welcome->text) - 1] = '\0';
	if (welcome->status != 0) {
		close(sock);
		return (-2);
	}
	return (sock);

fail:
	error = errno;
	close(sock);
	errno = error;
	return (-1);
}

/* The thread: pasted is gone, or was not understood. */
static void
paste_lose(struct paste_priv *p, const char *why)
{
	EPRINTLN("paste: guest %s on %s: %s; trying again", p->guest, p->ifname,
	    why);
	close(p->sock);
	p->sock = -1;
	pthread_mutex_lock(&p->txmtx);
	p->connected = false;
	p->tx.first += p->tx.used;
	p->tx.used = 0;
	pthread_mutex_unlock(&p->txmtx);
}

/* The thread: is there a pasted again? */
static bool
paste_reconnect(struct paste_priv *p)
{
	struct paste_welcome welcome;
	uint64_t features;
	unsigned int driver;
	bool has_driver;
	int sock;

	pthread_mutex_lock(&p->txmtx);
	has_driver = p->has_driver;
	driver = atomic_load(&p->driver);
	features = p->accepted;
	/* It is told by the first record. */
	p->begins = false;
	pthread_mutex_unlock(&p->txmtx);
	sock = paste_ask(p, has_driver, features, &welcome);
	if (sock == -1)
		return (false);
	if (sock >= 0 && (features & ~le64toh(welcome.features)) != 0) {
		close(sock);
		snprintf(welcome.text, sizeof(welcome.text),
		    "it no longer has what the guest's driver uses; "
		    "reset the guest, or give pasted its former configuration");
		sock = -2;
	}
	if (sock == -2) {
		if (!p->refused)
			EPRINTLN("paste: guest %s on %s: pasted says: %s",
			    p->guest, p->ifname, welcome.text);
		p->refused = true;
		return (false);
	}
	EPRINTLN("paste: guest %s on %s: connected again", p->guest, p->ifname);
	p->refused = false;
	p->sock = sock;
	p->echoes = 0;
	p->told = driver;
	/* A driver that began meanwhile is told of in its turn. */
	pthread_mutex_lock(&p->txmtx);
	p->connected = true;
	pthread_mutex_unlock(&p->txmtx);
	return (true);
}

/*
 * The thread: sends what there is, as far as the socket takes it.  False if the
 * socket has no room; "empty" says whether nothing is left.
 */
static bool
paste_transmit(struct paste_priv *p, bool *empty)
{
	struct {
		struct paste_head head;
		uint64_t features;
	} __attribute__((packed)) begin;
	struct paste_head head;
	struct paste_record *r;
	const void *bytes;
	size_t len;
	ssize_t n;

	for (;;) {
		*empty = false;
		r = NULL;
		pthread_mutex_lock(&p->txmtx);
		if (p->begins) {
			memset(&begin, 0, sizeof(begin));
			begin.head.version = PASTE_WIRE_VERSION;
			begin.head.kind = PASTE_FEATURES;
			begin.features = htole64(p->accepted);
			bytes = &begin;
			len = sizeof(begin);
		} else if (p->tx.used > 0) {
			r = &p->tx.records[p->tx.first % PASTE_RECORDS];
			/* It is no longer filled: it was the last, or is left. */
			memset(&head, 0, sizeof(head));
			head.version = PASTE_WIRE_VERSION;
			head.kind = PASTE_FRAMES;
			head.count = htole16((uint16_t)r->count);
			memcpy(r->bytes, &head, sizeof(head));
			bytes = r->bytes;
			len = r->len;
		} else {
			*empty = true;
			p->asleep = true;
			pthread_mutex_unlock(&p->txmtx);
			return (true);
		}
		/* Never waits, so the lock may be held: nobody fills it meanwhile. */
		n = send(p->sock, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n == (ssize_t)len) {
			if (r == NULL) {
				p->begins = false;
				p->told = atomic_load(&p->driver);
				p->echoes++;
			} else {
				p->tx.first++;
				p->tx.used--;
			}
			pthread_mutex_unlock(&p->txmtx);
			continue;
		}
		pthread_mutex_unlock(&p->txmtx);
		if (n == -1 && errno == EINTR)
			continue;
		if (n == -1 && (errno == EAGAIN || errno == ENOBUFS))
			return (false);
		paste_lose(p, n == -1 ? strerror(errno) : "a record was cut");
		return (true);
	}
}

/* The thread: takes in records as long as there is room for them. */
static void
paste_receive(struct paste_priv *p)
{
	struct paste_head head;
	struct paste_record *r;
	ssize_t n;

	for (;;) {
		pthread_mutex_lock(&p->rxmtx);
		p->full = p->rx.used == PASTE_RECORDS;
		r = &p->rx.records[(p->rx.first + p->rx.used) % PASTE_RECORDS];
		n = p->full ? 0 : 1;
		pthread_mutex_unlock(&p->rxmtx);
		if (n == 0)
			return;
		n = recv(p->sock, r->bytes, sizeof(r->bytes),
		    MSG_DONTWAIT | MSG_TRUNC);
		if (n == -1 && errno == EINTR)
			continue;
		if (n == -1 && errno == EAGAIN)
			return;
		if (n <= 0) {
			paste_lose(p, n == 0 ? "pasted has gone" : strerror(errno));
			return;
		}
		memcpy(&head, r->bytes, sizeof(head));
		r->len = (size_t)n;
		r->count = le16toh(head.count);
		if ((size_t)n < sizeof(head) || (size_t)n > sizeof(r->bytes) ||
		    head.version != PASTE_WIRE_VERSION) {
			paste_lose(p, "pasted sent what is no record");
			return;
		}
		if (head.kind == PASTE_FEATURES && p->echoes > 0) {
			p->echoes--;
			continue;
		}
		if (head.kind != PASTE_FRAMES || !paste_record_good(r)) {
			paste_lose(p, "pasted sent what does not belong here");
			return;
		}
		/* What was sent before the echo is an earlier driver's. */
		if (p->echoes > 0 || r->count == 0)
			continue;
		r->driver = p->told;
		pthread_mutex_lock(&p->rxmtx);
		if (p->rx.used++ == 0)
			(void)!write(p->note[1], "", 1);
		pthread_mutex_unlock(&p->rxmtx);
	}
}

static void *
paste_loop(void *param)
{
	struct paste_priv *p = param;
	struct pollfd pfd[2];
	bool empty, room, stop;
	int timeout;

	pfd[0].fd = p->wake[0];
	pfd[0].events = POLLIN;
	for (;;) {
		pthread_mutex_lock(&p->txmtx);
		stop = p->stop;
		pthread_mutex_unlock(&p->txmtx);
		if (stop)
			return (NULL);
		timeout = -1;
		room = true;
		empty = true;
		if (p->sock == -1 && !paste_reconnect(p))
			timeout = PASTE_RETRY * 1000;
		if (p->sock != -1)
			paste_receive(p);
		if (p->sock != -1)
			room = paste_transmit(p, &empty);
		/* What was lost just now is tried again at once, and then in time. */
		if (p->sock == -1 && timeout == -1)
			timeout = 10;
		pthread_mutex_lock(&p->rxmtx);
		pfd[1].events = p->full ? 0 : POLLIN;
		pthread_mutex_unlock(&p->rxmtx);
		if (!room)
			pfd[1].events |= POLLOUT;
		else if (!empty)
			timeout = 0;
		pfd[1].fd = p->sock;
		pfd[1].revents = 0;
		if (poll(pfd, 2, timeout) == -1 && errno != EINTR) {
			EPRINTLN("paste: poll: %s", strerror(errno));
			return (NULL);
		}
		if ((pfd[0].revents & POLLIN) != 0)
			paste_drain(p->wake[0]);
		if (p->sock != -1 && pfd[1].events == 0 &&
		    (pfd[1].revents & (POLLHUP | POLLERR)) != 0)
			paste_lose(p, "pasted has gone");
	}
}

/* --- the callbacks of struct net_backend ----------------------------------- */

static int
paste_number(const char *text, unsigned long max, unsigned long *out)
{
	char *end;

	errno = 0;
	*out = strtoul(text, &end, 10);
	return (errno != 0 || *text == '\0' || *end != '\0' || *out > max ? -1 : 0);
}

/*
 * The address that the device has by default: the front end makes it of slot and
 * function, which are found by where the configuration has this node.  Without
 * it pasted makes up one, and keeps frames to any other from the guest.
 */
static void
paste_default_mac(struct paste_priv *p, const nvlist_t *nvl)
{
	struct pci_devinst pi;
	char path[48];
	int bus, slot, func;

	for (bus = 0; bus <= 255; bus++) {
		for (slot = 0; slot <= 31; slot++) {
			for (func = 0; func <= 7; func++) {
				snprintf(path, sizeof(path), "pci.%d.%d.%d",
				    bus, slot, func);
				if (find_config_node(path) != nvl)
					continue;
				memset(&pi, 0, sizeof(pi));
				pi.pi_bus = (uint8_t)bus;
				pi.pi_slot = (uint8_t)slot;
				pi.pi_func = (uint8_t)func;
				net_genmac(&pi, p->mac);
				return;
			}
		}
	}
}

static int
paste_options(struct paste_priv *p, const char *devname, nvlist_t *nvl)
{
	const char *value;
	unsigned long mtu;
	unsigned int mac[6], i;
	int end;

	/* "paste=ix0" is the whole of the backend's name. */
	value = strchr(devname, '=');
	value = value != NULL ? value + 1 : get_config_value_node(nvl, "ifname");
	if (value == NULL)
		value = get_config_value_node(nvl, "paste");
	if (value == NULL) {
		EPRINTLN("paste: no interface: write paste=IFNAME, or ifname=IFNAME");
		return (-1);
	}
	if (paste_copy(p->ifname, sizeof(p->ifname), "interface", value) == -1)
		return (-1);

	value = get_config_value_node(nvl, "guest");
	if (value == NULL)
		value = get_config_value("name");
	if (value == NULL) {
		EPRINTLN("paste: the VM has no name: write guest=NAME");
		return (-1);
	}
	if (paste_copy(p->guest, sizeof(p->guest), "guest", value) == -1)
		return (-1);

	value = get_config_value_node(nvl, "mtu");
	if (value != NULL) {
		if (paste_number(value, UINT16_MAX, &mtu) == -1) {
			EPRINTLN("paste: mtu \"%s\" is no number of bytes", value);
			return (-1);
		}
		p->mtu = (uint16_t)mtu;
	}
	value = get_config_value_node(nvl, "mac");
	if (value != NULL) {
		end = 0;
		if (sscanf(value, "%2x:%2x:%2x:%2x:%2x:%2x%n", &mac[0], &mac[1],
		    &mac[2], &mac[3], &mac[4], &mac[5], &end) != 6 ||
		    value[end] != '\0') {
			EPRINTLN("paste: mac \"%s\" is no Ethernet address", value);
			return (-1);
		}
		for (i = 0; i < 6; i++)
			p->mac[i] = (uint8_t)mac[i];
	} else {
		paste_default_mac(p, nvl);
	}
	value = get_config_value_node(nvl, "socket");
	p->dir = paste_open_dir(value != NULL ? value : PASTE_SOCKET, p->name,
	    sizeof(p->name));
	return (p->dir == -1 ? -1 : 0);
}

static void
paste_cleanup(struct net_backend *be)
{
	struct paste_priv *p = NET_BE_PRIV(be);

	if (p->has_thread) {
		pthread_mutex_lock(&p->txmtx);
		p->stop = true;
		pthread_mutex_unlock(&p->txmtx);
		paste_wake(p->wake[1]);
		pthread_join(p->thread, NULL);
		p->has_thread = false;
	}
	if (p->mevp != NULL)
		(void)mevent_delete(p->mevp);
	p->mevp = NULL;
	paste_close(&p->sock);
	paste_close(&p->dir);
	paste_close(&p->wake[0]);
	paste_close(&p->wake[1]);
	paste_close(&p->note[0]);
	paste_close(&p->note[1]);
	be->fd = -1;
	free(p->tx.records);
	free(p->rx.records);
	p->tx.records = NULL;
	p->rx.records = NULL;
	pthread_mutex_destroy(&p->txmtx);
	pthread_mutex_destroy(&p->rxmtx);
}

static int
paste_init(struct net_backend *be, const char *devname, nvlist_t *nvl,
    net_be_rxeof_t cb, void *param)
{
	struct paste_priv *p = NET_BE_PRIV(be);
	struct paste_welcome welcome;
	int error;

	p->dir = p->sock = -1;
	p->wake[0] = p->wake[1] = p->note[0] = p->note[1] = -1;
	pthread_mutex_init(&p->txmtx, NULL);
	pthread_mutex_init(&p->rxmtx, NULL);
	if (paste_options(p, devname, nvl) == -1)
		goto fail;
	if (pipe2(p->wake, O_NONBLOCK | O_CLOEXEC) == -1 ||
	    pipe2(p->note, O_NONBLOCK | O_CLOEXEC) == -1) {
		EPRINTLN("paste: pipe: %s", strerror(errno));
		goto fail;
	}
	paste_limit(p->wake[0], true, false);
	paste_limit(p->wake[1], false, true);
	paste_limit(p->note[0], true, false);
	paste_limit(p->note[1], false, true);
	p->tx.records = calloc(PASTE_RECORDS, sizeof(*p->tx.records));
	p->rx.records = calloc(PASTE_RECORDS, sizeof(*p->rx.records));
	if (p->tx.records == NULL || p->rx.records == NULL) {
		EPRINTLN("paste: no memory for records");
		goto fail;
	}

	p->sock = paste_ask(p, false, 0, &welcome);
	if (p->sock == -2) {
		p->sock = -1;
		EPRINTLN("paste: guest %s on %s: pasted says: %s", p->guest,
		    p->ifname, welcome.text);
		goto fail;
	}
	if (p->sock == -1) {
		EPRINTLN("paste: guest %s on %s: %s: %s: is pasted running, with "
		    "\"control\" in its configuration?", p->guest, p->ifname,
		    p->name, strerror(errno));
		goto fail;
	}
	p->offered = le64toh(welcome.features) & PASTE_OFFLOADS;
	p->connected = true;
	p->at = sizeof(struct paste_head);

	be->fd = p->note[0];
	p->mevp = mevent_add_disabled(be->fd, EVF_READ, cb, param);
	if (p->mevp == NULL) {
		EPRINTLN("paste: the event cannot be registered");
		goto fail;
	}
	error = pthread_create(&p->thread, NULL, paste_loop, p);
	if (error != 0) {
		EPRINTLN("paste: a thread cannot be started: %s", strerror(error));
		goto fail;
	}
	p->has_thread = true;
	pthread_set_name_np(p->thread, "paste link");
	return (0);

fail:
	paste_cleanup(be);
	return (-1);
}

/* Copies "len" bytes from "skip" on out of pieces. */
static void
paste_gather(uint8_t *to, size_t len, const struct iovec *iov, int iovcnt,
    size_t skip)
{
	size_t n;

	for (; iovcnt > 0 && len > 0; iov++, iovcnt--) {
		if (skip >= iov->iov_len) {
			skip -= iov->iov_len;
			continue;
		}
		n = MIN(iov->iov_len - skip, len);
		memcpy(to, (const uint8_t *)iov->iov_base + skip, n);
		to += n;
		len -= n;
		skip = 0;
	}
}

/* The record that has room for "len" more bytes; the lock is held. */
static struct paste_record *
paste_room(struct paste_priv *p, size_t len, bool reserved)
{
	struct paste_record *r;
	unsigned int max;

	if (p->tx.used > 0) {
		r = &p->tx.records[(p->tx.first + p->tx.used - 1) %
		    PASTE_RECORDS];
		if (PASTE_RECORD_MAX - r->len >= len && r->count < UINT16_MAX)
			return (r);
	}
	max = reserved ? PASTE_RECORDS : PASTE_RECORDS - PASTE_RESERVE;
	if (p->tx.used >= max)
		return (NULL);
	r = &p->tx.records[(p->tx.first + p->tx.used) % PASTE_RECORDS];
	p->tx.used++;
	r->len = sizeof(struct paste_head);
	r->count = 0;
	return (r);
}

static ssize_t
paste_send(struct net_backend *be, const struct iovec *iov, int iovcnt)
{
	struct paste_priv *p = NET_BE_PRIV(be);
	struct paste_record *r;
	uint8_t type[2], *at;
	size_t hdr, len, total;
	bool wake;
	int i;

	hdr = atomic_load_explicit(&p->hdr_len, memory_order_relaxed);
	total = 0;
	for (i = 0; i < iovcnt; i++)
		total += iov[i].iov_len;
	/* What is no frame is nobody's; the guest's ring goes on. */
	if (total < hdr + 14 || total - hdr > PASTE_FRAME_MAX - PASTE_NET_HDR)
		return ((ssize_t)total);
	len = PASTE_NET_HDR + total - hdr;
	paste_gather(type, sizeof(type), iov, iovcnt, hdr + 12);

	wake = false;
	pthread_mutex_lock(&p->txmtx);
	r = !p->connected ? NULL :
	    paste_room(p, paste_frame_room(len), be16dec(type) == PASTE_ETHERTYPE);
	if (r == NULL) {
		p->tx_dropped++;
	} else {
		at = r->bytes + r->len;
		le32enc(at, (uint32_t)len);
		/* A guest without a header, or with the short one, asks nothing. */
		memset(at + 4, 0, PASTE_NET_HDR);
		paste_gather(at + 4, hdr, iov, iovcnt, 0);
		paste_gather(at + 4 + PASTE_NET_HDR, total - hdr, iov, iovcnt, hdr);
		memset(at + 4 + len, 0, paste_frame_room(len) - 4 - len);
		r->len += paste_frame_room(len);
		r->count++;
		wake = p->asleep;
		p->asleep = false;
	}
	pthread_mutex_unlock(&p->txmtx);
	if (wake)
		paste_wake(p->wake[1]);
	return ((ssize_t)total);
}

/* The first record that arrived is done with. */
static void
paste_done(struct paste_priv *p)
{
	bool wake;

	p->at = sizeof(struct paste_head);
	p->done = 0;
	pthread_mutex_lock(&p->rxmtx);
	p->rx.first++;
	p->rx.used--;
	wake = p->full;
	p->full = false;
	if (p->rx.used == 0)
		paste_drain(p->note[0]);
	pthread_mutex_unlock(&p->rxmtx);
	if (wake)
		paste_wake(p->wake[1]);
}

/* The record that frames are taken from, or NULL. */
static struct paste_record *
paste_arrived(struct paste_priv *p)
{
	struct paste_record *r;

	for (;;) {
		pthread_mutex_lock(&p->rxmtx);
		r = p->rx.used == 0 ? NULL :
		    &p->rx.records[p->rx.first % PASTE_RECORDS];
		pthread_mutex_unlock(&p->rxmtx);
		if (r == NULL || r->driver == atomic_load(&p->driver))
			return (r);
		/* It is for an earlier driver. */
		paste_done(p);
	}
}

static ssize_t
paste_peek_recvlen(struct net_backend *be)
{
	struct paste_priv *p = NET_BE_PRIV(be);
	struct paste_record *r;

	r = paste_arrived(p);
	if (r == NULL)
		return (0);
	return ((ssize_t)(paste_frame_len(r->bytes + p->at) - PASTE_NET_HDR +
	    atomic_load_explicit(&p->hdr_len, memory_order_relaxed)));
}

/* Copies bytes into pieces from "skip" on, as far as these go. */
static size_t
paste_scatter(const struct iovec *iov, int iovcnt, size_t skip,
    const uint8_t *from, size_t len)
{
	size_t done, n;

	for (done = 0; iovcnt > 0 && done < len; iov++, iovcnt--) {
		if (skip >= iov->iov_len) {
			skip -= iov->iov_len;
			continue;
		}
		n = MIN(iov->iov_len - skip, len - done);
		memcpy((uint8_t *)iov->iov_base + skip, from + done, n);
		done += n;
		skip = 0;
	}
	return (done);
}

static ssize_t
paste_recv(struct net_backend *be, const struct iovec *iov, int iovcnt)
{
	struct paste_priv *p = NET_BE_PRIV(be);
	struct paste_record *r;
	uint8_t *frame;
	size_t done, hdr, len;

	r = paste_arrived(p);
	if (r == NULL)
		return (0);
	hdr = atomic_load_explicit(&p->hdr_len, memory_order_relaxed);
	frame = r->bytes + p->at + 4;
	len = paste_frame_len(r->bytes + p->at);
	if (hdr == PASTE_NET_HDR)
		/* One buffer, as far as this side knows. */
		le16enc(frame + 10, 1);
	done = paste_scatter(iov, iovcnt, 0, frame, hdr);
	done += paste_scatter(iov, iovcnt, hdr, frame + PASTE_NET_HDR,
	    len - PASTE_NET_HDR);

	p->at += paste_frame_room(len);
	if (++p->done == r->count)
		paste_done(p);
	return ((ssize_t)done);
}

static void
paste_recv_enable(struct net_backend *be)
{
	struct paste_priv *p = NET_BE_PRIV(be);

	mevent_enable(p->mevp);
}

static void
paste_recv_disable(struct net_backend *be)
{
	struct paste_priv *p = NET_BE_PRIV(be);

	mevent_disable(p->mevp);
}

static uint64_t
paste_get_cap(struct net_backend *be)
{
	struct paste_priv *p = NET_BE_PRIV(be);

	return (p->offered);
}

static int
paste_set_cap(struct net_backend *be, uint64_t features, unsigned int vnet_hdr_len)
{
	struct paste_priv *p = NET_BE_PRIV(be);

	switch (vnet_hdr_len) {
	case 0:
	case PASTE_NET_HDR - 2:
	case PASTE_NET_HDR:
		break;
	default:
		return (-1);
	}
	be->be_vnet_hdr_len = vnet_hdr_len;
	atomic_store_explicit(&p->hdr_len, vnet_hdr_len, memory_order_relaxed);

	pthread_mutex_lock(&p->txmtx);
	/* Without a header there is no way to ask for any of it. */
	p->accepted = vnet_hdr_len == 0 ? 0 : features & p->offered;
	p->begins = true;
	p->has_driver = true;
	atomic_fetch_add(&p->driver, 1);
	/* What waits to be sent is an earlier driver's. */
	p->tx.first += p->tx.used;
	p->tx.used = 0;
	p->asleep = false;
	pthread_mutex_unlock(&p->txmtx);
	paste_wake(p->wake[1]);
	return (0);
}

static struct net_backend paste_backend = {
	.prefix = "paste",
	.priv_size = sizeof(struct paste_priv),
	.init = paste_init,
	.cleanup = paste_cleanup,
	.send = paste_send,
	.peek_recvlen = paste_peek_recvlen,
	.recv = paste_recv,
	.recv_enable = paste_recv_enable,
	.recv_disable = paste_recv_disable,
	.get_cap = paste_get_cap,
	.set_cap = paste_set_cap,
};

DATA_SET(net_backend_set, paste_backend);
