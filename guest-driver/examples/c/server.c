/*
 * An HTTP server on a stack port, in the loop of the PASTE papers: poll, walk the ring,
 * work on the data where the NIC put it, advance.
 *
 *     cc -I guest-driver/include guest-driver/examples/c/server.c \
 *         target/release/libpasteguest.a -lpthread -ldl -lm -o server
 *     ./server /run/pasted/web1.sock 80
 *     ./server eth0 /dev/dax0.0 80          in a virtual machine
 *     ./server --device 0000:00:05.0 /dev/dax0.0 80
 *                                           there, by a device that its kernel gave away
 *
 * It answers each request, whatever it asks for, with the same bytes, and writes them
 * behind the request in the request's own buffer: nothing is copied between the port and
 * this program. Requests have no bodies. Ends on SIGTERM or SIGINT.
 */
#define _POSIX_C_SOURCE 200809L

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "paste_guest.h"

static const char RESPONSE[] = "HTTP/1.1 200 OK\r\nContent-Length: 19\r\n"
                               "Content-Type: text/plain\r\n\r\nServed by a C loop\n";
#define RESPONSE_LEN (sizeof(RESPONSE) - 1)

/* How much of the empty line that ends a request has come, by the index of the flow. */
#define FLOWS_MAX (1u << 20)
static uint8_t matched[FLOWS_MAX];
static uint64_t requests;
static volatile sig_atomic_t stop;

static void on_signal(int signal) {
    (void)signal;
    stop = 1;
}

static void fail(const char *what) {
    fprintf(stderr, "server: %s: %s\n", what, paste_error());
    exit(1);
}

/* How many requests end in these bytes. */
static unsigned ended(uint8_t *state, const uint8_t *p, uint32_t len) {
    static const char end[] = "\r\n\r\n";
    unsigned count = 0;
    for (uint32_t i = 0; i < len; i++) {
        if (p[i] == (uint8_t)end[*state])
            *state = (uint8_t)(*state + 1);
        else
            *state = p[i] == '\r' ? 1 : 0;
        if (*state == 4) {
            *state = 0;
            count++;
        }
    }
    return count;
}

/* Answers `count` requests that ended in this buffer, as far as there is room in it, and
 * the others from empty ones. 0, or what a call failed with. */
static int answer(struct paste_port *port, uint32_t flow, struct paste_buf *buf, unsigned count) {
    struct paste_buf more;
    while (count > 0) {
        unsigned fit = (buf->size - buf->off) / RESPONSE_LEN;
        if (fit > count)
            fit = count;
        if (fit > 0) {
            for (unsigned i = 0; i < fit; i++)
                memcpy(buf->p + buf->off + i * RESPONSE_LEN, RESPONSE, RESPONSE_LEN);
            buf->len = (uint32_t)(fit * RESPONSE_LEN);
            int sent = paste_send(port, flow, buf, 0, 0);
            if (sent != PASTE_OK) {
                /* That of the slot goes back when it is passed. */
                if (buf == &more)
                    paste_release(port, buf);
                return sent;
            }
            count -= fit;
            requests += fit;
        }
        if (count > 0) {
            int taken = paste_alloc(port, &more);
            if (taken != PASTE_OK)
                return taken;
            buf = &more;
        }
    }
    return PASTE_OK;
}

static void handle(struct paste_port *port, uint16_t tcp_port, struct paste_slot *slot) {
    uint8_t *state = &matched[slot->flow % FLOWS_MAX];
    switch (slot->kind) {
    case PASTE_ACCEPTED:
        *state = 0;
        break;
    case PASTE_DATA: {
        struct paste_buf *buf = &slot->buf;
        unsigned count = ended(state, buf->p + buf->off, buf->len);
        /* A host that takes no more gets no chance to answer the wrong request. */
        if (answer(port, slot->flow, buf, count) != PASTE_OK)
            paste_abort(port, slot->flow);
        break;
    }
    case PASTE_FIN:
        if (paste_finish(port, slot->flow) != PASTE_OK)
            paste_abort(port, slot->flow);
        break;
    case PASTE_REFUSED:
        paste_abort(port, slot->flow);
        break;
    case PASTE_LOST:
        fprintf(stderr, "server: the channel was lost: %s\n",
                slot->reason == 0 ? "the backend is gone" : paste_reason(slot->reason));
        break;
    case PASTE_OPENED:
        if (paste_request_listen(port, tcp_port, 128, NULL) != PASTE_OK)
            fail("listen");
        break;
    default:
        break;
    }
}

int main(int argc, char **argv) {
    int by_pci = argc == 5 && strcmp(argv[1], "--device") == 0;
    if (argc != 3 && argc != 4 && !by_pci) {
        fprintf(stderr, "usage: server SOCKET PORT | server INTERFACE REGION PORT |\n"
                        "       server --device ADDRESS REGION PORT\n");
        return 2;
    }
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    uint16_t tcp_port = (uint16_t)atoi(argv[argc - 1]);
    struct paste_options options;
    memset(&options, 0, sizeof options);
    options.name = "server.c";
    struct paste_port *port;
    int opened = by_pci      ? paste_open_pci(argv[2], argv[3], &options, &port)
                 : argc == 4 ? paste_open_device(argv[1], argv[2], &options, &port)
                             : paste_open(argv[1], &options, &port);
    if (opened != PASTE_OK)
        fail("open");
    if (paste_listen(port, tcp_port, 128, NULL) != PASTE_OK)
        fail("listen");
    printf("listening on port %u\n", tcp_port);
    fflush(stdout);

    struct paste_ring *ring = paste_ring_of(port);
    while (!stop) {
        if (paste_poll(port, 500) < 0)
            fail("poll");
        uint32_t cur = ring->head;
        while (cur != ring->tail) {
            handle(port, tcp_port, &ring->slot[cur]);
            cur = paste_ring_next(ring, cur);
        }
        ring->head = cur;
    }
    printf("%" PRIu64 " requests\n", requests);
    if (paste_close(port) != PASTE_OK)
        fail("close");
    return 0;
}
