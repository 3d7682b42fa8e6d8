//! The configuration space, the MTU and the device status.

use paste_abi::vhost_user::ConfigHeader;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use zerocopy::IntoBytes;

use crate::vhost::control::{CONFIG_MTU, Control, MTU_MIN, Refusal};
use crate::vhost::message::{Answer, Request};

/// GET_CONFIG.
pub fn get(control: &mut Control, request: Request<'_>) -> Result<Answer, Refusal> {
    let header: ConfigHeader = request.read()?;
    let (offset, size) = (header.offset.get(), header.size.get());
    let bytes = usize::try_from(offset)
        .ok()
        .and_then(|offset| control.config.get(offset..offset.checked_add(size as usize)?))
        .ok_or(Refusal::ConfigRange { offset, size })?;
    let mut answer = header.as_bytes().to_vec();
    answer.extend_from_slice(bytes);
    Ok(Answer::Data(answer))
}

/// SET_CONFIG: no field of any device here may be written.
pub fn set(_: &mut Control, _: Request<'_>) -> Result<Answer, Refusal> {
    Err(Refusal::ConfigReadOnly)
}

/// NET_SET_MTU: what the front end promised its guest.
pub fn set_mtu(control: &mut Control, request: Request<'_>) -> Result<Answer, Refusal> {
    let (mtu, max) = (request.number()?, control.model.mtu_max);
    let mtu = u16::try_from(mtu)
        .ok()
        .filter(|mtu| (MTU_MIN..=max).contains(mtu))
        .ok_or(Refusal::Mtu { mtu, max })?;
    control.config[CONFIG_MTU].copy_from_slice(&mtu.to_le_bytes());
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
