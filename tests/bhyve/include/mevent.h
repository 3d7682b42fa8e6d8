/*
 * Stands in for bhyve's header of this name: one thread that waits for
 * descriptors and calls back.
 */
#ifndef STAND_IN_MEVENT_H
#define STAND_IN_MEVENT_H

enum ev_type { EVF_READ };

struct mevent;

struct mevent *mevent_add_disabled(int fd, enum ev_type type,
    void (*func)(int, enum ev_type, void *), void *param);
int mevent_enable(struct mevent *evp);
int mevent_disable(struct mevent *evp);
int mevent_delete(struct mevent *evp);

#endif
