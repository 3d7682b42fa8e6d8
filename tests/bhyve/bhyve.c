/* See bhyve.h. */

#include "bhyve.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <assert.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "net_utils.h"
#include "pci_emul.h"

/* --- configuration: values by path, and a node for each device ---------- */

#define	VALUES_MAX	64

struct nvlist {
	char path[64];
};

static struct {
	char path[128];
	char value[256];
} values[VALUES_MAX];
static unsigned int value_count;
static nvlist_t nodes[8];
static unsigned int node_count;

void
config_set(const char *path, const char *value)
{
	assert(value_count < VALUES_MAX);
	snprintf(values[value_count].path, sizeof(values[0].path), "%s", path);
	snprintf(values[value_count].value, sizeof(values[0].value), "%s", value);
	value_count++;
}

const char *
get_config_value(const char *path)
{
	/* Only stable until the next call. */
	static char copy[256];
	unsigned int i;

	for (i = 0; i < value_count; i++)
		if (strcmp(values[i].path, path) == 0) {
			snprintf(copy, sizeof(copy), "%s", values[i].value);
			return (copy);
		}
	return (NULL);
}

const char *
get_config_value_node(const nvlist_t *parent, const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "%s.%s", parent->path, name);
	return (get_config_value(path));
}

nvlist_t *
find_config_node(const char *path)
{
	unsigned int i;

	for (i = 0; i < node_count; i++)
		if (strcmp(nodes[i].path, path) == 0)
			return (&nodes[i]);
	return (NULL);
}

/*
 * "5,virtio-net,paste=ix0,mtu=1500": the first part behind a network device is the
 * backend whole, and the others are values.
 */
nvlist_t *
config_slot(const char *option)
{
	char copy[256], path[128], *at, *device, *part, *value;
	nvlist_t *node = &nodes[node_count++];

	assert(node_count <= sizeof(nodes) / sizeof(nodes[0]));
	snprintf(copy, sizeof(copy), "%s", option);
	at = copy;
	part = strsep(&at, ",");
	snprintf(node->path, sizeof(node->path), "pci.0.%d.0", atoi(part));
	device = strsep(&at, ",");
	snprintf(path, sizeof(path), "%s.device", node->path);
	config_set(path, device != NULL ? device : "");
	part = device != NULL && strcmp(device, "virtio-net") == 0 ? strsep(&at, ",") : NULL;
	if (part != NULL) {
		snprintf(path, sizeof(path), "%s.backend", node->path);
		config_set(path, part);
	}
	while ((part = strsep(&at, ",")) != NULL) {
		value = strchr(part, '=');
		if (value != NULL)
			*value++ = '\0';
		snprintf(path, sizeof(path), "%s.%s", node->path, part);
		config_set(path, value != NULL ? value : "true");
	}
	return (node);
}

/* An address that shows which slot it is of. */
void
net_genmac(struct pci_devinst *pi, uint8_t *macaddr)
{
	const uint8_t mac[6] = { 0x00, 0xa0, 0x98, pi->pi_bus, pi->pi_slot, pi->pi_func };

	memcpy(macaddr, mac, sizeof(mac));
}

/* --- events: one thread ------------------------------------------------- */

struct mevent {
	int fd;
	bool enabled;
	void (*func)(int, enum ev_type, void *);
	void *param;
};

static pthread_mutex_t ev_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_t ev_thread;
static int ev_poll = -1, ev_stop = -1;

static void
ev_watch(struct mevent *evp, int op)
{
	struct epoll_event event = { .events = evp->enabled ? EPOLLIN : 0, .data.ptr = evp };

	if (epoll_ctl(ev_poll, op, evp->fd, &event) == -1)
		perror("epoll_ctl");
}

struct mevent *
mevent_add_disabled(int fd, enum ev_type type,
    void (*func)(int, enum ev_type, void *), void *param)
{
	struct mevent *evp = calloc(1, sizeof(*evp));

	assert(type == EVF_READ && evp != NULL);
	evp->fd = fd;
	evp->func = func;
	evp->param = param;
	pthread_mutex_lock(&ev_lock);
	ev_watch(evp, EPOLL_CTL_ADD);
	pthread_mutex_unlock(&ev_lock);
	return (evp);
}

static int
ev_set(struct mevent *evp, bool enabled)
{
	pthread_mutex_lock(&ev_lock);
	evp->enabled = enabled;
	ev_watch(evp, EPOLL_CTL_MOD);
	pthread_mutex_unlock(&ev_lock);
	return (0);
}

int
mevent_enable(struct mevent *evp)
{
	return (ev_set(evp, true));
}

int
mevent_disable(struct mevent *evp)
{
	return (ev_set(evp, false));
}

int
mevent_delete(struct mevent *evp)
{
	pthread_mutex_lock(&ev_lock);
	epoll_ctl(ev_poll, EPOLL_CTL_DEL, evp->fd, NULL);
	evp->enabled = false;
	pthread_mutex_unlock(&ev_lock);
	/* Not freed, as a call may be under way. */
	return (0);
}

static void *
ev_loop(void *unused)
{
	struct epoll_event event;
	struct mevent *evp;
	bool enabled;

	for (;;) {
		if (epoll_wait(ev_poll, &event, 1, -1) != 1)
			continue;
		evp = event.data.ptr;
		if (evp == NULL)
			return (unused);
		pthread_mutex_lock(&ev_lock);
		enabled = evp->enabled;
		pthread_mutex_unlock(&ev_lock);
		if (enabled)
			evp->func(evp->fd, EVF_READ, evp->param);
	}
}

void
mevent_start(void)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = NULL };

	ev_poll = epoll_create1(EPOLL_CLOEXEC);
	ev_stop = eventfd(0, EFD_CLOEXEC);
	assert(ev_poll != -1 && ev_stop != -1);
	epoll_ctl(ev_poll, EPOLL_CTL_ADD, ev_stop, &event);
	if (pthread_create(&ev_thread, NULL, ev_loop, NULL) != 0)
		abort();
}

void
mevent_stop(void)
{
	uint64_t one = 1;

	if (write(ev_stop, &one, sizeof(one)) != sizeof(one))
		abort();
	pthread_join(ev_thread, NULL);
	close(ev_stop);
}

/* --- backends ----------------------------------------------------------- */

struct net_backend *
net_begin(nvlist_t *nvl, net_be_rxeof_t cb, void *param)
{
	char devname[256], type[256];
	const char *value;
	struct net_backend **set, *be;

	value = get_config_value_node(nvl, "backend");
	if (value == NULL)
		return (NULL);
	snprintf(devname, sizeof(devname), "%s", value);
	value = get_config_value_node(nvl, "type");
	snprintf(type, sizeof(type), "%s", value != NULL ? value : devname);
	for (set = SET_BEGIN(net_backend_set); set < SET_LIMIT(net_backend_set); set++) {
		const struct net_backend *t = *set;

		if (strncmp(type, t->prefix, strlen(t->prefix)) != 0)
			continue;
		assert(t->init && t->cleanup && t->send && t->peek_recvlen && t->recv &&
		    t->recv_enable && t->recv_disable && t->get_cap && t->set_cap);
		be = calloc(1, sizeof(*be) + t->priv_size);
		assert(be != NULL);
		*be = *t;
		be->fd = -1;
		be->sc = param;
		be->be_vnet_hdr_len = 0;
		be->fe_vnet_hdr_len = 0;
		if (be->init(be, devname, nvl, cb, param) == 0) {
			assert(be->fd != -1);
			return (be);
		}
		free(be);
		return (NULL);
	}
	fprintf(stderr, "no backend \"%s\"\n", type);
	return (NULL);
}

void
net_negotiate(struct net_backend *be, uint64_t features, unsigned int hdr_len)
{
	be->fe_vnet_hdr_len = hdr_len;
	if (be->set_cap(be, features, hdr_len) != 0)
		abort();
	assert(be->be_vnet_hdr_len == 0 || be->be_vnet_hdr_len == be->fe_vnet_hdr_len);
}

void
net_end(struct net_backend *be)
{
	be->cleanup(be);
	free(be);
}
