//! What is refused before a device is touched, and how that is said.

use super::super::XdpDevices;
use super::*;

fn wanted(buffer_size: u32, mtu: u16) -> Wanted {
    Wanted {
        name: "eth1".to_owned(),
        queue: None,
        mode: None,
        mtu,
        stations: Vec::new(),
        devices: XdpDevices::default(),
        region: "memory".to_owned(),
        chunk_size: buffer_size,
    }
}

#[test]
fn frames_have_to_fit_buffers_and_buffers_the_kernel() {
    for (buffer_size, mtu) in [(2048, 1500), (2048, 1774), (4096, 3822)] {
        assert!(judge_size(&wanted(buffer_size, mtu)).is_ok(), "{buffer_size}, {mtu}");
    }
    for (buffer_size, mtu, message) in [
        (
            2048,
            1775,
            "port xdp:eth1: an MTU of 1775 does not fit buffers of 2048 bytes, of which the \
             kernel keeps the first 256 for itself: set `mtu` to 1774 at most, or make the \
             region's buffers larger",
        ),
        (
            8192,
            1500,
            "port xdp:eth1: AF_XDP takes buffers of 2048 to 4096 bytes, and the region's have \
             8192: make a region with another `buffer_size`",
        ),
    ] {
        let error = judge_size(&wanted(buffer_size, mtu)).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}
