//! What can be said of a stack from what it puts on the wire alone.

use std::collections::HashMap;
use std::net::IpAddr;

use super::headers::{Segment, flag};

/// RFC 9293 section 3.7.1: the MSS of a peer that does not say.
const MSS_DEFAULT: u32 = 536;
/// The smallest MSS that the stack works with.
const MSS_MIN: u32 = 88;

/// Both addresses and ports, the sender's first.
type Way = (IpAddr, u16, IpAddr, u16);

/// What one end of a flow has said.
#[derive(Clone, Copy, Debug)]
struct End {
    /// Sequence number of its SYN.
    first: u32,
    mss: u32,
    scale: Option<u8>,
    /// The other end as it was when this one first spoke after its SYN: the SYN
    /// and its MSS, and the scale of this end's windows.
    agreed: Option<Agreed>,
    /// Right edge of the window that it has advertised, and what it has
    /// acknowledged, once it did.
    edge: Option<u32>,
    ack: Option<u32>,
    tsval: Option<u32>,
    /// After its FIN, once it sent one.
    fin: Option<u32>,
}

/// What two SYNs agree on.
#[derive(Clone, Copy, Debug)]
struct Agreed {
    peer_first: u32,
    peer_mss: u32,
    scale: u8,
}

/// Watches the segments of honest hosts as they leave them.
#[derive(Debug)]
pub struct Observer {
    ends: HashMap<Way, End>,
    /// Somebody speaks in the hosts' names, so what they agree on is not what
    /// was seen.
    deceived: bool,
}

fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

impl Observer {
    /// An observer of hosts that are perhaps `deceived` about each other.
    pub fn new(deceived: bool) -> Observer {
        Observer { ends: HashMap::new(), deceived }
    }

    /// Looks at a segment that leaves a host, and says what is wrong with it.
    /// `mtu` is the host's, `datagram` the length of what carries the segment.
    pub fn sees(&mut self, segment: &Segment, mtu: u16, datagram: usize) -> Result<(), String> {
        if datagram > usize::from(mtu) {
            return Err(format!("a datagram of {datagram} bytes, and the MTU is {mtu}"));
        }
        if segment.has(flag::RST) || self.deceived {
            return Ok(());
        }
        let way = (segment.src, segment.src_port, segment.dst, segment.dst_port);
        let back = (segment.dst, segment.dst_port, segment.src, segment.src_port);
        if segment.has(flag::SYN) {
            let known = self.ends.get(&way).is_some_and(|end| end.first == segment.seq);
            if !known {
                let end = End {
                    first: segment.seq,
                    mss: u32::from(segment.mss.unwrap_or(0)).max(MSS_MIN),
                    scale: segment.scale,
                    agreed: None,
                    edge: None,
                    ack: None,
                    tsval: None,
                    fin: None,
                };
                self.ends.insert(way, end);
            }
        }
        let peer = self.ends.get(&back).copied();
        let Some(end) = self.ends.get_mut(&way) else {
            return Err("a segment of a flow without a SYN".into());
        };
        if segment.has(flag::SYN) {
            // RFC 7323 section 2.2: an answer offers a scale only if the SYN
            // did, which our own SYN could not know.
            if segment.scale.is_some() && end.scale != segment.scale {
                return Err(format!("a scale of {:?} and then {:?}", end.scale, segment.scale));
            }
            end.scale = segment.scale;
        }
        if let Some(peer) = peer
            && !segment.has(flag::SYN)
            && end.agreed.is_none()
        {
            let scales = peer.scale.is_some();
            end.agreed = Some(Agreed {
                peer_first: peer.first,
                peer_mss: peer.mss,
                scale: end.scale.filter(|_| scales).unwrap_or(0),
            });
        }
        // Whoever spoke in the peer's name may have begun something else.
        let peer = peer.filter(|p| end.agreed.is_some_and(|agreed| agreed.peer_first == p.first));
        if let Some((value, _)) = segment.timestamps {
            if end.tsval.is_some_and(|last| before(value, last)) {
                return Err(format!("timestamp {value} after {:?}", end.tsval));
            }
            end.tsval = Some(value);
        }
        if segment.has(flag::ACK) {
            end.acknowledges(segment)?;
        }
        end.sends(segment, peer.as_ref())
    }
}

impl End {
    /// Acknowledgements and the window's right edge never move back (RFC 9293
    /// section 3.8.6).
    fn acknowledges(&mut self, segment: &Segment) -> Result<(), String> {
        if self.ack.is_some_and(|last| before(segment.ack, last)) {
            return Err(format!("acknowledges {} after {:?}", segment.ack, self.ack));
        }
        self.ack = Some(segment.ack);
        let syn = segment.has(flag::SYN);
        let scale = self.agreed.filter(|_| !syn).map_or(0, |agreed| agreed.scale);
        let edge = segment.ack.wrapping_add(u32::from(segment.window) << scale);
        // A SYN has no scale to say all that was promised since the first one.
        if let Some(last) = self.edge
            && before(edge, last)
        {
            if segment.has(flag::SYN) {
                return Ok(());
            }
            return Err(format!("the window shrinks by {}", last.wrapping_sub(edge)));
        }
        self.edge = Some(edge);
        Ok(())
    }

    /// Payload fits the peer's segments and its window, and ends at the FIN.
    fn sends(&mut self, segment: &Segment, peer: Option<&End>) -> Result<(), String> {
        let len = segment.payload_len;
        let after = segment.seq.wrapping_add(len);
        if len > 0 {
            let mss = self.agreed.map_or(MSS_DEFAULT, |agreed| agreed.peer_mss);
            // RFC 6691 section 2: options come off the MSS.
            if len + segment.options_len > mss {
                let options = segment.options_len;
                return Err(format!("{len} bytes and {options} of options, the MSS is {mss}"));
            }
            if let Some(edge) = peer.and_then(|peer| peer.edge)
                && before(edge, after)
            {
                let beyond = after.wrapping_sub(edge);
                return Err(format!("payload {beyond} bytes beyond the peer's window"));
            }
        }
        if let Some(fin) = self.fin
            && before(fin, after.wrapping_add(u32::from(segment.has(flag::FIN))))
        {
            return Err("something beyond its FIN".into());
        }
        if segment.has(flag::FIN) {
            self.fin = Some(after.wrapping_add(1));
        }
        Ok(())
    }
}
