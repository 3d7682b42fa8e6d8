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
fn buffers_have_to_be_those_of_the_kernel() {
    for buffer_size in [2048, 4096] {
        assert!(judge_size(&wanted(buffer_size, 1500)).is_ok());
    }
    let error = judge_size(&wanted(8192, 1500)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "port xdp:eth1: AF_XDP takes buffers of 2048 to 4096 bytes, and the region's have \
         8192: make a region with another `buffer_size`"
    );
}

#[test]
fn packets_that_fit_no_buffer_are_known() {
    // What arrives in one buffer, and what in several; and what the guest is to see then.
    for (buffer_size, mtu, is_long, own) in [
        (2048, 1500, false, 1500),
        (2048, 1774, false, 1774),
        (2048, 1775, true, 1775),
        (2048, 9000, true, 1965),
        (4096, 3822, false, 3822),
        (4096, 9000, true, 4013),
    ] {
        let wanted = wanted(buffer_size, mtu);
        assert_eq!((wanted.is_long(), own_mtu(&wanted)), (is_long, own), "{buffer_size} {mtu}");
    }
    assert_eq!(
        wanted(2048, 1775).too_long().to_string(),
        "port xdp:eth1: an MTU of 1775 does not fit buffers of 2048 bytes, of which the kernel \
         keeps the first 256 for itself, and frames in several buffers are not to be had with \
         this kernel and driver (Linux 6.6): set `mtu` to 1774 at most, or make the region's \
         buffers larger"
    );
}
