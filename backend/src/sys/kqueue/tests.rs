//! On FreeBSD by the kernel; elsewhere by a stand-in.

use std::os::fd::AsFd;

use super::*;
use crate::sys::system::Kqueue;
use crate::sys::wake;

#[test]
fn names_what_is_readable() {
    let (waker_a, a) = wake::pair().unwrap();
    let (_waker_b, b) = wake::pair().unwrap();
    let mut events = EventLoop::<Kqueue>::new([(a.as_fd(), 7), (b.as_fd(), 8)]).unwrap();
    assert!(events.wait(Some(Duration::ZERO)).unwrap().is_empty());
    waker_a.wake();
    assert_eq!(events.wait(None).unwrap(), [7]);
    // As long as it is so.
    assert_eq!(events.wait(None).unwrap(), [7]);
    a.drain();
    assert!(events.wait(Some(Duration::from_micros(1))).unwrap().is_empty());
}

#[test]
fn a_hang_up_is_readable() {
    let (waker, wakeups) = wake::pair().unwrap();
    let mut events = EventLoop::<Kqueue>::new([(wakeups.as_fd(), 1)]).unwrap();
    drop(waker);
    assert_eq!(events.wait(None).unwrap(), [1]);
}

#[test]
fn more_than_one_wait_takes_come_in_turn() {
    let pairs: Vec<_> = (0..EVENTS_MAX + 3).map(|_| wake::pair().unwrap()).collect();
    let watched = pairs.iter().zip(0..).map(|((_, wakeups), token)| (wakeups.as_fd(), token));
    let mut events = EventLoop::<Kqueue>::new(watched).unwrap();
    pairs.iter().for_each(|(waker, _)| waker.wake());
    let mut left: Vec<Token> = (0..EVENTS_MAX as Token + 3).collect();
    for _ in 0..2 {
        let ready = events.wait(Some(Duration::ZERO)).unwrap().to_vec();
        assert!(!ready.is_empty() && ready.len() <= EVENTS_MAX);
        for token in ready {
            assert!(pairs[token as usize].1.drain());
            left.retain(|&other| other != token);
        }
    }
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_change_is_answered() {
    let answer = |flags, data| receipt(&Kevent { flags, data, ..registration(3, 9) });
    assert!(answer(EV_ERROR, 0).is_ok());
    let refused = answer(EV_ERROR, libc::EBADF.into()).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EBADF));
    // Nothing that the manual allows.
    assert!(answer(0, 0).is_err());
    assert!(answer(EV_ERROR, i64::MAX).is_err());
    let queue = Kqueue::open().unwrap();
    // A number that no descriptor can have.
    let refused = watch(&queue, RawFd::MAX, 1).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EBADF));
}

#[test]
fn an_event_names_its_token() {
    let event = Kevent { flags: 0, ..registration(3, Token::MAX) };
    assert_eq!(ready(&event), Some(Token::MAX));
    // Hung up (EV_EOF), with an error of the socket's in its data.
    assert_eq!(ready(&Kevent { flags: 0x8000, data: 54, ..event }), Some(Token::MAX));
    assert_eq!(ready(&Kevent { flags: EV_ERROR, ..event }), None);
    assert_eq!(ready(&Kevent { filter: -2, ..event }), None);
    assert_eq!(ready(&Kevent { udata: usize::MAX, ..event }), None);
}

#[test]
fn timeouts_are_exact_and_have_an_end() {
    assert_eq!(cut(Duration::ZERO), Timeout { s: 0, ns: 0 });
    assert_eq!(cut(Duration::from_nanos(1_500_000_001)), Timeout { s: 1, ns: 500_000_001 });
    assert_eq!(cut(Duration::MAX), Timeout { s: i64::from(i32::MAX), ns: 0 });
}
