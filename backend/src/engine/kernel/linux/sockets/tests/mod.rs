//! The engine over loopback, with the kernel on the other side. Time is the tests' own.

mod flows;
mod pressure;

use super::*;
use crate::engine::kernel::linux::contract::{HEADROOM, LOCAL, Subject, contract};

contract!(SocketsEngine);

type Rig = crate::engine::kernel::linux::contract::Rig<SocketsEngine>;

fn options<'a>(buffers: &'a Buffers, addresses: &'a [IpAddr]) -> Options<'a> {
    Options {
        addresses,
        mtu: 1500,
        flows_max: 16,
        shared_sends_max: 16,
        headroom: HEADROOM,
        buffers,
    }
}

impl Subject for SocketsEngine {
    type Host = ();
    type Counters = Counters;
    const STEP: u64 = 0;

    fn open(buffers: &Buffers, flows_max: u32) -> (SocketsEngine, ()) {
        let options = Options { flows_max, ..options(buffers, &[LOCAL]) };
        (SocketsEngine::new(&options).unwrap(), ())
    }

    fn buffers_of(&self, flow: Flow) -> u32 {
        self.flows[flow.index()].rx_bufs
    }

    fn end(self, (): ()) -> Counters {
        assert_eq!(self.counters.strange, 0);
        self.counters
    }
}

#[test]
fn what_is_in_the_way_of_a_ring_is_said() {
    for (errno, message) in [
        (
            libc::ENOSYS,
            "port sockets: there is no io_uring on this system: use another kind of port",
        ),
        (
            libc::EINVAL,
            "port sockets: this kernel's io_uring cannot do what is needed (io_uring_setup: Invalid \
             argument (os error 22)): use Linux 6.1 or later, or another kind of port",
        ),
        (
            libc::ENOMEM,
            "port sockets: io_uring_setup has no memory (Cannot allocate memory (os error 12)): \
             raise the limit of locked memory (`ulimit -l`), or lower the guest's flows_max",
        ),
    ] {
        let source = io::Error::from_raw_os_error(errno);
        let error = judge(SetupError { call: "io_uring_setup", source });
        assert_eq!(error.to_string(), message);
    }
    // Which of the two it is depends on this machine.
    let source = io::Error::from_raw_os_error(libc::EPERM);
    let error = judge(SetupError { call: "io_uring_setup", source });
    assert!(matches!(error, SocketsError::Filtered | SocketsError::TurnedOff(_)), "{error}");
}
