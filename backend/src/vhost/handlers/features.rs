//! Features of the device and of the protocol.

use paste_abi::vhost_user::F_PROTOCOL_FEATURES;

use crate::vhost::control::{Control, Refusal};
use crate::vhost::message::{Answer, Request};

/// GET_FEATURES.
pub fn get(control: &mut Control, _: Request<'_>) -> Result<Answer, Refusal> {
    Ok(Answer::number(control.offered()))
}

/// SET_FEATURES. Without F_PROTOCOL_FEATURES rings are enabled from the start;
/// with it they are as SET_VRING_ENABLE left them, which may have come before.
pub fn set(control: &mut Control, request: Request<'_>) -> Result<Answer, Refusal> {
    let features = request.number()?;
    let foreign = features & !control.offered();
    if foreign != 0 {
        return Err(Refusal::NotOffered(foreign));
    }
    let running = control.rings.iter().any(|ring| ring.is_ready());
    if running && control.features != Some(features) {
        return Err(Refusal::FeaturesInUse);
    }
    control.features = Some(features);
    if features & F_PROTOCOL_FEATURES == 0 {
        for ring in control.rings.iter_mut() {
            ring.enabled = true;
        }
    }
    for ring in 0..control.rings.len() {
        control.connect(ring)?;
    }
    control.offer_region();
    Ok(Answer::Done)
}

/// SET_OWNER: nothing depends on it.
pub fn set_owner(_: &mut Control, _: Request<'_>) -> Result<Answer, Refusal> {
    Ok(Answer::Done)
}

/// GET_PROTOCOL_FEATURES.
pub fn get_protocol(control: &mut Control, _: Request<'_>) -> Result<Answer, Refusal> {
    Ok(Answer::number(control.offered_protocol()))
}

/// SET_PROTOCOL_FEATURES.
pub fn set_protocol(control: &mut Control, request: Request<'_>) -> Result<Answer, Refusal> {
    let features = request.number()?;
    let foreign = features & !control.offered_protocol();
    if foreign != 0 {
        return Err(Refusal::NotOffered(foreign));
    }
    control.protocol = features;
    control.offer_region();
    Ok(Answer::Done)
}

/// GET_QUEUE_NUM: rings. QEMU reads it as queue pairs, others as rings; all of
/// them only ask whether it is enough for one pair.
pub fn get_queue_num(control: &mut Control, _: Request<'_>) -> Result<Answer, Refusal> {
    Ok(Answer::number(control.rings.len() as u64))
}
