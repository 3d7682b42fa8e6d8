//! How the lanes of a guest hand its queue pairs to each other.
//!
//! The first lane has the session. It lends a pair by a message in a ring and calls it
//! home by another; each is followed by a wake-up. What is asked of a lane is always
//! answered, so that the first one knows who has what, and at most two messages to a lane
//! are under way: one that lends or calls home, and one that calls home after it.

use rtrb::{Consumer, Producer, RingBuffer};

use crate::sys::wake::Waker;
use crate::vhost::{Device, Pair, RingError};

/// Messages each way at once.
const MESSAGES: usize = 8;

/// From the first lane to another one.
#[derive(Debug)]
enum ToLane {
    /// Move data through this pair; with `disown`, for a driver that was there before this
    /// host.
    Lend { pair: Box<Pair>, disown: bool },
    /// Give it back; with `forget`, the guest as it was is gone, and so is all that it had
    /// under way.
    CallHome { forget: bool },
}

/// From a lane to the first one.
#[derive(Debug)]
enum FromLane {
    /// Here it is, if there was one, and what was wrong with it.
    Back {
        /// It was called home; otherwise it can no longer be used.
        called: bool,
        pair: Option<Box<(Pair, Option<RingError>)>>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Home,
    Lent,
    CalledHome,
}

/// A lane, as the first one sees it.
#[derive(Debug)]
struct Other {
    to: Producer<ToLane>,
    from: Consumer<FromLane>,
    waker: Waker,
    state: State,
    /// It is still to be told that the guest is gone.
    forget: bool,
    /// It is still to be told that its driver was there before this host.
    disown: bool,
}

/// The other lanes of a guest, as the first one sees them: the one with pair 1, then the
/// one with pair 2.
#[derive(Debug, Default)]
pub struct Others(Vec<Other>);

/// The first lane, as another one sees it.
#[derive(Debug)]
pub struct First {
    to: Producer<FromLane>,
    from: Consumer<ToLane>,
    waker: Waker,
}

/// Joins a lane, woken by `lane`, to the first one, woken by `first`.
pub fn join(others: &mut Others, first: Waker, lane: Waker) -> First {
    let (to, from) = RingBuffer::new(MESSAGES);
    let (back, answers) = RingBuffer::new(MESSAGES);
    let (state, waker) = (State::Home, lane);
    others.0.push(Other { to, from: answers, waker, state, forget: false, disown: false });
    First { to: back, from, waker: first }
}

impl Other {
    fn call_home(&mut self) {
        let forget = std::mem::take(&mut self.forget);
        self.state = State::CalledHome;
        self.tell(ToLane::CallHome { forget });
    }

    fn tell(&mut self, message: ToLane) {
        let told = self.to.push(message);
        debug_assert!(told.is_ok(), "a lane is told nothing before it has answered");
        self.waker.wake();
    }
}

impl Others {
    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes pairs that have come back. What was wrong with one is in the device then. True
    /// if any was.
    pub fn collect(&mut self, device: &mut Device) -> bool {
        let mut broken = false;
        for (index, other) in self.0.iter_mut().enumerate() {
            while let Ok(FromLane::Back { called, pair }) = other.from.pop() {
                // One that is called home while it comes by itself has yet to answer.
                if called || other.state == State::Lent {
                    other.state = State::Home;
                }
                if let Some((pair, fault)) = pair.map(|pair| *pair) {
                    device.put_back(index + 1, pair);
                    if let Some(error) = fault {
                        device.broke_elsewhere(index + 1, error);
                        broken = true;
                    }
                }
            }
            // A lane that was lost has nothing any more, and its pair is lost with it.
            if other.from.is_abandoned() {
                other.state = State::Home;
            } else if other.forget && other.state == State::Home {
                other.call_home();
            }
        }
        broken
    }

    /// Calls all pairs home. True if they are there.
    pub fn call_home(&mut self) -> bool {
        for other in self.0.iter_mut().filter(|other| other.state == State::Lent) {
            other.call_home();
        }
        self.0.iter().all(|other| other.state == State::Home)
    }

    /// Lends every pair that data can pass through, if all are at home.
    pub fn lend(&mut self, device: &mut Device) {
        if self.0.iter().any(|other| other.state != State::Home) {
            return;
        }
        for (index, other) in self.0.iter_mut().enumerate() {
            if other.from.is_abandoned() {
                continue;
            }
            if let Some(pair) = device.lend(index + 1) {
                other.state = State::Lent;
                let disown = std::mem::take(&mut other.disown);
                other.tell(ToLane::Lend { pair: Box::new(pair), disown });
            }
        }
    }

    /// The driver was there before this host: each lane is told when it gets its pair.
    pub fn disown(&mut self) {
        self.0.iter_mut().for_each(|other| other.disown = true);
    }

    /// The guest as it was is gone: all lanes are told so.
    pub fn forget(&mut self) {
        for other in &mut self.0 {
            (other.forget, other.disown) = (true, false);
            if other.state != State::CalledHome {
                other.call_home();
            }
        }
    }
}

/// What a lane has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It has a pair.
    Lent,
    /// Likewise, and its driver was there before this host.
    LentBefore,
    /// It has none any more.
    CalledHome,
    /// Likewise, and all that the guest had under way is void.
    Forget,
}

impl First {
    /// Does what the first lane said next, and says what that was.
    pub fn next(&mut self, device: &mut Device) -> Option<Told> {
        match self.from.pop().ok()? {
            ToLane::Lend { pair, disown } => {
                device.use_pair(*pair);
                Some(if disown { Told::LentBefore } else { Told::Lent })
            }
            ToLane::CallHome { forget } => {
                self.back(device, true);
                Some(if forget { Told::Forget } else { Told::CalledHome })
            }
        }
    }

    /// Gives back, unasked, a pair that can no longer be used.
    pub fn give_back(&mut self, device: &mut Device) {
        self.back(device, false);
    }

    fn back(&mut self, device: &mut Device, called: bool) {
        let pair = device.return_pair().map(Box::new);
        let told = self.to.push(FromLane::Back { called, pair });
        debug_assert!(told.is_ok(), "as many places as messages under way");
        self.waker.wake();
    }

    /// The first lane was lost: nobody asks for the pair any more.
    pub fn is_gone(&self) -> bool {
        self.from.is_abandoned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::wake;
    use crate::vhost::DeviceOptions;

    fn device(pairs: usize) -> Device {
        Device::new(DeviceOptions {
            name: "web1".to_owned(),
            mac: [2; 6],
            mtu: 1500,
            csum: false,
            segments: false,
            region: None,
            queue_size_max: 256,
            pairs,
        })
    }

    /// Pairs that cannot be used stay; whoever is called home answers, and who is gone is
    /// no longer waited for.
    #[test]
    fn everybody_is_home_in_the_end() {
        let (mut home, mut lane) = (device(3), device(1));
        let mut others = Others::default();
        let [(first, woken), (other, called), (third, _)] = [(); 3].map(|()| wake::pair().unwrap());
        let mut one = join(&mut others, first.clone(), other);
        let two = join(&mut others, first, third);
        others.lend(&mut home);
        assert!(others.call_home(), "nothing was to be lent");
        assert_eq!(one.next(&mut lane), None);

        others.forget();
        assert!(!others.call_home(), "they have not answered");
        assert!(called.drain());
        assert_eq!(one.next(&mut lane), Some(Told::Forget));
        assert!(woken.drain());
        assert!(!others.collect(&mut home));
        assert!(!others.call_home(), "one of them has not answered");
        // Told once more before it has answered: it is told again when it has.
        others.forget();
        drop(two);
        assert!(!others.collect(&mut home));
        assert_eq!(one.next(&mut lane), Some(Told::Forget));
        assert!(!others.collect(&mut home));
        assert!(others.call_home());
        assert!(!one.is_gone());
        drop(others);
        assert!(one.is_gone());
    }
}
