//! The virtio-pmem device (virtio 1.2 section 5.19, device 27): its configuration
//! space, and what it answers to the requests of its one queue.
//!
//! The device shows the guest a range of memory, and makes durable on request what
//! the guest has stored there. Where the range lies is said by shared memory
//! region 0 ([`F_SHMEM_REGION`]) or, without that feature, by the configuration
//! space.
//!
//! The model is given the bytes of a request and gives those of the response. It
//! knows nothing of rings and descriptors, nor of how stores become durable: the
//! caller reads and writes the one and does the other.

/// Feature bit VIRTIO_PMEM_F_SHMEM_REGION: the range is shared memory region 0,
/// and the driver ignores the configuration space.
pub const F_SHMEM_REGION: u32 = 0;

/// Bytes of a request, `struct virtio_pmem_req`.
pub const REQUEST_LEN: usize = 4;
/// Bytes of a response, `struct virtio_pmem_resp`.
pub const RESPONSE_LEN: usize = 4;
/// Bytes of the configuration space, `struct virtio_pmem_config`.
pub const CONFIG_LEN: usize = 16;

/// Everything that was stored is to be made durable.
const FLUSH: u32 = 0;

/// Where the range lies in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Guest address of the first byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl Config {
    /// With [`F_SHMEM_REGION`]: both fields "SHOULD be 0" (section 5.19.5).
    pub const SHARED_MEMORY: Config = Config { start: 0, size: 0 };

    /// The configuration space.
    pub fn bytes(&self) -> [u8; CONFIG_LEN] {
        let mut bytes = [0; CONFIG_LEN];
        bytes[..8].copy_from_slice(&self.start.to_le_bytes());
        bytes[8..].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }
}

/// What the driver is told of a request: "0" for success and "-1" for failure
/// (section 5.19.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All that was stored before the request is durable.
    Done,
    /// It may not be, or the request was none.
    Failed,
}

impl Outcome {
    /// The response.
    pub fn bytes(self) -> [u8; RESPONSE_LEN] {
        match self {
            Outcome::Done => 0,
            Outcome::Failed => -1i32,
        }
        .to_le_bytes()
    }
}

/// The outcome of a request. `flush` makes everything durable that was stored
/// before the request was made, and says whether that succeeded.
///
/// A request that ends before its type does, and one of a type that is not known,
/// fail; what follows the type is ignored.
pub fn handle(request: &[u8], flush: impl FnOnce() -> bool) -> Outcome {
    let kind = request.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    if kind == Some(FLUSH) && flush() { Outcome::Done } else { Outcome::Failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_space_is_two_little_endian_numbers() {
        let config = Config { start: 0x0102_0304_0506_0708, size: 0x1112_1314_1516_1718 };
        let want: [u8; CONFIG_LEN] =
            [8, 7, 6, 5, 4, 3, 2, 1, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11];
        assert_eq!(config.bytes(), want);
        assert_eq!(Config::SHARED_MEMORY.bytes(), [0; CONFIG_LEN]);
    }

    #[test]
    fn a_flush_is_done_when_the_stores_are_durable_and_not_otherwise() {
        let mut asked = 0;
        for durable in [true, false] {
            let outcome = handle(&[0; REQUEST_LEN], || {
                asked += 1;
                durable
            });
            assert_eq!(outcome, if durable { Outcome::Done } else { Outcome::Failed });
        }
        assert_eq!(asked, 2);
        assert_eq!(Outcome::Done.bytes(), [0; RESPONSE_LEN]);
        assert_eq!(Outcome::Failed.bytes(), [0xff; RESPONSE_LEN]);
        // What a later version of the driver may add.
        assert_eq!(handle(&[0, 0, 0, 0, 7, 7], || true), Outcome::Done);
    }

    #[test]
    fn what_is_no_flush_fails_and_flushes_nothing() {
        let unasked = || -> bool { panic!("flushed") };
        for len in 0..REQUEST_LEN {
            assert_eq!(handle(&[0; REQUEST_LEN][..len], unasked), Outcome::Failed);
        }
        for kind in [1, 2, 0x100, 0x0100_0000, u32::MAX] {
            assert_eq!(handle(&kind.to_le_bytes(), unasked), Outcome::Failed);
        }
    }
}
