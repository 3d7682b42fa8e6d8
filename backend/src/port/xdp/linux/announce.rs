//! How long a segment may be that a peer sends here. A stack says so in its SYN (RFC 9293
//! section 3.7.1), of frames that lie in one buffer, because it knows no others. Of those
//! that lie in several it gets more than one segment ([`super::cut`]): so the peer is told
//! of the longest frames that the link carries.

use crate::port::segments::{CSUM, FLAGS, Shape, add, be16};

/// A flag of TCP.
pub(super) const SYN: u8 = 0x02;
/// Bytes of IP and TCP headers without options.
const HEADERS: [u16; 2] = [40, 60];
/// Bytes of a TCP header without options.
const TCP_LEN: usize = 20;
/// Kinds of option (RFC 9293 section 3.2).
const END: u8 = 0;
const NOTHING: u8 = 1;
const SEGMENT_SIZE: u8 = 2;

/// Lengths of packets, in bytes from the IP header on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Announced {
    /// The longest that lies in one buffer, and so the longest that a stack knows of.
    one: u16,
    /// The longest that is to be sent here.
    all: u16,
}

impl Announced {
    /// On a link whose longest packet has `mtu` bytes, `one` in a stack's eyes. Of a frame,
    /// `piece` bytes lie in a buffer, and `overhead` bytes are not the packet's: the last
    /// buffer is to be as full as the others.
    pub(super) fn new(mtu: u16, one: u16, piece: u16, overhead: u16) -> Announced {
        let full = ((mtu + overhead) / piece * piece).saturating_sub(overhead);
        Announced { one, all: if full > one { full } else { mtu } }
    }

    /// Writes the larger size into a SYN, if it says that its sender takes all that lies in
    /// one buffer. What says less means it.
    pub(super) fn raise(&self, head: &mut [u8]) {
        // Most frames are none, and that is seen soonest by the port.
        let shape = shape(head).filter(|shape| head[shape.tcp + FLAGS] & SYN != 0);
        let Some(shape) = shape else { return };
        let headers = HEADERS[usize::from(shape.v6)];
        let Some(at) = segment_size(&head[..shape.len], shape.tcp + TCP_LEN) else { return };
        let (old, new) = (be16(head, at), self.all - headers);
        if old < self.one.saturating_sub(headers) || old >= new {
            return;
        }
        head[at..at + 2].copy_from_slice(&new.to_be_bytes());
        // The checksum follows (RFC 1624), which pairs bytes from the header's start.
        let [old, new] = [old, new].map(|size| match at % 2 {
            0 => size,
            _ => size.swap_bytes(),
        });
        let field = shape.tcp + CSUM;
        let sum = !add(add(!be16(head, field), !old), new);
        head[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// The headers of a frame that holds a segment of TCP.
pub(super) fn shape(head: &[u8]) -> Option<Shape> {
    let ip = if head.get(12..14)? == [0x81, 0] { 18 } else { 14 };
    let ip_len = if head.get(ip)? >> 4 == 6 { 40 } else { 20 };
    Shape::of(head, ip + ip_len)
}

/// Where the size is in a header whose options start at `at`.
fn segment_size(head: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *head.get(at)? {
            END => return None,
            NOTHING => at += 1,
            SEGMENT_SIZE => return (head.get(at + 1..at + 4)?[0] == 4).then_some(at + 2),
            _ => at += usize::from(*head.get(at + 1)?).max(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use paste_stack::checksum;

    use super::*;

    /// A SYN with these options behind an Ethernet header, and what its TCP checksum is to
    /// come to with the pseudo-header.
    fn syn(v6: bool, options: &[u8]) -> Vec<u8> {
        let tcp_len = (TCP_LEN + options.len()) as u16;
        let mut frame = vec![2; 12];
        let addresses = if v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(tcp_len.to_be_bytes());
            frame.extend([6, 64]);
            frame.extend([0xfd; 32]);
            22..54
        } else {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + tcp_len).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            26..34
        };
        let start = frame.len();
        frame.extend([0, 80, 9, 9, 1, 2, 3, 4, 0, 0, 0, 0, ((tcp_len / 4) << 4) as u8, SYN]);
        frame.extend([1, 0, 0, 0, 0, 0]);
        frame.extend(options);
        let pseudo = add(checksum::sum(&frame[addresses]), add(6, tcp_len));
        let sum = !add(pseudo, checksum::sum(&frame[start..]));
        frame[start + CSUM..start + CSUM + 2].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    fn option(size: u16) -> [u8; 4] {
        [2, 4, (size >> 8) as u8, size as u8]
    }

    #[test]
    fn a_syn_that_takes_all_of_one_buffer_takes_all_of_several() {
        let announced = Announced::new(9000, 1965, 1792, 18);
        for (v6, one, all) in [(false, 1925, 8902), (true, 1905, 8882)] {
            // At places of both parities, in front of others and behind.
            let options = |size: u16| {
                let [kind, len, high, low] = option(size);
                [
                    vec![kind, len, high, low],
                    vec![1, kind, len, high, low, 3, 3, 7],
                    vec![8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1, kind, len, high, low],
                ]
            };
            for (before, after) in options(one).into_iter().zip(options(all)) {
                let mut frame = syn(v6, &before);
                announced.raise(&mut frame);
                assert_eq!(frame, syn(v6, &after), "{v6} {before:?}");
            }
            // One that wants no more than it says.
            for options in [options(one - 1), options(all)].concat() {
                let mut frame = syn(v6, &options);
                announced.raise(&mut frame);
                assert_eq!(frame, syn(v6, &options));
            }
        }
    }

    #[test]
    fn what_says_nothing_of_it_stays() {
        let announced = Announced::new(9000, 1965, 1792, 18);
        let broken: [&[u8]; 7] = [
            &[],
            &[1, 1, 1, 1],
            &[0, 4, 7, 133],
            &[2, 3, 7, 133],
            &[1, 1, 1, 2],
            &[9, 0, 9, 0],
            &[1, 1, 2, 4],
        ];
        for options in broken {
            let mut frame = syn(false, options);
            announced.raise(&mut frame);
            assert_eq!(frame, syn(false, options), "{options:?}");
        }
        let mut frame = syn(false, &option(1925));
        frame[14 + 20 + FLAGS] = 0x10;
        let before = frame.clone();
        announced.raise(&mut frame);
        assert_eq!(frame, before, "no SYN");
        for len in 0..frame.len() {
            let mut cut = before[..len].to_vec();
            announced.raise(&mut cut);
            assert_eq!(cut, before[..len]);
        }
    }

    #[test]
    fn the_last_buffer_is_as_full_as_the_others() {
        let all = |mtu, one, piece| Announced::new(mtu, one, piece, 18).all;
        assert_eq!(all(9000, 1965, 1792), 5 * 1792 - 18);
        assert_eq!(all(9000, 4013, 3840), 2 * 3840 - 18);
        assert_eq!(all(3000, 1965, 1792), 3000);
        assert_eq!(all(1800, 1800, 1792), 1800);
    }
}
