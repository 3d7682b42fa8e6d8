/*
 * Stands in for bhyve on Linux: what the files of backend/bhyve are linked
 * with, and what calls them, on threads as bhyve's are.
 */
#ifndef STAND_IN_BHYVE_H
#define STAND_IN_BHYVE_H

#include <stdint.h>
#include "net_backends_priv.h"

/* The configuration: "-s 5,virtio-net,paste=ix0" and "name=web1". */
void config_set(const char *path, const char *value);
nvlist_t *config_slot(const char *option);

/* The event thread, and how long it lives. */
void mevent_start(void);
void mevent_stop(void);

/* As netbe_init(): the backend of a device's node; NULL with a line of why. */
struct net_backend *net_begin(nvlist_t *nvl, net_be_rxeof_t cb, void *param);
void net_end(struct net_backend *be);
/* As netbe_set_cap(). */
void net_negotiate(struct net_backend *be, uint64_t features, unsigned int hdr_len);

#endif
