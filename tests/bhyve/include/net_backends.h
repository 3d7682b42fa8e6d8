/* Stands in for bhyve's header of this name: what a front end calls. */
#ifndef STAND_IN_NET_BACKENDS_H
#define STAND_IN_NET_BACKENDS_H

#include <stdint.h>
#include "config.h"
#include "mevent.h"

typedef struct net_backend net_backend_t;
typedef void (*net_be_rxeof_t)(int, enum ev_type, void *param);

#endif
