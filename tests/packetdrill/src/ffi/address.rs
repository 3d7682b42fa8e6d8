//! Socket addresses in C's form.

use core::ffi::c_int;
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use libc::{sockaddr, socklen_t};

use crate::errno::{Errno, Result};

const IPV4_LEN: usize = size_of::<libc::sockaddr_in>();
const IPV6_LEN: usize = size_of::<libc::sockaddr_in6>();
/// Where the fields are, in both families: family (2 bytes), port (2, network
/// order), then the IPv4 address (4), or the flow label (4) and the IPv6 address.
const ADDRESS: usize = 4;
const ADDRESS_IPV6: usize = 8;

/// Reads an address of either family.
pub(super) fn parse(bytes: &[u8]) -> Result<SocketAddr> {
    let family = bytes.first_chunk().map(|b| c_int::from(u16::from_ne_bytes(*b)));
    let port = || u16::from_be_bytes([bytes[2], bytes[3]]);
    match family {
        Some(libc::AF_INET) if bytes.len() >= IPV4_LEN => {
            let mut octets = [0; 4];
            octets.copy_from_slice(&bytes[ADDRESS..ADDRESS + 4]);
            Ok(SocketAddr::new(Ipv4Addr::from(octets).into(), port()))
        }
        Some(libc::AF_INET6) if bytes.len() >= IPV6_LEN => {
            let mut octets = [0; 16];
            octets.copy_from_slice(&bytes[ADDRESS_IPV6..ADDRESS_IPV6 + 16]);
            Ok(SocketAddr::new(Ipv6Addr::from(octets).into(), port()))
        }
        Some(libc::AF_INET | libc::AF_INET6) | None => Err(Errno(libc::EINVAL)),
        Some(_) => Err(Errno(libc::EAFNOSUPPORT)),
    }
}

/// An address as C has it.
pub(super) fn bytes(address: SocketAddr) -> Vec<u8> {
    let (family, len) = match address {
        SocketAddr::V4(_) => (libc::AF_INET, IPV4_LEN),
        SocketAddr::V6(_) => (libc::AF_INET6, IPV6_LEN),
    };
    let mut bytes = vec![0; len];
    bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => bytes[ADDRESS..ADDRESS + 4].copy_from_slice(&v4.ip().octets()),
        SocketAddr::V6(v6) => {
            bytes[ADDRESS_IPV6..ADDRESS_IPV6 + 16].copy_from_slice(&v6.ip().octets());
        }
    }
    bytes
}

/// The bytes of an address that C passed.
///
/// # Safety
/// `address` is null or points to `len` readable bytes.
pub(super) unsafe fn read<'a>(address: *const sockaddr, len: socklen_t) -> Result<&'a [u8]> {
    if address.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: not null, and the caller vouches for the length.
    Ok(unsafe { core::slice::from_raw_parts(address.cast(), len as usize) })
}

/// Writes an address where C wants it, cut to the room there, and its whole
/// length. C may want none.
///
/// # Safety
/// `len` is null or points to a length; `address` is null or points to that
/// many writable bytes.
pub(super) unsafe fn write(
    from: SocketAddr,
    address: *mut sockaddr,
    len: *mut socklen_t,
) -> Result<()> {
    if address.is_null() {
        return Ok(());
    }
    if len.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    let bytes = bytes(from);
    // SAFETY: neither is null, and the caller vouches for both.
    unsafe {
        let room = (*len as usize).min(bytes.len());
        core::ptr::copy_nonoverlapping(bytes.as_ptr(), address.cast(), room);
        *len = bytes.len() as socklen_t;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for text in ["192.0.2.1:8080", "[2001:db8::1]:443"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(parse(&bytes(address)), Ok(address));
        }
    }

    #[test]
    fn refuses_short_and_foreign_addresses() {
        let mut v6 = bytes("[::1]:1".parse().unwrap());
        assert_eq!(parse(&v6[..27]), Err(Errno(libc::EINVAL)));
        assert_eq!(parse(&[]), Err(Errno(libc::EINVAL)));
        v6[..2].copy_from_slice(&(libc::AF_UNIX as u16).to_ne_bytes());
        assert_eq!(parse(&v6), Err(Errno(libc::EAFNOSUPPORT)));
    }
}
