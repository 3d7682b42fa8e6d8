//! Setting up, starting and stopping rings.

use std::os::fd::OwnedFd;

use paste_abi::vhost_user::{VRING_INDEX_MASK, VringAddr, VringState};
use zerocopy::IntoBytes;

use crate::vhost::control::{Control, Refusal};
use crate::vhost::message::{Answer, Request};
use crate::vhost::queue::SetupError;
use crate::vhost::signal;

fn refuse(ring: usize) -> impl Fn(SetupError) -> Refusal {
    move |source| Refusal::Ring { ring, source }
}

/// The ring and the number of a message with a [`VringState`].
fn state(control: &Control, request: &Request<'_>) -> Result<(usize, u32), Refusal> {
    let state: VringState = request.read()?;
    Ok((control.ring_index(u64::from(state.index.get()))?, state.num.get()))
}

/// The ring of a message with a descriptor, and the descriptor.
fn signal(
    control: &Control,
    request: &mut Request<'_>,
) -> Result<(usize, Option<OwnedFd>), Refusal> {
    let ring = control.ring_index(request.number()? & VRING_INDEX_MASK)?;
    Ok((ring, request.descriptor().map(signal::check).transpose()?))
}

/// SET_VRING_NUM.
pub fn set_num(control: &mut Control, request: Request<'_>) -> Result<Answer, Refusal> {
    let (ring, size) = state(control, &request)?;
    control.rings[ring].set_size(size).map_err(refuse(ring))?;
    Ok(Answer::Done)
}

/// SET_VRING_ADDR.
pub fn set_addr(control: &mut Control, request: Request<'_>) -> Result<Answer, Refusal> {
    let addresses: VringAddr = request.read()?;
    let ring = control.ring_index(u64::from(addresses.index.get()))?;
    if addresses.flags.get() != 0 {
        return Err(Refusal::Logging);
    }
    control.rings[ring].set_addresses(addresses).map_err(refuse(ring))?;
    control.connect(ring)?;
    Ok(Answer::Done)
}

/// SET_VRING_BASE.
pub fn set_base(control: &mut Control, request: Request<'_>) -> Result<Answer, Refusal> {
    let (ring, base) = state(control, &request)?;
    control.rings[ring].set_base(base).map_err(refuse(ring))?;
    Ok(Answer::Done)
}

/// GET_VRING_BASE: stops the ring. Nothing is in flight: a chain is used as soon
/// as it is taken, and the table settles the rings before this runs.
pub fn get_base(control: &mut Control, request: Request<'_>) -> Result<Answer, Refusal> {
    let (ring, _) = state(control, &request)?;
    let num = u32::from(control.stop(ring)).into();
    let answer = VringState { index: (ring as u32).into(), num };
    Ok(Answer::Data(answer.as_bytes().to_vec()))
}

/// SET_VRING_KICK: starts the ring. The protocol starts it at the first kick;
/// a driver that was here before us may have kicked long ago.
pub fn set_kick(control: &mut Control, mut request: Request<'_>) -> Result<Answer, Refusal> {
    let (ring, kick) = signal(control, &mut request)?;
    let anew = control.rings[ring].start(kick);
    control.generation += 1;
    control.connect(ring)?;
    if anew && ring == 0 {
        control.counters.resets += 1;
    }
    Ok(Answer::Done)
}

/// SET_VRING_CALL.
pub fn set_call(control: &mut Control, mut request: Request<'_>) -> Result<Answer, Refusal> {
    let (ring, call) = signal(control, &mut request)?;
    // What was published before may have been signalled to nobody.
    if let Some(call) = &call {
        let _ = signal::raise(call);
    }
    control.rings[ring].signals.call = call;
    Ok(Answer::Done)
}

/// SET_VRING_ERR.
pub fn set_err(control: &mut Control, mut request: Request<'_>) -> Result<Answer, Refusal> {
    let (ring, err) = signal(control, &mut request)?;
    control.rings[ring].signals.err = err;
    Ok(Answer::Done)
}

/// SET_VRING_ENABLE. QEMU sends it before SET_FEATURES.
pub fn set_enable(control: &mut Control, request: Request<'_>) -> Result<Answer, Refusal> {
    let (ring, enabled) = state(control, &request)?;
    control.rings[ring].enabled = match enabled {
        0 => false,
        1 => true,
        other => return Err(Refusal::NotBoolean(other)),
    };
    Ok(Answer::Done)
}

/// RESET_OWNER: deprecated, and what it disables is stopped already. What was
/// negotiated stays, as front ends that still send it expect.
pub fn reset_owner(_: &mut Control, _: Request<'_>) -> Result<Answer, Refusal> {
    Ok(Answer::Done)
}

/// RESET_DEVICE: as it was before the driver came; the session goes on.
pub fn reset_device(control: &mut Control, _: Request<'_>) -> Result<Answer, Refusal> {
    for ring in 0..control.rings.len() {
        control.rings[ring].reset();
    }
    control.recover();
    control.features = None;
    control.status = 0;
    control.counters.resets += 1;
    control.generation += 1;
    // A reset unmaps shared memory; it is mapped again with the next driver.
    if let Some(backend) = &mut control.backend {
        backend.forget();
    }
    Ok(Answer::Done)
}
