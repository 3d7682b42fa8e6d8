/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * What travels between a VMM and pasted, byte for byte: records of a Unix
 * SOCK_SEQPACKET socket.  backend/src/link/wire.rs is the same in Rust, and has
 * the description; a test holds the two together.  All numbers are little endian.
 */

#ifndef PASTE_WIRE_H
#define PASTE_WIRE_H

#include <sys/types.h>
#include <stdint.h>

#define	PASTE_WIRE_VERSION	1

/* Kinds of records. */
#define	PASTE_HELLO		1	/* to pasted: asks for a guest */
#define	PASTE_WELCOME		2	/* from pasted: the answer */
#define	PASTE_FRAMES		3	/* both ways */
#define	PASTE_FEATURES		4	/* to pasted: a driver begins; and its echo */
#define	PASTE_REGION		5	/* to pasted: asks for a guest's region */
#define	PASTE_SEGMENT		6	/* from pasted: the answer */
#define	PASTE_FLUSH		7	/* to pasted: make durable what was stored */
#define	PASTE_FLUSHED		8	/* from pasted: the answer */

/* The longest record, and what a frame in it may have, virtio-net header included. */
#define	PASTE_RECORD_MAX	(68 * 1024)
#define	PASTE_NET_HDR		12
#define	PASTE_FRAME_MIN		(PASTE_NET_HDR + 14)
#define	PASTE_FRAME_MAX		(PASTE_NET_HDR + 14 + 65535)
#define	PASTE_ALIGN		4

/* What pasted answers, beside 0: try again later, or do not. */
#define	PASTE_STATUS_BUSY	1
#define	PASTE_STATUS_REFUSED	2

struct paste_head {
	uint8_t		version;
	uint8_t		kind;
	uint16_t	count;		/* frames, in PASTE_FRAMES */
	uint32_t	reserved;
} __attribute__((packed));

struct paste_hello {
	uint64_t	features;	/* in use, with has_driver */
	uint16_t	mtu;		/* 0: whatever pasted has */
	uint8_t		mac[6];		/* zeros: not known */
	char		name[64];
	char		interface[32];
	uint8_t		has_driver;	/* it uses "features" */
	uint8_t		reserved[15];
} __attribute__((packed));

struct paste_welcome {
	uint64_t	features;	/* that may be offered */
	uint16_t	status;
	uint16_t	mtu;
	uint8_t		mac[6];
	uint8_t		reserved[14];
	char		text[160];
} __attribute__((packed));

struct paste_region {
	uint64_t	len;		/* of the segment that comes with it; or 0 */
	char		name[64];
	uint8_t		reserved[24];
} __attribute__((packed));

struct paste_segment {
	uint64_t	len;		/* that the segment has to have */
	uint64_t	guest_offset;	/* where the guest's part begins in it */
	uint64_t	guest_len;
	uint16_t	status;
	uint8_t		durable;	/* PASTE_FLUSH is of use */
	uint8_t		reserved[5];
	char		text[160];
} __attribute__((packed));

struct paste_flushed {
	uint64_t	number;		/* as PASTE_FLUSH has it */
	int32_t		outcome;	/* 0, or -1 */
	uint32_t	reserved;
} __attribute__((packed));

#endif /* PASTE_WIRE_H */
