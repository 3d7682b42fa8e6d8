//! The configuration space, the MTU and the device status.

use paste_abi::vhost_user::{CONFIG_MAX, ConfigHeader};
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_net::VIRTIO_NET_S_LINK_UP;
use zerocopy::IntoBytes;

use crate::vhost::control::{Control, MTU_MIN, RINGS, Refusal};
use crate::vhost::message::{Answer, Request};

/// `struct virtio_net_config` (virtio 1.2 section 5.1.4): MAC address, status,
/// queue pairs, MTU; zeros for what comes with features that are not offered.
fn space(control: &Control) -> [u8; CONFIG_MAX] {
    let mut space = [0; CONFIG_MAX];
    space[..6].copy_from_slice(&control.options.mac);
    space[6..8].copy_from_slice(&(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
    space[8..10].copy_from_slice(&(RINGS as u16 / 2).to_le_bytes());
    space[10..12].copy_from_slice(&control.mtu.to_le_bytes());
    space
}

/// GET_CONFIG.
pub fn get(control: &mut Control, request: Request<'_>) -> Result<Answer, Refusal> {
    let header: ConfigHeader = request.read()?;
    let (offset, size) = (header.offset.get(), header.size.get());
    let space = space(control);
    let bytes = usize::try_from(offset)
        .ok()
        .and_then(|offset| space.get(offset..offset.checked_add(size as usize)?))
        .ok_or(Refusal::ConfigRange { offset, size })?;
    let mut answer = header.as_bytes().to_vec();
    answer.extend_from_slice(bytes);
    Ok(Answer::Data(answer))
}

/// SET_CONFIG: without a control queue no field may be written.
pub fn set(_: &mut Control, _: Request<'_>) -> Result<Answer, Refusal> {
    Err(Refusal::ConfigReadOnly)
}

/// NET_SET_MTU: what the front end promised its guest.
pub fn set_mtu(control: &mut Control, request: Request<'_>) -> Result<Answer, Refusal> {
    let (mtu, max) = (request.number()?, control.options.mtu);
    control.mtu = u16::try_from(mtu)
        .ok()
        .filter(|mtu| (MTU_MIN..=max).contains(mtu))
        .ok_or(Refusal::Mtu { mtu, max })?;
    Ok(Answer::Done)
}

/// SET_STATUS. Zero is a reset of the device (virtio 1.2 section 2.1): rings
/// stop, and keep their position for GET_VRING_BASE. It is not counted as a
/// reset of the driver, because front ends send it to pause a guest, too.
pub fn set_status(control: &mut Control, request: Request<'_>) -> Result<Answer, Refusal> {
    let value = request.number()?;
    let status = u8::try_from(value).map_err(|_| Refusal::Status(value))?;
    if status == 0 {
        control.stop_all();
        control.status = 0;
    } else {
        // The driver cannot take back the device's own bit.
        let own = control.status & VIRTIO_CONFIG_S_NEEDS_RESET as u8;
        control.status = status | own;
    }
    Ok(Answer::Done)
}

/// GET_STATUS.
pub fn get_status(control: &mut Control, _: Request<'_>) -> Result<Answer, Refusal> {
    Ok(Answer::number(u64::from(control.status)))
}
